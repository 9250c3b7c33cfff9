"""Properties of benchmarks/compare.py: intervals, verdicts, baselines, and its command line."""

import json
import signal
from pathlib import Path
from random import Random

import numpy as np
import pytest
import scipy.stats

import mtbert
import train
from benchmarks import compare
from support.columns import Row, read_data
from support.errors import InputError

# --------------------------------------------------------------------------------------------------
# Statistics


def experiments(rng, planted):
    """2,000 experiments of five seeds, in which runs of a seed share what the seed brings."""
    shared = rng.normal(70, 5, (2000, 5))
    first = shared + planted + rng.normal(0, 2**0.5, shared.shape)
    second = shared + rng.normal(0, 2**0.5, shared.shape)
    differences = []
    for a, b in zip(first, second, strict=True):
        differences.append(compare.paired_difference(a, b))
    return differences


def share_of(verdict, differences):
    return np.mean([d["verdict"] == verdict for d in differences])


def test_intervals_cover_zero_as_often_as_they_say():
    differences = experiments(np.random.default_rng(0), planted=0)
    covered = [d["low"] <= 0 <= d["high"] for d in differences]
    assert abs(np.mean(covered) - 0.95) < 0.02
    assert share_of("better", differences) + share_of("worse", differences) < 0.07


@pytest.mark.parametrize(("planted", "verdict"), [(6, "better"), (-6, "worse")])
def test_a_planted_difference_is_found(planted, verdict):
    differences = experiments(np.random.default_rng(0), planted)
    assert share_of(verdict, differences) > 0.95


def test_verdicts():
    same = compare.paired_difference([70.1, 71.2, 69.0], [70.1, 71.2, 69.0])
    assert (same["verdict"], same["low"], same["high"]) == ("equivalent", 0, 0)

    first = [70.4, 71.6, 69.5]
    second = [70.0, 71.1, 69.1]  # the interval is 0.2 to 0.6
    assert compare.paired_difference(first, second)["verdict"] == "equivalent"
    assert compare.paired_difference(first, second, margin=0.1)["verdict"] == "better"
    assert compare.paired_difference(second, first, margin=0.1)["verdict"] == "worse"

    first = [72, 69, 71, 70]
    second = [70, 70, 70, 70]
    found = compare.paired_difference(first, second)
    interval = scipy.stats.ttest_rel(first, second).confidence_interval(0.95)
    assert found["verdict"] == "undecided"
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))


def test_the_spread_is_that_of_a_sample():
    assert compare.mean_and_spread([70, 80]) == "75.0 ± 7.1"
    assert compare.mean_and_spread([70]) == "70.0"


@pytest.mark.parametrize(
    ("scores", "margin", "verdicts"),
    [
        ([72, 69, 71, 70], 0, ["better"]),
        ([71.7, 68.3, 71, 69], 1, ["equivalent"]),
        ([72.5, 68.5, 71.5, 69.5], 1, ["better", "worse", "equivalent"]),
    ],
)
def test_as_many_seeds_as_it_says_decide_in_four_of_five_experiments(scores, margin, verdicts):
    rng = np.random.default_rng(0)
    difference = np.array(scores) - 70
    n = compare.paired_difference(difference, np.zeros(4), margin)["seeds"]
    decided = 0
    for _ in range(400):
        noise = rng.normal(difference.mean(), difference.std(ddof=1), n)
        decided += compare.paired_difference(noise, np.zeros(n), margin)["verdict"] in verdicts
    assert 0.75 < decided / 400 < 0.86


# --------------------------------------------------------------------------------------------------
# Baselines


def make_splits(labels):
    """Splits whose texts tell the label of each row."""
    rows = []
    for i, label in enumerate(labels * 8):
        text = f"film {i} is {label!r}"
        rows.append(Row(f"row {i}", text, None, {"task": label}))
    return {"train": rows, "validation": rows, "test": rows}


