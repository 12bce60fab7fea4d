//! A node that answers what a test tells it, and the binary that talks to it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Value, json};

/// A request that the node got.
#[derive(Debug, Clone)]
pub struct Asked {
    /// `GET /orchestrator/jobs?limit=10`, without the prefix of the API.
    pub line: String,
    pub accept: String,
    pub content_type: String,
    pub host: String,
    pub authorization: String,
    pub body: Vec<u8>,
}

impl Asked {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What the node answers.
pub enum Answer {
    Json(u16, Value),
    Bytes(Vec<u8>),
    /// Server-sent events, then the end.
    Events(Vec<(&'static str, Value)>),
    /// These bytes, and then nothing more, for ever.
    Endless(Vec<u8>),
    /// These bytes, and then the connection breaks.
    Broken(Vec<u8>),
}

type Script = Arc<dyn Fn(&Asked) -> Answer + Send + Sync>;

/// A node on a free port, or on the socket of a data directory.
pub struct Fake {
    pub url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    arrived: Mutex<Receiver<String>>,
    _stop: tokio::sync::oneshot::Sender<()>,
}

#[derive(Clone)]
struct Shared {
    product: Value,
    script: Script,
    asked: Arc<Mutex<Vec<Asked>>>,
    arrived: Sender<String>,
}

impl Fake {
    /// A node on loopback TCP.
    pub fn start(script: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Fake {
        Self::start_as(json!({"Product": "cardume"}), script)
    }

    /// Something on loopback TCP that says what it is.
    pub fn start_as(product: Value, script: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Fake {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        Self::serve(url, product, script, move |router| async move {
            axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), router).await.unwrap();
        })
    }

    /// A node on the socket of a data directory.
    pub fn start_in(data_dir: &Path, script: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Fake {
        let listener = std::os::unix::net::UnixListener::bind(data_dir.join("api.sock")).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self::serve(String::new(), json!({"Product": "cardume"}), script, move |router| async move {
            axum::serve(tokio::net::UnixListener::from_std(listener).unwrap(), router).await.unwrap();
        })
    }

    fn serve<F, S>(
        url: String,
        product: Value,
        script: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
        run: S,
    ) -> Fake
    where
        F: Future<Output = ()>,
        S: FnOnce(axum::Router) -> F + Send + 'static,
    {
        let (arrived, receiver) = channel();
        let shared = Shared { product, script: Arc::new(script), asked: Arc::default(), arrived };
        let asked = shared.asked.clone();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let router = axum::Router::new().fallback(handle).with_state(shared);
            runtime.block_on(async {
                tokio::select! {
                    () = run(router) => {}
                    _ = stopped => {}
                }
            });
        });
        Fake { url, asked, arrived: Mutex::new(receiver), _stop: stop }
    }

    /// All requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Their first lines.
    pub fn lines(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.line).collect()
    }

    /// The first request whose line begins like this.
    pub fn find(&self, start: &str) -> Asked {
        let found = self.asked().into_iter().find(|asked| asked.line.starts_with(start));
        found.unwrap_or_else(|| panic!("nobody asked {start}, only {:?}", self.lines()))
    }

    /// Waits until a request arrives whose line begins like this.
    pub fn wait_for(&self, start: &str) {
        let arrived = self.arrived.lock().unwrap();
        while !arrived.recv().unwrap().starts_with(start) {}
    }
}

async fn handle(State(shared): State<Shared>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let header = |name: &str| head.headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    let path = head.uri.path_and_query().unwrap().as_str();
    let line = format!("{} {}", head.method, path.strip_prefix("/api/v1").unwrap_or(path));
    if line == "GET /agent/version" {
        return respond(Answer::Json(200, shared.product));
    }
    let (accept, content_type, host) = (header("accept"), header("content-type"), header("host"));
    let authorization = header("authorization");
    // A body that breaks off is what a test may be about.
    let body = axum::body::to_bytes(body, usize::MAX).await.map(|bytes| bytes.to_vec()).unwrap_or_default();
    let asked = Asked { line: line.clone(), accept, content_type, host, authorization, body };
    let answer = (shared.script)(&asked);
    shared.asked.lock().unwrap().push(asked);
    let _ = shared.arrived.send(line);
    respond(answer)
}

fn respond(answer: Answer) -> Response {
    let ok = Response::builder();
    match answer {
        Answer::Json(status, value) => {
            let builder = ok.status(status).header("content-type", "application/json");
            builder.body(Body::from(value.to_string())).unwrap()
        }
        Answer::Bytes(bytes) => ok.body(Body::from(bytes)).unwrap(),
        Answer::Events(events) => {
            let text: String =
                events.iter().map(|(name, data)| format!("event: {name}\ndata: {data}\n\n")).collect();
            ok.header("content-type", "text/event-stream").body(Body::from(text)).unwrap()
        }
        Answer::Endless(bytes) => ok.body(streamed(bytes, None)).unwrap(),
        Answer::Broken(bytes) => ok.body(streamed(bytes, Some("broken"))).unwrap(),
    }
}

/// A chunked body that ends with an error, or not at all.
fn streamed(bytes: Vec<u8>, error: Option<&'static str>) -> Body {
    use futures::StreamExt;
    let first = futures::stream::once(async { Ok::<Bytes, std::io::Error>(bytes.into()) });
    let then = match error {
        Some(error) => futures::stream::once(async move {
            // Let the first bytes leave before the connection goes.
            tokio::task::yield_now().await;
            Err(std::io::Error::other(error))
        })
        .left_stream(),
        None => futures::stream::pending().right_stream(),
    };
    Body::from_stream(first.chain(then))
}

/// The binary with a data directory of its own.
pub struct Cardume {
    pub dir: tempfile::TempDir,
    api: Option<String>,
}

impl Cardume {
    /// Talks to this node.
    pub fn with(fake: &Fake) -> Cardume {
        Cardume { dir: tempfile::tempdir().unwrap(), api: Some(fake.url.clone()) }
    }

