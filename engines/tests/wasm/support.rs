//! An engine in a temporary directory, and short ways to run guests in it.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engines::*;
use libtest_mimic::{Failed, Trial};
use sha2::{Digest as _, Sha256};

/// A test that is an async function, on a runtime of its own.
pub fn test<F: Future<Output = ()>>(name: &str, body: impl FnOnce() -> F + Send + 'static) -> Trial {
    Trial::test(name, move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(body());
        Ok::<(), Failed>(())
    })
}

/// Makes a list of tests that are named like their functions.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub fn tests() -> Vec<libtest_mimic::Trial> {
            vec![$($crate::support::test(stringify!($name), $name)),*]
        }
    };
}

/// An engine with directories that vanish with it.
pub struct Bench {
    pub engine: WasmEngine,
    pub dir: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let mut settings = Settings::new(&path("inputs"), &path("outputs"), &path("cache"));
        change(&mut settings);
        Bench { engine: WasmEngine::new(settings).unwrap(), dir }
    }

    /// A task for a module in text form.
    pub fn task(&self, wat: &str) -> Task {
        self.task_of(&wat::parse_str(wat).unwrap())
    }

    /// A task for the bytes of a module.
    pub fn task_of(&self, wasm: &[u8]) -> Task {
        let hash = Sha256::digest(wasm);
        let name: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = self.dir.path().join(name);
        std::fs::write(&path, wasm).unwrap();
        let execution = execution();
        Task {
            execution,
            class: TrustClass::Own,
            kind: TaskKind::Wasm {
                module: ModuleSource { cid: cid(&hash), path },
                entrypoint: "_start".into(),
                args: vec![],
            },
            env: vec![],
            inputs: vec![],
            outputs: vec![],
            limits: Limits::default(),
            work_dir: self.dir.path().join("work").join(execution.to_string()),
        }
    }

    /// Writes an input and gives its path.
    pub fn input(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.dir.path().join("inputs").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, contents).unwrap();
        path
    }

    pub async fn start(&self, task: &Task) -> Running {
        let prepared = self.engine.prepare(task).await.unwrap();
        self.engine.start(task, &prepared).await.unwrap()
    }

    pub async fn run(&self, task: &Task) -> Arc<Ended> {
        self.start(task).await.wait().await
    }
}

/// A CIDv1 of raw bytes with this SHA-256.
fn cid(sha256: &[u8]) -> job::Cid {
    let bytes = [&[0x01, 0x55, 0x12, 0x20], sha256].concat();
    job::Cid::try_from(bytes).unwrap()
}

/// An execution id that no other execution of this process has.
pub fn execution() -> job::ExecutionId {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut id = [0x80; 16];
    id[8..].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    id[8] |= 0x80;
    job::ExecutionId(id)
}

pub async fn text(captured: &Captured) -> String {
    String::from_utf8(captured.read(1 << 20).await.unwrap().to_vec()).unwrap()
}

/// Sets arguments of a task.
pub fn with_args(mut task: Task, list: &[&str]) -> Task {
    let TaskKind::Wasm { args, .. } = &mut task.kind else { unreachable!() };
    *args = list.iter().map(|one| (*one).to_owned()).collect();
    task
}

pub fn output(bench: &Bench, name: &str) -> OutputMount {
    OutputMount {
        name: name.into(),
        path: bench.dir.path().join("results").join(name),
        target: format!("/{name}"),
    }
}

pub fn mount(path: &Path, target: &str) -> InputMount {
    InputMount { path: path.to_owned(), target: target.into() }
}

/// Long enough for anything on a loaded machine; only a broken engine reaches it.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes no longer than a loaded machine needs")
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
