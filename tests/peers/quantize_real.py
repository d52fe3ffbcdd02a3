"""Quantizes real models beside the peers and judges every file in onnxruntime:

    python quantize_real.py --optix target/release/optix [--models DIR] [--only NAME,...] [--document FILE.md]

Rows per model: float; onnxruntime's static quantization with its three ways of choosing ranges and its dynamic one; NNCF with
fast and with full bias correction; ours. onnxruntime's static runs fall back when they fail: without quant_pre_process, then
per tensor as well; the row says so. Everybody calibrates on the same samples.

Judged on the evaluation data: top-1 (fmnist, OCR direction, magika), character error rate (OCR recognition), accuracy of a
linear probe on the sentence embeddings (MiniLM), accuracy frame by frame (silero); SQNR to the float output; bytes; CPU
seconds and peak memory of the whole process; the median latency ratio to float, interleaved, two threads. The best peer of a
model is, among those whose file is below 0.6 of the float file, the one with the highest score, and of those with equal scores
the one with the highest SQNR; ours is a win or a loss where the 95% interval of the paired difference of scores leaves 0 out.
Without --optix only the peers run.
"""

import argparse
import json
import pathlib
import re

import common

METHODS = {
    "onnxruntime min-max": ["static", "--calibrate", "min-max"],
    "onnxruntime entropy": ["static", "--calibrate", "entropy"],
    "onnxruntime percentile": ["static", "--calibrate", "percentile"],
    "onnxruntime dynamic": ["dynamic"],
    "NNCF fast": ["nncf"],
    "NNCF full": ["nncf", "--full"],
}
OURS = {
    "optix": [],
    "optix, all layers": ["--set", "quantize-static.min-sqnr=0", "--set", "quantize-static.only-faster=false", "--deploy", "none"],
    "optix dynamic": ["--method", "dynamic"],
    "optix stored weights": None,
}
SMALL = 0.6  # of the float file: what counts as quantized


def judged(subject, model, float_found, limit, work):
    """The metrics of one file in onnxruntime; float_found is None for the float model itself."""
    import numpy as np

    feeds, labels = subject.arrays("eval")
    feeds = {name: value[:limit] for name, value in feeds.items()}
    labels = None if labels is None else labels[:limit]
    got = common.outputs(model, feeds, subject.batch, subject.output)
    found = {"output": got, "bytes": model.stat().st_size, "n": len(got), "fusion": common.fused(model, work), "score": None}
    # "each" has one number a sample, whose mean is the score (less the score where less is better).
    if subject.judged == "top1":
        found["metric"], found["each"] = "top-1", (got.argmax(1) == labels).astype(float)
    elif subject.judged == "text":
        charset = (subject.folder / "charset.txt").read_text(encoding="utf-8").split("\n")
        texts = common.read_lines(got.argmax(-1), charset)
        wrong = np.array([common.edits(a, b) for a, b in zip(texts, labels.tolist(), strict=True)], float)
        found["metric"], found["each"] = "character error rate", -wrong * len(wrong) / sum(map(len, labels.tolist()))
    elif subject.judged == "speech":
        found["metric"], found["each"] = "accuracy", ((got.reshape(-1) > 0.5) == (labels > 0)).astype(float)
    elif subject.judged == "embedding":
        with np.load(subject.folder / "train.npz") as train:
            inputs, train_labels = {k: train[k] for k in train.files if k != "label"}, train["label"]
        embedded = common.outputs(model, inputs, subject.batch, subject.output)
        found["metric"], found["each"] = "probe accuracy", common.probed(embedded, train_labels, got, labels)
    else:
        found["metric"], found["each"] = "no score", None
    if found["each"] is not None:
        found["score"] = abs(float(found["each"].mean()))
    reference = got if float_found is None else float_found["output"]
    found["cosine"], found["sqnr_db"] = common.cosine(reference, got), common.sqnr(reference, got)
    return found


def peer_attempts(options, subject, arguments, out):
    """The attempts in turn, with how each is called in the table."""
    method, *rest = arguments
    base = [common.python_of(options), common.HERE / "peer_quantize.py", method, subject.name, out, *rest, "--samples", str(subject.samples)]
    base += ["--models", options.models.resolve()] if options.models else []
    if method != "static":
        return [("", base)]
    return [("", base), ("no pre-process", [*base, "--no-preprocess"]), ("no pre-process, per tensor", [*base, "--no-preprocess", "--per-tensor"])]


