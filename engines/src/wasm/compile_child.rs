//! The child that compiles one module and ends: compiling cannot be interrupted, and its memory comes back
//! only this way.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::sandbox::{self, Roots};
use super::wire::{self, Compile, Compiled, Packet, shorten};
use super::{check, config, guest, socket};
use crate::runner::Takeover;

/// The seals of a file that nobody can change any more, its sender included.
pub(crate) const SEALS: SealFlags =
    SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK).union(SealFlags::SEAL);

/// Compiles what the node sent and answers once.
pub(crate) fn run(
    end: &OwnedFd,
    setup: &Compile,
    mut fds: Vec<OwnedFd>,
    takeover: Option<Takeover>,
) -> Result<(), String> {
    let file = fds.pop().map(File::from).ok_or_else(|| "no module".to_owned());
    let (answer, fds) = match file.and_then(|file| compile(file, setup, takeover)) {
        Ok(Ok((memory_minimum, code))) => (Compiled::Code { memory_minimum }, vec![code]),
        Ok(Err(refused)) => (Compiled::Refused(shorten(refused)), vec![]),
        Err(failed) => (Compiled::Failed(shorten(failed)), vec![]),
    };
    let mut packet = Packet::default();
    let message = wire::encode(&answer, fds).map_err(text)?;
    packet.push(message).map_err(|_| "the answer does not fit a packet")?;
    socket::send(end, &packet).map_err(text)
}

/// The outer error is the node's fault, the inner the module's.
fn compile(
    mut file: File,
    setup: &Compile,
    takeover: Option<Takeover>,
) -> Result<Result<(u64, OwnedFd), String>, String> {
    let engine = config::compiler().map_err(text)?;
    let functions = guest::functions(&engine).map_err(text)?;
    sandbox::enter(&setup.sandbox, &Roots { input: None, output: None })?;
    if let Some(takeover) = takeover {
        return Ok(Err(String::from_utf8_lossy(&takeover(vec![file.into()])).into_owned()));
    }
    let mut wasm = Vec::new();
    file.read_to_end(&mut wasm).map_err(text)?;
    let facts = match check::module(&wasm, &setup.entrypoint, &functions) {
        Ok(facts) => facts,
        Err(refused) => return Ok(Err(refused)),
    };
    let code = match engine.precompile_module(&wasm) {
        Ok(code) => code,
        Err(error) => return Ok(Err(format!("it does not compile: {error:#}"))),
    };
    Ok(Ok((facts.memory_minimum, sealed(&code).map_err(text)?)))
}

fn sealed(code: &[u8]) -> std::io::Result<OwnedFd> {
    let fd = memfd_create("compiled", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(code)?;
    fcntl_add_seals(&file, SEALS)?;
    Ok(file.into())
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
