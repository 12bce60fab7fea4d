#!/bin/sh
# Runs a C program as a job, with nothing set up beforehand: an embedded peer does the work.
# CARDUME names the binary; default: `cardume` on the PATH.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
CARDUME_DIR="$work" "${CARDUME:-cardume}" wasm run "$here/hello.wasm" --count 3 -- from Cardume