@pytest.mark.parametrize(
    ("task", "labels", "constant", "key"),
    [
        (mtbert.Classification("task", [0, 1], [16, 8], {}), [0, 0, 1], 2 / 3, "accuracy"),
        (mtbert.Classification("task", [0, 1, 2], [8, 8, 16], {}), [0, 1, 2, 2], 1 / 2, "accuracy"),
        (
            mtbert.MultiLabel("task", ["a", "b"], [16, 8], {}),
            [("a",), ("a", "b"), ()],
            1 / 3,
            "exact_match",
        ),
        (mtbert.Regression("task", 2.0, 1.0), [1.0, 2.0, 3.0], 0.0, "pearson"),
    ],
)
def test_baselines_are_the_most_frequent_label_and_a_linear_model(task, labels, constant, key):
    found = compare.baselines(task, make_splits(labels))
    name = "the mean" if key == "pearson" else "most frequent label"
    assert found[name][key] == pytest.approx(constant)
    assert found["TF-IDF, linear"][key] > 0.95
    assert getattr(task, "temperature", 1.0) == 1.0  # it is not calibrated to a baseline


def test_a_kind_with_logits_of_another_meaning_has_no_baseline():
    class Ordinal(mtbert.Classification):
        num_logits = 2

    task = Ordinal("task", [0, 1, 2], [8, 8, 16], {})
    assert compare.baselines(task, make_splits([0, 1, 2, 2])) == {}


# --------------------------------------------------------------------------------------------------
# The command line


def write_csv(path, header, lines):
    path.write_text("\n".join([header, *lines]))


def write_films(folder):
    """a.csv to train on and t.csv to test on, with a class and a number."""
    rng = Random(0)
    lines = []
    for i in range(48):
        mood, liked = [("bad", "no"), ("good", "yes")][i % 2]
        lines.append(f"film {i} is {mood} {rng.random()},{liked},{i / 8}")
    write_csv(folder / "a.csv", "text,liked,stars", lines[:36])
    write_csv(folder / "t.csv", "text,liked,stars", lines[36:])


def read_json(path):
    return json.loads(Path(path).read_text("utf-8"))


def modified(folder):
    """{metrics.json of each finished run: when it was written}"""
    return {path: path.stat().st_mtime_ns for path in Path(folder).glob("*/metrics.json")}


def test_compare_goes_on_after_an_interruption_and_reports(
    script, tiny, tmp_path, monkeypatch, signal_at
):
    monkeypatch.chdir(tmp_path)
    write_films(tmp_path)
    flags = ["--data", "a.csv", "--test", "t.csv", "--encoder", tiny, "--epochs", "2"]
    flags += ["--seeds", "2", "--out", "c"]
    calls = signal_at(mtbert, "train", 4, signal.SIGINT)
    status, out, err = script("benchmarks/compare.py", *flags)
    assert status == 130
    assert err.endswith("compare.py: stopped; the same command goes on\n")
    assert not Path("c/compare.json").exists()
    kept = modified("c")
    assert len(kept) == 3

    status, out, err = script("benchmarks/compare.py", *flags)
    assert status == 0
    assert len(calls) == 9  # three before, the one that was stopped, and the other five
    assert kept.items() <= modified("c").items()
    assert "run 8 of 8: separate-lr, seed 1; about" in err
    assert "learning rates not tuned" in out
    check_report(read_json("c/compare.json"))
    check_equal_to_train(script, tiny)
    check_mistakes(script, flags, calls)


def check_report(result):
    tasks = result["tasks"]
    assert set(tasks["liked"]["scores"]["accuracy"]) == {"single", "shared", "separate-lr"}
    assert tasks["stars"]["rows"] == 12
    folders = {
        ("liked", "single"): "single-1-liked",
        ("stars", "single"): "single-2-stars",
        ("liked", "shared"): "shared",
        ("stars", "shared"): "shared",
    }
    for (task, variant), folder in folders.items():
        metric = {"liked": "macro_f1", "stars": "pearson"}[task]
        scores = []
        for seed in (0, 1):
            metrics = read_json(f"c/{folder}-{seed}/metrics.json")
            scores.append(100 * metrics["test"][task][metric])
        assert tasks[task]["scores"][metric][variant] == scores
    predicted = np.array(tasks["liked"]["predictions"]["shared"][1])
    accuracy = 100 * np.mean(predicted == np.array(tasks["liked"]["gold"]))
    assert tasks["liked"]["scores"]["accuracy"]["shared"][1] == pytest.approx(accuracy)
    assert tasks["liked"]["baselines"]["TF-IDF, linear"]["accuracy"] == 100
    cost = result["cost"]
    assert cost["single"]["parameters"] > 1.9 * cost["shared"]["parameters"]
    assert Path("c/compare.png").read_bytes()[:4] == b"\x89PNG"
    assert result["flags"]["argv"][0] == "--data"
    assert result["flags"]["epochs"] == 2


