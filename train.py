"""Train one encoder with a head for each task, test the epoch that is kept, and save it.

python train.py --variant shared
python train.py --variant separate-lr --data reviews.csv --tasks sentiment topic --epochs 3

This file holds the flags, and what happens in which order. How rows are read, how a model is
trained and how a run is kept stands elsewhere.
"""

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P and -I leave it out

from support.versions import are_new_enough

if not are_new_enough("train.py"):
    sys.exit(2)

import torch

import mtbert
from support import cpu, huggingface, plots, processes, report, runs
from support.columns import Notes, all_have_pairs, read_data, row_hash
from support.errors import InputError
from support.files import check_is_file, format_flags, format_of
from support.script import Parser, number, run_script, warn

SAMPLE = Path(__file__).parent / "sample_data.json"
VARIANT_HELP = """single: the first task alone, one learning rate
shared: all tasks on one encoder, one learning rate (the default)
separate-lr: as shared, and the heads learn at --head-lr"""
KINDS_HELP = f"kinds of tasks: {', '.join(mtbert.KINDS)}\n(default: what the labels look like)"
TRUNCATION_HELP = "what is kept of longer texts (default: %(default)s)"
TASK_SAMPLING_HELP = "draw tasks by labels**A (default: %(default)s)"
VAL_HELP = "validation rows (default: a tenth of the training rows, if they are 100 or more)"
HEAD_INIT_HELP = "how heads start: as linear fits, or at random (default: %(default)s)"
TEACHERS_HELP = "finished runs, whose predictions are learned beside the labels"
ANNEALING_HELP = "learn at first from the teachers, at last from the labels (default: half, half)"
BATCH_SIZE_HELP = "rows in a step (default: 32; 24, 16 or 8 where that makes 250 steps at most)"
HEAD_LR_HELP = (
    f"of the heads, in separate-lr (default: {mtbert.VARIANTS['separate-lr']['head_lr']})"
)
LAYER_DECAY_HELP = "a layer's rate / that of the one above, in separate-lr (default: 1)"
DTYPE_HELP = "of training; auto: bfloat16 where it is faster"
RENAMED = {
    "--long": "--truncation",
    "--clip": "--max-grad-norm",
    "--accumulate": "--gradient-accumulation",
}
REMOVED = ("--conflict-every", "--freeze-embeddings", "--passes")
# Flags in which a resumed run may differ. Files and weights are known by their content
# (`check_data`, runs.check_resume); the others change no result or, as --device, are said.
MAY_DIFFER = ("data", "val", "test", "encoder", "teachers", "device", "verbose", "save_every")
MAY_DIFFER += ("out", "overwrite", "resume", "go_on")


def task_weight(text):
    name, equals, weight = text.rpartition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text} is not like NAME=W")
    return name, number(float, 0)(weight)


def task_kind(text):
    name, equals, kind = text.rpartition("=")
    if not equals or kind not in mtbert.KINDS:
        known = ", ".join(mtbert.KINDS)
        raise argparse.ArgumentTypeError(f"{text} is not like NAME=KIND; kinds are {known}")
    return name, kind


