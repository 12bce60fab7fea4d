#!/bin/sh
# Counts the words of a real corpus on three workers, submitted at a peer that runs nothing itself, and
# checks the result against the same count done here, without Cardume.
#
# usage: run.sh [DIR]   (DIR keeps the downloaded input; default: target/examples below this checkout)
# CARDUME names the binary; default: `cardume` on the PATH.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
data=${1:-$here/../../target/examples}
cardume=${CARDUME:-cardume}
"$here/fetch.sh" "$data"

work=$(mktemp -d)
net="$work/net"
finish() {
    "$cardume" testnet down --dir "$net" --purge >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap finish EXIT INT TERM

"$cardume" testnet up --nodes 4 --submit-only 1 --dir "$net" --output json >"$work/net.json"
CARDUME_API=$(python3 -c "import json,sys; print(json.load(open(sys.argv[1]))['nodes'][0]['api'])" "$work/net.json")
export CARDUME_API

python=$("$cardume" data add "$data/python.wasm" | tail -n 1)
script=$("$cardume" data add "$here/count.py" | tail -n 1)
corpus=$("$cardume" data add "$data/corpus" | tail -n 1)

id=$("$cardume" job run "$here/job.yaml" -V "python=$python" -V "script=$script" -V "corpus=$corpus" \
    --id-only --wait | head -n 1)
"$cardume" job get "$id" --output-dir "$work/result"
cat "$work"/result/*/stdout
python3 "$here/merge.py" "$work/result" >"$work/merged.json"

CORPUS="$data/corpus" OUT="$work" BACALHAU_PARTITION_INDEX=0 BACALHAU_PARTITION_COUNT=1 \
    python3 "$here/count.py" >/dev/null
python3 - "$work/merged.json" "$work/counts.json" <<'PY'
import json, sys
merged, direct = (json.load(open(path)) for path in sys.argv[1:])
if merged != direct:
    sys.exit("the merged result differs from the direct count")
top = sorted(merged, key=merged.get, reverse=True)[:5]
print(f"equal: {sum(merged.values())} words, most often {', '.join(top)}")
PY
