"""What a configuration may ask for: no more than there is in the files beside it.

Whoever makes a checkpoint can write anything into its configuration, also numbers that would take
hours or all memory. But its tensors have names and shapes, which the header of a safetensors file
lists, and these cannot lie about how many there are. This file never knows what an encoder is.
"""

import json
import math
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import safetensors
import torch
import torch.nn.modules.module as hooks

from .errors import InputError, input_errors

NO_SAFETENSORS = (
    "it has no model.safetensors, and a pickle (pytorch_model.bin) can run any code; "
    "if you trust it, convert it: from transformers import AutoModel, AutoTokenizer; "
    "AutoModel.from_pretrained({0!r}, use_safetensors=False).save_pretrained('converted'); "
    "AutoTokenizer.from_pretrained({0!r}).save_pretrained('converted')"
)


class Sizes(NamedTuple):
    """How many tensors there are, and how large; the header of the file that holds them says it."""

    num_tensors: int
    largest: int  # dimension of any of them
    num_elements: int  # of all of them


MIN_LARGEST = 2**16  # so large may any integer be: positions of long texts, ids of tokens
MAX_BUFFERS = 2**24  # elements of what is in no file
MAX_CALLS = 5000  # of modules, for one batch: the largest encoders need some two thousand
MAX_BYTES = 2**23  # of a config.json; those of encoders have some hundred to a million
MAX_WINDOW = 4096  # tokens that a short text may be padded to; Longformer's are 512
# Taken where the header is not there yet: on the Hub, until a pickle there has been converted
UNSEEN = Sizes(num_tensors=5000, largest=2**20, num_elements=2**33)


def read_shapes(path):
    """{name: shape} of the tensors in a safetensors file; only its header is read."""
    shapes = {}
    with safetensors.safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            shapes[name] = file.get_slice(name).get_shape()
    return shapes


def sizes_of(shapes):
    largest = 1
    num_elements = 0
    for shape in shapes.values():
        largest = max(largest, *shape, 1)
        num_elements += math.prod(shape)
    return Sizes(len(shapes), largest, num_elements)


def read_sizes(name_or_folder):
    """The Sizes of a checkpoint in a folder or on the Hub, whose files are downloaded.

    Raises ValueError where its weights are pickles, or lie outside of the checkpoint.
    """
    path = find_file(name_or_folder, "model.safetensors")
    if path is not None:
        return sizes_of(read_shapes(path))
    index = find_file(name_or_folder, "model.safetensors.index.json")
    if index is None and Path(name_or_folder).is_dir():
        raise ValueError(NO_SAFETENSORS.format(str(name_or_folder)))
    if index is None:
        return UNSEEN
    shapes = {}
    for shard in read_shard_names(index):
        path = find_file(name_or_folder, shard)
        if path is None:
            raise ValueError(f"its file {shard}, which its index names, is missing")
        shapes.update(read_shapes(path))
    return sizes_of(shapes)


def find_file(name_or_folder, name):
    """The path of a file of a checkpoint, or None if there is none."""
    if Path(name_or_folder).is_dir():
        path = Path(name_or_folder) / name
        return path if path.is_file() else None
    import transformers

    return transformers.utils.cached_file(
        name_or_folder, name, _raise_exceptions_for_missing_entries=False
    )


