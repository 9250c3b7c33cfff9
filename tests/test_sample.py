"""Properties of sample_data.json."""

import json
import re
from collections import Counter

from conftest import SAMPLE


def test_sample_is_balanced_without_repeats_and_the_splits_do_not_overlap():
    sample = json.loads(SAMPLE.read_text())
    splits = {name: sample[name] for name in ("train", "validation", "test")}
    texts = [row["text"].lower() for rows in splits.values() for row in rows]
    assert 1500 <= sum(map(len, splits.values())) <= 2000
    for rows in splits.values():
        cells = Counter((row["sentiment"], row["category"]) for row in rows)
        assert len(cells) == 15 and len(set(cells.values())) == 1
    everything = [frozenset(re.findall(r"\w+", text)) for text in texts]
    assert len(set(everything)) == len(everything)
    for i, one in enumerate(everything):
        for other in everything[i + 1 :]:
            assert len(one & other) < 0.6 * len(one | other) or len(one | other) < 5, (one, other)
    openings = Counter(" ".join(text.split()[:4]) for text in texts)
    assert max(openings.values()) <= 3  # of a thousand rows: no template
    assert set(sample["label_names"]["category"]) == {str(row["category"]) for row in splits["train"]}
