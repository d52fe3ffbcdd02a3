"""Quantizes real models beside the peers and judges every file in onnxruntime:

    python quantize_real.py --optix target/release/optix [--models DIR] [--only NAME,...] [--out DIR]

Rows per model: float; onnxruntime's static and dynamic quantization; ours: static, dynamic and stored weights. The peer's static run
falls back when it fails: without quant_pre_process, then per tensor as well; the row says so. Judged on the evaluation
data: top-1 (fmnist, OCR direction), character error rate (OCR recognition), accuracy of a linear probe on the sentence
embeddings (MiniLM); cosine and SQNR to the float output; bytes; CPU seconds and peak memory of the whole process; the
median latency ratio to float, interleaved, one thread. Without --optix only the peers run.
"""

import argparse

import common


def judged(subject, model, float_found, limit, work):
    """The metrics of one file in onnxruntime; float_found is None for the float model itself."""
    feeds, labels = subject.arrays("eval")
    feeds = {name: value[:limit] for name, value in feeds.items()}
    labels = None if labels is None else labels[:limit]
    got = common.outputs(model, feeds, subject.batch, subject.output)
    found = {"output": got, "bytes": model.stat().st_size, "n": len(got), "fusion": common.fused(model, work)}
    if subject.judged == "top1":
        found["metric"], found["score"] = "top-1", float((got.argmax(1) == labels).mean())
    elif subject.judged == "text":
        charset = (subject.folder / "charset.txt").read_text(encoding="utf-8").split("\n")
        texts = common.read_lines(got.argmax(-1), charset)
        wrong = sum(common.edits(a, b) for a, b in zip(texts, labels.tolist(), strict=True))
        found["metric"], found["score"] = "character error rate", wrong / sum(map(len, labels.tolist()))
    elif subject.judged == "speech":
        found["metric"], found["score"] = "accuracy", float(((got.reshape(-1) > 0.5) == (labels > 0)).mean())
    elif subject.judged == "embedding":
        import numpy as np

        with np.load(subject.folder / "train.npz") as train:
            inputs, train_labels = {k: train[k] for k in train.files if k != "label"}, train["label"]
        embedded = common.outputs(model, inputs, subject.batch, subject.output)
        found["metric"], found["score"] = "probe accuracy", common.probe(embedded, train_labels, got, labels)
    else:
        found["metric"], found["score"] = "no score", None
    reference = got if float_found is None else float_found["output"]
    found["cosine"], found["sqnr_db"] = common.cosine(reference, got), common.sqnr(reference, got)
    return found


def peer_commands(options, subject, method, out):
    """The attempts in turn, with how each is called in the table."""
    base = [common.python_of(options), common.HERE / "peer_quantize.py", method, subject.name, out, "--samples", str(subject.samples)]
    base += ["--models", options.models.resolve()] if options.models else []
    if method == "dynamic":
        return [("per channel", base)]
    return [("", base), ("no pre-process", [*base, "--no-preprocess"]), ("no pre-process, per tensor", [*base, "--no-preprocess", "--per-tensor"])]


def own_commands(options, subject, method, out, work):
    # Whatever is slower is to be seen in the table.
    allowed = ["--allow-slower", *(["--deploy", "none"] if options.plain else [])]
    if method != "static":
        return [("", [options.optix, "run", f"int8-{method}", subject.path, "-o", out, *allowed])]
    calib = subject.data_argument("calib", work, subject.samples)
    return [("", [options.optix, "quantize", subject.path, "-o", out, "--calib", calib, *allowed, *options.quantize_option])]


def made(attempts, out):
    """The first attempt whose file onnxruntime loads: (note, cost), or (reasons of the failures, None)."""
    reasons = []
    for said, command in attempts:
        out.unlink(missing_ok=True)
        try:
            cost = common.measure(command)
            common.session(out)
            return said, cost
        except Exception as failure:  # a process that failed, or onnxruntime's own kinds: the file does not load
            reasons.append(f"{said or 'first attempt'}: {str(failure)[:200]}")
    return "; ".join(reasons).replace("\n", " "), None