def make_parser():
    rate = number(float, 0)
    parser = Parser(
        description="Train one encoder with a head for each task, and test the epoch that is kept.",
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    files = {"nargs": "+", "metavar": "FILE"}
    names = {"nargs": "+", "metavar": "NAME"}
    flag = parser.add_argument_group("what is learned").add_argument
    flag("--variant", choices=mtbert.VARIANTS, default="shared", help=VARIANT_HELP)
    flag(
        "--data", **files, default=[str(SAMPLE)], help=".json, .jsonl, .csv, .tsv (default: sample)"
    )
    flag("--val", **files, default=[], help=VAL_HELP)
    flag("--test", **files, default=[], help="test rows (default: those in --data, if any)")
    flag("--no-test", action="store_true", help="leave out test rows while you choose settings")
    flag("--tasks", **names, help="columns to learn, in order (default: all that look like labels)")
    flag("--kinds", nargs="+", type=task_kind, default=[], metavar="NAME=KIND", help=KINDS_HELP)
    flag("--regression", **names, default=[], help="the same as --kinds NAME=regression")
    flag("--classification", **names, default=[], help="the same as --kinds NAME=classification")
    format_flags(flag)
    weights = {"nargs": "+", "type": task_weight, "default": [], "metavar": "NAME=W"}
    flag("--task-weights", **weights, help="weights of the losses (default: 1)")
    flag("--teachers", nargs="+", default=[], metavar="RUN", help=TEACHERS_HELP)
    flag("--teacher-annealing", action="store_true", help=ANNEALING_HELP)

    flag = parser.add_argument_group("model").add_argument
    encoder = huggingface.DEFAULT_ENCODER
    flag("--encoder", default=encoder, help="a Hub name, a folder, or a run (default: %(default)s)")
    flag(
        "--pooling", choices=mtbert.POOLING, default="mean", help="of tokens (default: %(default)s)"
    )
    flag("--max-length", type=number(int, 4), metavar="T", help="tokens (default: encoder's limit)")
    flag("--truncation", choices=mtbert.TRUNCATION, default="head", help=TRUNCATION_HELP)
    flag("--head-init", choices=("fit", "random"), default="fit", help=HEAD_INIT_HELP)
    flag("--dropout", type=number(float, 0, 0.99), default=0.1, help="(default: %(default)s)")

    flag = parser.add_argument_group("training").add_argument
    share = number(float, 0, 1)
    counts = {"type": number(int, 1), "metavar": "N"}
    flag("--epochs", **counts, help="(default: as many as make about 250 steps, from 3 to 20)")
    flag("--patience", **counts, help="stop when N epochs brought nothing better in validation")
    flag("--task-sampling", type=share, default=0.5, metavar="A", help=TASK_SAMPLING_HELP)
    flag(
        "--class-weights", choices=("balanced",), help="balanced: n / (classes * rows of the class)"
    )
    flag("--batch-size", **counts, help=BATCH_SIZE_HELP)
    flag("--gradient-accumulation", **counts, default=1, help="parts of a batch, to save memory")
    flag("--lr", type=rate, default=1e-4, help="peak learning rate (default: %(default)s)")
    flag("--head-lr", type=rate, help=HEAD_LR_HELP)
    flag("--layer-decay", type=number(float, 0.01, 1), help=LAYER_DECAY_HELP)
    flag("--weight-decay", type=rate, default=0.01, help="of matrices (default: %(default)s)")
    flag(
        "--warmup-ratio", type=share, default=0.1, help="share of the steps (default: %(default)s)"
    )
    flag("--max-grad-norm", type=rate, default=1.0, help="0: no limit (default: %(default)s)")
    flag("--seed", type=number(int, 0, 2**32 - 1), default=0, help="(default: %(default)s)")

    flag = parser.add_argument_group("machine").add_argument
    flag("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    flag("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help=DTYPE_HELP)
    flag("--compile", action="store_true", help="torch.compile the model")

    flag = parser.add_argument_group("the run's folder").add_argument
    flag("--out", metavar="FOLDER", help="where the run is kept (default: a new folder in runs/)")
    flag("--overwrite", action="store_true", help="let --out be a folder in use")
    flag("--verbose", action="store_true", help="print a line for each class, too")
    flag("--resume", metavar="FOLDER", help="go on with the stopped run in FOLDER, with its flags")
    go_on = {"action": "store_true", "dest": "go_on"}
    flag("--continue", **go_on, help="go on with the run in --out, if one has begun there")
    flag("--save-every", **counts, help="steps between snapshots (default: one a minute)")
    return parser


def parse_args(argv, repeats=1):
    """The flags, or of a run to resume those it began with.

    Raises InputError, also where `argv` contradicts the run. `repeats`: how often an epoch draws a
    row that has every label; only benchmarks/compare.py needs it.
    """
    check_renamed(argv)
    parser = make_parser()
    args = parser.parse_args(argv)
    args.argv = argv
    args.repeats = repeats
    if args.go_on and (args.out is None or args.overwrite):
        raise InputError("--continue takes --out FOLDER, to find the run again, and no --overwrite")
    if args.resume is not None:
        args = resumed_args(parser, args, argv)
    if args.out is not None and Path(args.out).resolve() == Path(args.encoder).resolve():
        raise InputError(
            f"--out {args.out} is the run that --encoder starts from; name another folder"
        )
    check_teacher_flags(args)
    args.task_weights = dict(args.task_weights)
    args.kinds = dict(args.kinds)
    args.kinds.update(dict.fromkeys(args.regression, "regression"))
    args.kinds.update(dict.fromkeys(args.classification, "classification"))

    variant = mtbert.VARIANTS[args.variant]
    if args.task_weights and not variant["all_tasks"]:
        raise InputError(
            f"--task-weights is not used by --variant {args.variant}, which has one task"
        )
    for value, name in ((args.head_lr, "--head-lr"), (args.layer_decay, "--layer-decay")):
        if value is not None and variant["head_lr"] is None:
            raise InputError(f"{name} is not used by --variant {args.variant}, but by separate-lr")
    if args.head_lr is None:
        args.head_lr = variant["head_lr"] or args.lr
    if args.layer_decay is None:
        args.layer_decay = 1.0
    return args


def check_teacher_flags(args):
    if args.teacher_annealing and not args.teachers:
        raise InputError("--teacher-annealing takes --teachers")
    folders = [Path(folder).resolve() for folder in args.teachers]
    for folder in folders:
        if folders.count(folder) > 1:
            raise InputError(f"--teachers names {folder} twice")
    if args.out is not None and Path(args.out).resolve() in folders:
        raise InputError(f"--out {args.out} is one of the --teachers; name another folder")


def check_renamed(argv):
    for word in argv:
        name = word.split("=")[0]
        if name in RENAMED:
            raise InputError(f"{name} is called {RENAMED[name]} now")
        if name in REMOVED:
            raise InputError(f"{name} is no flag any more")


def resumed_args(parser, args, argv):
    """The flags that the run in args.resume began with. Raises InputError for other ones."""
    if args.out is not None and Path(args.out).resolve() != Path(args.resume).resolve():
        raise InputError(f"--resume goes on in {args.resume}; leave out --out {args.out}")
    flags = runs.read_config(args.resume)["flags"]
    check_renamed(flags["argv"])
    stored = parser.parse_args(flags["argv"])
    together = parser.parse_args(flags["argv"] + argv)
    for name in ("epochs", "batch_size"):  # what was chosen when the run began
        for parsed in (stored, together):
            if getattr(parsed, name) is None:
                setattr(parsed, name, flags[name])
    for name, value in vars(stored).items():
        given = getattr(together, name)
        if name not in MAY_DIFFER and given != value:
            name = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{name} {given} contradicts {name} {value} of the run in {args.resume}"
            )
    together.argv = flags["argv"]
    together.repeats = flags["repeats"]
    return together


