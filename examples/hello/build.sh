#!/bin/sh
# Builds hello.wasm again from hello.c: Debian's clang, lld, wasi-libc and libclang-rt-dev-wasm32.
set -eu
cd "$(dirname "$0")"
clang=$(command -v clang || command -v clang-14)
"$clang" --target=wasm32-wasi --sysroot=/usr -O2 -s -o hello.wasm hello.c
