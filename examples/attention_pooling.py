"""Another pooling: the model learns how much each token counts.

python examples/attention_pooling.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch.nn as nn

import mtbert
import train
from support.script import run_script


class AttentionPooling(nn.Module):
    """A mean of the hidden states, weighted by a softmax over a learned score of each token."""

    def __init__(self, hidden_size):
        super().__init__()
        self.score = nn.Linear(hidden_size, 1)

    def forward(self, hidden, attention_mask):
        scores = self.score(hidden)  # (B, T, 1)
        scores = scores.masked_fill(~attention_mask[:, :, None].bool(), float("-inf"))
        return (scores.softmax(1) * hidden).sum(1)


mtbert.POOLING["attention"] = AttentionPooling

if __name__ == "__main__":
    run_script(lambda: train.main(["--pooling", "attention", *sys.argv[1:]]))
