"""Train one encoder with a head per task, test the best epoch, and keep it in a folder.

python train.py --variant shared
python train.py --variant separate-lr --data reviews.csv --tasks sentiment topic --epochs 3
"""

import argparse
import contextlib
import itertools
import json
import os
import socket
import sys
from importlib.metadata import version
from pathlib import Path

import torch

import mtbert
import report
from mtbert import InputError, printable

SAMPLE = Path(__file__).parent / "sample_data.json"


def number(kind, low, high=sys.float_info.max):
    """An argparse type: an int or a float from `low` to `high`."""

    def parse(text):
        if not low <= kind(text) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return kind(text)

    parse.__name__ = kind.__name__  # argparse's messages name it
    return parse


def task_weight(text):
    name, _, weight = text.rpartition("=")
    return name, number(float, 0)(weight)


def parse_args(argv):
    """The flags; for a run to resume those of its config.json, and InputError where `argv` contradicts them."""
    parser = mtbert.Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    flag = parser.add_argument
    flag("--variant", choices=mtbert.VARIANTS, default="shared", help="see the README (default: %(default)s)")
    flag("--data", nargs="+", default=[str(SAMPLE)], metavar="FILE", help=".json, .jsonl, .csv, .tsv (default: sample)")
    flag("--val", nargs="+", default=[], metavar="FILE", help="validation rows (default: a tenth of the training rows)")
    flag("--test", nargs="+", default=[], metavar="FILE", help="test rows (default: none, or those in --data)")
    flag("--tasks", nargs="+", metavar="NAME", help="the tasks, in order (default: every key but the texts)")
    flag("--text-column", default="text", metavar="NAME", help="the key of the text (default: %(default)s)")
    flag("--encoder", default=mtbert.DEFAULT_ENCODER, help="a name on the Hub, or a folder (default: %(default)s)")
    flag("--pooling", choices=mtbert.POOLING, default="mean", help="of the hidden states (default: %(default)s)")
    flag("--max-length", type=number(int, 4), metavar="T", help="tokens of a text (default: the encoder's limit)")
    flag("--epochs", type=number(int, 1), default=5, metavar="N", help="(default: %(default)s)")
    flag("--batch-size", type=number(int, 1), default=32, metavar="N", help="rows in a step (default: %(default)s)")
    flag("--accumulate", type=number(int, 1), default=1, metavar="N", help="parts of a batch (default: %(default)s)")
    head_lr = mtbert.VARIANTS["separate-lr"]["head_lr"]
    flag("--lr", type=number(float, 0), default=1e-4, help="peak learning rate (default: %(default)s)")
    flag("--head-lr", type=number(float, 0), help=f"that of the heads, for separate-lr (default: {head_lr})")
    flag("--layer-decay", type=number(float, 0.01, 1), help="rate of a layer / of the one above, for separate-lr")
    flag("--task-weights", nargs="+", type=task_weight, default=[], metavar="NAME=W", help="of the losses (default: 1)")
    flag("--weight-decay", type=number(float, 0), default=0.01, help="but of vectors (default: %(default)s)")
    flag("--warmup-ratio", type=number(float, 0, 1), default=0.1, help="share of all steps (default: %(default)s)")
    flag("--dropout", type=number(float, 0, 0.99), default=0.1, help="in encoder and heads (default: %(default)s)")
    flag("--clip", type=number(float, 0), default=1.0, help="norm of the gradient; 0: any (default: %(default)s)")
    flag("--seed", type=number(int, 0, 2**32 - 1), default=0, help="of everything random (default: %(default)s)")
    flag("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    flag("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="auto: bfloat16 where faster")
    flag("--compile", action="store_true", help="torch.compile the model")
    flag("--no-test", action="store_true", help="leave the test rows out, while you still choose")
    flag("--conflict-every", type=number(int, 1), metavar="N", help="steps between looks at how gradients agree")
    flag("--save-every", type=number(int, 1), metavar="N", help="steps between snapshots (default: one an epoch)")
    flag("--resume", metavar="FOLDER", help="go on with the run there, which was stopped, with its flags")
    flag("--out", metavar="FOLDER", help="where the run is kept (default: a new folder under runs/)")
    flag("--overwrite", action="store_true", help="let --out be a folder in use")
    args = parser.parse_args(argv)
    args.argv = argv  # config.json keeps it
    if args.resume is not None:
        args.argv = read_config(args.resume)["flags"]["argv"]
        stored, args = parser.parse_args(args.argv), parser.parse_args(args.argv + argv, args)
        for name, value in vars(stored).items():
            if name != "resume" and vars(args)[name] != value:
                flag = f"--{name.replace('_', '-')}"
                raise InputError(f"{flag} {vars(args)[name]} contradicts {flag} {value} of the run in {args.resume}")

    variant = mtbert.VARIANTS[args.variant]
    args.task_weights = dict(args.task_weights)
    if args.task_weights and not variant["all_tasks"]:
        raise InputError(f"--task-weights is not used by --variant {args.variant}, which has one task")
    for value, name in ((args.head_lr, "--head-lr"), (args.layer_decay, "--layer-decay")):
        if value is not None and variant["head_lr"] is None:
            raise InputError(f"{name} is not used by --variant {args.variant}, but by separate-lr")
    if args.head_lr is None:
        args.head_lr = variant["head_lr"] or args.lr
    args.layer_decay = args.layer_decay or 1.0
    return args


