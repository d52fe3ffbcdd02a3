"""What the peer scripts share: measuring whole processes, the models with their data, metrics, onnxruntime sessions."""

import gzip
import json
import os
import pathlib
import statistics
import struct
import subprocess
import sys
import tempfile
import time

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FIXTURES = ROOT / "fixtures"
MEAN, DEVIATION = np.float32(0.2860), np.float32(0.3530)


# --- processes ---------------------------------------------------------------------------------------------------


class Failed(Exception):
    """A measured command ended with another exit code than 0; the message holds the end of its stderr."""


def measure(command, python=sys.executable, cwd=None):
    """Runs a command through launch.py; the dictionary of its costs. Raises Failed."""
    with tempfile.NamedTemporaryFile(suffix=".json") as result, tempfile.TemporaryFile() as errors:
        line = [python, "-I", "-S", str(HERE / "launch.py"), result.name, *map(str, command)]
        subprocess.run(line, check=True, cwd=cwd, stdout=subprocess.DEVNULL, stderr=errors)
        cost = json.loads(pathlib.Path(result.name).read_text())
        if cost["exit"] != 0:
            errors.seek(0)
            end = errors.read().decode("utf-8", "replace").strip().splitlines()
            raise Failed(f"exit {cost['exit']}: " + " | ".join(end[-3:])[-400:])
        return cost


def interleaved(commands, rounds, before=None):
    """Measures each named command `rounds` times in turn, A B C A B C; name -> list of costs, or a failure's text."""
    costs = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            if isinstance(costs[name], str):
                continue
            if before:
                before(name)
            try:
                costs[name].append(measure(command))
            except Failed as failure:
                costs[name] = str(failure)
    return costs


def median(costs, key):
    return statistics.median(cost[key] for cost in costs)


def spread(costs, key, scale=1.0, digits=3):
    """"median (least to most)" of one cost."""
    values = [cost[key] * scale for cost in costs]
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def optix_version(optix):
    return subprocess.run([optix, "--version"], capture_output=True, text=True, check=True).stdout.strip()


def python_of(options):
    """The interpreter that has the peers' packages: --python, else the one that runs the script."""
    return options.python or sys.executable


def arguments(parser, models=True):
    """The arguments that every script takes."""
    parser.add_argument("--optix", type=lambda text: str(pathlib.Path(text).resolve()), help="the binary; without it only the peers run")
    parser.add_argument("--python", help="interpreter with requirements.txt installed, for the peers' processes (default: this one)")
    parser.add_argument("--work", type=pathlib.Path, help="folder for what is made on the way (default: a temporary one)")
    parser.add_argument("--out", type=pathlib.Path, help="folder for the result as .md and .json (default: the table on stdout only)")
    if models:
        parser.add_argument("--models", type=pathlib.Path, help="folder of the real models; without it only the fixtures are used")
    return parser


def work_folder(options):
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
        return options.work.resolve()
    return pathlib.Path(tempfile.mkdtemp(prefix="optix-peers-"))


def publish(options, name, text, document):
    """The table to stdout and, with --out, beside the JSON document into that folder."""
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
        (options.out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in rows])


def note(text):
    print(text, file=sys.stderr, flush=True)


# --- models and data ---------------------------------------------------------------------------------------------


def idx(path):
    data = gzip.decompress(path.read_bytes())
    rank = data[3]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(struct.unpack(f">{rank}I", data[4 : 4 + 4 * rank]))


def fashion(part):
    """Images f32 [N,1,28,28] as the fixture's data.toml makes them, and labels; part "train512" or "test5000"."""
    images = idx(FIXTURES / "data" / f"fmnist-{part}-images-idx3-ubyte.gz").astype(np.float32) * np.float32(1 / 255)
    return ((images - MEAN) / DEVIATION)[:, None], idx(FIXTURES / "data" / f"fmnist-{part}-labels-idx1-ubyte.gz").astype(np.int64)


class Subject:
    """A model, its data, and how its outputs are judged ("top1", "embedding", "text", "speech" or "none").

    batch: samples in a run of the evaluation; 0 for a model whose samples have the inputs' own rank and go one by one."""

    def __init__(self, name, path, judged, batch, folder=None, output=0, samples=256):
        self.name, self.path, self.judged, self.batch, self.folder, self.output = name, path, judged, batch, folder, output
        self.samples = samples

    def arrays(self, part):
        """input name -> array, labels or None; part is "calib" or "eval"."""
        if self.folder is None:
            images, labels = fashion({"calib": "train512", "eval": "test5000"}[part])
            return {"image": images}, labels
        if self.folder.name == "ocr_det":
            return pages(self.folder.parent / "ocr_rec", part), None
        with np.load(self.folder / f"{part}.npz") as data:
            found = {name: data[name] for name in data.files}
        return {name: value for name, value in found.items() if name != "label"}, found.get("label")

    def data_argument(self, part, work, take=None):
        """What --calib or --data gets: the fixture's data.toml, or an npz of the first samples without labels."""
        if self.folder is None and take is None:
            return FIXTURES / "data" / f"fmnist-{part}.toml"
        path = work / f"{self.name}-{part}-{take or 'all'}.npz"
        if not path.exists():
            np.savez(path, **{name: value[:take] for name, value in self.arrays(part)[0].items()})
        return path