def own_attempts(options, subject, arguments, out, work):
    if arguments is None:
        return [("", [options.optix, "run", "int8-weights", subject.path, "-o", out, "--allow-slower"])]
    # Whatever is slower is to be seen in the table.
    line = [options.optix, "quantize", subject.path, "-o", out, "--allow-slower", *arguments, *options.quantize_option]
    if "dynamic" not in arguments:
        line += ["--calib", subject.data_argument("calib", work, subject.samples)]
    return [("", line)]


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
            reasons.append(short(failure))
    return "fails: " + "; ".join(dict.fromkeys(reasons)), None


def short(failure):
    """What a failure says last, without the folders of this machine."""
    last = str(failure).split(" | ")[-1].replace("\n", " ").replace("|", "/").strip()
    return re.sub(r"(?:/[\w.+-]+)+/", "", last)[:72]


def rows_for(options, subject, work):
    limit = options.eval_samples if subject.folder else None
    whole = judged(subject, subject.path, None, limit, work)
    rows = [{"method": "float", "said": "", **whole}]
    files = {"float": subject.path}
    attempts = {name: (peer_attempts, arguments) for name, arguments in METHODS.items()}
    if options.optix:
        attempts |= {name: (own_attempts, arguments) for name, arguments in OURS.items()}
    for name, (attempts_of, arguments) in attempts.items():
        if options.methods and name not in options.methods.split(","):
            continue
        out = file_of(work, subject, name)
        common.note(f"  {name}")
        extra = (work,) if attempts_of is own_attempts else ()
        before = options.known.get(subject.name, {}).get(name)
        if before is not None and attempts_of is peer_attempts and (out.exists() or "cpu_s" not in before):
            said, cost = before["said"], {"cpu_s": before["cpu_s"], "wall_s": before["wall_s"], "peak_kb": before["peak_mb"] * 1024} if "cpu_s" in before else None
        else:
            said, cost = made(attempts_of(options, subject, arguments, out, *extra), out)
        row = {"method": name, "said": said}
        if cost:
            row |= {"cpu_s": cost["cpu_s"], "wall_s": cost["wall_s"], "peak_mb": cost["peak_kb"] / 1024}
            row |= judged(subject, out, whole, limit, work)
            files[name] = out
        rows.append(row)
    time_files(options, subject, rows, files)
    best = best_peer(rows)
    for row in rows:
        if best and row.get("each") is not None:
            row["against_best"] = difference(row["each"], best["each"])
    for row in rows:
        for large in ("output", "each"):
            row.pop(large, None)
    return rows


def time_files(options, subject, rows, files):
    """Puts latency ratios into the rows."""
    feeds = subject.arrays("eval")[0]
    for batch in sorted({min(subject.batch, 1), min(subject.batch, 8)}):
        ratios = common.latency(files, feeds, batch, budget_s=options.latency_budget, threads=2)
        for row in rows:
            if row["method"] in ratios:
                row[f"latency_{'one' if batch <= 1 else 'batch'}"] = ratios[row["method"]]["ratio"]


def file_of(work, subject, name):
    return work / f"{subject.name}.{name.replace(' ', '-').replace(',', '')}.onnx"


def best_peer(rows):
    """The row to beat, or None."""
    small = [row for row in rows if row["method"] in METHODS and row.get("bytes", rows[0]["bytes"]) < SMALL * rows[0]["bytes"]]
    key = lambda row: (float(row["each"].mean()) if row["each"] is not None else 0.0, row["sqnr_db"])
    return max(small, key=key, default=None)


def difference(ours, theirs):
    """Mean and half of the 95% interval of the paired difference."""
    import numpy as np

    each = np.asarray(ours) - np.asarray(theirs)
    return float(each.mean()), float(1.96 * each.std(ddof=1) / len(each) ** 0.5)


def number(row, key, digits, scale=1.0):
    return f"{row[key] * scale:.{digits}f}" if row.get(key) is not None else "-"


def render(subject, rows):
    metric = next(row["metric"] for row in rows)
    lines = []
    for row in rows:
        fusion = row.get("fusion")
        mean, half = row.get("against_best") or (None, None)
        lines.append([
            row["method"], number(row, "score", 4), "-" if mean is None else f"{mean:+.4f} ± {half:.4f}", number(row, "sqnr_db", 1),
            number(row, "bytes", 0, 1 / 1000), number(row, "latency_one", 2), number(row, "latency_batch", 2), number(row, "wall_s", 1),
            number(row, "cpu_s", 2), number(row, "peak_mb", 0),
            f"{fusion['integer_conv']}/{fusion['float_conv']} {fusion['integer_product']}/{fusion['float_product']} {fusion['quantize_left']}" if fusion else "-",
            row["said"],
        ])  # fmt: skip
    header = ["file", f"{metric} (n {rows[0]['n']:,})", "better than the best peer by", "SQNR dB", "KB", "latency, batch 1",
              f"latency, batch {min(subject.batch, 8)}", "wall s", "CPU s", "peak MiB", "int/float conv, product; Q/DQ left", "note"]  # fmt: skip
    return f"### {subject.name}, {subject.samples} calibration samples at most\n\n{common.table(header, lines)}\n"


