"""Run folders of the former version of mtbert, as this version describes them.

The weights have kept their names, so that only config.json differs. This file knows nothing else.
"""

import json
from pathlib import Path


def upgrade(config, folder):
    """config.json as this version writes it, of a run of this version or the former one."""
    if "fitted" in config:
        return config
    config = dict(config)
    tasks = []
    fitted = {}
    for task in config["tasks"]:
        fitted[task["name"]] = {}
        tasks.append(upgrade_task(task, fitted[task["name"]]))
    config["tasks"] = tasks
    config["fitted"] = fitted
    encoder = dict(config["encoder"])
    if "transformers" not in encoder:
        encoder["position_offset"] = 0
        if encoder["model_type"] in ("roberta", "xlm-roberta", "camembert"):
            encoder["position_offset"] = encoder["pad_token_id"] + 1
    config["encoder"] = encoder
    config["truncation"] = config.pop("long", "head")
    tokenizer = json.loads((Path(folder) / "tokenizer.json").read_text("utf-8"))
    config["max_length"] = tokenizer["truncation"]["max_length"]
    return config


def upgrade_task(task, fitted):
    """One task of config.json; what was fitted on validation rows is added to `fitted`."""
    if task["labels"] is None:
        return {
            "kind": "regression",
            "name": task["name"],
            "mean": task["mean"],
            "std": task["std"],
        }
    fitted["temperature"] = task["temperature"]
    kind = "classification"
    if task.get("threshold") is not None:
        kind = "multi_label"
        fitted["threshold"] = task["threshold"]
    return {
        "kind": kind,
        "name": task["name"],
        "labels": task["labels"],
        "counts": task["counts"],
        "label_names": task["names"],
    }
