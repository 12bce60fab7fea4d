"""Adds up the counts of all partitions: merge.py DIR, as `cardume job get` wrote DIR. Prints JSON."""

import glob
import json
import sys
from collections import Counter

words = Counter()
for path in sorted(glob.glob(f"{sys.argv[1]}/*/counts/counts.json")):
    with open(path, encoding="utf-8") as file:
        words.update(json.load(file))
json.dump(words, sys.stdout, sort_keys=True)
