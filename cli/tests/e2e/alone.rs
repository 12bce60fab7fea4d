//! With no node running: the command brings its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

use super::guests;
use super::net::{Place, within};
use super::shell::Shell;

#[tokio::test]
async fn a_program_runs_with_nothing_set_up() {
    let home = Home::new().await;
    fs::write(home.path("hello.wasm"), guests::says("hello\n", "", 0)).unwrap();
    let said = home.shell().run(&["wasm", "run", "hello.wasm"]).await;
    assert_eq!((said.code, said.stdout.as_str()), (0, "hello\n"), "{said:?}");
    assert!(said.stderr.contains("running an embedded peer"), "{said:?}");
    let peer = home.shell().ok(&["id"]).await;
    assert!(said.stderr.contains(peer.trim()), "where it ran is not said: {said:?}");
    // What it did is known to the node that serves the directory later.
    let _node = home.serve().await;
    let jobs = home.shell().json(&["job", "list", "--output", "json"]).await;
    assert_eq!(jobs[0]["State"]["StateType"], "Completed", "{jobs}");
}

#[tokio::test]
async fn a_second_command_uses_the_first_ones_peer() {
    let home = Home::new().await;
    fs::write(home.path("slow.wasm"), guests::speaks_twice(8_000)).unwrap();
    let mut first = home.shell().start(&["wasm", "run", "slow.wasm", "--name", "slow"]);
    let mut lines = BufReader::new(first.stdout.take().unwrap()).lines();
    let line = within("the first line", async { Ok(lines.next_line().await?) }).await;
    assert_eq!(line.as_deref(), Some("first"));

    let second = home.shell().run(&["job", "describe", "slow", "--output", "json"]).await;
    assert_eq!(second.code, 0, "{second:?}");
    assert!(!second.stderr.contains("running an embedded peer"), "{second:?}");
    assert!(second.stdout.contains(r#""Running""#), "{second:?}");
    let ended = within("the first command", async { Ok(first.wait().await?) }).await;
    assert_eq!(ended.code(), Some(0));
}

#[tokio::test]
async fn a_detached_job_is_handed_to_a_background_peer_that_ends_with_it() {
    let home = Home::new().await;
    fs::write(home.path("slow.wasm"), guests::speaks_twice(3_000)).unwrap();
    let said = home.shell().run(&["wasm", "run", "slow.wasm", "--detach"]).await;
    assert_eq!(said.code, 0, "{said:?}");
    let id = said.stdout.trim();
    assert!(id.starts_with("j-"), "{said:?}");
    assert_eq!(home.shell().ok(&["job", "logs", id, "--follow"]).await, "first\nsecond\n");
    home.free().await;
    let _node = home.serve().await;
    let described = home.shell().json(&["job", "describe", id, "--output", "json"]).await;
    assert_eq!(super::jobs::state(&described), "Completed");
}

#[tokio::test]
async fn a_node_that_was_named_and_is_not_there_is_never_replaced() {
    let home = Home::new().await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let shell = Shell::at(&format!("http://{nobody}"), home.root.path());
    for command in [&["job", "list"][..], &["data", "add", "."], &["node", "list"]] {
        let said = shell.run(command).await;
        assert_eq!(said.code, 4, "{command:?}: {said:?}");
        assert!(said.stderr.contains(&nobody.to_string()), "{said:?}");
    }
}

/// A data directory whose processes end with the test.
struct Home {
    root: tempfile::TempDir,
    _place: Place,
}

impl Home {
    async fn new() -> Self {
        let place = tokio::task::spawn_blocking(Place::take).await.unwrap();
        Home { root: tempfile::tempdir().unwrap(), _place: place }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn data_dir(&self) -> PathBuf {
        self.path("data")
    }

    fn shell(&self) -> Shell {
        // A swarm of its own: other tests, and other nodes of this machine, are none of its peers.
        let data_dir = self.data_dir();
        fs::create_dir_all(&data_dir).unwrap();
        let name = self.root.path().file_name().unwrap().to_string_lossy().replace('.', "").to_lowercase();
        let config = format!("swarm: alone-{name}\nlisten: [/ip4/127.0.0.1/tcp/0]\napi: 127.0.0.1:0\n");
        fs::write(data_dir.join("config.yaml"), config).unwrap();
        Shell::alone(&data_dir)
    }

    /// Serves the data directory until the result is dropped.
    async fn serve(&self) -> Child {
        let mut node = self.shell().start(&["serve", "--output", "json"]);
        let mut lines = BufReader::new(node.stdout.take().unwrap()).lines();
        let ready = within("the node", async { Ok(lines.next_line().await?) }).await;
        assert!(ready.is_some_and(|line| line.contains("ready")));
        node
    }

    /// Waits until no process works on the data directory.
    async fn free(&self) {
        let path = self.data_dir().join("lock");
        let waiting = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
            let lock = File::open(path)?;
            Ok(flock(&lock, FlockOperation::LockExclusive)?)
        });
        within("the background peer's end", async { waiting.await? }).await;
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Whoever holds the lock says its process id in it.
        let Ok(text) = fs::read_to_string(self.data_dir().join("lock")) else { return };
        let Ok(pid) = text.trim().parse::<i32>() else { return };
        let ours = fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&*self.root.path().to_string_lossy()));
        if let Some(pid) = rustix::process::Pid::from_raw(pid).filter(|_| ours) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}