def verdict(rows):
    """A row of the summary: the float model, the best peer, ours, and who wins."""
    peers = [row for row in rows if row["method"] in METHODS and "bytes" in row]
    small = [row for row in peers if row["bytes"] < SMALL * rows[0]["bytes"]]
    # Scores of equal rows are equal: the one that differs by +0.0000 with no interval is the best peer.
    best = next((row for row in small if tuple(row.get("against_best", ())) == (0.0, 0.0)), max(small, key=lambda row: row["sqnr_db"], default=None))
    ours = next((row for row in rows if row["method"] == "optix" and "bytes" in row), None)
    if ours is None:
        return None
    said = "no peer makes it smaller"
    if best is not None:
        mean, half = ours.get("against_best", (0.0, 0.0))
        said = "no score" if best.get("score") is None else "win" if mean > half else "loss" if mean < -half else "tie"
        said += ", by SQNR higher" if ours["sqnr_db"] > best["sqnr_db"] else ", by SQNR lower"
    show = lambda row: f"{number(row, 'score', 4)}, {number(row, 'sqnr_db', 1)} dB, {number(row, 'bytes', 0, 1 / 1000)} KB, latency {number(row, 'latency_one', 2)}, {number(row, 'cpu_s', 1)} CPU s" if row else "-"
    return [rows[0]["metric"], number(rows[0], "score", 4), f"{best['method']}: {show(best)}" if best else "-", show(ours), said]


def main():
    parser = common.arguments(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter))
    parser.add_argument("--only", help="names of models, separated by commas")
    parser.add_argument("--methods", help="rows to make, separated by commas (default: all)")
    parser.add_argument("--eval-samples", type=int, help="at most so many evaluation samples of the models in DIR (default: all)")
    parser.add_argument("--latency-budget", type=float, default=15.0, help="seconds for each latency comparison")
    parser.add_argument("--quantize-option", action="append", default=[], help="handed on to optix quantize; repeatable")
    parser.add_argument("--document", type=pathlib.Path, help="file whose part below the line `<!-- quantize_real.py -->` is replaced")
    parser.add_argument("--peers-from", type=pathlib.Path, help="JSON of an earlier run in the same --work: its peers' files are judged again, not made again")
    parser.add_argument("--rows-from", type=pathlib.Path, action="append", default=[], help="JSON of an earlier run, whose models are not run again but put into the document; repeatable")
    parser.add_argument("--time-again", help="models of --rows-from whose files, in --work, are timed again, separated by commas")
    options = parser.parse_args()
    earlier = json.loads(options.peers_from.read_text()) if options.peers_from else {}
    options.known = {subject: {row["method"]: row for row in rows} for subject, rows in earlier.items()}
    work = common.work_folder(options)
    text, summary, document = "", [], {}
    done = {name: rows for path in options.rows_from for name, rows in json.loads(path.read_text()).items()}
    for subject in common.chosen(options):
        common.note(subject.name)
        document[subject.name] = done[subject.name] if subject.name in done else rows_for(options, subject, work)
        if subject.name in done and subject.name in (options.time_again or "").split(","):
            made = {row["method"]: file_of(work, subject, row["method"]) for row in done[subject.name] if "bytes" in row}
            files = {"float": subject.path} | {name: path for name, path in made.items() if path.exists()}
            time_files(options, subject, done[subject.name], files)
        text += render(subject, document[subject.name]) + "\n"
        if options.out:
            # What is measured is not lost when a later model fails.
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / "quantize_real.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        if found := verdict(document[subject.name]):
            summary.append([subject.name, *found])
    head = common.table(["model", "metric", "float", "best peer", "optix", "optix against it"], summary) + "\n\n" if summary else ""
    text = f"Made by {common.optix_version(options.optix) if options.optix else 'peers only'}.\n\n{head}{text}"
    common.publish(options, "quantize_real", text, document)
    if options.document:
        mark = "<!-- quantize_real.py -->\n"
        kept = options.document.read_text(encoding="utf-8").split(mark)[0]
        options.document.write_text(f"{kept}{mark}\n{text.strip()}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
