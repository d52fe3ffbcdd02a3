"""Converts real models to float16 beside the peers' converters and judges every file in onnxruntime:

    python precision_real.py --optix target/release/optix [--models DIR] [--only NAME,...] [--peers PATH] [--out DIR]

Rows per model: ours without data, ours with calibration data where there are some, ours with 16-bit weights only;
onnxruntime.transformers.float16 and onnxconverter-common (taken from --peers, a folder made with `pip install --no-deps
--target PATH onnxconverter-common==1.16.0`; left out without it), both with inputs and outputs kept. Judged on the
evaluation data or, where a model has none, on random inputs: the least SQNR of an output against the float model, elements
that are not finite where the float model's are, the model's own metric, bytes beside the bound (file - half of its float32
bytes) + 1%, CPU seconds and peak memory of the whole process, and the median latency ratio to float, one thread.
"""

import argparse
import pathlib

import common
import numpy as np

PEER = """
import sys
kind, source, target = sys.argv[1:4]
import onnx
if kind == "occ":
    from onnxconverter_common import float16
else:
    from onnxruntime.transformers import float16
model = onnx.load(source)
model = float16.convert_float_to_float16(model, keep_io_types=True)
onnx.save(model, target)
"""


class Case:
    """A model, its feeds for judging (name -> array, axis 0 the samples of a run of `batch`), data for --calib."""

    def __init__(self, name, path, feeds, batch=1, subject=None, calib=None):
        self.name, self.path, self.feeds, self.batch, self.subject, self.calib = name, path, feeds, batch, subject, calib


def random_feeds(path, sizes):
    """Four random samples for each input: integers 0 or 1, floats of a unit normal; symbols as `sizes` says."""
    draw = np.random.default_rng(0)
    feeds = {}
    for value in common.session(path).get_inputs():
        shape = [d if isinstance(d, int) and d > 0 else sizes.get(d, 1) for d in value.shape]
        if "int" in value.type:
            feeds[value.name] = draw.integers(0, 2, shape).astype(np.int64 if "64" in value.type else np.int32)
        else:
            feeds[value.name] = draw.standard_normal(shape).astype(np.float32)
    return feeds


def cases(options):
    only = options.only.split(",") if options.only else None
    wanted = lambda name: only is None or name in only
    found = [Case(s.name, s.path, None, s.batch, s, "calib") for s in common.subjects(options.models) if wanted(s.name)]
    for case in found:
        case.feeds = case.subject.arrays("eval")[0]
        limit = options.eval_samples or {"ocr_rec": 48, "ocr_det": 4}.get(case.name)
        case.feeds = {name: value[:limit] for name, value in case.feeds.items()}
    if not options.models:
        return found
    models, data = options.models.resolve(), options.models.resolve() / "data"
    if (data / "silero" / "eval.npz").exists():
        with np.load(data / "silero" / "eval.npz") as held:
            silero = {name: held[name][:512] for name in ("input", "state", "sr")}
        for path in filter(lambda path: wanted(path.stem), sorted((models / "silero-vad").glob("*.onnx"))):
            inputs = {value.name: value for value in common.session(path).get_inputs()}
            if "h" in inputs:
                found.append(Case(path.stem, path, {"input": silero["input"][:, 0], "h": np.zeros((1, 1, 128), np.float32), "c": np.zeros((1, 1, 128), np.float32)}, 0))
            else:
                found.append(Case(path.stem, path, {name: silero[name] for name in inputs}, "each", calib=data / "silero" / "calib.npz" if len(inputs) == 3 else None))
    if wanted("magika") and (models / "magika" / "model.onnx").exists():
        with np.load(data / "magika" / "eval.npz") as held:
            found.append(Case("magika", models / "magika" / "model.onnx", {"bytes": held["bytes"]}, 32, calib=data / "magika" / "calib.npz"))
    for path in filter(lambda path: wanted(path.stem), sorted((models / "light").glob("*.onnx"))):
        found.append(Case(path.stem, path, random_feeds(path, {}), 0))
    smollm2 = models / "smollm2-135m-instruct" / "model.onnx"
    if wanted("smollm2") and smollm2.exists():
        found.append(Case("smollm2", smollm2, random_feeds(smollm2, {"B": 1, "T": 32, "P": 4}), 0))
    return found


def run(path, case):
    """The outputs, stacked; batch 0 feeds everything at once, "each" one sample without its leading axis."""
    running = common.session(path)
    names = [output.name for output in running.get_outputs()]
    if case.batch == 0:
        return dict(zip(names, running.run(None, case.feeds), strict=True))
    count, parts = len(next(iter(case.feeds.values()))), []
    step = 1 if case.batch == "each" else case.batch
    for i in range(0, count, step):
        parts.append(running.run(None, {k: np.asarray(v[i]) if case.batch == "each" else v[i : i + step] for k, v in case.feeds.items()}))
    stack = (lambda xs: np.stack(xs)) if case.batch == "each" else np.concatenate
    return {name: stack([part[k] for part in parts]) for k, name in enumerate(names)}


def judge(case, reference, path):
    got = run(path, case)
    broken = sum(int((~np.isfinite(v) & np.isfinite(reference[k])).sum()) for k, v in got.items() if v.dtype.kind == "f")
    found = {"broken": broken, "sqnr_db": min(common.sqnr(reference[k], v) for k, v in got.items()) if not broken else None}
    if case.subject and case.subject.judged == "top1":
        labels = case.subject.arrays("eval")[1]
        first = next(iter(got.values()))
        found["metric"] = f"top-1 {float((first.argmax(1) == labels[: len(first)]).mean()):.4f}"
    return found


