//! Programs for jobs, written in WebAssembly text so that tests need no other compiler.

/// What every guest may call. Memory: 0..1024 scratch, text from 1024, environment from 4096.
const HEAD: &str = r#"
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $environ_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_prestat_dir_name" (func $dir_name (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (memory (export "memory") 4)
  (func $write (param $fd i32) (param $at i32) (param $length i32)
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (local.get $length))
    (if (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable)))
  (func $sleep (param $nanoseconds i64)
    (memory.fill (i32.const 64) (i32.const 0) (i32.const 48))
    (i32.store (i32.const 80) (i32.const 1))
    (i64.store (i32.const 88) (local.get $nanoseconds))
    (if (call $poll_oneoff (i32.const 64) (i32.const 128) (i32.const 1) (i32.const 8)) (then unreachable)))
  ;; reads the environment to 8192.. and gives its length
  (func $environ (result i32)
    (if (call $environ_sizes_get (i32.const 16) (i32.const 20)) (then unreachable))
    (if (call $environ_get (i32.const 4096) (i32.const 8192)) (then unreachable))
    (i32.load (i32.const 20)))
  ;; the environment, one variable a line, to stdout
  (func $print_environ (local $at i32) (local $end i32)
    (local.set $at (i32.const 8192))
    (local.set $end (i32.add (i32.const 8192) (call $environ)))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
      (if (i32.eqz (i32.load8_u (local.get $at)))
        (then (i32.store8 (local.get $at) (i32.const 10))))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br $next)))
    (call $write (i32.const 1) (i32.const 8192) (i32.sub (local.get $end) (i32.const 8192))))
  ;; the number of the partition: what follows "BACALHAU_PARTITION_INDEX=" (its bytes 17 to 24 are "N_INDEX=")
  (func $partition (result i32) (local $at i32) (local $end i32) (local $number i32)
    (local.set $at (i32.const 8192))
    (local.set $end (i32.add (i32.const 8192) (call $environ)))
    (block $found (loop $next
      (if (i32.ge_u (local.get $at) (local.get $end)) (then unreachable))
      (br_if $found (i64.eq (i64.load (local.get $at)) (i64.load (i32.const 2000))))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br $next)))
    (local.set $at (i32.add (local.get $at) (i32.const 8)))
    (block $done (loop $digit
      (br_if $done (i32.lt_u (i32.load8_u (local.get $at)) (i32.const 48)))
      (local.set $number (i32.add (i32.mul (local.get $number) (i32.const 10))
        (i32.sub (i32.load8_u (local.get $at)) (i32.const 48))))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br $digit)))
    (local.get $number))
  (data (i32.const 2000) "N_INDEX=")
"#;

/// Writes one text to stdout and another to stderr, and ends with a code.
pub fn says(stdout: &str, stderr: &str, code: u8) -> Vec<u8> {
    let (out, err) = (stdout.len(), stderr.len());
    let text = format!("{stdout}{stderr}").replace('\n', "\\n");
    module(&format!(
        r#"(data (i32.const 1024) "{text}")
        (func (export "_start")
          (call $write (i32.const 1) (i32.const 1024) (i32.const {out}))
          (call $write (i32.const 2) (i32.const {}) (i32.const {err}))
          (if (i32.const {code}) (then (call $proc_exit (i32.const {code})))))"#,
        1024 + out,
    ))
}

/// Prints its environment.
pub fn environment() -> Vec<u8> {
    module(r#"(func (export "_start") (call $print_environ))"#)
}

/// Prints its environment and a line, then works until it is done: partitions below `long_from` for `short_ms`,
/// the others for `long_ms`. Sleeping stands for work: it takes time on every machine, and no core from other tests.
pub fn works(short_ms: u64, long_ms: u64, long_from: u32) -> Vec<u8> {
    module(&format!(
        r#"(data (i32.const 1024) "begun\n")
        (data (i32.const 1032) "done\n")
        (func (export "_start")
          (call $print_environ)
          (call $write (i32.const 1) (i32.const 1024) (i32.const 6))
          (call $sleep (select (i64.const {long_ms}000000) (i64.const {short_ms}000000)
            (i32.ge_u (call $partition) (i32.const {long_from}))))
          (call $write (i32.const 1) (i32.const 1032) (i32.const 5)))"#
    ))
}

/// Uses a core until it is ended.
pub fn spins() -> Vec<u8> {
    module(r#"(func (export "_start") (loop $on (br $on)))"#)
}

/// Prints a line, waits, and prints another.
pub fn speaks_twice(pause_ms: u64) -> Vec<u8> {
    module(&format!(
        r#"(data (i32.const 1024) "first\n")
        (data (i32.const 1032) "second\n")
        (func (export "_start")
          (call $write (i32.const 1) (i32.const 1024) (i32.const 6))
          (call $sleep (i64.const {pause_ms}000000))
          (call $write (i32.const 1) (i32.const 1032) (i32.const 7)))"#
    ))
}

/// Prints so many lines of 1 KiB, and waits.
pub fn speaks_much(lines: u32, pause_ms: u64) -> Vec<u8> {
    module(&format!(
        r#"(func (export "_start") (local $line i32)
          (memory.fill (i32.const 1024) (i32.const 120) (i32.const 1023))
          (i32.store8 (i32.const 2047) (i32.const 10))
          (loop $next
            (call $write (i32.const 1) (i32.const 1024) (i32.const 1024))
            (local.set $line (i32.add (local.get $line) (i32.const 1)))
            (br_if $next (i32.lt_u (local.get $line) (i32.const {lines}))))
          (call $sleep (i64.const {pause_ms}000000)))"#
    ))
}

/// Writes `text` to the file `result.txt` in its output folder `/outputs`.
pub fn writes_a_file(text: &str) -> Vec<u8> {
    let length = text.len();
    module(&format!(
        r#"(data (i32.const 1024) "/outputsresult.txt{text}")
        (func (export "_start") (local $fd i32)
          (local.set $fd (i32.const 3))
          ;; the folder whose name is the eight bytes of "/outputs"
          (block $found (loop $next
            (i64.store (i32.const 512) (i64.const 0))
            (drop (call $dir_name (local.get $fd) (i32.const 512) (i32.const 8)))
            (br_if $found (i64.eq (i64.load (i32.const 512)) (i64.load (i32.const 1024))))
            (local.set $fd (i32.add (local.get $fd) (i32.const 1)))
            (if (i32.gt_u (local.get $fd) (i32.const 64)) (then unreachable))
            (br $next)))
          ;; create and truncate, for writing
          (if (call $path_open (local.get $fd) (i32.const 0) (i32.const 1032) (i32.const 10)
              (i32.const 9) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 12))
            (then unreachable))
          (call $write (i32.load (i32.const 12)) (i32.const 1042) (i32.const {length})))"#
    ))
}

/// A module that no engine can give what it wants: a function of nobody's.
pub fn wants_foreign_things() -> Vec<u8> {
    wat::parse_str(r#"(module (import "abyss" "gaze" (func)) (func (export "_start")))"#).unwrap()
}

/// A module that has nothing to start.
pub fn has_no_start() -> Vec<u8> {
    wat::parse_str(r#"(module (func (export "begin")))"#).unwrap()
}

fn module(body: &str) -> Vec<u8> {
    wat::parse_str(format!("(module {HEAD} {body})")).unwrap()
}
