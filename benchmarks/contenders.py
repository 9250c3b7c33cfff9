"""What people would use instead of mtbert, and mtbert itself, from the same weights and rows.

speed.py times what is here. Training: functions that return the seconds of each epoch. Prediction:
functions of rows. transformers' parts do what their documentation shows; nothing here prints
results.
"""

import copy
import json
import logging
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # Trainer would take all GPUs that it sees
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as mtbert's scripts set it, here for all
os.environ.setdefault("NNCF_CI", "1")  # nncf would send statistics of its use

import numpy as np
import torch
import torch.nn as nn
import transformers
from torch.optim.optimizer import register_optimizer_step_post_hook

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import mtbert
import train
from support import cpu, huggingface, processes
from support.columns import Row, read_data
from support.errors import InputError

BATCH = 32
CALIBRATION_ROWS = 300  # at most, for the scales of static int8
SECOND = mtbert.Classification("second", [0, 1], [1, 1], {"0": "0", "1": "1"})
NAMES = ("input_ids", "attention_mask", "token_type_ids")


class Start:
    """What all contenders start from: a checkpoint, the device that they compute on, and rows."""

    def __init__(self, encoder=huggingface.DEFAULT_ENCODER, device="cpu"):
        self.encoder = encoder
        self.device = processes.pick_device(device)
        self.on_cpu = device == "cpu"
        self.folder, _ = huggingface.find_encoder(encoder)
        ours = mtbert.load_encoder(encoder)
        self.config = ours.config
        self.num_parameters = sum(parameter.numel() for parameter in ours.layers.parameters())
        longest = self.config.max_length
        self.tokenizer = mtbert.load_tokenizer(encoder, longest, self.config.vocab_size)
        self.dtype = dtype_name(cpu.pick_dtype("auto", self.device))  # of training
        self.has_int8 = self.on_cpu and cpu.has_int8()

    def read(self, data, val, test, tasks, train_rows, predict_rows):
        """Read files -> none; sets `task`, `splits`, and which rows serve what.

        `rows` are trained on and `texts` predicted. Scales are fitted to `calibration`: validation
        rows that are not among the texts.
        """
        columns, self.splits = read_data(data, val, test, tasks)
        self.task = train.make_tasks(columns)[0]
        rng = np.random.default_rng(0)
        order = rng.permutation(len(self.splits["train"]))
        self.rows = [self.splits["train"][i] for i in order[:train_rows]]
        self.calibration = draw_calibration(self.splits["validation"])
        others = not_among(self.splits["validation"], self.calibration)
        every = self.splits["train"] + others + self.splits["test"]
        order = rng.permutation(len(every))
        self.texts = [Row("", every[i].text, None, {}) for i in order[:predict_rows]]

    def make_model(self, *tasks):
        """An MTBert on the checkpoint."""
        model = mtbert.MTBert(mtbert.load_encoder(self.encoder), list(tasks), self.tokenizer)
        model.compute_dtype = getattr(torch, self.dtype)
        return model

    def make_theirs(self, num_classes=3, **settings):
        """-> transformers' tokenizer, and its model with a head."""
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            self.folder, num_labels=num_classes, **settings
        )
        return transformers.AutoTokenizer.from_pretrained(self.folder), model

    def now(self):
        """Seconds, after all that the device was told to compute."""
        if not self.on_cpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def count_operations(self, rows):
        """Of a forward pass through the layers: two for each of their parameters and tokens."""
        num_tokens = mtbert.encode(self.tokenizer, rows).lengths.sum()
        return 2 * int(num_tokens) * self.num_parameters


def not_among(rows, others):
    """The rows whose text is none of the others'."""
    texts = {row.text for row in others}
    return [row for row in rows if row.text not in texts]


def draw_calibration(rows):
    """At most CALIBRATION_ROWS of the rows, drawn at random; the same ones in each call."""
    return draw(rows, CALIBRATION_ROWS)


def draw(rows, most, seed=0):
    """At most so many of the rows, at random; the same ones for each seed."""
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[i] for i in order[:most]]


def dtype_name(dtype):
    return str(dtype).removeprefix("torch.")


