"""Mistakes of the user, as one line each, and text that is safe to print.

This file imports nothing of the project.
"""

from contextlib import contextmanager


class InputError(ValueError):
    """A mistake in what the user gave us. Scripts print it as one line and exit with status 2."""


class Diverged(InputError):
    """A loss or a logit is not finite."""


@contextmanager
def input_errors(what):
    """Turn what libraries raise for a user's file that is missing or wrong into an InputError.

    Wrap only what reads the user's files in it: an error in the code itself keeps its traceback.
    """
    try:
        yield
    except BaseException as error:
        # Each library has its own; within such a block they all mean the same. A panic of Rust,
        # such as those of tokenizers, is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{what}: {lines[0]}") from None


def printable(text):
    """`text` on one line, without the characters that could steer a terminal."""
    characters = []
    for character in text:
        if character.isprintable():
            characters.append(character)
        elif character.isspace():
            characters.append(" ")
        else:
            characters.append("\N{REPLACEMENT CHARACTER}")
    return "".join(characters)


def listed(names, most=10):
    """Names for a message: quoted, and at most `most` of them."""
    names = list(names)
    text = ", ".join(map(repr, names[:most]))
    if len(names) > most:
        text += f" and {len(names) - most} more"
    return text
