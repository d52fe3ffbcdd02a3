"""The cpu engine against onnxruntime, paired and in turn in one process:

    python cpu_engine.py --optix target/release/optix [--models DIR] [--only NAME,...] [--seconds 10] [--out DIR]

Per model and batch: CPU seconds a run of either engine at one thread, and the ratio of the latencies at one and at two threads with its
95% interval. The limits are on the time at one thread, where latency is CPU time: at batch 32 1.4 for MiniLM and text recognition and 2.0
for the small convolutional nets, at batch 1 1.6 and 3. Judged is the ratio of neighbouring runs, since the CPU seconds of the two engines
are of different moments of a machine that others use too. Both engines are those of `optix profile --vs-engine`; onnxruntime is the
library inside the Python package unless `--ort-lib` names another. Exits with 1 when a limit is missed.
"""

import argparse
import json
import sys

import common

# name, file, sizes and fillings, limits at batch 1 and 32
FIXTURES = [
    ("fmnist_mobilenet", "fmnist_mobilenet.onnx", [], (3.0, 2.0)),
    ("fmnist_resnet", "fmnist_resnet.onnx", [], (3.0, 2.0)),
]
REAL = [
    ("ocr_cls", "rapidocr/ch_ppocr_mobile_v2.0_cls_mobile.onnx", ["--dim", "x:2=48", "--dim", "x:3=192"], (3.0, 2.0)),
    ("ocr_rec", "rapidocr/PP-OCRv6_rec_small.onnx", ["--dim", "x:3=320"], (1.6, 1.4)),
    ("minilm", "all-minilm-l6-v2/model_opset15.onnx", ["--dim", "T=128", "--fill", "attention_mask=1"], (1.6, 1.4)),
]


def compare(options, path, batch, flags, threads):
    return common.profile(options, path, batch, threads, options.seconds, ["--engine", "cpu", "--vs-engine", "onnxruntime", *flags])


def main():
    parser = common.arguments(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter))
    options = common.profile_options(parser, 10)
    rows = []
    for name, path, flags, limits in common.profile_subjects(options, FIXTURES, REAL):
        for batch in map(int, options.batches.split(",")):
            limit = limits[0 if batch == 1 else 1]
            one = compare(options, path, batch, flags, 1)
            two = compare(options, path, batch, flags, 2)
            own, other = one["models"]
            row = {"model": name, "batch": batch, "limit": limit, "cpu_ms": 1000 * own["cpu_seconds"], "onnxruntime_cpu_ms": 1000 * other["cpu_seconds"]}
            row |= {"latency": one["ratio"]["ratio"], "latency_2": two["ratio"]["ratio"]}
            row["ok"] = row["latency"]["value"] <= limit
            rows.append(row)
            common.note(json.dumps(row))
    interval = lambda ratio: f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
    table = common.table(
        ["model", "batch", "cpu, CPU ms", "onnxruntime, CPU ms", "ratio, 1 thread", "limit", "2 threads", "holds"],
        [
            [
                row["model"], row["batch"], f"{row['cpu_ms']:.3f}", f"{row['onnxruntime_cpu_ms']:.3f}", interval(row["latency"]), row["limit"],
                interval(row["latency_2"]), "yes" if row["ok"] else "**no**",
            ]
            for row in rows
        ],
    )  # fmt: skip
    text = f"# The cpu engine against onnxruntime\n\n{common.optix_version(options.optix)}\n\n{table}"
    common.publish(options, "cpu_engine", text, rows)
    sys.exit(0 if all(row["ok"] for row in rows) else 1)


main()