def make_tasks(columns):
    """The task of each column of labels (support/columns.py)."""
    tasks = []
    for column in columns:
        kind = mtbert.KINDS[column.kind]
        tasks.append(kind.from_column(column))
    return tasks


def read_rows(args, saved):
    """Read the files that the flags name -> tasks, columns, rows of each split, notes, SHA-256s.

    `saved` is the config.json of a run to resume, whose data must be the same still, or None.
    """
    digests = {}
    for path in args.data + args.val + args.test:
        check_is_file(path)
        digests[path] = runs.file_sha256(path)
    if saved:
        check_data(args, digests, saved)
    notes = Notes()
    columns, rows = read_data(
        args.data,
        args.val,
        args.test,
        names=args.tasks,
        all_tasks=mtbert.VARIANTS[args.variant]["all_tasks"],
        seed=args.seed,
        format=format_of(args),
        kinds=args.kinds,
        notes=notes,
    )
    if args.no_test:
        rows["test"] = []
    names = [column.name for column in columns]
    for name in args.task_weights:
        if name not in names:
            raise InputError(f"--task-weights: there is no task {name!r}")
    if not any(args.task_weights.get(name, 1.0) for name in names):
        raise InputError("--task-weights: all of them are zero, so nothing would be learned")
    return make_tasks(columns), columns, rows, notes, digests


