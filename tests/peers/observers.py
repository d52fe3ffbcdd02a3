"""Each observer of `optix quantize` on the same calibration samples:

    python observers.py --optix target/release/optix [--models DIR] [--only NAME,...] [--eval-samples N] [--out DIR]

Per model and observer: SQNR of the int8 model's output to the float model's on the evaluation data, as the file is written
(onnxruntime without rewriting, so that Q/DQ are computed in float: what the ranges cost) and as onnxruntime runs it (integer
kernels; on processors without VNNI int16 sums of products saturate, which no range can help); CPU seconds and peak memory of
`optix quantize`. The first row is `optix infer` over the same samples: plain inference.
"""

import argparse

import common

OBSERVERS = "min-max,moving-average,mean-extremes,percentile,entropy,mse,auto"


def rows_for(options, subject, work):
    calib = subject.data_argument("calib", work, subject.samples)
    feeds = {name: value[: options.eval_samples] for name, value in subject.arrays("eval")[0].items()}
    reference = common.outputs(subject.path, feeds, subject.batch, subject.output)
    cost = common.measure([options.optix, "infer", subject.path, "--data", calib, "-o", work / "outputs.npz", "-q"])
    rows = [["plain inference", "-", "-", f"{cost['cpu_s']:.2f}", f"{cost['peak_kb'] / 1024:.0f}"]]
    document = {"inference": cost, "n": len(reference)}
    for observer in options.observers.split(","):
        out = work / f"{subject.name}.{observer}.onnx"
        command = [options.optix, "quantize", subject.path, "-o", out, "--calib", calib, "--observer", observer, "-q"]
        cost = common.measure([*command, *options.quantize_option])
        found = {}
        for kind, plain in [("written", True), ("fused", False)]:
            found[kind] = common.sqnr(reference, common.outputs(out, feeds, subject.batch, subject.output, plain=plain))
        document[observer] = {"cost": cost, "sqnr_db": found}
        rows.append([observer, f"{found['written']:.2f}", f"{found['fused']:.2f}", f"{cost['cpu_s']:.2f}", f"{cost['peak_kb'] / 1024:.0f}"])
        common.note(f"{subject.name} {observer}: {found['written']:.2f} dB")
    header = ["observer", "SQNR dB as written", "in onnxruntime's integer kernels", "CPU s", "peak MiB"]
    title = f"{subject.name}: {subject.samples} calibration samples, {len(reference):,} evaluation samples"
    return f"## {title}\n\n{common.table(header, rows)}\n", document


def main():
    parser = common.arguments(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter))
    parser.add_argument("--only", help="names of models, separated by commas")
    parser.add_argument("--observers", default=OBSERVERS)
    parser.add_argument("--eval-samples", type=int, help="at most so many evaluation samples (default: all)")
    parser.add_argument("--quantize-option", action="append", default=[], help="handed on to optix quantize; repeatable")
    options = parser.parse_args()
    if not options.optix:
        parser.error("--optix is needed")
    work = common.work_folder(options)
    text, documents = "# Observers\n\n", {}
    for subject in common.chosen(options):
        part, documents[subject.name] = rows_for(options, subject, work)
        text += part + "\n"
    common.publish(options, "observers", text, documents)


if __name__ == "__main__":
    main()
