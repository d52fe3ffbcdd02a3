"""`optix profile --engine onnxruntime` against Python's onnxruntime, and node times against the whole:

    python profile_ort.py --optix target/release/optix [--models DIR] [--only NAME,...] [--threads 1] [--rounds 8] [--out DIR]

ratio  latency of our engine over Python's `InferenceSession.run`, same library, same inputs' sizes, batch 1 and 32 where the batch
       is free: processes in turn, one ratio a round, 95% interval (Student's of the logarithms); the limit is that the interval
       reaches 1.03
sum    the nodes' times of a profile over its latency, on onnxruntime and on cpu; the limit is 0.9 to 1.1

`--ort-lib` names the library of our engine; by default it is the one inside the Python package, so that both are the same.
Exits with 1 when a limit is missed.
"""

import argparse
import json
import math
import statistics
import sys
import time

import numpy as np

import common

RATIO, SUM = 1.03, 0.1
STUDENT = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228]

# name, file, batch is free, sizes and fillings
FIXTURES = [
    ("fmnist_mobilenet", "fmnist_mobilenet.onnx", True, []),
    ("fmnist_resnet", "fmnist_resnet.onnx", True, []),
]
REAL = [
    ("ocr_cls", "rapidocr/ch_ppocr_mobile_v2.0_cls_mobile.onnx", True, ["--dim", "x:2=48", "--dim", "x:3=192"]),
    ("ocr_rec", "rapidocr/PP-OCRv6_rec_small.onnx", True, ["--dim", "x:3=320"]),
    ("ocr_det", "rapidocr/PP-OCRv6_det_small.onnx", True, ["--dim", "x:2=320", "--dim", "x:3=320"]),
    ("minilm", "all-minilm-l6-v2/model_opset15.onnx", True, ["--dim", "T=64", "--fill", "attention_mask=1"]),
    ("silero", "silero-vad/silero_vad.onnx", True, ["--dim", "input:1=576", "--dim", "state:1={batch}", "--fill", "sr=16000"]),
    ("silero_16k", "silero-vad/silero_vad_16k_op15.onnx", True, ["--dim", "sequence=576", "--fill", "sr=16000"]),
    ("magika", "magika/model.onnx", True, []),
    ("flan_t5_encoder", "flan-t5-small-titler-int8/encoder.onnx", True, ["--dim", "encoder_sequence_length=64", "--fill", "attention_mask=1"]),
    (
        "flan_t5_decoder", "flan-t5-small-titler-int8/decoder.onnx", True,
        ["--dim", "decoder_sequence_length=16", "--dim", "encoder_sequence_length=64", "--fill", "encoder_attention_mask=1"],
    ),
    ("smollm2", "smollm2-135m-instruct/model.onnx", True, ["--dim", "T=8", "--dim", "P=16"]),
    *((f"light_{net}", f"light/light_{net}.onnx", False, []) for net in (
        "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19", "zfnet512"
    )),
]  # fmt: skip

DTYPES = {"float": np.float32, "double": np.float64, "float16": np.float16, "bool": np.bool_}


def profile(options, path, engine, batch, flags, seconds):
    flags = [flag.replace("{batch}", str(batch)) for flag in flags]
    return common.profile(options, path, batch, options.threads, seconds, ["--engine", engine, *flags])["models"][0]


def feeds(facts):
    """Arrays of the sizes and kinds that the profile says it fed."""
    random = np.random.default_rng(0)
    made = {}
    for one in facts["inputs"]:
        dtype = np.dtype(DTYPES.get(one["dtype"], one["dtype"]))
        if one["values"].startswith("filled with "):
            made[one["name"]] = np.full(one["shape"], float(one["values"].split()[-1])).astype(dtype)
        elif dtype.kind == "f":
            made[one["name"]] = random.uniform(-1, 1, one["shape"]).astype(dtype)
        else:
            made[one["name"]] = random.integers(0, 2, one["shape"]).astype(dtype)
    return made


def python_median(running, fed, seconds):
    times = []
    running.run(None, fed)
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        running.run(None, fed)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def compare(options, name, path, batch, flags):
    seconds = options.seconds
    first = profile(options, path, "onnxruntime", batch, flags, seconds)
    fed = feeds(first)
    running = common.session(path, threads=options.threads)
    python_median(running, fed, min(seconds, 0.5))
    ratios, sums, ours, theirs = [], [first["nodes_seconds"] / first["latency"]["median"]], [], []
    for number in range(options.rounds):
        def own():
            facts = profile(options, path, "onnxruntime", batch, flags, seconds)
            sums.append(facts["nodes_seconds"] / facts["latency"]["median"])
            ours.append(facts["latency"]["median"])

        for part in (0, 1) if number % 2 == 0 else (1, 0):
            if part == 0:
                own()
            else:
                theirs.append(python_median(running, fed, seconds / 2))
        ratios.append(math.log(ours[-1] / theirs[-1]))
    half = STUDENT[min(len(ratios) - 1, len(STUDENT)) - 1] * statistics.stdev(ratios) / math.sqrt(len(ratios))
    mean = statistics.mean(ratios)
    row = {
        "model": name, "batch": batch, "ours_ms": 1000 * statistics.median(ours), "python_ms": 1000 * statistics.median(theirs),
        "ratio": math.exp(mean), "low": math.exp(mean - half), "high": math.exp(mean + half), "sum_onnxruntime": statistics.median(sums),
    }  # fmt: skip
    if options.cpu:
        facts = profile(options, path, "cpu", batch, flags, seconds)
        row["sum_cpu"] = facts["nodes_seconds"] / facts["latency"]["median"]
    row["ok"] = row["low"] <= RATIO and all(abs(row[key] - 1) <= SUM for key in ("sum_onnxruntime", "sum_cpu") if key in row)
    return row


def main():
    parser = common.arguments(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--skip-cpu", dest="cpu", action="store_false")
    options = common.profile_options(parser, 1)
    rows = []
    for name, path, free, flags in common.profile_subjects(options, FIXTURES, REAL):
        if not path.exists():
            common.note(f"{name} skipped: {path} is not there")
            continue
        for batch in map(int, options.batches.split(",")):
            if batch > 1 and not free:
                continue
            try:
                row = compare(options, name, path, batch, flags)
            except Exception as error:  # onnxruntime raises its own kinds
                row = {"model": name, "batch": batch, "ok": False, "error": str(error)[-300:]}
            rows.append(row)
            common.note(json.dumps(row))
    show = lambda row, key, digits=3: f"{row[key]:.{digits}f}" if key in row else "-"
    table = common.table(
        ["model", "batch", "ours ms", "Python ms", "ratio (95% interval)", "nodes/latency onnxruntime", "nodes/latency cpu", "holds"],
        [
            [
                row["model"], row["batch"], show(row, "ours_ms"), show(row, "python_ms"),
                f"{row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f})" if "ratio" in row else row["error"],
                show(row, "sum_onnxruntime", 2), show(row, "sum_cpu", 2), "yes" if row["ok"] else "**no**",
            ]
            for row in rows
        ],
    )  # fmt: skip
    text = f"# onnxruntime through optix against Python's, {options.threads} threads\n\n{common.optix_version(options.optix)}\n\n{table}"
    common.publish(options, "profile_ort", text, rows)
    sys.exit(0 if all(row["ok"] for row in rows) else 1)


main()
