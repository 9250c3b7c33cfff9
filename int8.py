"""Linear layers in 8-bit integers, for prediction on a processor. This file never knows what the layers are for.

A weight is rounded to 127 steps of its output's largest, an input to 127 steps of its token's largest.
Shapes: N tokens, D inputs.
"""

import torch
import torch.nn as nn

TINY = torch.finfo(torch.float32).tiny  # in place of a scale of zero


def product(tokens, weight, scale):
    """(N, D) bytes, 128 for zero, and packed weights -> (N, outputs) float32, their exact product times `scale`."""
    zero_points = torch.zeros(len(scale), dtype=torch.int64)
    of_output = (1.0, 0, torch.float32, "none", [], "")
    return torch.ops.onednn.qlinear_pointwise(tokens, 1.0, 128, weight, scale, zero_points, None, *of_output)


def pack(weight):
    return torch.ops.onednn.qlinear_prepack(weight, None)


def supported():
    """Whether the processor has VNNI, and oneDNN uses it. Without, its products of bytes overflow, and are wrong."""
    features = torch.cpu.get_capabilities()
    if not (features.get("avx512_vnni") or features.get("avx_vnni")):
        return False
    tokens, weight = torch.full((32, 384), 255, dtype=torch.uint8), torch.full((384, 384), 127, dtype=torch.int8)
    return bool((product(tokens, pack(weight), torch.ones(384)) == 127 * 127 * 384).all())


class Int8Linear(nn.Module):
    """An nn.Linear in 8-bit integers, which has no gradients. Its input, bias and output stay in float32."""

    def __init__(self, linear):
        super().__init__()
        weight = linear.weight.detach().float()
        self.scale = weight.abs().amax(1).clamp_min(TINY) / 127
        weight = (weight / self.scale[:, None]).round().to(torch.int8)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.packed = pack(weight)
        self.bias = linear.bias.detach().float() if linear.bias is not None else torch.zeros(len(weight))

    def __getstate__(self):  # of copies and pickles, which cannot hold what is packed
        return self.__dict__ | {"packed": None}

    def forward(self, x):
        if self.packed is None:
            self.packed = pack(self.weight)
        tokens = x.reshape(-1, x.shape[-1])  # (N, D)
        scale = torch.maximum(tokens.amax(1, keepdim=True), -tokens.amin(1, keepdim=True)) / 127  # (N, 1)
        # Unsigned, with 128 for zero: for signed inputs there is a reference kernel alone, hundreds of times slower. To
        # bytes over 16 bits, since torch has no fast way from floats. The half makes it rounding: both cut off.
        tokens = (tokens * (1 / scale.clamp_min(TINY))).add_(128.5).short().to(torch.uint8)
        y = torch.addcmul(self.bias, product(tokens, self.packed, self.scale), scale)
        return y.view(*x.shape[:-1], len(self.bias))


def quantize(module):
    """Replace every nn.Linear within `module`."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, Int8Linear(child))
        else:
            quantize(child)
