"""Our executor against onnxruntime:

    python check_ort.py --optix target/release/optix [--models DIR] [--only NAME,...] [--samples 32] [--out DIR]

float  `optix infer` of each float model: the largest |difference| over the largest |reference| of every output (limit 1e-4);
       the reference is onnxruntime with its rewriting of graphs off, since with it onnxruntime differs from itself by more
       than that on some samples: the column beside says by how much
int8   the file that `optix quantize` wrote, in onnxruntime and in `optix infer`: share of samples with the same top-1
       (limit 99.5%; for the classifiers), cosine and SQNR between the two

The fixtures' models run on all 5,000 evaluation images, the others on the first --samples of DIR/data/NAME/eval.npz.
`--own MODEL DATA.npz` checks another float model on other data; repeatable. Exits with 1 when a limit is missed.
"""

import argparse
import pathlib
import subprocess
import sys

import numpy as np

import common

LIMIT, AGREEMENT = 1e-4, 0.995


def infer(options, model, data, work):
    """name -> array from `optix infer`, or the text of its failure."""
    out = work / "infer.npz"
    out.unlink(missing_ok=True)
    done = subprocess.run([options.optix, "infer", model, "--data", data, "-o", out], capture_output=True, text=True)
    if done.returncode != 0:
        return f"optix infer: exit {done.returncode}: {' / '.join(done.stderr.strip().splitlines()[-4:])}"
    with np.load(out) as found:
        return {name: found[name] for name in found.files}


def compare_float(reference, got):
    """Per output: relative error, or what is wrong."""
    rows = []
    for name, expected in reference.items():
        if name not in got:
            rows.append((name, None, f"missing; infer wrote {sorted(got)}"))
        elif got[name].shape != expected.shape:
            rows.append((name, None, f"shape {got[name].shape}, expected {expected.shape}"))
        elif expected.dtype.kind in "iub":
            share = float((got[name] != expected).mean())
            rows.append((name, share, f"{100 * share:.3f}% of the elements differ"))
        else:
            worst = common.relative(expected, got[name])
            rows.append((name, worst, f"{worst:.2e}"))
    return rows


def check_float(options, name, model, data, feeds, batch, work):
    reference = common.outputs(model, feeds, batch, plain=True)
    got = infer(options, model, data, work)
    if isinstance(got, str):
        return [{"model": name, "output": "", "worst": None, "said": got, "rewritten": "", "ok": False}]
    rewritten = {output: said for output, _, said in compare_float(reference, common.outputs(model, feeds, batch))}
    return [
        {"model": name, "output": output, "worst": worst, "said": said, "rewritten": rewritten[output], "ok": worst is not None and worst <= LIMIT}
        for output, worst, said in compare_float(reference, got)
    ]


def check_int8(options, subject, data, feeds, work):
    int8 = work / f"{subject.name}.int8.onnx"
    calib = subject.data_argument("calib", work, None if subject.folder is None else subject.samples)
    line = [options.optix, "quantize", subject.path, "-o", int8, "--calib", calib, *options.quantize_option]
    done = subprocess.run(line, capture_output=True, text=True)
    row = {"model": subject.name, "ok": False}
    if done.returncode != 0:
        return row | {"said": f"optix quantize: exit {done.returncode}: {' / '.join(done.stderr.strip().splitlines()[-4:])}"}
    try:
        reference = common.outputs(int8, feeds, subject.batch)
    except Exception as error:  # onnxruntime raises its own kinds, all of them meaning "does not load or run"
        return row | {"said": f"onnxruntime: {str(error)[:300]}"}
    got = infer(options, int8, data, work)
    if isinstance(got, str):
        return row | {"said": got}
    name = list(reference)[subject.output]
    if name not in got or got[name].shape != reference[name].shape:
        return row | {"said": f"output {name}: missing or of another shape"}
    a, b = reference[name], got[name]
    row |= {"cosine": common.cosine(a, b), "sqnr_db": common.sqnr(a, b), "n": len(a), "said": ""}
    if subject.judged == "top1":
        row["top1_agreement"] = float((a.argmax(-1) == b.argmax(-1)).mean())
    return row | {"ok": row.get("top1_agreement", 1.0) >= AGREEMENT and row["cosine"] >= 0.99}


def main():
    parser = common.arguments(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter))
    parser.add_argument("--only", help="names of models, separated by commas")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--own", nargs=2, action="append", default=[], metavar=("MODEL", "DATA"), help="another float model and an npz of its inputs")
    parser.add_argument("--skip-int8", action="store_true")
    parser.add_argument("--quantize-option", action="append", default=[], help="handed on to optix quantize; repeatable")
    options = parser.parse_args()
    if not options.optix:
        parser.error("--optix is needed: there is nothing to compare without it")
    work = common.work_folder(options)

    floats, ints = [], []
    for subject in chosen_or_none(options):
        common.note(subject.name)
        take = None if subject.folder is None else options.samples
        feeds = {name: value[:take] for name, value in subject.arrays("eval")[0].items()}
        data = subject.data_argument("eval", work, take)
        floats += check_float(options, subject.name, subject.path, data, feeds, subject.batch, work)
        if not options.skip_int8:
            ints.append(check_int8(options, subject, data, feeds, work))
    for model, data in options.own:
        common.note(model)
        with np.load(data) as found:
            feeds = {name: found[name] for name in found.files if name != "label"}
        floats += check_float(options, pathlib.Path(model).stem, pathlib.Path(model).resolve(), data, feeds, 1, work)

    ok = lambda row: "yes" if row["ok"] else "**no**"
    text = f"# Executor against onnxruntime\n\n{common.optix_version(options.optix)}\n\n## Float: max |difference| / max |reference|, limit {LIMIT:g}\n\n"
    text += common.table(
        ["model", "output", "error", "within", "onnxruntime, rewriting on"],
        [[r["model"], r["output"], r["said"], ok(r), r["rewritten"]] for r in floats],
    ) + "\n"
    if ints:
        number = lambda row, key, digits: f"{row[key]:.{digits}f}" if key in row else "-"
        text += f"\n## Int8: the same file in onnxruntime and here, top-1 limit {AGREEMENT:.1%}\n\n"
        text += common.table(
            ["model", "n", "same top-1", "cosine", "SQNR dB", "within", "note"],
            [[r["model"], r.get("n", "-"), number(r, "top1_agreement", 4), number(r, "cosine", 6), number(r, "sqnr_db", 1), ok(r), r["said"]] for r in ints],
        )
    common.publish(options, "check_ort", text, {"float": floats, "int8": ints})
    sys.exit(0 if all(row["ok"] for row in floats + ints) else 1)


def chosen_or_none(options):
    """With --own and no --only, just the models given."""
    return [] if options.own and not options.only else common.chosen(options)


if __name__ == "__main__":
    main()