def check_data(args, digests, saved):
    """Raise InputError unless the files are those that the run to resume began with.

    They may stand elsewhere now: their content counts, and their order.
    """
    for name in ("data", "val", "test"):
        paths = getattr(args, name)
        current = [digests[path] for path in paths]
        former = [saved["data_sha256"][path] for path in saved["flags"][name]]
        check_same(args, name, "file", paths, current, former)


def check_same(args, flag, what, paths, digests, former):
    """Raise InputError where the SHA-256s differ from those `former` of the run to resume.

    paths: what messages say of each, which stands for a `what`: a file or a run.
    """
    if len(digests) != len(former):
        raise InputError(f"--{flag} named {len(former)} {what}s when the run began; name them")
    for path, digest, former_digest in zip(paths, digests, former, strict=True):
        if digest != former_digest:
            began = f"since the run in {args.resume} began"
            raise InputError(f"{path} has changed {began}, or is another {what}")


def check_teachers(args, saved):
    """The SHA-256 of the weights of each run in --teachers.

    Raises InputError where one is no finished run, or is none that the run to resume began with.
    The runs may stand elsewhere now, as data may.
    """
    digests = []
    for folder in args.teachers:
        try:
            digests.append(mtbert.read_model_config(Path(folder))["weights_sha256"])
        except InputError as error:
            raise InputError(f"--teachers {error}") from None
    if saved:
        paths = [f"--teachers {folder}" for folder in args.teachers]
        former = saved.get("teachers_sha256", [])
        check_same(args, "teachers", "run", paths, digests, former)
    return digests


def without(rows, numbers):
    """The rows but for those of these numbers."""
    left_out = set(numbers)
    return [row for i, row in enumerate(rows) if i not in left_out]


def prepare(args, device, saved):
    """Read the rows, load the encoder, and say what there is -> model, rows, Datasets of them."""
    teachers_sha256 = check_teachers(args, saved)
    tasks, columns, rows, notes, digests = read_rows(args, saved)
    encoder = mtbert.load_encoder(args.encoder, args.dropout)
    encoder_sha256 = runs.tensors_sha256(encoder.state_dict())
    longest = encoder.config.max_length
    max_length = args.max_length or longest
    if max_length > longest:
        raise InputError(f"--max-length {max_length}: the encoder takes at most {longest} tokens")
    vocab_size = encoder.config.vocab_size
    tokenizer = mtbert.load_tokenizer(args.encoder, max_length, vocab_size, args.truncation)
    report.print_encoder(args.encoder, encoder)
    print_sentence_settings(args.encoder, args.pooling, max_length)

    data = {}
    for split, part in rows.items():
        empty = None if args.strict else []
        data[split] = mtbert.encode(tokenizer, part, tasks, max_length, empty)
        if empty:
            rows[split] = without(part, empty)
            data[split] = mtbert.encode(tokenizer, rows[split], tasks, max_length)
            what = f"{len(empty)} {split} rows were left out: no token is left of their text"
            notes.messages.append(f"{what}; --strict stops at the first")
    for task in tasks:
        if not mtbert.is_labelled(data["train"].labels[task.name]).any():
            raise InputError(f"no training row of {task.name!r} is left: no text of it has a token")
    teachers = mtbert.teach(data["train"], tasks, rows["train"], args.teachers, device)
    learned = data["train"].learned()
    draws = mtbert.expected_draws(learned, args.task_sampling, args.repeats)
    rates = mtbert.label_rates(draws, learned)
    num_learned = mtbert.count_rows(learned)
    mtbert.choose_steps(args, draws.sum())
    if saved:
        notes = None  # they were said when the run began
    report.print_data(tasks, columns, rows, notes, (draws, rates, num_learned))
    report.print_teachers(teachers, mtbert.count_rows(data["train"].teachers), len(draws))
    report.print_steps(args.epochs, round(draws.sum()), args.batch_size)
    judges = mtbert.tasks_that_judge(tasks, data["validation"].labels)
    counts = mtbert.count_rows(data["validation"].labels)
    report.print_few_to_validate(counts, mtbert.MIN_TO_JUDGE, mtbert.MIN_TO_CALIBRATE)
    if args.patience and not judges:
        warn("--patience is not used: there are too few validation rows to choose an epoch")
    report.print_texts(data, max_length, mtbert.TRUNCATION[args.truncation], args.encoder)

    torch.manual_seed(args.seed)
    model = mtbert.MTBert(encoder, tasks, tokenizer, args.pooling, args.dropout).to(device)
    model.truncation = args.truncation
    model.max_length = max_length
    model.compute_dtype = cpu.pick_dtype(args.dtype, device)
    if args.compile:
        cpu.check_compiler(device)
        model.compile(dynamic=True)
    model.metadata = {
        "flags": vars(args),
        "encoder_source": encoder.source,
        "encoder_sha256": encoder_sha256,
        "versions": describe_versions(device, model.compute_dtype),
        "data_sha256": digests,
        "teachers_sha256": teachers_sha256,
        "pairs": all_have_pairs(rows["train"]),
        "launcher": processes.launched().name,
    }
    return model, rows, data


