"""Counts the words of this partition's share of a corpus.

Runs inside CPython on WASI: the corpus is mounted read-only at /in/corpus, results go to /out.
The share of partition i of n is every n-th file of the sorted list, starting with the i-th.
"""

import json
import os
import re
from collections import Counter

index = int(os.environ["BACALHAU_PARTITION_INDEX"])
count = int(os.environ["BACALHAU_PARTITION_COUNT"])

corpus = os.environ.get("CORPUS", "/in/corpus")
words = Counter()
share = sorted(os.listdir(corpus))[index::count]
for name in share:
    with open(os.path.join(corpus, name), encoding="utf-8") as file:
        words.update(re.findall(r"[a-z]+", file.read().lower()))

with open(os.path.join(os.environ.get("OUT", "/out"), "counts.json"), "w", encoding="utf-8") as file:
    json.dump(words, file, sort_keys=True)
print(f"partition {index} of {count}: {len(share)} files, {sum(words.values())} words")
