//! `testnet …`: a swarm of processes on this machine.

use std::path::Path;

use serde_json::Value;
use testnet::process::{self, Signal, State, UpOptions};

use crate::args::testnet::{Named, Place, Testnet};
use crate::failure::{Failure, Outcome, exit};
use crate::output::{Report, Table};

/// Runs a verb about test networks. Each prints the state of the network as it is then.
pub async fn run(verb: &Testnet) -> Outcome {
    let place = verb.place();
    let state = match verb {
        Testnet::Up { nodes, submit_only, .. } => up(&place.dir, *nodes, *submit_only).await,
        Testnet::Status { .. } => process::status(&place.dir).map_err(|error| failed("look at", &error)),
        Testnet::Down { purge, .. } => {
            process::down(&place.dir, *purge).await.map_err(|error| failed("end", &error))
        }
        Testnet::Kill(named) => signal(named, Signal::Kill).await,
        Testnet::Stop(named) => signal(named, Signal::Stop).await,
        Testnet::Pause(named) => signal(named, Signal::Pause).await,
        Testnet::Resume(named) => signal(named, Signal::Resume).await,
        Testnet::Restart(named) => process::restart(&named.place.dir, &named.name)
            .await
            .map_err(|error| failed("restart a node of", &error)),
    };
    print_state(&state?, place)?;
    Ok(exit::DONE)
}

async fn up(dir: &Path, nodes: u32, submit_only: u32) -> Result<State, Failure> {
    if submit_only > nodes {
        return Err(Failure::refused(format!("--submit-only {submit_only} is more than --nodes {nodes}")));
    }
    let program =
        std::env::current_exe().map_err(|error| Failure::local("cannot find the cardume binary", &error))?;
    let options = UpOptions {
        nodes: nodes as usize,
        submit_only: submit_only as usize,
        ..UpOptions::new(dir, program)
    };
    process::up(options).await.map_err(|error| failed("start", &error))
}

async fn signal(named: &Named, signal: Signal) -> Result<State, Failure> {
    let sent = process::signal(&named.place.dir, &named.name, signal).await;
    sent.map_err(|error| failed("signal a node of", &error))
}

fn print_state(state: &State, place: &Place) -> Result<(), Failure> {
    let value = serde_json::to_value(state)
        .map_err(|error| Failure::refused(format!("cannot show the test network: {error}")))?;
    let table = || table(&value);
    Report { value: value.clone(), table }.print(place.output.format.unwrap_or_default())
}

fn table(state: &Value) -> Table {
    let mut table = Table::new(["NAME", "STATE", "PID", "WORKER", "API", "PEER"]);
    for node in crate::values::list(state, &["nodes"]) {
        let cell = |key: &str| match &node[key] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        table.row(["name", "state", "pid", "worker", "api", "peer"].map(cell));
    }
    table
}

fn failed(what: &str, error: &anyhow::Error) -> Failure {
    Failure::new(exit::REFUSED, "TestnetError", format!("cannot {what} the test network: {error:#}"))
}