def print_sentence_settings(encoder, pooling, max_length):
    """Say how sentence-transformers would use an encoder that it trained, and how it is used."""
    settings = huggingface.sentence_settings(encoder)
    if settings is not None:
        here = f"here: {pooling} pooling, at most {max_length} tokens"
        print(f"sentence-transformers uses this encoder with {settings}; {here}")


def start_heads(args, model, data):
    """Let the heads start from those of the run in --encoder, the others as --head-init says."""
    taken = {}
    if runs.is_run(args.encoder):
        taken = heads_of_run(model, args.encoder) or {}
    if args.head_init == "fit":
        names = [task.name for task in model.tasks if task.name not in taken]
        balanced = args.class_weights == "balanced"
        fitted = mtbert.fit_heads(model, data["train"], names, args.seed, balanced)
        report.print_fitted_heads(fitted)


def heads_of_run(model, folder):
    """Let heads start from those of the run in `folder`, and say which do, and what it drops."""
    heads = mtbert.take_heads(model, folder)
    dropped = {task.name for task in mtbert.read_model_config(Path(folder))["tasks"]}
    dropped.difference_update(task.name for task in model.tasks)
    report.print_heads(folder, heads, sorted(dropped))
    return heads


def describe_versions(device, dtype):
    """What equal runs must have in common to be equal to the bit."""
    versions = {}
    for package in ("torch", "transformers", "tokenizers", "numpy", "scipy", "scikit-learn"):
        versions[package] = version(package)
    versions["processes"] = processes.count()
    versions["threads"] = torch.get_num_threads()
    versions["device"] = device.type
    versions["dtype"] = str(dtype)
    return versions


