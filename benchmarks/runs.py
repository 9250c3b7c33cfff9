"""Mean ± standard deviation of the test (with --no-test: validation) metrics of finished runs, a line per metric.

python benchmarks/runs.py runs/shared-*
"""

import json
import sys
from pathlib import Path

import numpy as np

metrics = [json.loads((Path(folder) / "metrics.json").read_text()) for folder in sys.argv[1:]]
split = "test" if metrics[0].get("test") else "validation"
for task, first in metrics[0][split].items():
    for name in ("accuracy", "macro_f1", "pearson", "spearman", "rmse"):
        if name in first:
            values = [run[split][task][name] for run in metrics]
            each = " ".join(f"{value:.4f}" for value in values)
            print(f"{task:14}{name:10}{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}   {each}")
for name in ("train_seconds", "examples_per_second"):
    print(f"{name}: {np.mean([run[name] for run in metrics]):.0f}")
