//! The command line as a user's shell runs it.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use super::net::{PATIENCE, PROGRAM};

/// Where commands are run, and which node they talk to.
#[derive(Debug, Clone)]
pub struct Shell {
    api: Option<String>,
    data_dir: PathBuf,
    folder: PathBuf,
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Shell {
    /// A shell whose commands talk to the node at `api`, in `folder`.
    pub fn at(api: &str, folder: &Path) -> Self {
        // A data directory that must never be used: the node is named.
        Shell { api: Some(api.into()), data_dir: folder.join("unused"), folder: folder.into() }
    }

    /// A shell with a data directory and no node.
    pub fn alone(data_dir: &Path) -> Self {
        let folder = data_dir.parent().unwrap().into();
        Shell { api: None, data_dir: data_dir.into(), folder }
    }

    /// Starts a command; it is killed when the handle is dropped.
    pub fn start(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new(PROGRAM);
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARDUME_"))
        {
            command.env_remove(name);
        }
        if let Some(api) = &self.api {
            command.env("CARDUME_API", api);
        }
        command
            .env("CARDUME_DIR", &self.data_dir)
            .args(arguments)
            .current_dir(&self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    /// Runs a command to its end.
    pub async fn run(&self, arguments: &[&str]) -> Said {
        self.feed(arguments, b"").await
    }

    /// The same with something on stdin.
    pub async fn feed(&self, arguments: &[&str], stdin: &[u8]) -> Said {
        let mut child = self.start(arguments);
        let mut pipe = child.stdin.take().unwrap();
        let ended = async {
            // A command that fails before it has read everything closes the pipe.
            let _ = pipe.write_all(stdin).await;
            drop(pipe);
            child.wait_with_output().await.unwrap()
        };
        let Ok(output) = tokio::time::timeout(PATIENCE, ended).await else {
            panic!("{arguments:?} is not done after {} s", PATIENCE.as_secs())
        };
        Said {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a command that must do its work, and gives its stdout.
    pub async fn ok(&self, arguments: &[&str]) -> String {
        let said = self.run(arguments).await;
        assert_eq!(said.code, 0, "{arguments:?}: {said:?}");
        said.stdout
    }

    /// Runs a command that must do its work and print JSON.
    pub async fn json(&self, arguments: &[&str]) -> Value {
        let text = self.ok(arguments).await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
    }

    /// Runs a command that must be refused with exit code 1 and an error on stderr, and gives that.
    pub async fn refused(&self, arguments: &[&str], stdin: &[u8]) -> String {
        let said = self.feed(arguments, stdin).await;
        assert_eq!(said.code, 1, "{arguments:?}: {said:?}");
        assert!(said.stderr.contains("Error: "), "{arguments:?}: {said:?}");
        assert_eq!(said.stdout, "", "{arguments:?}");
        said.stderr
    }
}