def rows_for(options, subject, work):
    limit = options.eval_samples if subject.folder else None
    whole = judged(subject, subject.path, None, limit, work)
    rows = [{"method": "float", "said": "", **whole}]
    files = {"float": subject.path}
    for who, attempts_of in [("onnxruntime", peer_commands), ("optix", own_commands)]:
        if who == "optix" and not options.optix:
            continue
        for method in options.methods.split(","):
            if method == "weights" and who != "optix":
                continue
            name, out = f"{who} {method}", work / f"{subject.name}.{who}.{method}.onnx"
            common.note(f"  {name}")
            extra = (work,) if who == "optix" else ()
            said, cost = made(attempts_of(options, subject, method, out, *extra), out)
            row = {"method": name, "said": said}
            if cost:
                row |= {"cpu_s": cost["cpu_s"], "wall_s": cost["wall_s"], "peak_mb": cost["peak_kb"] / 1024}
                row |= judged(subject, out, whole, limit, work)
                files[name] = out
            rows.append(row)
    feeds = subject.arrays("eval")[0]
    for batch in sorted({min(subject.batch, 1), min(subject.batch, 8)}):
        ratios = common.latency(files, feeds, batch, budget_s=options.latency_budget)
        for row in rows:
            if row["method"] in ratios:
                row[f"latency_{'one' if batch <= 1 else 'batch'}"] = ratios[row["method"]]["ratio"]
    for row in rows:
        row.pop("output", None)
    return rows


def render(subject, rows):
    number = lambda row, key, digits, scale=1.0: f"{row[key] * scale:.{digits}f}" if row.get(key) is not None else "-"
    metric = next(row["metric"] for row in rows)
    lines = []
    for row in rows:
        fusion = row.get("fusion")
        lines.append([
            row["method"], number(row, "score", 4), number(row, "cosine", 5), number(row, "sqnr_db", 2), number(row, "bytes", 0, 1 / 1000),
            number(row, "cpu_s", 2), number(row, "peak_mb", 0), number(row, "latency_one", 3), number(row, "latency_batch", 3),
            f"{fusion['integer_conv']}/{fusion['float_conv']} {fusion['integer_product']}/{fusion['float_product']} {fusion['quantize_left']}" if fusion else "-",
            row["said"],
        ])  # fmt: skip
    header = ["file", f"{metric} (n {rows[0]['n']:,})", "cosine", "SQNR dB", "KB", "CPU s", "peak MiB", "latency, batch 1", f"latency, batch {min(subject.batch, 8)}",
              "int/float conv, product; Q/DQ left", "note"]  # fmt: skip
    return f"## {subject.name}, at most {subject.samples} calibration samples\n\n{common.table(header, lines)}\n"


def main():
    parser = common.arguments(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter))
    parser.add_argument("--only", help="names of models, separated by commas")
    parser.add_argument("--methods", default="static,dynamic,weights", help="weights: ours alone")
    parser.add_argument("--plain", action="store_true", help="ours without measuring on the engine the model is meant for")
    parser.add_argument("--eval-samples", type=int, help="at most so many evaluation samples of the models in DIR (default: all)")
    parser.add_argument("--latency-budget", type=float, default=15.0, help="seconds for each latency comparison")
    parser.add_argument("--quantize-option", action="append", default=[], help="handed on to optix quantize; repeatable")
    options = parser.parse_args()
    work = common.work_folder(options)
    text = f"# Real models\n\n{common.optix_version(options.optix) if options.optix else 'peers only'}\n\n"
    document = {}
    for subject in common.chosen(options):
        common.note(subject.name)
        document[subject.name] = rows_for(options, subject, work)
        text += render(subject, document[subject.name]) + "\n"
    common.publish(options, "quantize_real", text, document)


if __name__ == "__main__":
    main()
