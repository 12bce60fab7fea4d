//! `data add`, `get`, `cat`, `ls` and `stat`.

use std::path::Path;
use std::time::Duration;

use job::spec::ContentPath;
use serde_json::{Value, json};

use crate::args::data::{Add, Data, Get};
use crate::args::{Global, Output};
use crate::content;
use crate::failure::{Failure, Outcome};
use crate::output::{Format, Report, Table, print, print_document, say_always, write_bytes};
use crate::target::{Fallback, Session, interrupted, with_node};
use crate::tree::{Staging, install};
use crate::units::show_bytes;
use crate::values::text;

/// Runs a verb about content.
pub async fn run(global: &Global, verb: &Data) -> Outcome {
    // What is no CID is refused before a node is looked for, or even started.
    let content = match verb {
        Data::Add(add) => {
            if add.path != Path::new("-") {
                std::fs::metadata(&add.path)
                    .map_err(|error| Failure::local(format!("cannot add {}", add.path.display()), &error))?;
            }
            None
        }
        Data::Get(Get { content, .. })
        | Data::Cat { content, .. }
        | Data::Ls { content, .. }
        | Data::Stat { content, .. } => Some(content::parse(content)?),
    };
    // What came from stdin is gone once it was sent.
    let can_repeat = !matches!(verb, Data::Add(add) if add.path == Path::new("-"));
    let work = async |session: &Session| once(session, verb, content.as_ref()).await;
    with_node(global, Fallback::Embed, can_repeat, interrupted, work).await
}

async fn once(session: &Session, verb: &Data, content: Option<&ContentPath>) -> Result<(), Failure> {
    match (verb, content) {
        (Data::Add(flags), _) => add(session, flags).await,
        (Data::Get(flags), Some(content)) => get(session, content, flags).await,
        (Data::Cat { timeout, .. }, Some(content)) => cat(session, content, *timeout).await,
        (Data::Ls { output, .. }, Some(content)) => ls(session, content, output).await,
        (Data::Stat { output, .. }, Some(content)) => stat(session, content, output).await,
        (_, None) => Err(Failure::refused("no content was named")),
    }
}

async fn add(session: &Session, flags: &Add) -> Result<(), Failure> {
    let added =
        content::add(&session.client, session.notes, &flags.path, &flags.shape, flags.only_hash).await?;
    let cid = content::cid_of(&added)?;
    match flags.output.format.unwrap_or_default() {
        Format::Table => {
            let size =
                added["Size"].as_u64().map_or_else(String::new, |size| format!(" ({})", show_bytes(size)));
            let verb = if flags.only_hash { "computed" } else { "added" };
            session.notes.say(format!("{verb} {}{size}", flags.path.display()));
            print(&format!("{cid}\n"))
        }
        format => {
            let number =
                |key: &str| added[key].as_u64().map_or_else(String::new, |number| number.to_string());
            let table = || {
                let mut table = Table::new(["NAME", "CID", "SIZE"]);
                let name = text(&added, &["Name"]);
                table.row([name.to_owned(), cid.to_owned(), number("Size")]);
                table
            };
            Report { value: added.clone(), table }.print(format)
        }
    }
}

async fn get(session: &Session, content: &ContentPath, flags: &Get) -> Result<(), Failure> {
    let target = flags.output_dir.clone().unwrap_or_else(|| content.cid.to_string().into());
    let staging = Staging::beside(&target)?;
    let arrived = staging.path().join("content");
    let fetched = content::fetch(&session.client, session.notes, content, flags.timeout, &arrived).await?;
    install::install(&arrived, &target, flags.force)?;
    for link in &fetched.left_out {
        say_always(format!("Warning: left out a symbolic link that leads outside: {link}"));
    }
    let target = target.display().to_string();
    match flags.output.format.unwrap_or_default() {
        Format::Table => {
            session.notes.say(format!("saved {target}"));
            Ok(())
        }
        format => {
            let content = content.to_string();
            let table = || Table::pairs([("Content", content.as_str()), ("OutputDir", target.as_str())]);
            let value = json!({ "Content": content, "OutputDir": target, "LeftOut": fetched.left_out });
            Report { value, table }.print(format)
        }
    }
}

async fn cat(session: &Session, content: &ContentPath, timeout: Option<Duration>) -> Result<(), Failure> {
    let route = content::route(content, "raw", timeout);
    let mut stream = session.client.stream(&route, "application/octet-stream", None).await?;
    while let Some(bytes) = stream.next().await? {
        write_bytes(&bytes)?;
    }
    Ok(())
}

async fn ls(session: &Session, content: &ContentPath, output: &Output) -> Result<(), Failure> {
    let answer = session.client.get(&content::route(content, "ls", None)).await?;
    let entries: Vec<Value> = crate::values::list(&answer, &["Entries"]).iter().map(entry).collect();
    let format = output.format.unwrap_or_default();
    let table = || {
        let mut table = Table::new(["NAME", "TYPE", "SIZE", "CID"]);
        for entry in &entries {
            let size = entry["Size"].as_u64().unwrap_or_default();
            let size = if format == Format::Csv { size.to_string() } else { show_bytes(size) };
            let cell = |key: &str| text(entry, &[key]).to_owned();
            table.row([cell("Name"), cell("Type"), size, cell("Cid")]);
        }
        table
    };
    Report { value: Value::Array(entries.clone()), table }.print(format)
}

/// An entry as the contract has it.
fn entry(entry: &Value) -> Value {
    json!({ "Name": entry["Name"], "Cid": entry["Cid"], "Size": entry["Size"], "Type": entry["Type"] })
}

async fn stat(session: &Session, content: &ContentPath, output: &Output) -> Result<(), Failure> {
    let stat = content::stat(&session.client, content, None).await?;
    let fields = stat.as_object().cloned().unwrap_or_default();
    let pairs = || {
        Table::pairs(fields.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| {
            (key.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        }))
    };
    match output.format.unwrap_or_default() {
        Format::Table => print(&pairs().to_assignments()),
        Format::Csv => print(&pairs().to_csv()),
        format => print_document(&stat, format),
    }
}
