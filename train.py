"""Train one encoder with a head per task, test the best epoch, and keep it in a folder.

python train.py --variant shared
python train.py --variant separate-lr --data reviews.csv --tasks sentiment topic --epochs 3

This file holds the flags and the order of things. It never knows how anything is read, computed, kept or shown.
"""

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch

import mtbert
import report
import runs
from data import InputError, Notes, format_flags, format_of, read_data
from metrics import calibrate, evaluate

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
    name, is_there, weight = text.rpartition("=")
    if not is_there:
        raise argparse.ArgumentTypeError(f"{text} is not like NAME=W")
    return name, number(float, 0)(weight)


VARIANT_HELP = """single: the first task alone, one learning rate
shared: all tasks on one encoder, one learning rate (the default)
separate-lr: as shared, and the heads learn at --head-lr"""


def parse_args(argv):
    """The flags; for a run to resume those of its config.json, and InputError where `argv` contradicts them."""
    style, count, positive = argparse.RawTextHelpFormatter, number(int, 1), number(float, 0)
    parser = runs.Parser(description=__doc__.splitlines()[0], formatter_class=style, allow_abbrev=False)
    flag = parser.add_argument_group("what is learned").add_argument
    flag("--variant", choices=mtbert.VARIANTS, default="shared", help=VARIANT_HELP)
    flag("--data", nargs="+", default=[str(SAMPLE)], metavar="FILE", help=".json, .jsonl, .csv, .tsv (default: sample)")
    flag("--val", nargs="+", default=[], metavar="FILE", help="validation rows (default: a tenth of the training rows)")
    flag("--test", nargs="+", default=[], metavar="FILE", help="test rows (default: those in --data, if any)")
    flag("--no-test", action="store_true", help="leave the test rows out, while you still choose settings")
    flag("--tasks", nargs="+", metavar="NAME", help="columns to learn, in order (default: all that look like labels)")
    flag("--regression", nargs="+", default=[], metavar="NAME", help="tasks that are numbers to predict, not classes")
    format_flags(flag)
    flag("--task-weights", nargs="+", type=task_weight, default=[], metavar="NAME=W", help="of the losses (default: 1)")
    flag = parser.add_argument_group("model").add_argument
    flag("--encoder", default=mtbert.DEFAULT_ENCODER, help="a Hub name, a folder, or a run (default: %(default)s)")
    flag("--pooling", choices=mtbert.POOLING, default="mean", help="of tokens to a text (default: %(default)s)")
    flag("--max-length", type=number(int, 4), metavar="T", help="cut texts at T tokens (default: the encoder's limit)")
    flag("--long", choices=mtbert.LONG, default="head", help="what is kept of a text that is cut (default: head)")
    flag("--dropout", type=number(float, 0, 0.99), default=0.1, help="in encoder and heads (default: %(default)s)")
    flag("--freeze-embeddings", action="store_true", help="leave the embeddings as they are: a twentieth faster")
    flag = parser.add_argument_group("training").add_argument
    flag("--epochs", type=count, metavar="N", help="(default: those that make about 250 steps, 3 to 20)")
    flag("--passes", type=count, default=1, metavar="N", help="over the rows in an epoch (default: 1)")
    flag("--patience", type=count, metavar="N", help="stop when N epochs brought nothing better on validation rows")
    flag("--task-sampling", type=number(float, 0, 1), default=0.5, metavar="A", help="draw by labels**A (default: 0.5)")
    flag("--class-weights", choices=("balanced",), help="balanced: rare classes count more, n / (classes * count)")
    flag("--batch-size", type=count, default=32, metavar="N", help="rows in a step (default: %(default)s)")
    flag("--accumulate", type=count, default=1, metavar="N", help="parts of a batch; they save memory (default: 1)")
    flag("--lr", type=positive, default=1e-4, help="peak learning rate (default: %(default)s)")
    flag("--head-lr", type=positive, help=f"of the heads, in separate-lr ({mtbert.VARIANTS['separate-lr']['head_lr']})")
    flag("--layer-decay", type=number(float, 0.01, 1), help="a layer's rate / that of the one above, for separate-lr")
    flag("--weight-decay", type=positive, default=0.01, help="but none of biases and layer norms (default: 0.01)")
    flag("--warmup-ratio", type=number(float, 0, 1), default=0.1, help="share of steps to warm up (default: 0.1)")
    flag("--clip", type=positive, default=1.0, help="longest norm of a gradient; 0: no limit (default: 1)")
    flag("--seed", type=number(int, 0, 2**32 - 1), default=0, help="of everything random (default: %(default)s)")
    flag("--conflict-every", type=count, metavar="N", help="every N steps, log how the tasks' gradients agree")
    flag = parser.add_argument_group("machine").add_argument
    flag("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    flag("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="auto: bfloat16 where it is faster")
    flag("--compile", action="store_true", help="torch.compile the model")
    flag = parser.add_argument_group("the run's folder").add_argument
    flag("--out", metavar="FOLDER", help="where the run is kept (default: a new folder under runs/)")
    flag("--overwrite", action="store_true", help="let --out be a folder in use")
    flag("--verbose", action="store_true", help="print a line for each class, too")
    flag("--resume", metavar="FOLDER", help="go on with the stopped run in FOLDER, with its flags")
    flag("--save-every", type=count, metavar="N", help="steps between snapshots (default: one an epoch)")
    args = parser.parse_args(argv)
    args.argv = argv  # config.json keeps it
    if args.resume is not None:
        args.argv = runs.read_config(args.resume)["flags"]["argv"]
        stored, args = parser.parse_args(args.argv), parser.parse_args(args.argv + argv, args)
        for name, value in vars(stored).items():
            if name not in ("resume", "verbose") and vars(args)[name] != value:
                flag = f"--{name.replace('_', '-')}"
                raise InputError(f"{flag} {vars(args)[name]} contradicts {flag} {value} of the run in {args.resume}")

    if args.out is not None and Path(args.out).resolve() == Path(args.encoder).resolve():
        raise InputError(f"--out {args.out} is the run that --encoder starts from; name another folder")
    variant = mtbert.VARIANTS[args.variant]
    args.task_weights = dict(args.task_weights)
    if args.task_weights and not variant["all_tasks"]:
        raise InputError(f"--task-weights is not used by --variant {args.variant}, which has one task")
    for value, name in ((args.head_lr, "--head-lr"), (args.layer_decay, "--layer-decay")):
        if value is not None and variant["head_lr"] is None:
            raise InputError(f"{name} is not used by --variant {args.variant}, but by separate-lr")
    args.head_lr = variant["head_lr"] or args.lr if args.head_lr is None else args.head_lr
    args.layer_decay = args.layer_decay or 1.0
    return args


