"""Mean ± standard deviation of the test (with --no-test: validation) metrics of finished runs, a line per metric.

python benchmarks/means.py runs/shared-*
"""

import argparse
import json
from pathlib import Path

import numpy as np

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folders", nargs="+", type=Path, help="of finished runs")
metrics = [json.loads((folder / "metrics.json").read_text()) for folder in parser.parse_args().folders]
split = "test" if metrics[0].get("test") else "validation"
for task, first in metrics[0][split].items():
    for name in ("accuracy", "macro_f1", "pearson", "spearman", "rmse"):
        if name in first:
            values = [run[split][task][name] for run in metrics]
            each = " ".join(f"{value:.4f}" for value in values)
            print(f"{task:14}{name:10}{np.mean(values):.4f} ± {np.std(values, ddof=min(1, len(values) - 1)):.4f}   {each}")
for name in ("train_seconds", "examples_per_second"):
    print(f"{name}: {np.mean([run[name] for run in metrics]):.0f}")
