"""The same arithmetic, faster on a CPU. Everything in this file is optional.

    use_huge_pages()                        before anything is allocated
    speed_up_training(model, optimizer)     before the first step
    speed_up_prediction(model, dtype)       after the weights are loaded

Each function replaces modules of a finished model from outside. Without these calls the model
computes the same, slower. This file knows modules and tensors, and never a task or a file.

Whoever changes mtbert.Layer or mtbert.Attention need not think of this file: a layer gets faster
modules only where it computes the same with them (`swap`).

Shapes: B examples, T tokens of a padded example, D hidden size, H heads; N tokens of a whole batch.
"""

import importlib.util
import math
import os
import platform
import shutil
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from .errors import InputError

DTYPES = ("float32", "bfloat16", "float16", "int8")
MAX_TOKENS = 2048  # of a training batch are computed at a time: bounds memory, at equal speed
TINY = torch.finfo(torch.float32).tiny  # in place of a scale of zero


# --------------------------------------------------------------------------------------------------
# What the scripts and mtbert.py call


def use_huge_pages():
    """Let torch keep large tensors in huge pages, which Linux finds faster."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def pick_dtype(name, device, predict=False):
    """The dtype of the encoder's arithmetic, from a name or a torch.dtype.

    "auto" is bfloat16 where that is the fastest, else float32; in prediction on a CPU without fast
    bfloat16 it is int8 where that is fast. The environment variable MTBERT_ARITHMETIC (float32,
    bfloat16 or int8) replaces this choice; only tests set it.
    Raises InputError where int8 is asked for and cannot be had.
    """
    name = str(name).removeprefix("torch.")
    if name == "auto":
        name = fastest_dtype(device, predict)
    if name == "int8" and device.type != "cpu":
        raise InputError(f"int8 is for CPUs only, not for {device.type}; use another --dtype")
    if name == "int8" and not has_int8() and os.environ.get("MTBERT_ARITHMETIC") != "int8":
        raise InputError("int8 needs a CPU with VNNI, and this one has none; use another --dtype")
    if name not in DTYPES:
        raise InputError(f"there is no dtype {name!r:.40} here; take auto, {', '.join(DTYPES)}")
    return getattr(torch, name)


def check_compiler(device):
    """Raise InputError where torch.compile finds no compiler."""
    cure = "install it, or leave --compile out"
    if device.type != "cpu":
        if importlib.util.find_spec("triton") is None:
            raise InputError(f"--compile needs the package triton on a {device.type}; {cure}")
        return
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    compiler = os.environ.get("CXX") or default
    if shutil.which(compiler) is None:
        raise InputError(f"--compile needs the C++ compiler {compiler}, which is missing; {cure}")


def fastest_dtype(device, predict):
    int8_possible = predict and device.type == "cpu"
    forced = os.environ.get("MTBERT_ARITHMETIC")
    if forced == "int8" and not int8_possible:
        return "float32"
    if forced:
        return forced
    if has_fast_bfloat16(device):
        return "bfloat16"
    if int8_possible and has_int8():
        return "int8"
    return "float32"


def has_fast_bfloat16(device):
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    features = cpu_features()
    # Intel's AVX-512 computes bfloat16 at half the rate of float32. Its AMX, AMD's AVX-512 and
    # Arm's units are faster than float32.
    if features.get("avx512_bf16") and "Intel" not in features["cpu_name"]:
        return True
    return bool(features.get("amx_bf16") or features.get("bf16"))


def speed_up_training(model, optimizer):
    """Make training steps of an MTBert faster on a CPU; on another device do nothing.

    Dropout takes fewer random bits, the layers compute no padding, attention is computed as plain
    products, and a fused optimizer clips the gradients while it reads them. Values and gradients
    stay the same but for rounding; the masks of dropout are other random ones.
    The inside of an encoder that transformers computes is left alone.
    """
    if next(model.parameters()).device.type != "cpu":
        return
    model.max_tokens = MAX_TOKENS
    if hasattr(model.encoder, "run_layers"):
        replace(model, nn.Dropout, Dropout.of)
        leave_out_padding(model.encoder)
    else:
        replace(model, nn.Dropout, Dropout.of, leave=model.encoder)
    if optimizer.defaults.get("fused") and steps_scale_gradients():
        optimizer.clip_gradients = partial(clip_within_step, optimizer)
        optimizer.register_step_post_hook(forget_scale)


def speed_up_prediction(model, dtype):
    """Make an MTBert predict faster, in `dtype` -> the name of the dtype that was picked.

    dtype: as for pick_dtype. "auto" takes int8 for an mtbert.Encoder alone; other encoders were not
    measured in it. On a CPU the weights of linear layers are packed as the products want them. So
    the model only predicts from then on: it is not saved, and its encoder takes no gradient.
    """
    encoder = model.encoder
    device = next(model.parameters()).device
    is_ours = hasattr(encoder, "run_layers")
    dtype = pick_dtype(dtype, device, predict=is_ours)
    weight_dtype = torch.float32 if dtype == torch.int8 else dtype
    for parameter in encoder.parameters():  # no buffers: rotary positions need their float32
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(weight_dtype)
    encoder.requires_grad_(False)
    if dtype == torch.int8:
        replace(encoder.layers, nn.Linear, Int8Linear)
    elif is_ours and device.type == "cpu":
        packs = can_pack(torch.empty(0, dtype=dtype))
        checked = {}
        for layer in encoder.layers:
            speed_up_layer(layer, encoder.config.hidden_size, dtype, packs, checked)
    return str(dtype).removeprefix("torch.")


# --------------------------------------------------------------------------------------------------
# How modules are replaced


def replace(module, kind, make, leave=None):
    """Put make(child) in place of each child of exactly this class, at any depth of `module`.

    The child `leave` and what is within it stay.
    """
    for name, child in module.named_children():
        if child is leave:
            continue
        if type(child) is kind:
            setattr(module, name, make(child))
        else:
            replace(child, kind, make, leave)


@torch.no_grad()
def swap(layer, modules, x, mask, compute):
    """Put `modules`, {name: module}, into a layer if it computes the same with them -> whether.

    The layer must compute layer(x, mask) as before when it is called as compute(layer, x, mask).
    x: (B, T, D); mask: (B, 1, 1, T), true on tokens. Dropout is off in the meantime.
    """
    training = layer.training
    layer.eval()
    expected = layer(x, mask)
    former = {name: getattr(layer, name) for name in modules}
    for name, module in modules.items():
        setattr(layer, name, module.eval())
    try:
        found = compute(layer, x, mask)
        tokens = mask[:, 0, 0]
        difference = (found - expected)[tokens].float().norm()
        tolerance = 0.02 if x.dtype == torch.bfloat16 else 1e-4
        same = bool(difference <= tolerance * expected[tokens].float().norm())
    except Exception:  # a changed layer may fail in any way when it gets no padding
        same = False
    if not same:
        for name, module in former.items():
            setattr(layer, name, module)
    layer.train(training)
    return same


def random_batch(hidden_size, lengths, dtype=torch.float32):
    """Random hidden states (B, T, D) and their mask (B, 1, 1, T), always the same."""
    T = max(lengths)
    generator = torch.Generator().manual_seed(0)  # torch's own generator stays as it is
    x = torch.randn(len(lengths), T, hidden_size, generator=generator).to(dtype)
    mask = torch.arange(T) < torch.tensor(lengths)[:, None]
    return x, mask[:, None, None, :]


# --------------------------------------------------------------------------------------------------
# Training: dropout


class Dropout(nn.Dropout):
    """nn.Dropout in a third of its time on a CPU: it spends 16 random bits on each element.

    The scale 1 / (1 - p) is rounded to the dtype of x, and the rate is chosen to fit the rounded
    scale, so that the mean is kept: in bfloat16 the rate is p to within 0.002.
    """

    @classmethod
    def of(cls, dropout):
        return cls(dropout.p).train(dropout.training)

    def forward(self, x):
        if not self.training or self.p in (0, 1) or x.device.type != "cpu":
            return super().forward(x)
        scale = torch.tensor(1 / (1 - self.p), dtype=x.dtype).item()
        rate = 1 - 1 / scale
        numbers = torch.empty(x.numel() // 4 + 1, dtype=torch.int64)
        numbers.random_(-(2**63), None)  # all 64 bits
        numbers = numbers.view(torch.int16)[: x.numel()].view(x.shape)
        # The result is written in the dtype of x: a bool would have to be converted twice.
        keep = torch.empty(x.shape, dtype=x.dtype)
        torch.ge(numbers, round(rate * 2**16) - 2**15, out=keep)
        return x * keep.mul_(scale)


# --------------------------------------------------------------------------------------------------
# Training: layers without padding


def round_up(number, multiple):
    return math.ceil(number / multiple) * multiple


class Gather(torch.autograd.Function):
    """x (N, D) -> its rows x[index], (M, D). Its gradient is NOT the derivative for padding.

    The derivative adds up the gradients of all places where a row of x went, one row after the
    other, which is slow. Here each row of x takes the gradient of one place, inverse[row].
    For a token that is the derivative, as a token goes to one place only. Padding goes to many
    places. But no loss depends on padding: pooling leaves it out and no token attends to it. So
    all of its gradients are zero, and one of them is as good as their sum.
    """

    @staticmethod
    def forward(ctx, x, index, inverse):
        ctx.save_for_backward(inverse)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, gradient):
        [inverse] = ctx.saved_tensors
        return gradient.index_select(0, inverse), None, None


class Packing:
    """The places of a padded batch that hold tokens. It is given to layers in place of the mask.

    Both T and N are rounded up, with padding: oneDNN compiles kernels for each shape and keeps
    them, which would take hundreds of megabytes.
    """

    def __init__(self, mask):
        """mask: (B, 1, 1, T), true on tokens."""
        T = mask.shape[-1]
        self.mask = F.pad(mask, (0, round_up(T, 4) - T))  # (B, 1, 1, T rounded up)
        is_token = self.mask.flatten()
        tokens = is_token.nonzero().squeeze(1)
        padding = is_token.logical_not().nonzero().squeeze(1)
        count = len(tokens)
        N = round_up(count + 1, 32)  # one more, so that there is padding for `pad` to take
        self.to_place = torch.cat([tokens, padding])[:N]  # (N,)
        self.to_row = torch.full(is_token.shape, count)  # (B * T,); padding takes row `count`
        self.to_row[self.to_place] = torch.arange(len(self.to_place))

    def unpad(self, x):
        """(B, T, D) -> (N, D)"""
        return Gather.apply(x.flatten(0, 1), self.to_place, self.to_row)

    def pad(self, x):
        """(N, D) -> (B, T, D). Padding gets the values of any padding."""
        B, _, _, T = self.mask.shape
        return Gather.apply(x, self.to_row, self.to_place).view(B, T, -1)


def without_padding(compute, x, mask):
    """compute(x, mask), (B, T, D), where x comes as (N, D), and a Packing in place of the mask."""
    T = x.shape[1]
    packing = Packing(mask)
    x = F.pad(x, (0, 0, 0, packing.mask.shape[-1] - T))
    x = compute(packing.unpad(x), packing)
    return packing.pad(x)[:, :T]


def run_layers_without_padding(encoder, x, mask):
    """In place of encoder.run_layers, which it still calls. In evaluation padding stays."""
    run_layers = partial(type(encoder).run_layers, encoder)
    if encoder.training and x.device.type == "cpu" and not torch.compiler.is_compiling():
        return without_padding(run_layers, x, mask)
    return run_layers(x, mask)


def leave_out_padding(encoder):
    """Let the encoder's layers compute tokens only, if all of them can."""
    longest = min(encoder.config.max_length, 256)
    x, mask = random_batch(encoder.config.hidden_size, [longest, longest // 2 + 1])
    for layer in encoder.layers:
        if not swap_attention(layer, x, mask):
            return
    encoder.run_layers = partial(run_layers_without_padding, encoder)


def swap_attention(layer, x, mask):
    attention = getattr(layer, "attention", None)
    if isinstance(attention, FastAttention):
        return True
    if attention is None or list(attention.parameters()):  # it is not ours: ours has none
        return False
    return swap(layer, {"attention": FastAttention(attention)}, x, mask, without_padding)


# --------------------------------------------------------------------------------------------------
# Training and prediction: attention


def plain_attention(qkv, mask, num_heads, dropout):
    """mtbert.Attention as plain products. On a CPU the fused kernel's dropout is slow.

    qkv: (B, T, 3D); mask: (B, 1, 1, T), true on tokens; dropout: a module -> (B, T, D).
    """
    B, T, size = qkv.shape
    head_size = size // 3 // num_heads
    qkv = qkv.view(B, T, 3, num_heads, head_size).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.contiguous()  # each (B, H, T, D / H)
    bias = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    bias = bias.masked_fill(~mask, -math.inf)
    # The bias makes the sum and the softmax float32: exact, and faster than those of bfloat16.
    scores = torch.add(bias, q @ k.transpose(-1, -2), alpha=head_size**-0.5)  # (B, H, T, T)
    probabilities = dropout(scores.softmax(-1).to(v.dtype))
    return (probabilities @ v).transpose(1, 2).reshape(B, T, -1)


class FastAttention(nn.Module):
    """An mtbert.Attention, or plain products where these are faster; the mask may be a Packing."""

    def __init__(self, original):
        super().__init__()
        self.original = original
        self.train(original.training)

    def forward(self, qkv, mask):
        num_heads = self.original.num_heads
        dropout = self.original.dropout
        if isinstance(mask, Packing):
            context = plain_attention(mask.pad(qkv), mask.mask, num_heads, dropout)
            return mask.unpad(context)
        # In bfloat16 the fused kernel takes twice the time of plain products for short texts.
        is_short = qkv.shape[1] < 96
        if self.training or (qkv.dtype == torch.bfloat16 and is_short):
            return plain_attention(qkv, mask, num_heads, dropout)
        return self.original(qkv, mask)


# --------------------------------------------------------------------------------------------------
# Training: clipping


def clip_within_step(optimizer, max_norm):
    """In place of optimizer.clip_gradients -> the norm of all gradients, before clipping.

    The fused optimizer divides gradients by `grad_scale` in its next step, as it reads them.
    """
    gradients = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                gradients.append(parameter.grad)
    norm = total_norm(gradients)
    optimizer.grad_scale = (norm / max_norm).clamp(min=1)
    return norm.item()


def forget_scale(optimizer, args, kwargs):
    """After a step: its scale is not for the next one."""
    optimizer.grad_scale = None


# --------------------------------------------------------------------------------------------------
# Names of torch that are private, or newer than torch 2.6. No other part of this file uses them.
# Where one is missing, or does not do what it did, what it made faster is computed in another way.

MISSING = (AttributeError, RuntimeError, TypeError)  # what a private name that changed may raise


def cpu_features():
    """What the CPU can do: {name: True, "cpu_name": ..., "architecture": ...}; {} if unknown."""
    try:
        return torch.cpu.get_capabilities()  # of torch 2.11
    except MISSING:
        return read_cpu_features("/proc/cpuinfo")


def read_cpu_features(path):
    """The same as Linux says it."""
    features = {"architecture": platform.machine(), "cpu_name": ""}
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except OSError:
        return features
    for line in lines:
        name, _, value = line.partition(":")
        name = name.strip()
        if name == "model name":
            features["cpu_name"] = value.strip()
        elif name in ("flags", "Features"):  # of x86, of Arm
            features.update(dict.fromkeys(value.split(), True))
    return features


def total_norm(tensors):
    """The norm of all numbers in the tensors, as a tensor without dimensions."""
    if hasattr(nn.utils, "get_total_norm"):
        return nn.utils.get_total_norm(tensors)
    return torch.tensor([tensor.norm() for tensor in tensors]).norm()


def steps_scale_gradients():
    """Whether a step of a fused AdamW divides gradients by its attribute `grad_scale`."""
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.full((1,), 4.0)
    optimizer = torch.optim.AdamW([parameter], lr=1.0, eps=1.0, fused=True)
    optimizer.grad_scale = torch.tensor(4.0)
    optimizer.step()
    return abs(parameter.item() + 0.5) < 1e-3  # the first step is -gradient / (|gradient| + eps)


def can_pack(weight):
    """Whether oneDNN packs weights like this one. It was tried on x86 CPUs only."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if cpu_features().get("architecture") != "x86_64":
        return False
    if weight.dtype not in (torch.float32, torch.bfloat16):
        return False
    try:
        if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        return packed_product_is_right(weight.dtype)
    except MISSING:
        return False


def packed_product_is_right(dtype):
    """Compute one packed product and compare it. Raises one of MISSING."""
    numbers = torch.arange(32 * 16, dtype=dtype).view(32, 16) % 7 - 3  # exact in each dtype
    found = packed_product(numbers, pack(numbers), numbers[:, 0].contiguous(), ("relu", ""))
    return found.equal(F.relu(F.linear(numbers, numbers, numbers[:, 0])))


def pack(weight):
    """(outputs, D) float32 or bfloat16 -> the same weight in oneDNN's order."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, 512)  # about N; any N works


def packed_product(x, weight, bias, activation):
    """activation(x @ weight.T + bias) for a packed weight; `activation` is one of fused_name."""
    name, algorithm = activation
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], algorithm)


