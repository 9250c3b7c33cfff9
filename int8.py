"""Linear layers in 8-bit integers, for prediction on a processor. This file never knows what the layers are for.

A weight is rounded to 127 steps of its output's largest, an input to 127 steps of its token's largest.
Shapes: N tokens, D inputs.
"""

import torch
import torch.nn as nn


def supported():
    """Whether the processor has VNNI. Without it oneDNN's products of bytes overflow, and are wrong."""
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_vnni") or features.get("avx_vnni"))


class Int8Linear(nn.Module):
    """An nn.Linear in 8-bit integers. Its input, bias and output stay in float32."""

    def __init__(self, linear):
        super().__init__()
        weight = linear.weight.detach().float()
        self.scale = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        weight = (weight / self.scale[:, None]).round().to(torch.int8)
        self.weight = nn.Parameter(torch.ops.onednn.qlinear_prepack(weight, None), requires_grad=False)
        self.zero_points = torch.zeros(len(self.scale), dtype=torch.int64)
        self.bias = linear.bias.detach().float() if linear.bias is not None else torch.zeros(len(self.scale))

    def forward(self, x):
        tokens = x.reshape(-1, x.shape[-1])  # (N, D)
        scale = torch.maximum(tokens.amax(1, keepdim=True), -tokens.amin(1, keepdim=True)) / 127  # (N, 1)
        # Unsigned, with 128 for zero: for signed inputs there is a reference kernel alone, hundreds of times slower. To
        # bytes over 16 bits, since torch has no fast way from floats. The half makes it rounding: both cut off.
        tokens = (tokens * (1 / scale.clamp_min(torch.finfo(torch.float32).tiny))).add_(128.5).short().to(torch.uint8)
        y = torch.ops.onednn.qlinear_pointwise(
            tokens, 1.0, 128, self.weight, self.scale, self.zero_points, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return torch.addcmul(self.bias, y, scale).view(*x.shape[:-1], -1)


def quantize(module):
    """Replace every nn.Linear within `module`."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, Int8Linear(child))
        else:
            quantize(child)