def check_equal_to_train(script, tiny):
    """A run of train.py by itself is the same to the bit, also after others in its process."""
    flags = ["--variant", "single", "--tasks", "liked", "--seed", "1", "--epochs", "2"]
    files = ["--encoder", tiny, "--data", "c/data.json", "--out", "alone"]
    status, *_ = script("train.py", *flags, *files)
    assert status == 0
    for name in ("log.jsonl", "model.safetensors"):
        of_compare = Path("c/single-1-liked-1", name).read_bytes()
        assert Path("alone", name).read_bytes() == of_compare


def check_mistakes(script, flags, calls):
    calls.clear()
    mistakes = {
        "--lr 1e-3": "other flags",
        "--tune": "no validation rows of 'liked' to choose by",
        "--seed 3": "chooses --seed itself",
        "--out alone": "in use",
        "--tasks liked": "two tasks or more",
        "--test a.csv": "other rows",
        "--nonsense": "unrecognized",
        "--head-lr abc": "invalid float value",
        "--task-weights nope=2": "no task 'nope'",
    }
    for wrong, message in mistakes.items():
        status, _, err = script("benchmarks/compare.py", *flags, *wrong.split())
        assert status == 2 and message in err and err.count("\n") <= 2, err
    assert calls == []  # none of them began to train


