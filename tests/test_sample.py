"""Properties of sample_data.json."""

import json
import re
from collections import Counter

from conftest import SAMPLE


def read_splits():
    splits = json.loads(SAMPLE.read_text("utf-8"))
    del splits["label_names"]
    return splits


def read_texts():
    texts = []
    for rows in read_splits().values():
        for row in rows:
            texts.append(row["text"].lower())
    return texts


def test_each_split_has_every_combination_of_labels_equally_often():
    for rows in read_splits().values():
        cells = Counter((row["sentiment"], row["category"]) for row in rows)
        assert len(cells) == 15
        assert len(set(cells.values())) == 1
    assert 1500 <= len(read_texts()) <= 2000


def test_no_two_texts_share_most_of_their_words():
    words = [frozenset(re.findall(r"\w+", text)) for text in read_texts()]
    assert len(set(words)) == len(words)
    for i, one in enumerate(words):
        for other in words[i + 1 :]:
            either = len(one | other)
            assert either < 5 or len(one & other) < 0.6 * either, (one, other)


def test_texts_follow_no_template():
    openings = Counter(" ".join(text.split()[:4]) for text in read_texts())
    assert max(openings.values()) <= 3


def test_each_category_has_a_name():
    names = json.loads(SAMPLE.read_text("utf-8"))["label_names"]["category"]
    categories = {str(row["category"]) for row in read_splits()["train"]}
    assert set(names) == categories
