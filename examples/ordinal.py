"""A fourth kind of task: ordered grades, learned by cumulative logits (McCullagh 1980).

    python examples/ordinal.py

The model learns for each grade but the lowest whether a text reaches it. One class and one entry
of KINDS are all that it takes.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch.nn.functional as F

import mtbert
import train
from support.script import run_script


class Ordinal(mtbert.Classification):
    """C grades in the order of their labels: P(grade >= k) = sigmoid(c_k), c_1 >= c_2 >= ..."""

    kind = "ordinal"

    @property
    def num_logits(self):
        return len(self.labels) - 1

    def reached(self, logits, temperature=1.0):
        """(N, C - 1) logits -> (N, C + 1) probabilities of grade >= 0, 1, ..., C."""
        steps = torch.cat([logits[:, :1], -F.softplus(logits[:, 1:])], dim=1)
        reached = torch.sigmoid(steps.cumsum(1) / temperature)
        return F.pad(F.pad(reached, (1, 0), value=1.0), (0, 1), value=0.0)

    def copy_head(self, head, former_task, former_head):
        """Grades that differ have other thresholds: start at random then."""
        if former_task.kind != self.kind or former_task.labels != self.labels:
            return None
        head.load_state_dict(former_head.state_dict())
        return []

    def linear_fit(self, states, labels, balanced=False):
        """There is none: its outputs are no logits of classes, and its head starts at random."""
        return None

    def loss(self, logits, labels, balanced=False):
        """The classes weigh the same: `balanced` is not used."""
        reached = self.reached(logits)
        p = (reached[:, :-1] - reached[:, 1:]).clamp(min=1e-7)
        return super().loss(p.log(), labels)  # a softmax of logarithms gives p again

    def probabilities(self, logits, temperature):
        reached = self.reached(torch.from_numpy(np.asarray(logits)).double(), temperature)
        return (reached[:, :-1] - reached[:, 1:]).numpy()


mtbert.KINDS["ordinal"] = Ordinal

if __name__ == "__main__":
    run_script(lambda: train.main(["--kinds", "sentiment=ordinal", *sys.argv[1:]]))