def pack_int8(weight):
    """(D, outputs) int8 -> the same weight in oneDNN's order."""
    return torch.ops.onednn.qlinear_prepack(weight.t().contiguous(), None)


def int8_product(tokens, weight, scale):
    """The exact product of integers, times the scale of each output -> (N, outputs) float32.

    tokens: (N, D) bytes, 128 for zero; weight: packed; scale: (outputs,).
    """
    zero_points = torch.zeros(len(scale), dtype=torch.int64)
    output = (1.0, 0, torch.float32, "none", [], "")  # scale, zero point, dtype, no activation
    return torch.ops.onednn.qlinear_pointwise(
        tokens, 1.0, 128, weight, scale, zero_points, None, *output
    )


def has_int8():
    """Whether the CPU has VNNI and oneDNN uses it. Otherwise its sums overflow and are wrong."""
    features = cpu_features()
    if not (features.get("avx512_vnni") or features.get("avx_vnni")):
        return False
    tokens = torch.full((32, 384), 255, dtype=torch.uint8)
    weight = torch.full((384, 384), 127, dtype=torch.int8)
    try:
        found = int8_product(tokens, pack_int8(weight), torch.ones(384, dtype=torch.float32))
    except MISSING:
        return False
    return bool((found == 127 * 127 * 384).all())