def pages(folder, part):
    """Ten text lines under one another make a page [3,480,480] for the detector."""
    with np.load(folder / f"{part}.npz") as data:
        lines = data["x"][:160]
    return {"x": np.ascontiguousarray(lines.reshape(16, 10, 3, 48, 480).transpose(0, 2, 1, 3, 4).reshape(16, 3, 480, 480))}


def subjects(models):
    """The models of the figures: the fixtures', and with --models the real ones that are there."""
    found = [
        Subject("fmnist_mobilenet", FIXTURES / "models" / "fmnist_mobilenet.onnx", "top1", 100),
        Subject("fmnist_resnet", FIXTURES / "models" / "fmnist_resnet.onnx", "top1", 100),
    ]
    if models:
        data = models.resolve() / "data"
        real = [
            Subject("ocr_cls", models / "rapidocr" / "ch_ppocr_mobile_v2.0_cls_mobile.onnx", "top1", 50, data / "ocr_cls"),
            Subject("ocr_rec", models / "rapidocr" / "PP-OCRv6_rec_small.onnx", "text", 4, data / "ocr_rec", samples=64),
            Subject("ocr_det", models / "rapidocr" / "PP-OCRv6_det_small.onnx", "none", 1, data / "ocr_det", samples=16),
            Subject("minilm", models / "all-minilm-l6-v2" / "model_opset15.onnx", "embedding", 32, data / "minilm", output=1),
            Subject("magika", models / "magika" / "model.onnx", "top1", 50, data / "magika"),
            Subject("silero", models / "silero-vad" / "silero_vad.onnx", "speech", 0, data / "silero"),
        ]
        for subject in real:
            if subject.path.exists():
                subject.path = subject.path.resolve()
                found.append(subject)
            else:
                note(f"{subject.name} skipped: {subject.path} is not there")
    return found


def chosen(options):
    """The subjects named by --only, in their usual order."""
    known = subjects(options.models)
    only = options.only.split(",") if options.only else [subject.name for subject in known]
    missing = set(only) - {subject.name for subject in known}
    if missing:
        sys.exit(f"--only names {', '.join(sorted(missing))}; known are {', '.join(s.name for s in known)}")
    return [subject for subject in known if subject.name in only]


# --- metrics -----------------------------------------------------------------------------------------------------


def pairs(reference, got, at_once=16):
    """The two in double precision, a few samples at a time: one output of a recognizer is 18,710 classes wide."""
    reference, got = np.atleast_1d(reference), np.atleast_1d(got)
    for k in range(0, len(reference), at_once):
        yield tuple(np.asarray(x[k : k + at_once], np.float64).reshape(len(x[k : k + at_once]), -1) for x in (reference, got))


def sqnr(reference, got):
    """Signal to quantization noise in dB: 10 log10(sum reference^2 / sum (reference - got)^2)."""
    signal = noise = 0.0
    for a, b in pairs(reference, got):
        signal, noise = signal + np.square(a).sum(), noise + np.square(a - b).sum()
    return float("inf") if noise == 0 else float(10 * np.log10(signal / noise))


def cosine(reference, got):
    """Mean cosine of the samples' outputs, each flattened."""
    each = [(a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-300) for a, b in pairs(reference, got)]
    return float(np.concatenate(each).mean())


def relative(reference, got):
    """max |difference| / max |reference|; not a number when either holds one."""
    worst = largest = 0.0
    for a, b in pairs(reference, got):
        worst, largest = np.maximum(worst, np.abs(a - b).max()), np.maximum(largest, np.abs(a).max())
    return float(worst / largest) if largest else float(worst)


def edits(a, b):
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def read_lines(choices, charset):
    """Greedy CTC: the classes [N,T] as texts; class 0 is the blank."""
    return ["".join(charset[c] for c, p in zip(row, [0, *row[:-1]], strict=True) if c and c != p) for row in choices.tolist()]


def probed(train, train_labels, test, test_labels):
    """1 for each sample that a ridge classifier on embeddings of unit length gets right, 0 else: what an encoder's output is still good for."""
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    with_one = lambda x: np.hstack([unit(np.asarray(x, np.float64)), np.ones((len(x), 1))])
    a, y = with_one(train), np.where(train_labels > 0, 1.0, -1.0)
    weights = np.linalg.solve(a.T @ a + 0.1 * np.eye(a.shape[1]), a.T @ y)
    return ((with_one(test) @ weights > 0) == (test_labels > 0)).astype(float)


