"""Evaluation, whole processes: `optix eval` beside the same in Python with onnxruntime and numpy (peer_eval.py):

    python eval_ort.py --optix target/release/optix --ort-lib LIB [--models DIR] [--rounds 5] [--threads 1,2] [--out DIR]

fmnist_mobilenet on the 5,000 test images and, with --models, MiniLM on 2,000 sentences: a probe is fitted on 1,000 and
judges 1,000 (the last 200 of them are repeated, so that the numbers are round). Same batch, same threads, interleaved;
accuracy must agree. With --engine onnxruntime optix is to be at least as fast, at a third of the peak memory.
"""

import argparse
import json
import pathlib
import subprocess

import numpy as np

import common


def tasks(options, work):
    """name -> (optix arguments, peer arguments, batch)."""
    data = common.FIXTURES / "data"
    images, labels = (data / f"fmnist-test5000-{what}-ubyte.gz" for what in ("images-idx3", "labels-idx1"))
    mobilenet = common.FIXTURES / "models" / "fmnist_mobilenet.onnx"
    found = {
        "fmnist_mobilenet": ([mobilenet, "--data", data / "fmnist-eval.toml", "--metric", "top1"], [mobilenet, "--data", images, "--labels", labels], 32),
    }  # fmt: skip
    if options.models:
        model = (options.models / "all-minilm-l6-v2" / "model_opset15.onnx").resolve()
        folder = options.models / "data" / "minilm"
        train, judged = folder / "train.npz", work / "minilm-1000.npz"
        with np.load(folder / "eval.npz") as part:
            np.savez(judged, **{name: np.concatenate([part[name], part[name][:200]]) for name in part.files})
        same = [model, "--data", judged, "--train", train, "--output", "sentence_embedding"]
        found["minilm"] = ([*same, "--metric", "probe"], same, 16)
    return found


def accuracy(command):
    """What a command found: the peer prints it, optix says it in its JSON."""
    text = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout
    return json.loads(text)["metrics"][0]["value"] if text.lstrip().startswith("{") else float(text)


def main():
    parser = common.arguments(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter))
    parser.add_argument("--ort-lib", type=pathlib.Path, help="onnxruntime's library (default: where optix finds one)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--only", help="names of models, separated by commas")
    options = parser.parse_args()
    work = common.work_folder(options)
    library = ["--ort-lib", options.ort_lib.resolve()] if options.ort_lib else []
    text, document = "# Evaluation beside Python's onnxruntime\n\n", {}
    for name, (own, peer, batch) in tasks(options, work).items():
        if options.only and name not in options.only.split(","):
            continue
        for threads in map(int, options.threads.split(",")):
            script = [common.python_of(options), common.HERE / "peer_eval.py"]
            commands = {"python": [*script, *peer, "--batch", batch, "--threads", threads]}
            if options.optix:
                line = [options.optix, "eval", *own, "--batch", batch, "--threads", threads, "--json", "--progress", "never"]
                commands["optix onnxruntime"] = [*line, "--engine", "onnxruntime", *library]
                commands["optix cpu"] = [*line, "--engine", "cpu"]
                commands["optix onnxruntime, batch auto"] = [x if x != batch or line[k - 1] != "--batch" else "auto" for k, x in enumerate(line)] + ["--engine", "onnxruntime", *library]
            found = {who: accuracy(command) for who, command in commands.items()}
            common.note(f"{name}, {threads} threads: {found}")
            costs = common.interleaved(commands, options.rounds)
            rows, base = [], costs["python"]
            for who, cost in costs.items():
                if isinstance(cost, str):
                    rows.append([who, f"failed: {cost}", "", "", "", ""])
                    continue
                ratio = lambda key: f"{common.median(cost, key) / common.median(base, key):.2f}"
                rows.append([who, f"{found[who]:.4f}", common.spread(cost, "wall_s"), common.spread(cost, "cpu_s"), common.spread(cost, "peak_kb", 1 / 1024, 1),
                             f"{ratio('wall_s')} / {ratio('cpu_s')} / {ratio('peak_kb')}"])  # fmt: skip
            title = f"{name}, batch {batch}, {threads} {'thread' if threads == 1 else 'threads'}"
            text += f"## {title}\n\n" + common.table(["", "accuracy", "wall s", "CPU s", "peak MiB", "of python's wall / CPU / memory"], rows) + "\n\n"
            document[title] = {"accuracy": found, "costs": costs}
    common.publish(options, "eval_ort", text, document)


if __name__ == "__main__":
    main()