# --------------------------------------------------------------------------------------------------
# Prediction: linear layers


def fused_name(activation):
    """oneDNN's (name, algorithm) of an activation module, or None where it has none."""
    if type(activation) is nn.GELU:
        return "gelu", activation.approximate
    if type(activation) is nn.ReLU:
        return "relu", ""
    return None


def frozen(tensor):
    return nn.Parameter(tensor.detach(), requires_grad=False)


class Packed(nn.Module):
    """A layer without gradients whose weight is in oneDNN's order; pack(weight) brings it there."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight = frozen(self.pack(weight))
        self.bias = bias

    def __getstate__(self):
        """For copies and pickles, which cannot hold a packed weight."""
        parameters = self._parameters | {"weight": self.weight.to_dense()}
        return self.__dict__ | {"_parameters": parameters}

    def __setstate__(self, state):
        super().__setstate__(state)
        self.weight = frozen(self.pack(self.weight))


class PackedLinear(Packed):
    """An nn.Linear, and perhaps the activation behind it."""

    def __init__(self, linear, activation=("none", "")):
        bias = None
        if linear.bias is not None:
            bias = frozen(linear.bias)
        super().__init__(linear.weight.detach(), bias)
        self.activation = activation

    def pack(self, weight):
        return pack(weight)

    def forward(self, x):
        return packed_product(x, self.weight, self.bias, self.activation)


class Int8Linear(Packed):
    """An nn.Linear that multiplies 8-bit integers. Its input, bias and output are float32.

    A weight is a whole number from -127 to 127 times a scale of its output; an input is one times
    a scale of its token. So no token depends on what else is in the batch.
    """

    def __init__(self, linear):
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1).clamp_min(TINY) / 127
        weight = (weight / scale[:, None]).round().to(torch.int8)
        bias = torch.zeros(len(weight))
        if linear.bias is not None:
            bias = frozen(linear.bias.float())
        super().__init__(weight.t(), bias)
        self.scale = scale

    def pack(self, weight):
        if has_int8():
            return pack_int8(weight)
        return weight  # only where tests ask for int8 on any CPU

    def multiply(self, tokens):
        if self.weight.is_mkldnn:
            return int8_product(tokens, self.weight, self.scale)
        product = (tokens.double() - 128) @ self.weight.double()  # slow, and as exact
        return (product * self.scale).float()

    def forward(self, x):
        tokens = x.reshape(-1, x.shape[-1])  # (N, D)
        largest = torch.maximum(tokens.amax(1, keepdim=True), -tokens.amin(1, keepdim=True))
        scale = largest / 127  # (N, 1)
        # Unsigned bytes, 128 for zero: for signed ones oneDNN has only a very slow kernel. Torch
        # has no fast way from floats to bytes either, so they go over 16 bits. These conversions
        # cut the fraction off; the half that is added makes them round.
        tokens = (tokens * (1 / scale.clamp_min(TINY))).add_(128.5)
        tokens = tokens.short().to(torch.uint8)
        y = torch.addcmul(self.bias, self.multiply(tokens), scale)
        return y.view(*x.shape[:-1], len(self.bias))


def compute_layer(layer, x, mask):
    return layer(x, mask)


def speed_up_layer(layer, hidden_size, dtype, packs, checked):
    """Pack a layer's linear modules, fuse its activation, choose its attention.

    packs: whether weights of this dtype can be packed. checked: {signature of a layer: whether it
    computes the same with faster modules}, so that equal layers are checked once.
    """
    modules = {}
    attention = getattr(layer, "attention", None)
    if dtype == torch.bfloat16 and attention is not None and not list(attention.parameters()):
        modules["attention"] = FastAttention(attention)
    linear = getattr(layer, "intermediate", None)
    activation = fused_name(getattr(layer, "activation", None))
    if activation is not None and type(linear) is nn.Linear and packs:
        modules["intermediate"] = PackedLinear(linear, activation)
        modules["activation"] = nn.Identity()
    if modules:
        key = signature(layer)
        if key not in checked:
            x, mask = random_batch(hidden_size, [16], dtype)
            checked[key] = swap(layer, modules, x, mask, compute_layer)
        elif checked[key]:
            for name, module in modules.items():
                setattr(layer, name, module.eval())
    if packs:
        replace(layer, nn.Linear, PackedLinear)


def signature(layer):
    """A text that is the same for layers that differ in their weights only."""
    lines = []
    for name, module in layer.named_modules():
        settings = {key: value for key, value in vars(module).items() if key[0] != "_"}
        lines.append(f"{name} {type(module)} {settings}")
    return "\n".join(lines)