def probe(train, train_labels, test, test_labels):
    """The mean of `probed`."""
    return float(probed(train, train_labels, test, test_labels).mean())


# --- onnxruntime -------------------------------------------------------------------------------------------------


def session(model, threads=1, save=None, level=None):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if level is not None:
        options.graph_optimization_level = level
    if save:
        options.optimized_model_filepath = str(save)
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def taken(feeds, start, batch):
    """The feeds of a run: `batch` samples, or one of the inputs' own rank."""
    return {k: v[start : start + batch] if batch else np.asarray(v[start]) for k, v in feeds.items()}


def outputs(model, feeds, batch, output=None, plain=False):
    """Runs batches; the outputs by name, stacked (or one output as an array, by its position).

    plain: the graph as it is written, none of onnxruntime's own rewriting."""
    import onnxruntime as ort

    running = session(model, level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL if plain else None)
    names = [o.name for o in running.get_outputs()]
    wanted = names if output is None else [names[output]]
    count = len(next(iter(feeds.values())))
    parts = [running.run(wanted, taken(feeds, i, batch)) for i in range(0, count, max(batch, 1))]
    stacked = {name: np.concatenate([part[k] for part in parts]) for k, name in enumerate(wanted)}
    return stacked if output is None else stacked[wanted[0]]


INTEGER_CONVOLUTIONS = ("QLinearConv", "ConvInteger")
INTEGER_PRODUCTS = ("QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm")


def fused(model, work):
    """What onnxruntime makes of a model: counts of integer and float convolutions and products, and of Q/DQ left over."""
    import onnx
    import onnxruntime as ort

    saved = work / f"optimized-{os.getpid()}.onnx"
    session(model, save=saved, level=ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED)
    kinds = [node.op_type for node in onnx.load(saved).graph.node]
    count = lambda *names: sum(kind in names for kind in kinds)
    saved.unlink()
    return {
        "integer_conv": count(*INTEGER_CONVOLUTIONS), "float_conv": count("Conv", "FusedConv"),
        "integer_product": count(*INTEGER_PRODUCTS), "float_product": count("MatMul", "Gemm", "FusedMatMul", "FusedGemm"),
        "quantize_left": count("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
    }  # fmt: skip


def latency(models, feeds, batch, rounds=40, budget_s=20.0, threads=1):
    """Interleaved in this process: name -> median milliseconds a batch, and the median ratio to the first.

    batch: so many samples of the feeds; None for the feeds as they are."""
    fed = dict(feeds) if batch is None else taken(feeds, 0, batch)
    sessions = {name: session(path, threads) for name, path in models.items()}
    times = {name: [] for name in models}
    for running in sessions.values():
        for _ in range(3):
            running.run(None, fed)
    end = time.perf_counter() + budget_s
    for number in range(rounds):
        for name, running in sessions.items():
            start = time.perf_counter()
            running.run(None, fed)
            times[name].append(time.perf_counter() - start)
        if number >= 4 and time.perf_counter() > end:
            break
    base = times[next(iter(models))]
    return {
        name: {"ms": 1000 * statistics.median(own), "ratio": statistics.median(a / b for a, b in zip(own, base, strict=True)), "n": len(own)}
        for name, own in times.items()
    }


# --- optix profile -----------------------------------------------------------------------------------------------


def profile_options(parser, seconds):
    """Adds what the scripts around `optix profile` share, and parses; the library is by default the one of the Python package."""
    parser.add_argument("--only", help="names of models, separated by commas")
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--seconds", type=float, default=seconds)
    parser.add_argument("--ort-lib", help="library of onnxruntime (default: the one of the Python package)")
    options = parser.parse_args()
    if not options.optix:
        parser.error("--optix is needed")
    if not options.ort_lib:
        import onnxruntime

        capi = pathlib.Path(onnxruntime.__file__).parent / "capi"
        options.ort_lib = str(next(capi.glob("libonnxruntime.so*")))
    return options


def profile_subjects(options, fixtures, real):
    """(name, path, ...) of the rows (name, file, ...) that --models and --only leave."""
    found = [(name, FIXTURES / "models" / file, *rest) for name, file, *rest in fixtures]
    if options.models:
        found += [(name, options.models / file, *rest) for name, file, *rest in real]
    only = options.only.split(",") if options.only else [name for name, *_ in found]
    return [subject for subject in found if subject[0] in only]


def profile(options, path, batch, threads, seconds, flags):
    """The JSON of `optix profile`. Raises Failed."""
    line = [options.optix, "profile", str(path), "--ort-lib", options.ort_lib, "--threads", str(threads), "--batch", str(batch)]
    line += ["--seconds", str(seconds), "--progress", "never", "--json", *flags]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(f"exit {done.returncode}: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout)
