"""How a script reads its command line, talks to its user, and ends.

This file never knows what the script is about.
"""

import argparse
import os
import sys
from pathlib import Path

import torch.distributed as dist

from .errors import InputError, printable
from .processes import (
    discard,
    has_joined,
    is_first,
    is_half_launched,
    launched,
    leave_processes,
)


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is an InputError, and so one line."""

    def error(self, message):
        raise InputError(f"{message}; see --help")


def number(kind, low, high=sys.float_info.max):
    """A type for argparse: an int or a float (`kind`) from `low` to `high`."""

    def parse(text):
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return value

    parse.__name__ = kind.__name__  # argparse's messages name it
    return parse


def say(message):
    """Print a line on standard error, once on each machine; nowhere if that cannot be written."""
    launch = launched()
    if launch.local_rank > 0:
        return
    where = f"rank {launch.rank}: " if launch.rank > 0 else ""
    try:
        print(f"{Path(sys.argv[0]).name}: {where}{message}", file=sys.stderr)
    except OSError:
        discard(sys.stderr)  # at exit it would fail again


def note(message):
    """Say something once in a run. Characters of a user's file cannot do harm in it."""
    if is_first():
        say(printable(message))


def warn(message):
    """A note that begins with "warning:", in yellow on a terminal."""
    if is_first():
        mark = "warning:"
        if has_colors(sys.stderr):
            mark = f"\033[1;33m{mark}\033[0m"
        say(f"{mark} {printable(message)}")


def has_colors(stream):
    """Whether colours can be shown, and are not refused (no-color.org)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return stream.isatty() and not plain


def open_closed_streams():
    """Let standard streams that are closed, as a daemon's are, lead nowhere."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(nowhere, mode))


def run_script(main):
    """Call main() and end as a script should.

    A mistake of the user is one line on standard error and exit status 2. A signal ends it with
    128 + its number. A closed pipe, as of `| head`, ends it quietly with 141.
    """
    open_closed_streams()
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's standard output has no such method
        sys.stdout.reconfigure(errors="backslashreplace")  # for a terminal that lacks a character
    if is_half_launched():
        reason = "RANK and WORLD_SIZE are set, but not all that torchrun sets"
        warn(f"{reason}; this process works alone. torchrun starts several that work together")
    try:
        main()
        leave_processes()
        sys.stdout.flush()
    except KeyboardInterrupt as stop:
        status, message = stop.args or (130, "interrupted")
        say(message)
        leave_processes()
        sys.exit(status)
    except BrokenPipeError:
        discard(sys.stdout)
        sys.exit(141)
    except OSError as error:
        if error.filename is None:  # standard output cannot be written; at exit it would fail again
            discard(sys.stdout)
            fail(error.strerror or str(error))
        fail(f"{error.filename}: {error.strerror}")
    except InputError as error:
        fail(str(error))
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        reason = str(error).splitlines()[0]
        fail(f"another process of this run ended or failed ({reason})")


def fail(message):
    """End with one line for the user."""
    say(f"error: {printable(message)}")
    sys.exit(2)


def is_lost_process(error):
    """Whether a RuntimeError means that another process of the group is gone."""
    if not has_joined():
        return False
    return isinstance(error, dist.DistError) or "gloo" in str(error)
