//! The one wasmtime configuration: what compiles a module and what runs it must agree on it.

use std::fmt::Write as _;
use std::hash::{Hash as _, Hasher};

use sha2::{Digest as _, Sha256};
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig};

/// Stack of a guest's own calls. Recursion beyond it is a trap.
const WASM_STACK_BYTES: usize = 512 << 10;

/// Stack on which a guest and the host functions that it calls run.
const FIBER_STACK_BYTES: usize = 1 << 20;

/// Frames that the text of a trap shows.
const BACKTRACE_FRAMES: usize = 16;

/// A 32-bit guest addresses no more.
pub(crate) const MEMORY_MAX: u64 = 4 << 30;

/// What is zeroed and kept of a memory rather than given back: most guests touch less, and giving back
/// costs more than running them.
const KEEP_MEMORY: usize = 4 << 20;

/// The same for tables and stacks.
const KEEP_SMALL: usize = 64 << 10;

/// Tables that a module may have; compilers make one.
const TABLES_PER_MODULE: u32 = 4;

/// Entries that a table may have: four times what the largest known compiler toolchain needs, 2 MiB of
/// address space a table.
const TABLE_ELEMENTS: usize = 256 << 10;

/// Bookkeeping of an instance; grows with the module's functions, and the largest known need 2 MiB.
const INSTANCE_BYTES: usize = 16 << 20;

/// How long a guest runs before others get a turn; also how soon it notices that it is to stop.
pub(crate) const EPOCH: std::time::Duration = std::time::Duration::from_millis(10);

/// An engine to compile with, or to ask for the hash of.
pub(crate) fn compiler() -> wasmtime::Result<Engine> {
    Engine::new(&config())
}

/// An engine to run `slots` guests at once with, and whether their memories are pooled. Without the address
/// space for a pool they are not.
pub(crate) fn executor(slots: u32) -> wasmtime::Result<(Engine, bool)> {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_core_instances(slots)
        .total_memories(slots)
        .total_stacks(slots)
        .total_tables(slots * TABLES_PER_MODULE)
        .max_tables_per_module(TABLES_PER_MODULE)
        .table_elements(TABLE_ELEMENTS)
        .max_core_instance_size(INSTANCE_BYTES)
        .max_memory_size(MEMORY_MAX as usize)
        .linear_memory_keep_resident(KEEP_MEMORY)
        .table_keep_resident(KEEP_SMALL)
        .async_stack_keep_resident(KEEP_SMALL)
        .pagemap_scan(Enabled::Auto);
    let mut pooled = config();
    pooled.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    match Engine::new(&pooled) {
        Ok(engine) => Ok((engine, true)),
        Err(_) => Ok((Engine::new(&config())?, false)),
    }
}

/// Names the compiler and its settings: code compiled under one name runs under that name only.
pub(crate) fn compatibility(engine: &Engine) -> String {
    let mut hasher = StableHasher(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut hasher);
    let mut text = String::new();
    for byte in &hasher.0.finalize()[..16] {
        let _infallible = write!(text, "{byte:02x}");
    }
    text
}

fn config() -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .consume_fuel(false)
        .max_wasm_stack(WASM_STACK_BYTES)
        .async_stack_size(FIBER_STACK_BYTES)
        .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(BACKTRACE_FRAMES))
        .wasm_memory64(false)
        .wasm_multi_memory(false)
        .cranelift_opt_level(OptLevel::Speed)
        .memory_reservation(MEMORY_MAX)
        .parallel_compilation(true);
    config
}

/// The standard hasher may change with the compiler; what is on disk should not.
struct StableHasher(Sha256);

impl Hasher for StableHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0.clone().finalize()[..8]);
        u64::from_be_bytes(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compiled_here_runs_there() {
        let compiler = compiler().unwrap();
        let (executor, _) = executor(2).unwrap();
        assert_eq!(compatibility(&compiler), compatibility(&executor));
        assert_eq!(compatibility(&compiler).len(), 32);
    }
}
