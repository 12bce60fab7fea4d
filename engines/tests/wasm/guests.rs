//! Guests, in text form.

/// Imports of WASI preview 1 and helpers that guests share.
const PRELUDE: &str = r#"
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_close" (func $fd_close (param i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open" (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_rename" (func $path_rename (param i32 i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_symlink" (func $path_symlink (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_create_directory" (func $mkdir (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_unlink_file" (func $unlink (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $environ_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 2)
  ;; writes bytes to a descriptor
  (func $write (param $fd i32) (param $at i32) (param $length i32)
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (local.get $length))
    (drop (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
  ;; ends with the code when it is not 0
  (func $ok (param $errno i32)
    (if (local.get $errno) (then (call $proc_exit (local.get $errno)))))
"#;

/// A command with this body and these data segments, in which the helpers of the prelude can be called.
pub fn command(body: &str, data: &str) -> String {
    format!("(module {PRELUDE} {data} (func (export \"_start\") (local $n i32) (local $fd i32) {body}))")
}

/// Writes a greeting.
pub fn hello() -> String {
    command(
        "(call $write (i32.const 1) (i32.const 100) (i32.const 6))",
        r#"(data (i32.const 100) "hello\n")"#,
    )
}

/// Ends with this code.
pub fn exit(code: i32) -> String {
    command(&format!("(call $proc_exit (i32.const {code}))"), "")
}

/// Never ends, and never calls the host.
pub const SPIN: &str = r#"(module (memory (export "memory") 1) (func (export "_start") (loop $l (br $l))))"#;

/// Calls itself without end.
pub const RECURSE: &str = r#"(module (memory (export "memory") 1)
    (func $f (export "_start") (call $f) (call $f)))"#;

/// Does what a guest must not do.
pub const TRAP: &str = r#"(module (memory (export "memory") 1) (func (export "_start") unreachable))"#;

/// Grows its memory by 1 MiB until it is refused, then ends with the number of MiB it got.
pub fn grow_and_count() -> String {
    let body = "(loop $l
        (if (i32.ne (memory.grow (i32.const 16)) (i32.const -1))
          (then (local.set $n (i32.add (local.get $n) (i32.const 1))) (br $l))))
        (call $proc_exit (local.get $n))";
    command(body, "")
}

/// Grows its memory until it is refused, then traps, as allocators do.
pub fn grow_and_trap() -> String {
    command("(loop $l (br_if $l (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable", "")
}

/// Sleeps for an hour.
pub fn sleep() -> String {
    // subscription { userdata, tag clock, id monotonic, timeout, precision, flags }
    let body = "(i64.store (i32.const 224) (i64.const 3600000000000))
        (i32.store (i32.const 216) (i32.const 1))
        (call $ok (call $poll_oneoff (i32.const 200) (i32.const 300) (i32.const 1) (i32.const 8)))";
    command(body, "")
}

/// Writes a greeting, then sleeps for an hour.
pub fn greet_and_sleep() -> String {
    let body = "(call $write (i32.const 1) (i32.const 100) (i32.const 6))
        (i64.store (i32.const 224) (i64.const 3600000000000))
        (i32.store (i32.const 216) (i32.const 1))
        (call $ok (call $poll_oneoff (i32.const 200) (i32.const 300) (i32.const 1) (i32.const 8)))";
    command(body, r#"(data (i32.const 100) "hello\n")"#)
}

/// Writes `kib` KiB to stdout, 1 KiB of the same letter at a time, the letters going round, and one line to
/// stderr.
pub fn flood(kib: u32) -> String {
    let body = format!(
        "(loop $l
          (memory.fill (i32.const 1024) (i32.add (i32.const 97) (i32.rem_u (local.get $n) (i32.const 26))) (i32.const 1024))
          (call $write (i32.const 1) (i32.const 1024) (i32.const 1024))
          (local.set $n (i32.add (local.get $n) (i32.const 1)))
          (br_if $l (i32.lt_u (local.get $n) (i32.const {kib}))))
        (call $write (i32.const 2) (i32.const 100) (i32.const 5))"
    );
    command(&body, r#"(data (i32.const 100) "done\n")"#)
}

/// Writes its arguments and environment, each ended by a NUL.
pub fn echo_arguments() -> String {
    let body = "
        (call $ok (call $args_sizes_get (i32.const 16) (i32.const 20)))
        (call $ok (call $args_get (i32.const 1024) (i32.const 8192)))
        (call $write (i32.const 1) (i32.const 8192) (i32.load (i32.const 20)))
        (call $ok (call $environ_sizes_get (i32.const 16) (i32.const 20)))
        (call $ok (call $environ_get (i32.const 1024) (i32.const 8192)))
        (call $write (i32.const 1) (i32.const 8192) (i32.load (i32.const 20)))";
    command(body, "")
}

/// Reads its standard input once and ends with how many bytes there were, plus 40.
pub fn read_stdin() -> String {
    let body = "
        (i32.store (i32.const 0) (i32.const 1024))
        (i32.store (i32.const 4) (i32.const 64))
        (call $ok (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
        (call $proc_exit (i32.add (i32.const 40) (i32.load (i32.const 8))))";
    command(body, "")
}

/// A name in memory at 512 or 640.
fn names(first: &str, second: &str) -> String {
    format!(r#"(data (i32.const 512) "{first}") (data (i32.const 640) "{second}")"#)
}

const READ: u64 = 1 << 1;
const WRITE: u64 = 1 << 6;

fn open(directory: u32, at: u32, length: usize, flags: u32, rights: u64) -> String {
    format!(
        "(call $ok (call $path_open (i32.const {directory}) (i32.const 0) (i32.const {at}) (i32.const {length})
            (i32.const {flags}) (i64.const {rights}) (i64.const {rights}) (i32.const 0) (i32.const 16)))
         (local.set $fd (i32.load (i32.const 16)))"
    )
}

/// Writes the first KiB of a file below the first directory to stdout.
pub fn cat(name: &str) -> String {
    let body = format!(
        "{}
        (i32.store (i32.const 0) (i32.const 4096))
        (i32.store (i32.const 4) (i32.const 1024))
        (call $ok (call $fd_read (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))
        (call $write (i32.const 1) (i32.const 4096) (i32.load (i32.const 8)))",
        open(3, 512, name.len(), 0, READ)
    );
    command(&body, &names(name, ""))
}

/// Creates a file below directory number `directory` and writes a line into it.
pub fn create(directory: u32, name: &str) -> String {
    let body = format!(
        "{} (call $write (local.get $fd) (i32.const 640) (i32.const 6))",
        open(directory, 512, name.len(), 1, WRITE)
    );
    command(&body, &names(name, "hello\\n"))
}

/// Makes `a` and `b` below the first directory and moves a file from one into the other.
pub fn rename() -> String {
    let body = format!(
        "(call $ok (call $mkdir (i32.const 3) (i32.const 512) (i32.const 1)))
         (call $ok (call $mkdir (i32.const 3) (i32.const 640) (i32.const 1)))
         {} (call $write (local.get $fd) (i32.const 640) (i32.const 3))
         (call $ok (call $fd_close (local.get $fd)))
         (call $ok (call $path_rename (i32.const 3) (i32.const 512) (i32.const 3) (i32.const 3) (i32.const 640) (i32.const 3)))",
        open(3, 512, 3, 1, WRITE)
    );
    command(&body, &names("a/x", "b/y"))
}

/// Makes a symbolic link below the first directory that leads out, then opens a file through it.
pub fn escape_by_link(target: &str, through: &str) -> String {
    let body = format!(
        "(call $ok (call $path_symlink (i32.const 512) (i32.const {}) (i32.const 3) (i32.const 640) (i32.const 4))) {}",
        target.len(),
        open(3, 640, through.len(), 0, READ)
    );
    command(&body, &names(target, through))
}

/// Writes 1 MiB into a file below the first directory, over and over, without end.
pub fn fill_disk() -> String {
    let body = format!(
        "{} (loop $l (call $write (local.get $fd) (i32.const 1024) (i32.const 65536)) (br $l))",
        open(3, 512, 3, 1, WRITE)
    );
    command(&body, &names("big", ""))
}

/// Creates a file below the first directory, removes it, and goes on writing into it without end.
pub fn fill_removed_file() -> String {
    let body = format!(
        "{} (call $ok (call $unlink (i32.const 3) (i32.const 512) (i32.const 3)))
         (loop $l (call $write (local.get $fd) (i32.const 1024) (i32.const 65536)) (br $l))",
        open(3, 512, 3, 1, WRITE)
    );
    command(&body, &names("big", ""))
}

/// Makes `depth` directories in each other below the first directory, and ends with how many those were in
/// hundreds.
pub fn nest(depth: u32) -> String {
    let body = format!(
        "(local.set $fd (i32.const 3))
         (loop $l
           (call $ok (call $mkdir (local.get $fd) (i32.const 512) (i32.const 1)))
           (call $ok (call $path_open (local.get $fd) (i32.const 0) (i32.const 512) (i32.const 1)
             (i32.const 2) (i64.const {READ}) (i64.const {READ}) (i32.const 0) (i32.const 16)))
           (if (i32.ne (local.get $fd) (i32.const 3)) (then (call $ok (call $fd_close (local.get $fd)))))
           (local.set $fd (i32.load (i32.const 16)))
           (local.set $n (i32.add (local.get $n) (i32.const 1)))
           (br_if $l (i32.lt_u (local.get $n) (i32.const {depth}))))
         (call $proc_exit (i32.div_u (local.get $n) (i32.const 100)))"
    );
    command(&body, &names("d", ""))
}

/// Opens a file below the first directory `count` times, says so, and sleeps for an hour.
pub fn hoard_files(count: u32) -> String {
    let body = format!(
        "(loop $l
           (call $ok (call $path_open (i32.const 3) (i32.const 0) (i32.const 512) (i32.const 1)
             (i32.const 1) (i64.const {WRITE}) (i64.const {WRITE}) (i32.const 0) (i32.const 16)))
           (local.set $n (i32.add (local.get $n) (i32.const 1)))
           (br_if $l (i32.lt_u (local.get $n) (i32.const {count}))))
         (call $write (i32.const 1) (i32.const 640) (i32.const 5))
         (i64.store (i32.const 224) (i64.const 3600000000000))
         (i32.store (i32.const 216) (i32.const 1))
         (call $ok (call $poll_oneoff (i32.const 200) (i32.const 300) (i32.const 1) (i32.const 8)))"
    );
    command(&body, &names("f", "full\\n"))
}

/// Writes a file of 3 MiB below the first directory with as few calls as it can, and ends with how many there were.
pub fn write_at_once() -> String {
    let body = format!(
        "{} (drop (memory.grow (i32.const 64)))
         (i32.store (i32.const 0) (i32.const 1024))
         (i32.store (i32.const 4) (i32.const 3145728))
         (loop $l
           (call $ok (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))
           (i32.store (i32.const 4) (i32.sub (i32.load (i32.const 4)) (i32.load (i32.const 8))))
           (local.set $n (i32.add (local.get $n) (i32.const 1)))
           (br_if $l (i32.load (i32.const 4))))
         (call $proc_exit (local.get $n))",
        open(3, 512, 3, 1, WRITE)
    );
    command(&body, &names("big", ""))
}
