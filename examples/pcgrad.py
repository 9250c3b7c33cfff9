"""Gradient surgery (PCGrad, Yu et al. 2020, arXiv:2001.06782) in place of the sum of the losses.

    python examples/pcgrad.py

Where the gradients of two tasks conflict, each loses its part along the other. For one process.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import mtbert
import train
from support.script import run_script

forward_backward = mtbert.forward_backward


def surgery(model, data, rows, weights, accumulation=1):
    """In place of mtbert.forward_backward: one backward pass for each task."""
    parameters = list(model.parameters())
    gradients = []
    for name in weights:
        one_task = {other: weights[other] * (other == name) for other in weights}
        losses = forward_backward(model, data, rows, one_task, accumulation)
        gradients.append(torch.cat([p.grad.flatten() for p in parameters]))
        model.zero_grad(set_to_none=False)

    total = torch.zeros_like(gradients[0])
    for own in gradients:
        projected = own.clone()
        for i in torch.randperm(len(gradients)).tolist():
            other = gradients[i]
            product = projected @ other
            if product < 0:
                projected -= product / (other @ other) * other
        total += projected
    for p, gradient in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
        p.grad = gradient.view_as(p)
    return losses


mtbert.forward_backward = surgery

if __name__ == "__main__":
    run_script(lambda: train.main(sys.argv[1:]))
