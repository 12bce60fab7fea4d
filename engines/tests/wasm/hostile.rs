//! A runner that was taken over by a guest: everything it tries is refused, and nothing of it outlives it.

use std::collections::BTreeMap;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use engines::{Engine as _, Outcome, PrepareError, RunnerCommand, TrustClass};

use crate::guests;
use crate::support::*;

crate::tests![
    a_runner_that_was_taken_over_reaches_nothing,
    a_child_that_compiles_and_was_taken_over_reaches_nothing,
    the_sandbox_is_whole_where_the_node_is_root,
    the_engine_works_without_root,
];

/// What the probes are aimed at; open as long as this lives.
struct Targets {
    arguments: Vec<String>,
    _held: (TcpListener, UdpSocket, UnixListener),
}

fn targets(dir: &std::path::Path) -> Targets {
    let secret = dir.join("key");
    std::fs::write(&secret, b"secret").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let name = format!("cardume-probe-{}-{}", std::process::id(), tcp.local_addr().unwrap().port());
    let socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let arguments = vec![
        secret.to_str().unwrap().to_owned(),
        tcp.local_addr().unwrap().port().to_string(),
        udp.local_addr().unwrap().port().to_string(),
        name,
        std::process::id().to_string(),
    ];
    Targets { arguments, _held: (tcp, udp, socket) }
}

fn read_report(text: &str) -> BTreeMap<String, String> {
    let line = |line: &str| line.split_once('=').map(|(name, result)| (name.to_owned(), result.to_owned()));
    text.lines().filter_map(line).collect()
}

/// Without the sandbox these succeed on every machine; the others depend on its settings.
const SUCCEED_OTHERWISE: [&str; 15] = [
    "passwd",
    "secret",
    "tcp",
    "udp",
    "abstract-socket",
    "unix-socket",
    "kill",
    "kill-continue",
    "execute",
    "fork",
    "shared-memory",
    "memory-file",
    "set-dumpable",
    "outlive-node",
    "raise-limits",
];

/// What the probes say without a sandbox.
fn control(targets: &Targets) -> BTreeMap<String, String> {
    let control = Command::new(std::env::current_exe().unwrap())
        .arg("hostile-control")
        .args(&targets.arguments)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    let control = read_report(&String::from_utf8(control.stdout).unwrap());
    for name in SUCCEED_OTHERWISE {
        assert_eq!(control[name], "reached", "{name} without a sandbox");
    }
    control
}

fn taken_over(mode: &str, targets: &Targets) -> Bench {
    let args = [mode.to_owned()].iter().chain(&targets.arguments).map(Into::into).collect();
    Bench::with(|settings| {
        settings.runner = RunnerCommand { program: "/proc/self/exe".into(), args };
    })
}

async fn a_child_that_compiles_and_was_taken_over_reaches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let targets = targets(dir.path());
    let control = control(&targets);
    let bench = taken_over("hostile-compiler", &targets);
    for class in [TrustClass::Own, TrustClass::Anyone] {
        let mut task = bench.task(&guests::hello());
        task.class = class;
        let refused = match bench.engine.prepare(&task).await {
            Err(PrepareError::Job(text)) => text,
            other => panic!("{other:?}"),
        };
        let inside = read_report(refused.strip_prefix("the module cannot run: ").unwrap());
        assert!(control.keys().all(|name| inside.contains_key(name)), "{refused}");
        for (name, result) in &inside {
            // It hands over its code in such a file.
            let allowed = name == "memory-file";
            assert_eq!(result == "reached", allowed, "{class}: {name}={result}");
        }
    }
}

async fn a_runner_that_was_taken_over_reaches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let targets = targets(dir.path());
    let control = control(&targets);
    let bench = taken_over("hostile-runner", &targets);
    let own_user = bench.engine.sandbox().await.unwrap().own_uid.is_some();
    // Compiling works as always: the probes come in place of the guest.
    for class in [TrustClass::Own, TrustClass::Anyone] {
        let mut task = bench.task(&guests::hello());
        task.class = class;
        bench.input("tree/file", b"input");
        task.inputs = vec![mount(&bench.dir.path().join("inputs/tree"), "/in")];
        task.outputs = vec![output(&bench, class.name())];
        let ended = within(bench.run(&task)).await;
        assert_eq!(ended.outcome, Outcome::Exited(0));
        let inside = read_report(&text(&ended.stdout).await);
        assert!(inside.len() > control.len(), "{inside:?}");
        for (name, result) in &inside {
            // Without a user of its own the directories of other executions of its class are not closed to
            // it.
            let siblings = name.starts_with("output-") && name.ends_with("-above") && !own_user;
            let allowed = name == "output-create" || siblings;
            assert_eq!(result == "reached", allowed, "{class}: {name}={result}");
            if control.get(name).is_some_and(|control| control != "reached") {
                eprintln!("{name} proves nothing here: without a sandbox it is {}", control[name]);
            }
        }
        assert!(task.outputs[0].path.join("made").is_file());
    }
}

async fn the_sandbox_is_whole_where_the_node_is_root() {
    let bench = Bench::new();
    let report = bench.engine.sandbox().await.unwrap();
    assert!(report.pooled_memory);
    if !is_root() {
        eprintln!("SKIPPED: not root, so only these layers: {report:?}");
    } else if !report.detached_mounts {
        eprintln!("SKIPPED: root without the right to mount, so only these layers: {report:?}");
    } else {
        assert!(report.landlock && report.seccomp && report.namespaces && report.empty_root, "{report:?}");
        assert!(report.own_uid.is_some());
    }
}

/// Runs the rest of these tests as another user.
async fn the_engine_works_without_root() {
    if !is_root() {
        eprintln!("SKIPPED: not root; the other tests are this one");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("tests");
    let current = std::env::current_exe().unwrap();
    if std::fs::hard_link(&current, &program).is_err() {
        std::fs::copy(&current, &program).unwrap();
    }
    let temporary = dir.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    for path in [dir.path(), &temporary] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let output = Command::new(&program)
        .args(["--test-threads", "2", "--skip", "bomb", "--skip", "different_modules"])
        .env("TMPDIR", &temporary)
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}