class TheirBert(nn.Module):
    """transformers' BertModel, mean pooling and a linear head, with the weights of an MTBert."""

    def __init__(self, model):
        super().__init__()
        folder = f"{tempfile.mkdtemp()}/encoder"
        mtbert.to_transformers(model, folder)
        self.bert = transformers.AutoModel.from_pretrained(
            folder, add_pooling_layer=False, attn_implementation="eager"
        )
        self.head = first_head(model)

    def forward(self, input_ids, attention_mask, token_type_ids):
        output = self.bert(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        mask = attention_mask[:, :, None].float()
        return self.head((output.last_hidden_state * mask).sum(1) / mask.sum(1))


def first_head(model):
    return copy.deepcopy(next(iter(model.heads.values())))


# --------------------------------------------------------------------------------------------------
# Training


def train_notebook(start, rows, task):
    """The loop of notebooks: texts padded to 128, float32, plain AdamW, random batches."""
    tokenizer, model = start.make_theirs(len(task.labels))
    texts = [row.text for row in rows]
    padding = {"truncation": True, "max_length": 128, "padding": "max_length"}
    data = tokenizer(texts, return_tensors="pt", **padding)
    data["labels"] = torch.from_numpy(class_numbers(rows, task))
    model.train().to(start.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    begin = start.now()
    for numbers in torch.randperm(len(rows)).split(BATCH):
        batch = {name: values[numbers].to(start.device) for name, values in data.items()}
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [start.now() - begin]


def class_numbers(rows, task):
    return task.to_array([row.labels[task.name] for row in rows])


def train_trainer(start, rows, task, epochs=1, seed=0, watch=None, attention="sdpa", **settings):
    """transformers' Trainer, with default arguments except for `settings`."""
    transformers.set_seed(seed)  # the head is drawn before Trainer sets it
    tokenizer, model = start.make_theirs(len(task.labels), attn_implementation=attention)
    encoded = []
    for row, label in zip(rows, class_numbers(rows, task), strict=True):
        encoded.append(tokenizer(row.text, truncation=True) | {"labels": int(label)})
    arguments = transformers.TrainingArguments(
        tempfile.mkdtemp(),
        per_device_train_batch_size=BATCH,
        num_train_epochs=epochs,
        seed=seed,
        use_cpu=start.on_cpu,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    times = []
    clock = transformers.TrainerCallback()
    clock.on_train_begin = lambda *_, **__: times.append(start.now())
    clock.on_epoch_end = clock.on_train_begin
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=encoded,
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        callbacks=[clock],
    )
    if watch is not None:
        watch.begin(model, lambda batch: model(**batch).logits)
    trainer.train()
    return np.diff(times).tolist()


def train_best_trainer(start, rows, task, **settings):
    """Trainer with every argument that makes it faster.

    On a CPU its attention "eager" was faster than "sdpa" in a trial, and batches padded to a
    multiple of 8 were slower.
    """
    return train_trainer(
        start,
        rows,
        task,
        attention="eager" if start.on_cpu else "sdpa",
        bf16=start.dtype == "bfloat16",
        optim="adamw_torch_fused",
        train_sampling_strategy="group_by_length",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        **settings,
    )


def train_mtbert(start, rows, *tasks, epochs=1, seed=0, watch=None, flags=(), times=1):
    """What train.py does, with its flags: seconds in training steps.

    The watch also counts the time in which heads are fitted.
    `times`: how often the model is trained, from where it stands.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = {"train": rows, "val": start.splits["validation"][:BATCH]}
        for name, part in files.items():
            write_rows(Path(folder, f"{name}.jsonl"), part, tasks)
        argv = ["--data", f"{folder}/train.jsonl", "--val", f"{folder}/val.jsonl"]
        argv += ["--tasks", *[task.name for task in tasks], "--encoder", str(start.encoder)]
        argv += ["--device", str(start.device), "--epochs", str(epochs), "--seed", str(seed)]
        argv += ["--batch-size", str(BATCH)]
        args = train.parse_args([*argv, *flags])
        model, _, data = train.prepare(args, start.device, None)
        if watch is not None:
            watch.begin(model, lambda batch: model(**batch)[0][tasks[0].name])
        train.start_heads(args, model, data)
        seconds = []
        for _ in range(times):
            run = mtbert.train(model, data, args, tempfile.mkdtemp(dir=folder))
            seconds.append(run.seconds)
        return seconds


def write_rows(path, rows, tasks):
    """JSON Lines. A task that the rows do not know gets 0 and 1 in turn."""
    lines = []
    for i, row in enumerate(rows):
        values = {"text": row.text}
        for task in tasks:
            values[task.name] = row.labels.get(task.name, i % 2)
        lines.append(json.dumps(values) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


class Watch:
    """Looks at the accuracy of a model while it trains, until it is high enough.

    `curve` gets [seconds of training, validation accuracy] every so many steps. The clock starts
    behind the first step, and stands still while the watch looks.
    """

    def __init__(self, start, enough, every=20):
        self.start = start
        self.enough = enough
        self.every = every
        self.curve = []
        self.step = 0
        self.data = {}
        for split in ("validation", "test"):
            self.data[split] = mtbert.encode(start.tokenizer, start.splits[split], [start.task])

    def begin(self, model, logits):
        """`logits` is a function of a batch."""
        self.model = model
        self.logits = logits
        self.hook = register_optimizer_step_post_hook(self.after_step)

    def end(self):
        self.hook.remove()

    def after_step(self, *_):
        now = self.start.now()
        self.step += 1
        if self.step == 1:
            self.begin_time = now
        if self.step % self.every == 0 and not self.is_reached():
            self.curve.append([now - self.begin_time, self.accuracy("validation")])
            self.begin_time += self.start.now() - now

    def is_reached(self):
        return bool(self.curve) and self.curve[-1][1] >= self.enough

    def seconds(self):
        """Seconds of training until the accuracy was high enough; infinite if it never was."""
        if self.is_reached():
            return self.curve[-1][0]
        return float("inf")

    @torch.inference_mode()
    def accuracy(self, split):
        """Of the model as it is, in float32."""
        data = self.data[split]
        was_training = self.model.training
        dtype = getattr(self.model, "compute_dtype", None)
        self.model.eval()
        self.model.compute_dtype = torch.float32
        order = np.argsort(data.lengths)
        num_right = 0
        for i in range(0, len(order), BATCH):
            rows = order[i : i + BATCH]
            batch = mtbert.collate(data, rows, self.start.config, self.start.device)
            labels = batch.pop("labels")[self.start.task.name]
            num_right += int((self.logits(batch).argmax(1) == labels).sum())
        self.model.train(was_training)
        self.model.compute_dtype = dtype
        return num_right / len(order)


# --------------------------------------------------------------------------------------------------
# Prediction: {name: (dtype, function of rows)}


def predict_with_pipeline(start, dtype):
    """transformers' pipeline, which pads a batch to its longest text, at the best batch size."""
    tokenizer, model = start.make_theirs(dtype=getattr(torch, dtype))
    pipeline = transformers.pipeline(
        "text-classification", model, tokenizer=tokenizer, device=start.device
    )

    def classify(rows, size):
        pipeline([row.text for row in rows], batch_size=size)

    sizes = (32, 128, 512)
    texts = start.texts[:2048]
    if start.on_cpu:
        sizes = (1, 8, 32, 128)
        texts = start.texts[:256]
    seconds = {}
    for size in sizes:
        classify(texts[:size], size)
        begin = start.now()
        classify(texts, size)
        seconds[size] = start.now() - begin
    best = min(seconds, key=seconds.get)
    return {f"transformers' pipeline, {dtype}": (dtype, partial(classify, size=best))}


def predict_with_sentence_transformers(start, model, dtype):
    """sentence-transformers' encoder, and the head of an MTBert's first task."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(
        str(start.folder), device=str(start.device), model_kwargs={"dtype": getattr(torch, dtype)}
    )
    if type(encoder[-1]).__name__ == "Normalize":
        encoder[-1] = nn.Identity()
    head = first_head(model).to(start.device)

    @torch.inference_mode()
    def classify(rows):
        texts = [row.text for row in rows]
        embeddings = encoder.encode(texts, batch_size=BATCH, convert_to_tensor=True)
        head(embeddings.float()).argmax(1).cpu()

    return {f"sentence-transformers, {dtype}": (dtype, classify)}


def export_onnx(model, path):
    """Write the encoder and the head of an MTBert's first task."""
    axes = {name: {0: "batch", 1: "tokens"} for name in NAMES}
    axes["logits"] = {0: "batch"}
    ids = torch.ones(2, 8, dtype=torch.long)
    torch.onnx.export(
        TheirBert(model).eval(),
        (ids, ids, ids),
        path,
        input_names=list(NAMES),
        output_names=["logits"],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )


def predict_by_length(model, infer, rows):
    """{first task: (N, C) logits} by `infer`, in batches by length, padded as mtbert's are."""
    data = mtbert.encode(model.tokenizer, rows, max_length=model.max_length)
    task = model.tasks[0]
    logits = np.empty((len(rows), task.num_logits), np.float32)
    order = np.argsort(data.lengths, kind="stable")[::-1]
    for i in range(0, len(order), BATCH):
        numbers = order[i : i + BATCH]
        batch = mtbert.collate(data, numbers, model.encoder.config, "cpu")
        logits[numbers] = infer({name: batch[name].long().numpy() for name in NAMES})[0]
    return {task.name: logits}


def predict_with_onnxruntime(model, folder):
    """ONNX Runtime behind its optimizer for BERT, in float32 and in dynamic int8."""
    import onnx
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.transformers.optimizer import optimize_model

    config = model.encoder.config
    optimized = optimize_model(
        f"{folder}/model.onnx", "bert", config.num_attention_heads, config.hidden_size
    )
    optimized.save_model_to_file(f"{folder}/float32.onnx")
    default_type = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    quantize_dynamic(f"{folder}/float32.onnx", f"{folder}/int8.onnx", extra_options=default_type)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    functions = {}
    for dtype, words in (("float32", "float32"), ("int8", "dynamic int8")):
        session = onnxruntime.InferenceSession(
            f"{folder}/{dtype}.onnx", options, providers=["CPUExecutionProvider"]
        )
        infer = partial(session.run, ["logits"])
        functions[f"ONNX Runtime, {words}"] = (dtype, partial(predict_by_length, model, infer))
    return functions


def predict_with_openvino(model, folder, calibration):
    """OpenVINO in float32, by default (bfloat16 where the CPU has it), and in static int8.

    What static int8 leaves in floating point is in the default dtype.
    """
    import openvino

    exact = openvino.Core().read_model(f"{folder}/model.onnx")
    ways = {
        "by default": (exact, {}),
        "float32": (exact, {"INFERENCE_PRECISION_HINT": "f32"}),
        "static int8": (quantize_static(model, exact, calibration), {}),
    }
    functions = {}
    for words, (graph, settings) in ways.items():
        settings["INFERENCE_NUM_THREADS"] = torch.get_num_threads()
        compiled = openvino.Core().compile_model(graph, "CPU", settings)
        dtype = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        dtype = {"bf16": "bfloat16", "f32": "float32"}.get(dtype, dtype)
        if words == "static int8":
            dtype = "int8"
        infer = compiled.create_infer_request().infer
        functions[f"OpenVINO, {words}"] = (dtype, partial(predict_by_length, model, infer))
    return functions


def quantize_static(model, graph, calibration):
    """OpenVINO's `graph` of an MTBert in int8, whose scales are fitted to the calibration rows.

    nncf does it as its documentation says for transformers. A row is a batch of its own, so that no
    scale is fitted to padding.
    """
    import nncf

    if not calibration:
        raise InputError("--val has no row to calibrate int8 on that is not measured")
    nncf.set_log_level(logging.ERROR)
    data = mtbert.encode(model.tokenizer, calibration, max_length=model.max_length)
    inputs = []
    for number in range(len(data)):
        batch = mtbert.collate(data, np.array([number]), model.encoder.config, "cpu")
        inputs.append({name: batch[name].long().numpy() for name in NAMES})
    return nncf.quantize(
        graph,
        nncf.Dataset(inputs),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(inputs),
    )


def predict_with_engines(model, calibration):
    """ONNX Runtime and OpenVINO, of an MTBert's first task. Both are for CPUs.

    calibration: the rows that the scales of static int8 are fitted to.
    """
    folder = tempfile.mkdtemp()
    export_onnx(model, f"{folder}/model.onnx")
    functions = predict_with_onnxruntime(model, folder)
    return functions | predict_with_openvino(model, folder, calibration)


def predict_with_mtbert(model, dtype, device="cpu", compiled=False, batch_size=None):
    """-> a function of rows that gives {task: (N, C) logits}, as a model that mtbert.load gave.

    Where it is compiled its weights are not packed. batch_size: as for mtbert.compute_logits.
    """
    model = copy.deepcopy(model).eval().to(device)
    model.compute_dtype = torch.float32  # so that the dtype is that of the weights
    if compiled:
        model.encoder.to(getattr(torch, dtype))
        model.compile(dynamic=True)
    else:
        cpu.speed_up_prediction(model, dtype)

    def predict(rows):
        data = mtbert.encode(model.tokenizer, rows, max_length=model.max_length)
        return mtbert.compute_logits(model, data, batch_size)

    return predict
