//! The runner: what this binary is when a [`WasmEngine`](crate::WasmEngine) starts it as a child.
//!
//! A runner is handed one end of a socketpair as its standard input, is told by the first packet what it is
//! to be, and ends when the node's end closes. It owns no file, no address and no secret, and reaches
//! nothing that the node did not hand it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use crate::wasm::compile_child;
use crate::wasm::serve;
use crate::wasm::socket;
use crate::wasm::sys;
use crate::wasm::wire::{self, Packet, Setup};

/// What a runner does with the directories of an execution in place of running it, as if a guest had taken
/// it over; what it returns becomes the execution's standard output.
#[doc(hidden)]
pub type Takeover = fn(Vec<OwnedFd>) -> Vec<u8>;

/// Is a runner until the node no longer needs one. The first and only thing that a process started as one may do: it
/// closes every descriptor but the standard three.
pub fn main() -> ExitCode {
    exit(run(None, None))
}

/// A runner that was taken over by a guest: for tests of the sandbox, which it is in like any other.
#[doc(hidden)]
pub fn main_taken_over(takeover: Takeover) -> ExitCode {
    exit(run(Some(takeover), None))
}

/// The same for the child that compiles, which a module may have taken over. What `takeover` returns is why the
/// module is refused.
#[doc(hidden)]
pub fn main_compiler_taken_over(takeover: Takeover) -> ExitCode {
    exit(run(None, Some(takeover)))
}

fn exit(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            // The node keeps the end of what a runner writes here, to say why it ended.
            eprintln!("runner: {text}");
            ExitCode::FAILURE
        }
    }
}

fn run(takeover: Option<Takeover>, compiler: Option<Takeover>) -> Result<(), String> {
    sys::close_inherited();
    let end = take_stdin().map_err(|error| format!("no socket as standard input: {error}"))?;
    let mut buffer = socket::buffer();
    let mut fds = Vec::new();
    let length = socket::receive(&end, &mut buffer, &mut fds).map_err(|error| error.to_string())?;
    let mut setup = None;
    wire::decode(&buffer[..length], &mut fds, |message: Setup, fds| setup = Some((message, fds)))
        .map_err(|error| error.to_string())?;
    let refuse = |text: String| {
        let mut packet = Packet::default();
        if let Ok(message) = wire::encode(&wire::ToNode::Refused(wire::shorten(text.clone())), vec![])
            && packet.push(message).is_ok()
        {
            // When it cannot be said there, the exit code and the text on stderr still say it.
            let _ = socket::send(end.as_fd(), &packet);
        }
        text
    };
    match setup {
        Some((Setup::Serve(setup), fds)) => {
            serve::prepare(&setup, fds, takeover).map_err(refuse).and_then(|runner| runner.serve(end))
        }
        Some((Setup::Compile(setup), fds)) => compile_child::run(&end, &setup, fds, compiler),
        None => Ok(()),
    }
}

/// The socket, with nothing in its place: a guest's standard input is never the node.
fn take_stdin() -> io::Result<OwnedFd> {
    let end = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok(end)
}