def read_shard_names(index):
    """The files that the index of a checkpoint in several files names. Raises ValueError."""
    content = json.loads(Path(index).read_text("utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get("weight_map"), dict):
        raise ValueError(f"its index {Path(index).name} has no weight_map")
    names = sorted(set(map(str, content["weight_map"].values())))
    if not names:
        raise ValueError(f"its index {Path(index).name} names no file")
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"its index names {name!r:.80}, a file outside of the checkpoint")
        if not name.endswith(".safetensors"):
            raise ValueError(
                f"its index names {name!r:.80}, which is no safetensors file; "
                "a pickle can run any code"
            )
    return names


def check_length(name_or_folder):
    """Raise ValueError where a folder's config.json is so long that to read it takes memory."""
    path = Path(name_or_folder) / "config.json"
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise ValueError(f"its config.json is longer than {MAX_BYTES} bytes")


def check_windows(windows, num_positions):
    """Raise ValueError for windows of attention, one or a list, that are longer than any text.

    Each text, however short, is padded to a multiple of the window.
    """
    if not isinstance(windows, list):
        windows = [windows]
    most = min(num_positions, MAX_WINDOW)
    for window in windows:
        if isinstance(window, int) and window > most:
            raise ValueError(
                f"attention_window in its configuration is {window}; it can be at most {most}"
            )


def check_sizes(values, sizes):
    """Raise ValueError, naming the field, for a configuration that asks for too much.

    No integer in it may be larger than the largest dimension of any tensor, and no text, list or
    object longer; 65536 is always allowed. So each loop over one of them ends soon. That they are
    not multiplied is what `bounded` sees to.
    """
    most = max(sizes.largest, MIN_LARGEST)
    unchecked = [("", values)]
    while unchecked:
        name, value = unchecked.pop()
        size = 0
        if isinstance(value, int) and "theta" not in name:  # the base of rotary angles
            size = abs(value)
        elif isinstance(value, (str, list, dict)):
            size = len(value)
        if size > most:
            what = "is" if isinstance(value, int) else "has a length of"
            raise ValueError(
                f"{name or 'a value'} in its configuration {what} {size}; "
                f"the largest dimension of its tensors is {sizes.largest}"
            )
        if isinstance(value, dict):
            unchecked.extend(value.items())
        elif isinstance(value, list):
            unchecked.extend([(name, part) for part in value])


class TooLarge(ValueError):
    """A configuration asks for more than its file has."""


@contextmanager
def bounded(sizes):
    """Within this block no module is made that is much larger than the tensors of the file.

    TooLarge is raised as soon as there are too many parameters. Some are allowed beyond those in
    the file: a pooler, and parts that the file holds as one tensor.
    """
    max_parameters = 4 * sizes.num_tensors + 100
    max_elements = 1.25 * sizes.num_elements + 2**20
    num_parameters = 0
    num_elements = 0
    num_buffered = 0
    owner = threading.get_ident()  # what other threads make meanwhile is not counted

    def add_parameter(module, name, parameter):
        nonlocal num_parameters, num_elements
        if parameter is not None and threading.get_ident() == owner:
            num_parameters += 1
            num_elements += parameter.numel()
        if num_parameters > max_parameters or num_elements > max_elements:
            raise TooLarge(
                "its configuration asks for more weights than the "
                f"{sizes.num_elements} in its {sizes.num_tensors} tensors"
            )

    def add_buffer(module, name, buffer):
        nonlocal num_buffered
        if buffer is not None and threading.get_ident() == owner:
            num_buffered += buffer.numel()
        if num_buffered > MAX_BUFFERS:
            raise TooLarge("its configuration asks for buffers of more than 16 million numbers")

    handles = [
        hooks.register_module_parameter_registration_hook(add_parameter),
        hooks.register_module_buffer_registration_hook(add_buffer),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def few_calls():
    """Within this block modules are called MAX_CALLS times at most; then ValueError is raised."""
    num_calls = 0

    def count_call(module, inputs):
        nonlocal num_calls
        num_calls += 1
        if num_calls > MAX_CALLS:
            raise ValueError(
                f"its configuration asks for more than {MAX_CALLS} calls of modules for a text"
            )

    handle = hooks.register_module_forward_pre_hook(count_call)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def shapes_only(weights, config, mistake):
    """Within this block modules have shapes without memory, as `config` describes them.

    weights: the safetensors file that the modules are for. Where the configuration asks for more
    than there is in it, an InputError that begins with `mistake` is raised.
    """
    with input_errors(mistake):
        sizes = sizes_of(read_shapes(weights))
        check_sizes(config, sizes)
    try:
        with torch.device("meta"), bounded(sizes):
            yield
    except TooLarge as error:
        raise InputError(f"{mistake}: {error}") from None