def float32_bytes(path):
    """Bytes of all float32 constants, those of attributes included."""
    import onnx

    total = 0

    def graph(g):
        nonlocal total
        size = lambda t: 4 * int(np.prod(t.dims, dtype=np.int64)) if t.data_type == 1 else 0
        total += sum(size(t) for t in g.initializer)
        for node in g.node:
            for a in node.attribute:
                if a.type == onnx.AttributeProto.TENSOR:
                    total += size(a.t)
                for inner in [a.g] if a.type == onnx.AttributeProto.GRAPH else a.graphs:
                    graph(inner)

    graph(onnx.load(path, load_external_data=False).graph)
    return total


def size(path):
    beside = path.with_name(path.name + ".data")
    return path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)


def commands(options, case, work):
    """Name -> (command, file)."""
    found = {}
    if options.optix:
        base = [options.optix, "precision", case.path, "--progress", "never"]
        found["optix"] = base
        if case.calib:
            calib = case.subject.data_argument("calib", work, case.subject.samples) if case.subject else case.calib
            found["optix, data"] = [*base, "--calib", calib, "--calib-samples", options.calib_samples]
        found["optix, weights only"] = [*base, "--weights-only"]
    peers = {"onnxruntime": "ort"} | ({"onnxconverter-common": "occ"} if options.peers else {})
    for name, kind in peers.items():
        start = f"import sys; sys.path.append({str(options.peers.resolve())!r});" if options.peers else ""
        found[name] = [common.python_of(options), "-c", start + PEER, kind, case.path]
    result = {}
    for name, line in found.items():
        out = work / f"{case.name}.{name.replace(', ', '-').replace(' ', '-')}.onnx"
        result[name] = ([*line, "-o", out] if line[0] == options.optix else [*line, out], out)
    return result


def rows_for(options, case, work):
    reference = run(case.path, case)
    bound = (size(case.path) - float32_bytes(case.path) / 2) * 1.01
    rows = [{"file": "float", "bytes": size(case.path), **judge(case, reference, case.path)}]
    files = {"float": case.path}
    for name, (command, out) in commands(options, case, work).items():
        row = {"file": name}
        try:
            costs = [common.measure(command) for _ in range(options.rounds)]
            row |= {"cpu_s": common.median(costs, "cpu_s"), "peak_mb": common.median(costs, "peak_kb") / 1024, "bytes": size(out), "small": size(out) <= bound}
            row |= judge(case, reference, out)
            files[name] = out
        except Exception as failure:  # a process that failed, or onnxruntime's own kinds: the file does not load or run
            row["said"] = str(failure).replace("\n", " ")[:160]
        rows.append(row)
    if options.latency_budget:
        first = {k: np.asarray(v[0]) if case.batch == "each" else v for k, v in case.feeds.items()}
        size_of_run = None if case.batch in (0, "each") else 1
        ratios = common.latency(files, first, size_of_run, budget_s=options.latency_budget)
        for row in rows:
            row["latency"] = ratios[row["file"]]["ratio"] if row["file"] in ratios else None
    return rows


def cell(row):
    """Kilobytes (bold where they are more than the bound), least SQNR, metric, CPU seconds, latency ratio."""
    if "said" in row:
        return "refused by onnxruntime" if "bytes" in row else f"failed: {row['said'][:60]}"
    if row["broken"]:
        return f"{row['broken']} elements not finite"
    kilobytes = f"{row['bytes'] / 1000:,.1f} KB"
    parts = [kilobytes if row.get("small", True) else f"**{kilobytes}**"]
    if "cpu_s" in row:
        parts += ["equal" if row["sqnr_db"] == float("inf") else f"{row['sqnr_db']:.1f} dB", f"{row['cpu_s']:.2f} s"]
    parts += [row["metric"]] if "metric" in row else []
    parts += [f"{row['latency']:.2f}x"] if row.get("latency") and "cpu_s" in row else []
    return ", ".join(parts)


def render(documents):
    """One row a model, one column a file."""
    files = list(dict.fromkeys(row["file"] for rows in documents.values() for row in rows))
    lines = []
    for name, rows in documents.items():
        found = {row["file"]: cell(row) for row in rows}
        lines.append([name, *(found.get(file, "-") for file in files)])
    return common.table(["model", *files], lines)


def main():
    parser = common.arguments(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter))
    parser.add_argument("--only", help="names of models, separated by commas")
    parser.add_argument("--peers", type=pathlib.Path, help="folder with onnxconverter-common")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each converter; medians are shown")
    parser.add_argument("--calib-samples", type=int, default=16)
    parser.add_argument("--eval-samples", type=int, help="at most so many evaluation samples (default: all, fewer for large outputs)")
    parser.add_argument("--latency-budget", type=float, default=4.0, help="seconds for each latency comparison; 0 for none")
    options = parser.parse_args()
    work = common.work_folder(options)
    document = {}
    for case in cases(options):
        common.note(case.name)
        document[case.name] = rows_for(options, case, work)
        common.note("\n".join(f"  {row['file']}: {cell(row)}" for row in document[case.name]))
    text = f"# float16\n\n{common.optix_version(options.optix) if options.optix else 'peers only'}\n\n{render(document)}\n"
    common.publish(options, "precision_real", text, document)


if __name__ == "__main__":
    main()
