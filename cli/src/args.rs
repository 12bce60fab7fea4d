//! The command line: every verb, flag and help text.

pub mod data;
pub mod job;
pub mod run;
pub mod serve;
pub mod testnet;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::output::Format;

/// Runs jobs where the data is, on a shoal of peers without a leader.
#[derive(Debug, Parser)]
#[command(
    name = "cardume",
    version,
    max_term_width = 100,
    propagate_version = false,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    long_about = "Runs jobs where the data is, on a shoal of peers without a leader.\n\n\
        Every peer can submit, run and publish. With no node running, `job run`, `wasm run` and the `data` verbs \
        start a peer inside their own process, so nothing has to be set up first.\n\n\
        Results go to stdout, everything for people to stderr.",
    after_long_help = "Examples:\n  \
        cardume wasm run hello.wasm                 run a program and see its output\n  \
        cardume job run job.yaml                    run a job from a file\n  \
        cardume data add pictures/                  add a folder, print its CID\n  \
        cardume serve                               be a node of the swarm\n\n\
        Exit codes:\n  \
        0    done; for verbs that wait for a job: it Completed\n  \
        1    wrong usage, or the request was refused\n  \
        2    the job that was waited for ended Failed or Stopped\n  \
        3    --wait-timeout ran out; the job goes on\n  \
        4    no node could be reached\n  \
        130  ended by Ctrl-C; the job goes on"
)]
pub struct Cli {
    /// Flags of every verb.
    #[command(flatten)]
    pub global: Global,

    /// Form of the result (also after the verb)
    #[arg(long = "output", value_enum, value_name = "FORMAT", hide = true, id = "root-output")]
    pub output: Option<Format>,

    /// The verb.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every verb.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Data directory: key, record, content and API socket of the node in it [env: CARDUME_DIR] [default: ~/.cardume]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub data_dir: Option<PathBuf>,

    /// Node to talk to, and no other [env: CARDUME_API] [default: the one on the data directory, else http://127.0.0.1:1234]
    #[arg(long, global = true, value_name = "URL", help_heading = "Global options")]
    pub api: Option<String>,

    /// Access token of a job, for a node that may not see it otherwise [env: CARDUME_TOKEN]
    #[arg(long, global = true, value_name = "TOKEN", help_heading = "Global options")]
    pub token: Option<String>,

    /// Print no notes and hints; errors are still printed
    #[arg(long, short, global = true, help_heading = "Global options")]
    pub quiet: bool,
}

/// The form of a result, on verbs where `--output` is free for it.
#[derive(Debug, Clone, Default, Args)]
pub struct Output {
    /// Form of the result [default: table]
    #[arg(long = "output", value_enum, value_name = "FORMAT", hide_possible_values = false)]
    pub format: Option<Format>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    Serve(serve::Serve),
    /// Print this peer's id
    #[command(
        long_about = "Prints this peer's id alone on stdout. A node need not be running; a key is made if there is none.\n\n\
            With --output json: the id, the addresses of the running node, and the key file."
    )]
    Id(Output),
    /// See the peers that this one knows
    #[command(subcommand, disable_help_subcommand = true)]
    Node(Node),
    /// Add, fetch and inspect content by CID
    #[command(subcommand, disable_help_subcommand = true)]
    Data(data::Data),
    /// Submit, follow and inspect jobs
    #[command(subcommand, disable_help_subcommand = true)]
    Job(job::Job),
    /// Run WebAssembly programs
    #[command(subcommand, disable_help_subcommand = true)]
    Wasm(run::Wasm),
    /// Start and disturb a swarm of nodes on this machine
    #[command(subcommand, disable_help_subcommand = true)]
    Testnet(testnet::Testnet),
    /// Print the version
    Version(Output),
    /// Print a script that completes commands in a shell
    #[command(
        after_help = "Example:\n  cardume completion bash > ~/.local/share/bash-completion/completions/cardume"
    )]
    Completion {
        /// The shell
        #[arg(value_enum, value_name = "SHELL")]
        shell: clap_complete::Shell,
    },
}

/// Verbs about peers.
#[derive(Debug, Subcommand)]
pub enum Node {
    /// List the peers that this one knows
    #[command(
        long_about = "Lists this peer and those it knows: id, name, role, engines, free and total resources, and when each was last seen."
    )]
    List(Output),
    /// Show one peer
    #[command(after_help = "Example:\n  cardume node describe 12D3KooWD3eckifWpRn9 --output yaml")]
    Describe {
        /// The peer's id, or its beginning
        #[arg(value_name = "ID")]
        id: String,
        /// Form of the result.
        #[command(flatten)]
        output: Output,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_and_flag_explains_itself() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} has no help", command.get_name());
            for arg in command.get_arguments() {
                assert!(arg.get_help().is_some(), "{} {} has no help", command.get_name(), arg.get_id());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }

    #[test]
    fn verbs_with_more_to_say_say_it_in_their_help() {
        let mut command = Cli::command();
        for (path, part) in [
            (["job", "get"], "--merge puts"),
            (["job", "run"], "Templates in the file"),
            (["wasm", "run"], "WASI preview 1"),
            (["data", "get"], "DIR is the target itself"),
        ] {
            let verb = path
                .iter()
                .try_fold(&mut command, |command, name| command.find_subcommand_mut(name))
                .unwrap();
            let help = verb.render_long_help().to_string().replace('\n', " ");
            assert!(help.contains(part) && help.contains("Example"), "{path:?}: {help}");
        }
    }

    #[test]
    fn global_flags_stand_before_or_after_the_verb() {
        for line in ["cardume --api http://a:1 -q job list", "cardume job list --quiet --api http://a:1"] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!((cli.global.api.as_deref(), cli.global.quiet), (Some("http://a:1"), true), "{line}");
        }
    }

    #[test]
    fn on_wasm_run_output_is_a_result_path() {
        let line = "cardume wasm run a.wasm -o outputs:/outputs --output b:/b --format json -- --output x";
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        let Command::Wasm(run::Wasm::Run(run)) = cli.command else { panic!("not wasm run") };
        assert_eq!(run.task.output, ["outputs:/outputs", "b:/b"]);
        assert_eq!(run.args, ["--output", "x"]);
        assert_eq!(run.waiting.format, Some(Format::Json));
    }

    #[test]
    fn waiting_can_be_switched_off_and_on() {
        let wait = |line: &str| {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            let Command::Job(job::Job::Run(run)) = cli.command else { panic!("not job run") };
            run.waiting.waits()
        };
        assert!(wait("cardume job run a.yaml"));
        assert!(!wait("cardume job run a.yaml --wait=false"));
        assert!(!wait("cardume job run a.yaml --id-only"));
        assert!(wait("cardume job run a.yaml --id-only --wait"));
        assert!(!wait("cardume job run a.yaml --detach"));
    }

    #[test]
    fn serve_takes_an_address_where_others_take_a_url() {
        let cli = Cli::try_parse_from(["cardume", "serve", "--api", "127.0.0.1:0"]).unwrap();
        let Command::Serve(serve) = cli.command else { panic!("not serve") };
        assert_eq!(serve.api.as_deref(), Some("127.0.0.1:0"));
    }
}
