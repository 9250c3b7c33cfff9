"""Whether Python and the installed packages are new enough: asked before they are imported.

This file imports nothing of the project, and every Python 3 can read it.
"""

import sys

OLDEST_PYTHON = (3, 11)
OLDEST = {  # the lower ends of the ranges in requirements.txt
    "torch": (2, 6),
    "transformers": (4, 56),
    "numpy": (1, 26),
    "scikit-learn": (1, 4),
    "matplotlib": (3, 8),
    "scipy": (1, 11),
    "tokenizers": (0, 22),
    "safetensors": (0, 4),
    "tqdm": (4, 60),
    "filelock": (3, 13),
}


def find_too_old():
    """A sentence about the first thing here that is too old, or None."""
    if sys.version_info < OLDEST_PYTHON:
        return "Python {}.{} is too old; 3.11 or newer is needed".format(*sys.version_info)
    from importlib.metadata import PackageNotFoundError, version

    for package, oldest in OLDEST.items():
        try:
            found = version(package)
        except PackageNotFoundError:  # not every use needs every package
            continue
        numbers = found.split(".")[:2]
        try:
            is_old = tuple(map(int, numbers)) < oldest
        except ValueError:  # a version of someone's own
            continue
        if is_old:
            needed = ".".join(map(str, oldest))
            return (
                f"{package} {found} is too old; {needed} or newer is needed "
                "(pip install -r requirements.txt, best in a new virtual environment)"
            )
    return None


def are_new_enough(script):
    """Whether the script can start. Otherwise one line on standard error has said why not."""
    problem = find_too_old()
    if problem is None:
        return True
    print(f"{script}: error: {problem}", file=sys.stderr)
    return False
