"""Which arithmetic is the fastest here, linear layers that predict in it on a processor, and how gradients are clipped.

In float32 and bfloat16 weights are packed once, as oneDNN's products want them. In int8 a weight is rounded to 127
steps of its output's largest, an input to 127 steps of its token's largest. This file never knows what the layers are
for. Shapes: N tokens, D inputs.
"""

import torch
import torch.nn as nn

from data import InputError, input_errors


def pick_device(name="auto"):
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    with input_errors(f"device {name!r} cannot be used here"):
        torch.empty(0, device=name).cpu()
    return torch.device(name)


def pick_dtype(name, device, predict=False):
    """The dtype of the encoder's arithmetic; "auto" is bfloat16 where that is the faster, else float32, or to predict
    on a processor int8 where that is. Raises InputError where there is no int8."""
    name = str(name).removeprefix("torch.")
    if name == "int8" and device.type != "cpu":
        raise InputError(f"int8 is for a processor, not for {device.type}")
    if name == "int8" and not has_int8():
        raise InputError("int8 takes a processor with VNNI, and this has none")
    if name == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        if device.type == "cpu":
            features = torch.cpu.get_capabilities()
            # Intel's AVX-512 has half of float32's rate in bfloat16, unlike its AMX, AMD's AVX-512, and Arm
            full_rate = features.get("avx512_bf16") and "Intel" not in features["cpu_name"]
            native = full_rate or features.get("amx_bf16") or features.get("bf16")
        fast = predict and not native and device.type == "cpu" and has_int8()
        name = "bfloat16" if native else "int8" if fast else "float32"
    return getattr(torch, name)


def has_int8():
    """Whether the processor has VNNI, and oneDNN uses it. Without, its products of bytes overflow, and are wrong."""
    features = torch.cpu.get_capabilities()
    if not (features.get("avx512_vnni") or features.get("avx_vnni")):
        return False
    tokens, weight = torch.full((32, 384), 255, dtype=torch.uint8), torch.full((384, 384), 127, dtype=torch.int8)
    return bool((int8_product(tokens, int8_pack(weight), torch.ones(384)) == 127 * 127 * 384).all())


def has_packed(weight):
    """Whether oneDNN packs weights like this one. On other processors than x86 that was never tried."""
    if weight.device.type != "cpu" or torch.cpu.get_capabilities().get("architecture") != "x86_64":
        return False
    bfloat16 = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.backends.mkldnn.is_available() and (bfloat16 or weight.dtype == torch.float32)


# Activations as PackedLinear has them: what oneDNN calls them, and how it computes them
FUSED = {None: ("none", ""), "relu": ("relu", ""), "gelu": ("gelu", "none"), "gelu_new": ("gelu", "tanh")}
TINY = torch.finfo(torch.float32).tiny  # in place of a scale of zero


def frozen(tensor):
    return tensor if tensor is None else nn.Parameter(tensor.detach(), requires_grad=False)


class Packed(nn.Module):
    """A layer whose weight is kept as oneDNN's products want it, without gradients; pack(weight) makes it so."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = frozen(self.pack(weight)), bias

    def __getstate__(self):  # of copies and pickles, which cannot hold what is packed
        return self.__dict__ | {"_parameters": self._parameters | {"weight": self.weight.to_dense()}}

    def __setstate__(self, state):
        super().__setstate__(state)
        self.weight = frozen(self.pack(self.weight))


class PackedLinear(Packed):
    """An nn.Linear, perhaps with an activation behind it."""

    def __init__(self, linear):
        super().__init__(linear.weight.detach(), frozen(linear.bias))
        self.activation = None

    def pack(self, weight):
        return torch.ops.mkldnn._reorder_linear_weight(weight, 512)  # N, roughly: it may be any

    def forward(self, x):
        name, algorithm = FUSED[self.activation]
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, [], algorithm)


def int8_product(tokens, weight, scale):
    """(N, D) bytes, 128 for zero, and packed weights -> (N, outputs) float32, their exact product times `scale`."""
    zero_points = torch.zeros(len(scale), dtype=torch.int64)
    of_output = (1.0, 0, torch.float32, "none", [], "")
    return torch.ops.onednn.qlinear_pointwise(tokens, 1.0, 128, weight, scale, zero_points, None, *of_output)


def int8_pack(weight):
    return torch.ops.onednn.qlinear_prepack(weight, None)


class Int8Linear(Packed):
    """An nn.Linear in 8-bit integers. Its input, bias and output stay in float32."""

    def __init__(self, linear):
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1).clamp_min(TINY) / 127
        weight = (weight / scale[:, None]).round().to(torch.int8)
        bias = frozen(linear.bias.float()) if linear.bias is not None else torch.zeros(len(weight))
        super().__init__(weight.t(), bias)
        self.scale = scale

    def pack(self, weight):
        return int8_pack(weight.t().contiguous())  # oneDNN keeps it as (D, outputs)

    def forward(self, x):
        tokens = x.reshape(-1, x.shape[-1])  # (N, D)
        scale = torch.maximum(tokens.amax(1, keepdim=True), -tokens.amin(1, keepdim=True)) / 127  # (N, 1)
        # Unsigned, with 128 for zero: for signed inputs there is a reference kernel alone, hundreds of times slower. To
        # bytes over 16 bits, since torch has no fast way from floats. The half makes it rounding: both cut off.
        tokens = (tokens * (1 / scale.clamp_min(TINY))).add_(128.5).short().to(torch.uint8)
        y = torch.addcmul(self.bias, int8_product(tokens, self.weight, self.scale), scale)
        return y.view(*x.shape[:-1], len(self.bias))


def replace_linear(module, new):
    """Replace every nn.Linear within `module` by new(it)."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, new(child))
        else:
            replace_linear(child, new)


def clip_gradients(optimizer, limit):
    """Scale all gradients down to a norm of at most `limit` -> their norm before. A fused optimizer does it in its
    next step, as it reads them, so each step needs a call. For others it is done here."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not optimizer.defaults.get("fused"):
        return nn.utils.clip_grad_norm_(parameters, limit).item()
    norm = nn.utils.get_total_norm([p.grad for p in parameters])
    optimizer.grad_scale = (norm / limit).clamp(min=1)
    return norm.item()
