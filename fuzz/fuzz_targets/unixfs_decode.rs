//! Nodes of files and directories as any peer may send them: decoded, re-encoded, and read with every block of the
//! DAG being the same hostile bytes.

#![no_main]

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, executor::block_on};
use libfuzzer_sys::fuzz_target;
use storage::block::{self, Block};
use storage::read::{self, Limits};
use storage::unixfs::{Data, Node};
use storage::{BlockError, Blocks, Cid};

/// Answers every question with the same bytes.
#[derive(Clone)]
struct Same(Bytes);

#[async_trait]
impl Blocks for Same {
    async fn block(&self, _: &Cid) -> Result<Bytes, BlockError> {
        Ok(self.0.clone())
    }
}

const LIMITS: Limits = Limits { max_bytes: 1 << 20, max_entries: 1000, max_depth: 32 };

fuzz_target!(|input: &[u8]| {
    let bytes = Bytes::copy_from_slice(input);
    let _ = Data::decode(&bytes);
    if let Ok(node) = Node::decode(&bytes) {
        let again = Bytes::from(node.encode());
        assert_eq!(Node::decode(&again).as_ref(), Ok(&node));
        if let Ok(data) = node.unixfs() {
            assert_eq!(Data::decode(&data.encode().into()), Ok(data));
        }
    }
    let source = Same(bytes.clone());
    let root = Block::new(block::DAG_PB, bytes).cid;
    let _ = block_on(read::stat(&source, root));
    let _ = block_on(read::resolve(&source, root, "a/b"));
    let _ = block_on(read::cat(&source, root, 3..100_000, LIMITS).take(1000).collect::<Vec<_>>());
});
