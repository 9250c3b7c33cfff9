"""The process that phases.py measures: train.main with clocks around the functions of HOOKS.

It imports nothing but Python's own modules before its clock runs.
"""

import builtins
import functools
import json
import pkgutil
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
REST = "the rest"
IMPORTS = "imports"
STEPS = "steps"
# Phase -> its functions. Where one calls another, the time counts for the outer one. But imports
# count as imports wherever they are, and what training calls counts for the phase of that.
HOOKS = {
    IMPORTS: ["builtins:__import__"],
    "reading the files": ["train:read_rows"],
    "loading the encoder": [
        "mtbert:load_encoder",
        "mtbert:load_tokenizer",
        "mtbert:MTBert.__init__",
        "support.runs:tensors_sha256",
    ],
    "encoding the texts": ["mtbert:encode"],
    "fitting the heads": ["train:start_heads"],
    STEPS: ["mtbert:train"],
    "evaluation": ["mtbert:validate"],
    "snapshots, best weights": ["support.runs:Run.save", "mtbert:copy_to_cpu"],
    "saving": [
        "mtbert:save",
        "train:begin_or_resume",
        "train:write_test_predictions",
        "support.runs:write",
    ],
    "testing": ["mtbert:load", "mtbert:compute_logits", "mtbert:evaluate", "mtbert:predictions_of"],
    "drawing": ["train:draw"],
}


class Clock:
    """Seconds in each phase. `phases` are those that are on, the innermost last."""

    def __init__(self):
        self.seconds = {}
        self.phases = [REST]
        self.since = time.perf_counter()

    def count(self):
        """Count the time since the last call for the innermost phase."""
        now = time.perf_counter()
        phase = self.phases[-1]
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self.since
        self.since = now

    def around(self, function, phase):
        """-> a function that does the same, and whose time is counted."""

        @functools.wraps(function)
        def counted(*arguments, **named):
            self.count()
            outer = self.phases[-1]
            inner = outer
            if phase == IMPORTS or outer in (REST, STEPS):
                inner = phase
            self.phases.append(inner)
            try:
                return function(*arguments, **named)
            finally:
                self.count()
                self.phases.pop()

        return counted

    def put_around(self, name, phase):
        """Let the time of the function with this name count. AttributeError where there is none."""
        module, _, path = name.partition(":")
        owner_name, _, function_name = path.rpartition(".")
        owner = pkgutil.resolve_name(f"{module}:{owner_name}")
        function = getattr(owner, function_name)
        setattr(owner, function_name, self.around(function, phase))


def main(record, *argv):
    """Call train.main(argv), and write {phase: seconds} to the file `record`."""
    clock = Clock()
    builtins.__import__ = clock.around(builtins.__import__, IMPORTS)
    sys.path.insert(0, str(HERE))
    import train

    for phase, names in HOOKS.items():
        for name in names:
            if phase != IMPORTS:
                clock.put_around(name, phase)
    train.main(argv)
    clock.count()
    Path(record).write_text(json.dumps(clock.seconds), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
