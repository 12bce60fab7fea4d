//! The job model of Cardume: what a job is, how its text becomes a checked value, and the words
//! that every other crate uses for it.
//!
//! This crate is pure. It reads no clock, opens no file or socket and knows nothing of peers'
//! addresses or disks: text and values in, values and errors out.
//!
//! ```
//! let text = b"Type: batch\nCuont: 3\nTasks: [{Name: main, Engine: {Type: wasm, Params: {EntryModule: hello}}}]";
//! let errors = job::JobSpec::from_text(text).unwrap_err().to_string();
//! assert!(errors.contains("Cuont") && errors.contains("Count"), "named, with the nearest name: {errors}");
//! ```

pub mod constraint;
pub mod content;
pub mod id;
pub mod inline;
pub mod nearest;
pub mod resources;
pub mod spec;
pub mod state;
pub mod template;
pub mod text;
pub mod time;
pub mod uri;
mod wasm;
mod words;

pub use cid::Cid;
pub use id::{ExecutionId, ExecutionKey, Fence, JobId, PeerId};
pub use resources::Resources;
pub use spec::JobSpec;
pub use time::Time;
pub use wasm::{WasmHeaderError, wasm_header};