    /// Talks to whatever it finds.
    pub fn alone() -> Cardume {
        Cardume { dir: tempfile::tempdir().unwrap(), api: None }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cardume"));
        command.args(arguments).current_dir(self.dir.path()).env_clear().env("CARDUME_DIR", self.data_dir());
        // Peers that a command starts stay among themselves.
        command.env("CARDUME_LISTEN", "/ip4/127.0.0.1/tcp/0");
        if let Some(api) = &self.api {
            command.env("CARDUME_API", api);
        }
        command.stdin(Stdio::null());
        command
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        self.command(arguments).output().unwrap().into()
    }

    pub fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Writes a file beside the data directory.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Names in the working directory that begin like what is still on its way.
    pub fn leftovers(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.dir.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(".cardume")).collect()
    }
}

/// How the binary ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

pub const ID: &str = "j-a2bc3985-0490-8e01-998f-cf760481e7da";
pub const NODE: &str = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA";
pub const CID: &str = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";

/// A job file that is right.
pub const JOB: &str = "Name: hello\nType: batch\nTasks:\n  - Engine:\n      Type: wasm\n      Params:\n        EntryModule: ipfs://bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku\n";

/// The answer to a submission.
pub fn submitted() -> Answer {
    Answer::Json(200, json!({ "JobID": ID, "EvaluationID": "e", "Warnings": [] }))
}

/// A job in a state, with one execution.
pub fn job(state: &str, code: i64) -> Value {
    let execution = if state == "Completed" { "Completed" } else { "Failed" };
    json!({
        "Job": {"ID": ID, "Name": "hello", "Namespace": "default", "Type": "batch", "Count": 1, "Version": 1,
            "State": {"StateType": state, "Message": ""}, "CreateTime": 1795334658329927566i64, "ModifyTime": 1795334658498701002i64},
        "Executions": {"NextToken": "", "Items": [{"ID": "e-90ab066d-dd7e-83d5-bcd3-799b98a008d1", "NodeID": NODE, "JobID": ID,
            "PartitionIndex": 0, "Attempt": 1, "JobVersion": 1, "ComputeState": {"StateType": 9, "StateName": execution, "Message": "it did"},
            "RunOutput": {"Stdout": "hi\n", "stderr": "", "ExitCode": code}, "PublishedResult": {"Type": "ipfs", "Params": {"CID": CID}}}]},
    })
}

/// A watch that ends in a state.
pub fn watched(state: &'static str, code: i64) -> Answer {
    Answer::Events(vec![
        (
            "history",
            json!({"SeqNum": 1, "Type": "JobLevel", "Event": {"Message": "Job submitted", "Topic": "Submission"}}),
        ),
        ("state", json!({"State": {"StateType": state}, "Partitions": {"Total": 1, "Completed": 1}})),
        ("end", job(state, code)),
    ])
}

/// Output of a job, as frames.
pub fn frames(frames: &[(u8, u32, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (stream, partition, text) in frames {
        bytes.push(*stream);
        bytes.extend(partition.to_be_bytes());
        bytes.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// The API's error.
pub fn error(status: u16, code: &str, message: &str) -> Answer {
    Answer::Json(
        status,
        json!({"Status": status, "Message": message, "Code": code, "Component": "test", "Hint": "do it right"}),
    )
}

/// A tar archive of files.
pub fn tar(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}