def train_and_test(args, folder, model, rows, data):
    """Train, keep the best epoch, and test it -> what metrics.json says."""
    print(f"run: {folder}")
    groups = mtbert.parameter_groups(
        model, args.lr, args.head_lr, args.layer_decay, args.weight_decay
    )
    report.print_groups(groups)
    run = mtbert.train(model, data, args, folder)
    model.load_state_dict(run.best)
    mtbert.validate(model, data["validation"])  # fits temperatures and thresholds to these weights
    if processes.is_first():
        mtbert.save(model, folder)
    processes.from_rank_0(None)  # the others wait until it is saved

    # What is tested is what was saved, in the arithmetic that predict.py takes here.
    tasks = model.tasks
    model = mtbert.load(folder, args.device)
    logits = mtbert.compute_logits(model, data["test"])
    test = mtbert.evaluate(tasks, data["test"].labels, logits, intervals=True)
    predictions = mtbert.predictions_of(tasks, logits)
    report.print_metrics(tasks, test, "test", args.verbose)
    if predictions:
        report.print_examples(tasks, rows["test"][:8], predictions[:8], "test")
    elif rows["validation"]:
        examples = mtbert.predict_encoded(model, data["validation"])[:8]
        report.print_examples(tasks, rows["validation"][:8], examples, "validation")

    result = {
        "validation": run.state["validation"],
        "test": test,
        "dtype": model.prediction_dtype,
        "best_epoch": run.state["best_epoch"],
        "train_seconds": run.seconds,
        "examples_per_second": run.state["rows_trained"] / run.seconds,
    }
    if processes.is_first():
        write_test_predictions(folder, tasks, rows["test"], predictions)
        hashes = {row_hash(row) for row in rows["train"]}
        runs.write(folder / "train_rows.bin", b"".join(sorted(hashes)))
        runs.write(folder / "metrics.json", result)
        draw(folder, result)
        runs.remove(folder, "snapshot*")
    print(
        f"\ntrained in {run.seconds:.1f} s ({result['examples_per_second']:.0f} rows a second), "
        f"tested in {result['dtype']}, saved in {folder}, picture: {folder / 'report.png'}"
    )
    return result


def write_test_predictions(folder, tasks, rows, predictions):
    """A line of JSON for each test row: its place in the files, its labels, its predictions."""
    lines = []
    for row, prediction in zip(rows, predictions, strict=True):
        labels = {task.name: row.labels.get(task.name) for task in tasks}
        line = {"where": row.where, "labels": labels, "predictions": prediction}
        lines.append(json.dumps(line) + "\n")
    runs.write(folder / "test_predictions.jsonl", "".join(lines).encode())


def draw(folder, result):
    """Draw report.png. The run is finished without it: whatever goes wrong is one warning."""
    try:
        with runs.replacing(folder / "report.png") as path:
            plots.draw(folder, path, result)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        warn(f"{folder / 'report.png'} could not be drawn: {reason}")


def draw_if_missing(folder):
    """A run may have been killed between its last record and its picture."""
    if processes.is_first() and not (folder / "report.png").exists():
        draw(folder, read_metrics(folder))


def read_metrics(folder):
    return json.loads((folder / "metrics.json").read_text("utf-8"))


def main(argv=None, repeats=1):
    """Do what the flags `argv` ask for -> what metrics.json says of the run."""
    cpu.use_huge_pages()
    if argv is None:
        argv = sys.argv[1:]
    args = parse_args(argv, repeats)
    device = processes.join_processes(processes.pick_device(args.device))
    where = (args.out, args.resume, args.overwrite, args.variant)
    with runs.open_run(*where, device, args.go_on) as (folder, saved, finished):
        if saved and args.resume is None:  # with --continue, or restarted by torchrun
            args = parse_args([*argv, "--resume", str(folder)])
        if finished:
            print(f"the run in {folder} is finished")
            draw_if_missing(folder)
            return read_metrics(folder)
        model, rows, data = prepare(args, device, saved)
        if processes.is_first():
            begin_or_resume(folder, model, saved)
        # The others wait here until process 0 has cleared the folder or found a snapshot in it.
        if not processes.from_rank_0(runs.has_snapshot(folder)):
            start_heads(args, model, data)
        return train_and_test(args, folder, model, rows, data)


def begin_or_resume(folder, model, saved):
    if saved is None:
        runs.begin(folder)
        mtbert.save(model, folder, finished=False)
        return
    difference = runs.check_resume(folder, saved, mtbert.describe_model(model))
    if difference:
        warn(difference)
    for key in model.metadata:
        model.metadata[key] = saved.get(key, model.metadata[key])


if __name__ == "__main__":
    run_script(main)
