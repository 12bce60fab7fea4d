//! The `cardume` command line.
//!
//! It owns verbs, flags, help texts, output formats, progress and exit codes, and decides which node a command talks
//! to. It never holds logic that another client would need: what a job is comes from `job`, everything that happens
//! is asked of a node over its HTTP API, and only [`embedded`] and `serve` start one.
//!
//! ```
//! // Everything a program may rely on is text and numbers:
//! let failure = cli::Failure::unreachable("no node could be reached").hint("start one with `cardume serve`");
//! assert_eq!(failure.exit, 4);
//! assert_eq!(failure.to_json()["error"]["code"], "Unreachable");
//! ```

mod args;
pub mod client;
mod commands;
mod content;
pub mod embedded;
pub mod failure;
pub mod output;
mod pages;
mod progress;
mod run;
mod signals;
mod spec;
mod target;
mod tree;
pub mod units;
mod values;
mod watch;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

pub use failure::Failure;

use args::run::Wasm;
use args::{Cli, Command, Node};
use failure::{Outcome, exit};
use output::{Format, print_document, say_always};

/// Reads the command line, does what it says, and gives the process's exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let format = format_of(&cli);
    let outcome = execute(cli);
    ExitCode::from(match outcome {
        Ok(code) => code,
        Err(failure) => {
            report(&failure, format);
            failure.exit
        }
    })
}

/// Does what the command line says.
fn execute(cli: Cli) -> Outcome {
    let global = &cli.global;
    match cli.command {
        Command::Version(ref output) => commands::about::version(&with_root(output, cli.output)),
        Command::Completion { shell } => commands::about::completion(shell),
        Command::Serve(mut flags) => {
            flags.output = with_root(&flags.output, cli.output);
            commands::serve::run(global, &flags)
        }
        Command::Testnet(mut verb) => {
            verb.place_mut().output = with_root(&verb.place_mut().output, cli.output);
            light(interruptible(commands::testnet::run(&verb)))
        }
        Command::Id(ref output) => light(commands::about::id(global, &with_root(output, cli.output))),
        Command::Node(mut verb) => {
            let (Node::List(output) | Node::Describe { output, .. }) = &mut verb;
            *output = with_root(output, cli.output);
            light(commands::node::run(global, &verb))
        }
        Command::Data(mut verb) => {
            let output = verb.output_mut();
            *output = with_root(output, cli.output);
            light(commands::data::run(global, &verb))
        }
        Command::Job(mut verb) => {
            verb.set_root_output(cli.output);
            light(commands::job::run(global, &verb))
        }
        Command::Wasm(mut verb) => {
            let Wasm::Run(flags) = &mut verb;
            flags.waiting.format = flags.waiting.format.or(cli.output);
            light(commands::wasm::run(global, &verb))
        }
    }
}

/// The form that was asked for after the verb, else before it.
fn with_root(output: &args::Output, root: Option<Format>) -> args::Output {
    args::Output { format: output.format.or(root) }
}

/// Runs a command on this thread: a client needs no more, and starting less is faster.
fn light(command: impl Future<Output = Outcome>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::local("cannot start", &error))?;
    let outcome = runtime.block_on(command);
    // Threads that still read a file or stdin would keep the process from ending.
    runtime.shutdown_background();
    outcome
}

/// Ends a command at Ctrl-C, so that what it had begun is removed again.
async fn interruptible(command: impl Future<Output = Outcome>) -> Outcome {
    signals::Signals::new()?.or(command, || Failure::silent(exit::INTERRUPTED)).await
}

/// Says why a command failed: to people on stderr, to programs on stdout too.
fn report(failure: &Failure, format: Option<Format>) {
    if failure.silent {
        return;
    }
    if let Some(format) = format.filter(|format| format.is_document()) {
        // A closed stdout changes nothing: the error is on stderr, too.
        let _ = print_document(&failure.to_json(), format);
    }
    say_always(failure.to_string());
}

/// The form of the result, for the error document.
fn format_of(cli: &Cli) -> Option<Format> {
    let own = match &cli.command {
        Command::Serve(flags) => flags.output.format,
        Command::Id(output) | Command::Version(output) => output.format,
        Command::Node(Node::List(output) | Node::Describe { output, .. }) => output.format,
        Command::Data(verb) => verb.output().format,
        Command::Completion { .. } => None,
        Command::Job(verb) => verb.format(),
        Command::Wasm(Wasm::Run(flags)) => flags.waiting.format,
        Command::Testnet(verb) => verb.place().output.format,
    };
    own.or(cli.output)
}

/// What clap has to say: help and version to stdout with exit code 0, all else as an error of ours.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Help into a closed pipe is no error.
        let _ = error.print();
        return ExitCode::from(exit::DONE);
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(exit::REFUSED);
    }
    // Only looked at for what form an error has: what is no text there is no form either.
    let arguments: Vec<String> =
        std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    report(&usage_failure(&error.to_string()), asked_format(&arguments));
    ExitCode::from(exit::REFUSED)
}

/// Clap's text as what happened and what to do next.
fn usage_failure(text: &str) -> Failure {
    let mut message = Vec::new();
    let mut hints = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(tip) = line.strip_prefix("tip: ") {
            hints.push(tip.to_owned());
        } else if line.starts_with("Usage:") {
            hints.push(line.replacen("Usage: ", "usage: ", 1));
        } else if !line.starts_with("For more information") {
            message.push(line.strip_prefix("error: ").unwrap_or(line).to_owned());
        }
    }
    hints.push("see --help for what is known".to_owned());
    hints.into_iter().fold(Failure::refused(message.join(" ")), Failure::hint)
}

/// The form that a command line asks for that could not be read.
fn asked_format(arguments: &[String]) -> Option<Format> {
    let flags = ["--output", "--format"];
    let values = arguments.iter().enumerate().filter_map(|(index, argument)| {
        let (flag, value) = argument.split_once('=').unwrap_or((argument, ""));
        if !flags.contains(&flag) {
            return None;
        }
        if value.is_empty() { arguments.get(index + 1).map(String::as_str) } else { Some(value) }
    });
    values.into_iter().find_map(|value| match value {
        "json" => Some(Format::Json),
        "yaml" => Some(Format::Yaml),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_errors_become_errors_and_hints() {
        let text = "error: unexpected argument '--cpuu' found\n\n  tip: a similar argument exists: '--cpu'\n\nUsage: cardume wasm run <MODULE>\n\nFor more information, try '--help'.\n";
        let failure = usage_failure(text);
        assert_eq!(failure.message, "unexpected argument '--cpuu' found");
        assert_eq!(failure.hints[0], "a similar argument exists: '--cpu'");
        assert_eq!(failure.exit, 1);
    }

    #[test]
    fn errors_are_json_where_json_was_asked_for() {
        let arguments = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(asked_format(&arguments("cardume job list --output json --x")), Some(Format::Json));
        assert_eq!(asked_format(&arguments("cardume job run --format=yaml --x")), Some(Format::Yaml));
        assert_eq!(asked_format(&arguments("cardume wasm run --output a:/b")), None);
    }
}