def read_config(folder):
    with mtbert.input_errors(f"{folder}: no run to resume"):
        config = mtbert.read_record(Path(folder) / "config.json")
        if not all(isinstance(argument, str) for argument in config["flags"]["argv"]):
            raise ValueError("its flags are damaged")
        return config


def check_folder(args):
    """Raises InputError if --out is in use."""
    folder = Path("runs" if args.out is None else args.out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; --out names a folder")
    found = {path.name for path in folder.iterdir()} if folder.exists() and args.out is not None else set()
    leftovers = {"run.lock", "config.json.partial", "tokenizer.json.partial", "tokenizer.json"}  # killed at its start
    if found - leftovers and not args.overwrite:
        resume = f", or go on with --resume {folder}" if "config.json" in found else ""
        raise InputError(f"--out {folder} is in use; name another folder, or add --overwrite{resume}")


def make_folder(args):
    if args.out is not None:
        Path(args.out).mkdir(parents=True, exist_ok=True)
        return Path(args.out)
    for n in itertools.count(1):
        with contextlib.suppress(FileExistsError):
            folder = Path("runs") / f"{args.variant}-{n}"
            folder.mkdir(parents=True)
            return folder


def launcher():
    """What tells one call of torchrun from another, and is the same after a restart; None without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{socket.gethostname()}, process {os.getppid()}" if name == "none" else name


def find_run(args, device):
    """The folder to go on with: that of --resume or, where torchrun restarts its processes, of their first start."""
    if args.resume is not None:
        return Path(args.resume)
    restarts = torch.tensor(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)))  # each machine counts its own
    restarted = mtbert.sum_over_processes(restarts, device) > 0
    found = mtbert.RANK == 0 and restarted and (Path(args.out) / "config.json").exists()
    return Path(args.out) if found and read_config(args.out)["launcher"] == launcher() else None


def begin(args, folder, model):
    """Begin a run in `folder`, which is ours alone."""
    check_folder(args)
    former = ("metrics.json", "config.json", "snapshot*", "model.safetensors", "log.jsonl",
              "test_predictions.jsonl", "report.png")  # fmt: skip
    mtbert.remove(folder, *former, *mtbert.LEFTOVERS)
    mtbert.save(model, folder, finished=False)


def check_same(then, folder, model):
    """Raises InputError unless the run in `folder`, whose config.json said `then`, can go on with `model`."""
    now = mtbert.describe_model(model)
    for task in then["tasks"]:
        task["temperature"] = 1.0  # it is fitted at the end, behind which the run may have been killed
    for key in ("encoder", "tasks", "pooling", "encoder_source", "tokenizer_sha256"):
        if then[key] != now[key]:
            raise InputError(f"{folder}: its {key} is not what it was when the run began: {now[key]}"[:300])
    if then["versions"] != now["versions"]:
        warn(f"the run began with {then['versions']}; now, with {now['versions']}, it will not repeat to the bit")
    model.record = {key: then[key] for key in model.record}
    mtbert.remove(folder, *mtbert.LEFTOVERS)


def warn(message):
    if mtbert.RANK == 0:
        mtbert.say(f"warning: {printable(message)}")


def print_metrics(tasks, metrics):
    for task in (task for task in tasks if task.name in metrics):
        m = metrics[task.name]
        print(f"\n{printable(task.name)}, test")
        if "accuracy" not in m:
            print(f"  Pearson {m['pearson']:.3f}, Spearman {m['spearman']:.3f}, RMSE {m['rmse']:.3f}", end="")
            print(f" (always the mean: {m['mean_rmse']:.3f})")
            continue
        print(f"  accuracy {m['accuracy']:.3f} (always the majority class: {m['majority_accuracy']:.3f})", end="")
        print(f", macro-F1 {m['macro_f1']:.3f}")
        print(f"  calibration error {m['ece']:.3f} (before the temperature, {task.temperature:.2f}:", end="")
        print(f" {m['ece_uncalibrated']:.3f})")
        print(f"  {'class':20}{'precision':>10}{'recall':>10}{'F1':>10}{'rows':>10}")
        for label, c in m["per_class"].items():
            print(f"  {mtbert.describe_class(label, task.names[label])[:19]:20}", end="")
            print(f"{c['precision']:10.3f}{c['recall']:10.3f}{c['f1']:10.3f}{c['rows']:10.0f}")


def test_lines(tasks, rows, logits):
    """Yield a line of JSON for each row: where it is from, its labels and the predictions."""
    for i, row in enumerate(rows):
        predictions = {task.name: mtbert.decode(task, logits[task.name][i]) for task in tasks}
        gold = {task.name: row.labels.get(task.name) for task in tasks}
        yield json.dumps({"where": row.where, "labels": gold, "predictions": predictions}) + "\n"


def print_examples(model, rows):
    predictions = mtbert.predict_encoded(model, mtbert.encode(model.tokenizer, rows))
    for row, prediction in zip(rows, predictions, strict=True):
        print(f"\n  {printable(row.text)[:110]}")
        for task in model.tasks:
            gold = row.labels.get(task.name, "not labelled")
            gold = printable(task.names.get(str(gold), str(gold)))
            print(f"    {printable(task.name)}: {mtbert.describe(prediction[task.name])} (gold: {gold})")


def print_data(tasks, rows, warnings=True):
    """Say how many labels each split has of each task, how tasks hang together, and what may be a mistake."""
    print(f"{'labels of':20}" + "".join(f"{split:>12}" for split in rows) + "  classes (share of the most frequent)")
    for task in tasks:
        counts = (sum(task.name in row.labels for row in part) for part in rows.values())
        print(f"{printable(task.name)[:19]:20}" + "".join(f"{count:12}" for count in counts), end="  ")
        if task.labels:
            print(f"{len(task.labels)} ({max(task.counts) / sum(task.counts):.3f})")
        else:
            print(f"a number, {task.mean:.2f} ± {task.std:.2f}")
    print(f"{'(rows)':20}" + "".join(f"{len(part):12}" for part in rows.values()))
    everything = [row for part in rows.values() for row in part]
    associated = sorted(mtbert.associations(tasks, everything), reverse=True)[:5]
    for v, one, other in associated:
        print(f"association of {printable(one)} and {printable(other)}: Cramér's V {v:.2f}")
    if warnings:
        for v, one, other in associated:
            if v > 0.9:
                warn(f"{one!r} and {other!r} nearly give each other away: Cramér's V {v:.2f}")
        for warning in mtbert.data_warnings(tasks, rows):
            warn(warning)


def prepare(args, device, then):
    """Read the rows, load the encoder, and say what there is -> the model, its rows, the same as Datasets.

    `then` is the config.json of a run to resume, whose data must be the same still, or None.
    """
    sha256 = {path: mtbert.file_sha256(path) for path in args.data + args.val + args.test}
    for path, digest in zip(sha256, then["data_sha256"].values(), strict=True) if then else ():
        if sha256[path] != digest:
            raise InputError(f"{path} has changed since the run in {args.resume} began")
    all_tasks = mtbert.VARIANTS[args.variant]["all_tasks"]
    tasks, rows = mtbert.read_data(args.data, args.val, args.test, args.tasks, all_tasks, args.text_column, args.seed)
    if args.no_test:
        rows["test"] = []
    if unknown := set(args.task_weights) - {task.name for task in tasks}:
        raise InputError(f"--task-weights: there is no task {min(unknown)!r}")
    encoder = mtbert.Encoder.from_pretrained(args.encoder, args.dropout)
    config = encoder.config
    max_length = args.max_length or config.max_length
    if max_length > config.max_length:
        raise InputError(f"--max-length {max_length}: the encoder takes at most {config.max_length} tokens")
    tokenizer = mtbert.load_tokenizer(args.encoder, max_length, config.vocab_size)
    size = sum(parameter.numel() for parameter in encoder.parameters())
    shape = f"{config.model_type}, {config.num_hidden_layers} layers, hidden size {config.hidden_size}"
    print(f"encoder: {args.encoder}, from {encoder.source} ({shape}, {size / 1e6:.1f}M parameters)")

    data = {split: mtbert.encode(tokenizer, part, tasks) for split, part in rows.items()}
    print_data(tasks, rows, then is None)
    if cut := sum(part.cut for part in data.values()):
        print(f"{cut} texts are longer than {max_length} tokens and were cut")

    torch.manual_seed(args.seed)
    model = mtbert.MTBert(encoder, tasks, tokenizer, args.pooling, args.dropout).to(device)
    model.compute_dtype = mtbert.pick_dtype(args.dtype, device)
    if args.compile:
        model.compile(dynamic=True)
    packages = ("torch", "transformers", "tokenizers", "numpy", "scipy", "scikit-learn")
    versions = {name: version(name) for name in packages}
    versions |= {"processes": mtbert.PROCESSES, "threads": torch.get_num_threads(), "dtype": str(model.compute_dtype)}
    model.record = {
        "flags": vars(args),
        "encoder_source": encoder.source,
        "versions": versions,
        "data_sha256": sha256,
        "launcher": launcher(),
    }
    return model, rows, data


def run(args, folder, model, rows, data):
    """Train, keep the best epoch, and test it."""
    print(f"run: {folder}")
    best, validation, seconds = mtbert.train(model, data, args, folder)
    model.load_state_dict(best)
    mtbert.calibrate(model.tasks, data["validation"], mtbert.compute_logits(model, data["validation"]))
    if mtbert.RANK == 0:
        mtbert.save(model, folder)
    mtbert.from_rank_0(None)  # the others wait until it is saved

    del model, best
    model = mtbert.load(folder, args.device, args.dtype)  # what is tested is what was saved
    logits = mtbert.compute_logits(model, data["test"])
    test = mtbert.evaluate(model.tasks, data["test"], logits)
    print_metrics(model.tasks, test)
    shown = "test" if rows["test"] else "validation"
    print(f"\nsome {shown} rows")
    print_examples(model, rows[shown][:12])
    speed = args.epochs * len(rows["train"]) / seconds
    result = {"validation": validation, "test": test, "train_seconds": seconds, "examples_per_second": speed}
    if mtbert.RANK == 0:
        mtbert.write(folder / "test_predictions.jsonl", "".join(test_lines(model.tasks, rows["test"], logits)).encode())
        with mtbert.replacing(folder / "report.png") as beside:
            report.draw(folder, beside, result)
        mtbert.write(folder / "metrics.json", result)
        mtbert.remove(folder, "snapshot*")
    print(f"\ntrained in {seconds:.1f} s ({speed:.0f} examples per second), saved in {folder}")


def main(argv=None):
    args = parse_args(sys.argv[1:] if argv is None else argv)
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) and args.resume is None and (not args.out or args.overwrite):
        raise InputError("torchrun --max-restarts takes --out FOLDER, to find the run again, and no --overwrite")
    device, first = mtbert.pick_device(args.device), mtbert.RANK == 0  # of the processes; it alone writes
    mtbert.join_processes(device)
    folder, then = mtbert.from_rank_0(find_run(args, device)), None
    with contextlib.ExitStack() as held:
        try:
            if folder:
                if first:
                    held.enter_context(mtbert.locked(folder / "run.lock", folder))
                if mtbert.from_rank_0((folder / "metrics.json").exists()):
                    print(f"the run in {folder} is finished")
                    if first:
                        mtbert.remove(folder, "snapshot*")  # where the run was killed between the two
                    return
                args, then = parse_args(["--resume", str(folder)]), read_config(folder)
            elif first:
                check_folder(args)
            model, rows, data = prepare(args, device, then)
            if first and then:
                check_same(then, folder, model)
            elif first:
                folder = make_folder(args)
                held.enter_context(mtbert.locked(folder / "run.lock", folder))
                begin(args, folder, model)
            folder = mtbert.from_rank_0(folder)
            run(args, folder, model, rows, data)
        except KeyboardInterrupt as stop:
            status, how = stop.args or (130, "interrupted")
            if folder and (folder / "config.json").exists() and "--resume" not in how:
                how += f"; go on with: python train.py --resume {folder}"
            raise KeyboardInterrupt(status, how) from None


if __name__ == "__main__":
    mtbert.run_script(main)