def test_compare_takes_any_names_and_numbers(script, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    header = ",".join(["text", "a b", "a-b", "--c", "$x/" + "\u6620" * 80])
    lines = []
    for i in range(20):
        labels = [str(i % 2)] * 2
        labels.append(str(i / 8))
        labels.append("1.5" if i > 0 else "2.5")
        lines.append(",".join([f"{i % 10} {'?!'[i % 2]}", *labels]))
    write_csv(Path("a.csv"), header, lines)
    write_csv(Path("t.csv"), header, lines[2:12])
    flags = ["--data", "a.csv", "--encoder", tiny, "--epochs", "1", "--seeds", "2", "--out", "c"]
    status, _, err = script("benchmarks/compare.py", *flags)
    assert status == 2
    assert "no test row is labelled for 'a b'" in err

    flags += ["--test", "t.csv"]  # what was a mistake leaves the folder usable
    status, out, err = script("benchmarks/compare.py", *flags)
    assert status == 0
    assert "nan" not in out
    assert "NaN" not in json.dumps(read_json("c/compare.json")["tasks"])

    Path("c/shared-1/metrics.json").write_text("{")
    status, _, err = script("benchmarks/compare.py", *flags)
    assert status == 2
    assert "c/shared-1 is damaged; delete it" in err.splitlines()[-1]


def test_compare_repeats_the_rows_of_a_task_with_few_labels(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = []
    for i in range(40):
        number = i / 8 if i % 4 == 0 else ""
        lines.append(f"film {i},{['yes', 'no'][i % 2]},{number}")
    write_csv(Path("a.csv"), "text,liked,stars", lines)
    flags = ["--data", "a.csv", "--test", "a.csv", "--encoder", str(tiny), "--epochs", "1"]
    args, flags, _ = compare.parse_args([*flags, "--out", "c"])
    tasks, columns, rows, *_ = train.read_rows(flags, None)
    num_draws = compare.count_draws(tasks, rows, flags)
    contenders = compare.make_contenders(args, columns, num_draws, rows)
    repeats = {contender.name: contender.repeats for contender in contenders}
    num_stars = sum("stars" in row.labels for row in rows["train"])
    assert repeats["shared"] == repeats["separate-lr"] == repeats["single liked"] == 1
    assert repeats["single stars"] == round(num_draws / num_stars) > 2


def test_fewer_labels_are_a_part_of_more_and_each_class_keeps_one(tmp_path):
    lines = []
    for i in range(200):
        liked = "maybe" if i == 77 else ["yes", "no"][i % 2]
        lines.append(f"film {i},{liked},{i / 8}")
    write_csv(tmp_path / "a.csv", "text,liked,stars", lines)
    kept = {}
    for percent in (5, 20, 100):
        columns, rows = read_data([str(tmp_path / "a.csv")])
        num_rows = len(rows["train"])
        compare.keep_labels(columns, rows, "liked", percent)
        kept[percent] = {row.where for row in rows["train"] if "liked" in row.labels}
        assert columns[0].labels == ["maybe", "no", "yes"]
        assert sum(columns[0].counts) == len(kept[percent])
        assert len(rows["train"]) == num_rows  # each has a number still
        assert abs(len(kept[percent]) - num_rows * percent / 100) <= 2
    assert kept[5] < kept[20] < kept[100]


def test_compare_tunes_on_validation_rows_with_seeds_that_no_result_has(
    tiny, tmp_path, monkeypatch
):
    assert len(compare.RATES) == len(compare.RATE_PAIRS)
    assert min(compare.TUNE_SEEDS) >= 1000  # --seeds takes at most 1000
    monkeypatch.setattr(compare, "RATES", compare.RATES[:2])
    monkeypatch.setattr(compare, "RATE_PAIRS", compare.RATE_PAIRS[1:3])
    monkeypatch.setattr(compare, "TUNE_SEEDS", (1000,))
    monkeypatch.chdir(tmp_path)
    lines = []
    for i in range(40):
        mood, liked = [("bad", "no"), ("good", "yes")][i % 2]
        lines.append(f"film {i} is {mood},{liked},{i % 3}")
    write_csv(Path("a.csv"), "text,liked,stars", lines)
    flags = ["--data", "a.csv", "--test", "a.csv", "--encoder", str(tiny), "--epochs", "1"]
    flags += ["--seeds", "2", "--tune", "--out", "c", "--arms", *compare.ARMS]
    with pytest.raises(InputError, match="no validation rows of 'liked' to choose by"):
        compare.main(flags)
    monkeypatch.setattr("support.columns.MIN_TO_SPLIT", 10)
    compare.main(flags)

    tuned = read_json("c/compare.json")["tuned"]
    folders = {
        "single liked": "single-1-liked",
        "single stars": "single-2-stars",
        "shared": "shared",
        "separate-lr": "separate-lr",
    }
    assert set(tuned) == set(folders)
    for name, trial in tuned.items():
        scores = trial["validation"]
        assert len(scores) == 2
        assert scores[trial["chosen"]] == max(scores.values())
        argv = read_json(f"c/{folders[name]}-0/config.json")["flags"]["argv"]
        assert trial["chosen"].split()[1] == argv[argv.index("--lr") + 1]
        assert ("--head-lr" in trial["chosen"]) == (name == "separate-lr")
    argv = read_json("c/distilled-1/config.json")["flags"]["argv"]
    assert argv[argv.index("--lr") + 1] == tuned["shared"]["chosen"].split()[1]
    trials = [read_json(path) for path in Path("c/tune").glob("*/metrics.json")]
    assert len(trials) == 8
    assert all(trial["test"] == {} for trial in trials)
    assert not list(Path("c/tune").glob("*/*.safetensors"))


# --------------------------------------------------------------------------------------------------
# Distilled models, and pairs of tasks


def write_partly_labelled_films():
    """a.csv, in which 36 rows have a class, nine of them a number, and three a second class."""
    lines = []
    for i in range(40):
        mood, liked = [("bad", "no"), ("good", "yes")][i % 2]
        number = i / 8 if i % 4 == 0 else ""
        genre = "xy"[i % 8 // 2 % 2] if i % 6 < 2 else ""
        lines.append(f"film {i} is {mood},{liked},{number},{genre}")
    write_csv(Path("a.csv"), "text,liked,stars,genre", lines)


def steps_of(folder):
    """How many steps a run took."""
    lines = Path(folder, "log.jsonl").read_text().splitlines()
    return sum("grad_norm" in json.loads(line) for line in lines)


def test_distilled_has_the_single_models_of_its_seed_as_teachers_and_as_many_steps_as_shared(
    script, tiny, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mtbert, "default_batch_size", lambda draws, epochs: 4)
    write_partly_labelled_films()
    flags = ["--data", "a.csv", "--test", "a.csv", "--tasks", "liked", "stars", "--encoder", tiny]
    flags += ["--epochs", "2", "--seeds", "2", "--out", "c"]
    status, out, err = script("benchmarks/compare.py", *flags, "--arms", "shared", "single")
    assert status == 0, err
    assert "distilled" not in out and "separate-lr" not in out
    kept = modified("c")
    assert len(kept) == 6

    arms = ["--arms", "single", "shared", "distilled"]
    status, out, err = script("benchmarks/compare.py", *flags, *arms)
    assert status == 0, err
    assert kept.items() <= modified("c").items() and len(modified("c")) == 8
    argv = read_json("c/distilled-1/config.json")["flags"]["argv"]
    place = argv.index("--teachers")
    assert argv[place + 1 : place + 3] == ["c/single-1-liked-1", "c/single-2-stars-1"]
    assert "--teacher-annealing" in argv
    assert steps_of("c/distilled-1") == steps_of("c/shared-1") > 10

    # What is chosen by the rows of all tasks holds for the models of single ones
    for folder in ("distilled-0", "shared-0", "single-1-liked-0", "single-2-stars-0"):
        argv = read_json(f"c/{folder}/config.json")["flags"]["argv"]
        assert argv[argv.index("--batch-size") + 1] == "4"

    result = read_json("c/compare.json")
    assert result["flags"]["batch_size"] == 4
    for task in result["tasks"].values():
        for differences in task["differences"].values():
            pairs = {"shared - single", "distilled - single", "distilled - shared"}
            assert set(differences) == pairs
    scores = result["tasks"]["stars"]["scores"]["pearson"]
    found = compare.paired_difference(scores["distilled"], scores["single"])
    assert result["tasks"]["stars"]["differences"]["pearson"]["distilled - single"] == found
    assert out.count("distilled - shared") == 3  # macro-F1, accuracy, Pearson
    cost = result["cost"]
    assert cost["distilled"]["parameters"] == cost["shared"]["parameters"]
    assert cost["distilled"]["train_seconds"] > cost["single"]["train_seconds"]


def test_arms_and_pairs_that_cannot_be_compared_are_refused(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_partly_labelled_films()
    mistakes = {
        "--arms single": "two or more",
        "--arms shared distilled": "name it, too",
        "--arms single distilled --tune": "takes the rates of shared",
        "--arms single shared --head-lr 1e-3": "which --arms leaves out",
        "--arms single together": "invalid choice",
        "--pairs --arms single shared": "--pairs takes no --arms",
        "--pairs --head-lr 1e-3": "trains no separate-lr",
        "--pairs --tasks liked stars": "three tasks or more",
        "--teachers a": "chooses --teachers itself",
    }
    for wrong, message in mistakes.items():
        flags = ["--data", "a.csv", "--test", "a.csv", "--out", "c", *wrong.split()]
        status, _, err = script("benchmarks/compare.py", *flags)
        assert status == 2 and message in err, err
    assert not list(Path("c").glob("*/"))


def test_pairs_say_what_each_task_gains_beside_each_other_one(script, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_partly_labelled_films()
    flags = ["--data", "a.csv", "--test", "a.csv", "--encoder", tiny, "--pairs"]
    flags += ["--epochs", "2", "--seeds", "2", "--batch-size", "4", "--out", "c"]
    status, out, err = script("benchmarks/compare.py", *flags)
    assert status == 0, err
    folders = {
        ("liked", "stars"): "pair-1-2-liked-stars",
        ("liked", "genre"): "pair-1-3-liked-genre",
        ("stars", "genre"): "pair-2-3-stars-genre",
    }
    alone = {"liked": "single-1-liked", "stars": "single-2-stars", "genre": "single-3-genre"}
    assert len(modified("c")) == 12
    steps = {steps_of(path.parent) for path in modified("c")}
    assert steps == {read_json("c/compare.json")["steps"]}

    gains = read_json("c/compare.json")["gains"]
    assert list(gains) == ["liked", "stars", "genre"]
    for pair, folder in folders.items():
        for name, other in (pair, pair[::-1]):
            metric = "pearson" if name == "stars" else "macro_f1"
            assert gains[name]["metric"] == metric
            scores = []
            for run in (folder, alone[name]):
                metrics = [read_json(f"c/{run}-{seed}/metrics.json") for seed in (0, 1)]
                scores.append([100 * found["test"][name][metric] for found in metrics])
            gain = gains[name]["beside"][other]
            assert (gain.pop("scores"), gains[name]["single"]) == tuple(scores)
            assert gain == compare.paired_difference(*scores)
            assert f"{gain['mean']:+.2f} ({gain['low']:+.2f} to {gain['high']:+.2f})" in out
    lines = [line for line in out.splitlines() if line.startswith("liked, macro-F1")]
    assert len(lines) == 1 and len(lines[0].split("  -  ")) == 2
