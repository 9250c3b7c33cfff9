"""Properties of compare.py: intervals, verdicts, and its command line."""

import json
import signal
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
import scipy.stats

import compare
import mtbert

# ---------------------------------------------------------------------------------------------------------------------
# Statistics


def test_intervals_cover_zero_as_often_as_they_say_and_a_planted_difference_is_found():
    """2,000 experiments of five seeds, in which runs of a seed share what the seed brings."""
    rng = np.random.default_rng(0)
    for planted, verdict, share in ((0, None, 0.95), (3, "better", None), (-3, "worse", None)):
        common = rng.normal(70, 5, (2000, 5))
        first = common + rng.normal(0, 2, common.shape) * 0.5**0.5
        second = common + rng.normal(0, 2, common.shape) * 0.5**0.5
        found = [compare.paired_difference(a + planted * 2, b) for a, b in zip(first, second, strict=True)]
        if share:
            covered = np.mean([d["low"] <= 0 <= d["high"] for d in found])
            assert abs(covered - share) < 0.02
            assert np.mean([d["verdict"] in ("better", "worse") for d in found]) < 0.07
        else:
            assert np.mean([d["verdict"] == verdict for d in found]) > 0.95


def test_verdicts():
    same = compare.paired_difference([70.1, 71.2, 69.0], [70.1, 71.2, 69.0])
    assert (same["verdict"], same["low"], same["high"]) == ("equivalent", 0, 0)
    near = ([70.4, 71.6, 69.5], [70.0, 71.1, 69.1])
    assert compare.paired_difference(*near)["verdict"] == "equivalent"  # 0.2 to 0.6
    assert compare.paired_difference(*near, margin=0.1)["verdict"] == "better"
    assert compare.paired_difference(*near[::-1], margin=0.1)["verdict"] == "worse"
    open_ = compare.paired_difference([72, 69, 71, 70], [70, 70, 70, 70])
    low, high = scipy.stats.ttest_rel([72, 69, 71, 70], [70, 70, 70, 70]).confidence_interval(0.95)
    assert open_["verdict"] == "undecided" and (open_["low"], open_["high"]) == pytest.approx((low, high))
    # with as many seeds, of the same mean and spread, the interval leaves zero in 80 of 100 experiments
    rng, n = np.random.default_rng(0), compare.paired_difference([72, 69, 71, 70], [70, 70, 70, 70], margin=0)["seeds"]
    noise = rng.normal(0.5, np.std([2, -1, 1, 0], ddof=1), (400, n))
    found = [compare.paired_difference(row, np.zeros(n), margin=0)["verdict"] for row in noise]
    assert 0.75 < found.count("better") / 400 < 0.85
    n = compare.paired_difference([71.7, 68.3, 71, 69], [70, 70, 70, 70])["seeds"]  # and within ± 1, of a mean of zero
    noise = rng.normal(0, np.std([1.7, -1.7, 1, -1], ddof=1), (400, n))
    found = [compare.paired_difference(row, np.zeros(n))["verdict"] for row in noise]
    assert 0.75 < found.count("equivalent") / 400 < 0.85
    n = compare.paired_difference([72.5, 68.5, 71.5, 69.5], [70, 70, 70, 70])["seeds"]  # or either, between the two
    noise = rng.normal(0.5, np.std([2.5, -1.5, 1.5, -0.5], ddof=1), (400, n))
    found = [compare.paired_difference(row, np.zeros(n))["verdict"] for row in noise]
    assert 0.75 < 1 - found.count("undecided") / 400 < 0.86


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def test_compare_trains_every_variant_survives_interruption_and_reports(script, tiny, tmp_path, monkeypatch, signal_at):
    monkeypatch.chdir(tmp_path)
    rng, words, labels = Random(0), ("bad", "good"), ("no", "yes")
    lines = [f"film {i} is {words[i % 2]} {rng.random()},{labels[i % 2]},{i / 8}" for i in range(48)]
    Path("a.csv").write_text("\n".join(["text,liked,stars", *lines[:36]]))
    Path("t.csv").write_text("\n".join(["text,liked,stars", *lines[36:]]))
    flags = ["--data", "a.csv", "--test", "t.csv", "--encoder", tiny, "--epochs", "2", "--seeds", "2", "--out", "c"]
    calls = signal_at(mtbert, "train", 4, signal.SIGINT)
    status, out, err = script("compare.py", *flags)
    assert status == 130 and err.endswith("compare.py: stopped; the same command goes on\n")
    assert not Path("c/compare.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in Path("c").glob("*/metrics.json")}
    assert len(kept) == 3
    status, out, err = script("compare.py", *flags)
    assert status == 0 and {path: path.stat().st_mtime_ns for path in kept} == kept and len(calls) == 9
    assert "run 8 of 8: separate-lr, seed 1; about" in err and "learning rates not tuned" in out
    result = json.loads(Path("c/compare.json").read_text())
    tasks = result["tasks"]
    assert set(tasks["liked"]["scores"]["accuracy"]) == {"single", "shared", "separate-lr"}
    assert tasks["stars"]["rows"] == 12
    for task, kind in (("liked", "macro_f1"), ("stars", "pearson")):
        for variant, name in (("single", f"single-{1 + (task == 'stars')}-{task}"), ("shared", "shared")):
            metrics = [json.loads(Path(f"c/{name}-{seed}/metrics.json").read_text()) for seed in (0, 1)]
            assert tasks[task]["scores"][kind][variant] == [100 * m["test"][task][kind] for m in metrics]
    right = np.mean(np.array(tasks["liked"]["predictions"]["shared"][1]) == np.array(tasks["liked"]["gold"]))
    assert tasks["liked"]["scores"]["accuracy"]["shared"][1] == pytest.approx(100 * right)
    assert tasks["liked"]["baselines"]["TF-IDF, linear"]["accuracy"] == 100
    assert result["cost"]["single"]["parameters"] > 1.9 * result["cost"]["shared"]["parameters"]
    assert Path("c/compare.png").read_bytes()[:4] == b"\x89PNG"
    assert result["flags"]["argv"][0] == "--data" and result["flags"]["epochs"] == 2

    alone = ["--variant", "single", "--tasks", "liked", "--seed", "1", "--epochs", "2", "--encoder", tiny]
    status, *_ = script("train.py", *alone, "--data", "c/data.json", "--out", "alone")
    assert status == 0  # in a process that has trained other models
    for name in ("log.jsonl", "model.safetensors"):
        assert Path("alone", name).read_bytes() == Path("c/single-1-liked-1", name).read_bytes()

    mistakes = {
        "--lr 1e-3": "other flags",
        "--tune": "other flags",
        "--seed 3": "chooses --seed itself",
        "--out alone": "in use",
        "--tasks liked": "two tasks or more",
        "--test a.csv": "other rows",
        "--nonsense": "unrecognized",
        "--head-lr abc": "invalid float value",
        "--task-weights nope=2": "no task 'nope'",
    }
    for wrong, message in mistakes.items():
        status, _, err = script("compare.py", *flags, *wrong.split())
        assert status == 2 and message in err and err.count("\n") <= 2, err
    assert len(calls) == 10  # none of them began to train


def test_compare_takes_any_names_and_numbers_and_an_error_leaves_the_folder_usable(script, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["a b", "a-b", "--c", "\u6620" * 80, "$x$", "a/b"]
    labels = [[str(i % 2)] * 4 + [str(i / 8), "1.5" if i else "2.5"] for i in range(20)]
    lines = [",".join([f"{i % 10} {'?!'[i % 2]}", *row]) for i, row in enumerate(labels)]
    Path("a.csv").write_text("\n".join([",".join(["text", *names]), *lines]))
    Path("t.csv").write_text("\n".join([",".join(["text", *names]), *lines[2:12]]))
    flags = ["--data", "a.csv", "--encoder", tiny, "--epochs", "1", "--seeds", "2", "--out", "c"]
    status, _, err = script("compare.py", *flags)
    assert status == 2 and "no test row is labelled for 'a b'" in err
    status, out, err = script("compare.py", *flags, "--test", "t.csv")
    assert status == 0 and "nan" not in out
    assert "NaN" not in json.dumps(json.loads(Path("c/compare.json").read_text())["tasks"])
    Path("c/shared-1/metrics.json").write_text("{")
    status, _, err = script("compare.py", *flags, "--test", "t.csv")
    assert status == 2 and "c/shared-1 is damaged; delete it" in err.splitlines()[-1]


def test_compare_tunes_on_validation_rows_with_seeds_that_no_result_has(tiny, tmp_path, monkeypatch):
    assert len(compare.RATES) == len(compare.RATE_PAIRS) and min(compare.TUNE_SEEDS) >= 1000
    monkeypatch.setattr(compare, "RATES", compare.RATES[:2])
    monkeypatch.setattr(compare, "RATE_PAIRS", compare.RATE_PAIRS[1:3])
    monkeypatch.setattr(compare, "TUNE_SEEDS", (1000,))
    monkeypatch.chdir(tmp_path)
    lines = [f"film {i} is {'good' if i % 2 else 'bad'},{'yes' if i % 2 else 'no'},{i % 3}" for i in range(40)]
    Path("a.csv").write_text("\n".join(["text,liked,stars", *lines]))
    flags = ["--data", "a.csv", "--test", "a.csv", "--encoder", str(tiny), "--epochs", "1", "--seeds", "2", "--tune"]
    monkeypatch.setattr(sys, "argv", ["compare.py", *flags, "--out", "c"])
    compare.main()
    result = json.loads(Path("c/compare.json").read_text())
    assert set(result["tuned"]) == {"single liked", "single stars", "shared", "separate-lr"}
    for what, trial in result["tuned"].items():
        scores, chosen = trial["validation"], trial["chosen"]
        assert len(scores) == 2 and scores[chosen] == max(scores.values())
        folder = {"single liked": "single-1-liked", "single stars": "single-2-stars"}.get(what, what)
        argv = json.loads(Path(f"c/{folder}-0/config.json").read_text())["flags"]["argv"]
        assert chosen.split()[1] == argv[argv.index("--lr") + 1]
        assert ("--head-lr" in chosen) == (what == "separate-lr")
    trials = [json.loads(path.read_text()) for path in Path("c/tune").glob("*/metrics.json")]
    assert len(trials) == 8 and all(trial["test"] == {} for trial in trials)
    assert not list(Path("c/tune").glob("*/*.safetensors"))
