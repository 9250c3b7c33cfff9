"""Sentences on what in the rows is probably a mistake.

Nothing is changed and nothing is refused here. This file never knows how the rows were read.
"""

import itertools
import re
import shlex

from .columns import NUMBER, WHOLE, is_written_number, labelled
from .errors import listed
from .files import PLAIN


def data_warnings(columns, splits):
    """Yield sentences on what in the rows is probably a mistake."""
    for column in columns:
        if column.labels:
            yield from warn_of_many_classes(column)
            yield from warn_of_missing(column)
            yield from warn_of_lone_words(column)
            yield from warn_of_digits(column)
            yield from warn_of_joined_labels(column)
            yield from warn_of_spellings(column)
        yield from warn_of_contradictions(column, splits)
    yield from warn_of_shared_rows(splits)


def warn_of_many_classes(column):
    number = len(column.labels)
    rows = sum(column.counts)
    if number > 100 or rows < 3 * number:
        hint = "--tasks leaves it out"
        if column.label_type is int and column.kind != "multi_label":
            hint = f"--regression {column.name} makes it a number, {hint}"
        found = f"{column.name!r} has {number} classes of {rows / number:.1f} rows on average"
        yield f"{found}; {hint}"


# Labels that are often none at all, beside the words of --missing
ODD_LABELS = ("-", "--", "---", "?", ".", "\\n", "n.a.", "#null!", "unlabeled", "unlabelled")


def warn_of_missing(column):
    """Ask about labels that may mean: no label."""
    odd = {*ODD_LABELS, *map(str.casefold, PLAIN.missing)}
    negative = []
    others = []
    for label, count in zip(column.labels, column.counts, strict=True):
        if str(label).casefold() in odd and label not in PLAIN.missing:  # those on request alone
            yield ask_about(column, label, count)
        if isinstance(label, int) and label < 0:
            negative.append((label, count))
        else:
            others.append(label)
    if len(negative) == 1 and others == list(range(len(others))):
        yield ask_about(column, *negative[0])


def ask_about(column, label, count):
    what = f"{count} training rows of {column.name!r} have the label {label!r}: is it a class?"
    return f"{what} --missing {shlex.quote(str(label))} makes it none"


def warn_of_lone_words(column):
    """Say which words make words of a column's whole numbers."""
    if column.label_type is not str:
        return
    words = []
    num_words = 0  # rows with them
    num_whole = 0  # rows with whole numbers
    for label, count in zip(column.labels, column.counts, strict=True):
        if WHOLE.fullmatch(label):
            num_whole += count
        elif not NUMBER.fullmatch(label):
            words.append(label)
            num_words += count
    if words and num_words < num_whole:
        found = f"in {num_words} rows words: {listed(words, 3)}"
        hint = f"--missing {shlex.quote(words[0])} makes that no label"
        yield f"{column.name!r} has whole numbers, and {found}; so all are words; {hint}"


def warn_of_digits(column):
    plain = []
    written = []  # as people write numbers
    others = []
    for label in map(str, column.labels):
        if NUMBER.fullmatch(label):
            plain.append(label)
        elif is_written_number(label):
            written.append(label)
        else:
            others.append(label)
    if written and others and len(plain) + len(written) > len(others):
        what = f"{column.name!r} has numbers such as {written[0]!r}, but also {others[0]!r:.40}"
        hint = f"--missing {shlex.quote(others[0]):.40} makes that no label"
        yield f"{what}, so that each is a class; {hint}"
    if column.kind == "multi_label" and column.labels == [0, 1]:
        hint = "if a list has one of them for each label, name the labels"
        yield f"{column.name!r} has the labels 0 and 1 alone; {hint}"


def warn_of_joined_labels(column):
    if column.label_type is not str:
        return
    for separator in "|;,\n ":
        joined = [label for label in column.labels if separator in label]
        if all(map(is_written_number, joined)):  # of decimal commas, or there is none
            continue
        parts = set()
        for label in joined:
            parts.update(part.strip() for part in label.split(separator))
        are_labels_too = bool(parts & set(column.labels))
        are_few = 2 * len(joined) > len(column.labels) > len(parts)
        if separator == " ":  # many a label has several words
            are_labels_too = parts <= set(column.labels)
            are_few = False
        if are_labels_too or are_few:
            found = f"{column.name!r} looks multi-label ({joined[0]!r})"
            written = separator.replace("\n", "\\n")
            flag = f"--multi-label {shlex.quote(f'{column.name}={written}')}"
            yield f"{found}, but each combination is one label; {flag} splits them"


def warn_of_spellings(column):
    spellings = {}
    for label in column.labels:
        plain = " ".join(str(label).casefold().split())
        plain = INVISIBLE_TOO.sub("", plain)
        spellings.setdefault(plain, []).append(label)
    for same in spellings.values():
        if len(same) > 1:
            what = "separate labels that differ only in case or blanks"
            yield f"{column.name!r} has {what}: {listed(same)}"


# Characters that may mean something: joiners, and the choice between black and coloured
INVISIBLE_TOO = re.compile("[\u200c\u200d\ufe00-\ufe0f]")


def warn_of_contradictions(column, splits):
    found = {}  # texts -> their labels
    for rows in splits.values():
        for row in labelled(rows, column):
            labels = found.setdefault((row.text, row.text_pair), set())
            labels.add(row.labels[column.name])
    count = sum(len(labels) > 1 for labels in found.values())
    if count:
        what = "list of labels" if column.kind == "multi_label" else "label"
        yield f"{count} texts have more than one {what} of {column.name!r}"


def warn_of_shared_rows(splits):
    texts = {}
    for split, rows in splits.items():
        texts[split] = {(row.text, row.text_pair) for row in rows}
    for one, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        count = sum((row.text, row.text_pair) in texts[other] for row in splits[one])
        if count:
            yield f"{count} {one} rows are also {other} rows"


def associations(columns, rows):
    """Yield (Cramér's V, column, column) for each two columns with one class in a row.

    V is 1 where one label gives the other away, and 0 where they are independent (Cramér 1946,
    section 21.9). By chance it is well above 0 where the rows are few for the pairs of classes.
    """
    from scipy.stats.contingency import association, crosstab

    names = [c.name for c in columns if c.kind not in ("multi_label", "regression")]
    for one, other in itertools.combinations(names, 2):
        first = []
        second = []
        for row in rows:
            if one in row.labels and other in row.labels:
                first.append(row.labels[one])
                second.append(row.labels[other])
        if len(set(first)) > 1 and len(set(second)) > 1:
            table = crosstab(first, second).count
            yield float(association(table, method="cramer")), one, other