def prepare(args, device, then):
    """Read the rows, load the encoder, and say what there is -> the model, its rows, the same as Datasets.

    `then` is the config.json of a run to resume, whose data must be the same still, or None.
    """
    sha256 = {path: runs.file_sha256(path) for path in args.data + args.val + args.test}
    for path in sha256 if then else ():
        if sha256[path] != then["data_sha256"].get(path):
            raise InputError(f"{path} has changed since the run in {args.resume} began")
    all_tasks, notes = mtbert.VARIANTS[args.variant]["all_tasks"], Notes()
    options = (args.tasks, all_tasks, args.seed, format_of(args), args.regression, notes)
    tasks, rows = read_data(args.data, args.val, args.test, *options)
    rows["test"] = [] if args.no_test else rows["test"]
    if unknown := args.task_weights.keys() - {task.name for task in tasks}:
        raise InputError(f"--task-weights: there is no task {min(unknown)!r}")
    encoder = mtbert.Encoder.from_pretrained(args.encoder, args.dropout)
    longest, max_length = encoder.config.max_length, args.max_length or encoder.config.max_length
    if max_length > longest:
        raise InputError(f"--max-length {max_length}: the encoder takes at most {longest} tokens")
    if args.freeze_embeddings:
        mtbert.freeze_embeddings(encoder)
    tokenizer = mtbert.load_tokenizer(args.encoder, max_length, encoder.config.vocab_size)
    report.print_encoder(args.encoder, encoder)
    encoded = {split: mtbert.encode(tokenizer, part, tasks, long=args.long) for split, part in rows.items()}
    mixture = mtbert.mixture(encoded["train"].labels, args.task_sampling, args.passes)
    args.epochs = args.epochs or mtbert.default_epochs(mixture[0].sum(), args.batch_size)
    report.print_data(tasks, rows, None if then else notes, mixture)
    report.print_steps(args.epochs, round(mixture[0].sum()), args.batch_size)
    report.print_texts(encoded, max_length, mtbert.LONG[args.long], args.encoder)
    torch.manual_seed(args.seed)
    model = mtbert.MTBert(encoder, tasks, tokenizer, args.pooling, args.dropout).to(device)
    model.long, model.compute_dtype = args.long, mtbert.pick_dtype(args.dtype, device)
    report.print_heads(args.encoder, mtbert.take_heads(model, args.encoder))
    if args.compile:
        model.compile(dynamic=True)
    versions = {p: version(p) for p in ("torch", "transformers", "tokenizers", "numpy", "scipy", "scikit-learn")}
    versions.update(processes=runs.processes()[1], threads=torch.get_num_threads(), dtype=str(model.compute_dtype))
    model.record = {"flags": vars(args), "encoder_source": encoder.source, "versions": versions}
    model.record |= {"data_sha256": sha256, "launcher": runs.launched().name}
    return model, rows, encoded


def run(args, folder, model, rows, encoded):
    """Train, keep the best epoch, and test it."""
    first = runs.processes()[0] == 0
    print(f"run: {folder}")
    report.print_groups(mtbert.parameter_groups(model, args.lr, args.head_lr, args.layer_decay, args.weight_decay))
    best, validation, seconds, count = mtbert.train(model, encoded, args, folder)
    model.load_state_dict(best)
    calibrate(model.tasks, encoded["validation"].labels, mtbert.compute_logits(model, encoded["validation"]))
    if first:
        mtbert.save(model, folder)
    runs.from_rank_0(None)  # the others wait until it is saved

    dtype, model, best = model.compute_dtype, None, None  # in the arithmetic that it learned in
    model = mtbert.load(folder, args.device, dtype)  # what is tested is what was saved
    logits = mtbert.compute_logits(model, encoded["test"])
    test = evaluate(model.tasks, encoded["test"].labels, logits)
    predictions = mtbert.decode(model.tasks, logits)
    report.print_metrics(model.tasks, test, verbose=args.verbose)
    shown = "test" if rows["test"] else "validation"
    examples = predictions or mtbert.predict_encoded(model, encoded[shown])
    report.print_examples(model.tasks, rows[shown][:8], examples[:8], shown)
    result = {"validation": validation, "test": test, "train_seconds": seconds, "examples_per_second": count / seconds}
    if first:
        lines = []
        for row, prediction in zip(rows["test"], predictions, strict=True):
            gold = {task.name: row.labels.get(task.name) for task in model.tasks}
            lines.append(json.dumps({"where": row.where, "labels": gold, "predictions": prediction}) + "\n")
        runs.write(folder / "test_predictions.jsonl", "".join(lines).encode())
        with runs.replacing(folder / "report.png") as beside:
            report.draw(folder, beside, result)
        runs.write(folder / "metrics.json", result)
        runs.remove(folder, "snapshot*")
    print(f"\ntrained in {seconds:.1f} s ({count / seconds:.0f} examples per second), saved in {folder}, "
          f"picture: {folder / 'report.png'}")  # fmt: skip


def main(argv=None):
    args = parse_args(sys.argv[1:] if argv is None else argv)
    device = runs.join_processes(mtbert.pick_device(args.device))
    with runs.open_run(args.out, args.resume, args.overwrite, args.variant, device) as (folder, then, finished):
        if finished:
            print(f"the run in {folder} is finished")
            return
        if then:  # torchrun's restart goes on with the flags that the run began with
            args = parse_args(["--resume", str(folder)])
        model, rows, encoded = prepare(args, device, then)
        if runs.processes()[0] == 0 and then:
            if warning := runs.go_on(folder, then, mtbert.describe_model(model)):
                runs.warn(warning)
            model.record = {key: then[key] for key in model.record}
        elif runs.processes()[0] == 0:
            runs.begin(folder)
            mtbert.save(model, folder, finished=False)
        run(args, folder, model, rows, encoded)


if __name__ == "__main__":
    runs.run_script(main)
