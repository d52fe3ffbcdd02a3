"""SparseGPT of one layer of 1,536 x 384: `optix prune` beside the same in numpy and scipy, in turn.

    python sparsegpt_numpy.py --optix target/release/optix [--rounds 5] [--samples 128] [--threads 2]

The layer reads correlated random inputs, 64 positions a sample. numpy: second moments of all positions, added up sample by sample, the
Cholesky factor of their damped inverse (scipy), and the sweep over columns in blocks of 128 (Frantar and Alistarh 2023, arXiv
2301.00774, algorithm 1). optix: the step as the report times it, which also runs the model and reads the samples. Both set half of the
weights to zero; what the layer's output loses is shown for both.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

DEPTH, OUTPUTS, POSITIONS, BLOCK, DAMPING = 1536, 384, 64, 128, 0.01


def accumulate(np, samples):
    """The second moments of all positions."""
    moments = np.zeros((DEPTH, DEPTH), np.float32)
    for sample in samples:
        moments += sample.T @ sample
    return moments * (2.0 / (len(samples) * POSITIONS))


def sparsegpt(np, linalg, weights, moments):
    """Half of the weights of every block zero, rows of `weights` being outputs."""
    weights = weights.copy()
    moments = moments + np.eye(DEPTH, dtype=np.float32) * (DAMPING * np.mean(np.diag(moments)))
    inverse = linalg.cho_solve(linalg.cho_factor(moments, lower=True), np.eye(DEPTH, dtype=np.float32))
    factor = linalg.cholesky(inverse, lower=False)
    for start in range(0, DEPTH, BLOCK):
        own = weights[:, start : start + BLOCK]
        diagonal = np.diag(factor)[start : start + BLOCK]
        worth = (own / diagonal) ** 2
        mask = worth <= np.partition(worth.ravel(), worth.size // 2)[worth.size // 2]
        errors = np.zeros_like(own)
        for column in range(own.shape[1]):
            kept = np.where(mask[:, column], 0.0, own[:, column])
            at = start + column
            error = (own[:, column] - kept) / factor[at, at]
            own[:, column + 1 :] -= np.outer(error, factor[at, at + 1 : start + BLOCK])
            own[:, column] = kept
            errors[:, column] = error
        weights[:, start + BLOCK :] -= errors @ factor[start : start + BLOCK, start + BLOCK :]
    return weights


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optix", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    # Before numpy is loaded.
    os.environ["OPENBLAS_NUM_THREADS"] = str(options.threads)
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from scipy import linalg

    random = np.random.default_rng(0)
    mixing = (random.standard_normal((DEPTH, DEPTH)) / np.sqrt(DEPTH)).astype(np.float32)
    samples = (random.standard_normal((options.samples, POSITIONS, DEPTH)).astype(np.float32) @ mixing).astype(np.float32)
    weights = (random.standard_normal((DEPTH, OUTPUTS)) / np.sqrt(DEPTH)).astype(np.float32)
    folder = pathlib.Path(tempfile.mkdtemp())
    np.savez(folder / "x.npz", x=samples)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", POSITIONS, DEPTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", POSITIONS, OUTPUTS])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "layer.onnx")
    flat = samples.reshape(-1, DEPTH)

    def lost(changed):
        before = flat @ weights
        return float(((flat @ changed - before) ** 2).sum() / (before**2).sum())

    times, errors = {"numpy": [], "optix": []}, {}
    for _ in range(options.rounds):
        started = time.perf_counter()
        moments = accumulate(np, samples)
        middle = time.perf_counter()
        pruned = sparsegpt(np, linalg, weights.T.copy(), moments).T
        ended = time.perf_counter()
        times["numpy"].append((middle - started, ended - middle))
        errors["numpy"] = (lost(pruned), float((pruned == 0).mean()))
        command = [
            options.optix, "prune", folder / "layer.onnx", "-o", folder / "pruned.onnx", "--method", "sparsegpt", "--recover=false",
            "--calib", folder / "x.npz", "--threads", options.threads, "--deploy", "none", "--json",
            "--set", f"prune-sparsegpt.samples={options.samples}",
        ]  # fmt: skip
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        step = [step for step in json.loads(done.stdout)["steps"] if step["id"] == "prune-sparsegpt"][0]
        times["optix"].append(step["seconds"])
        model = onnx.load(folder / "pruned.onnx")
        changed = [numpy_helper.to_array(one) for one in model.graph.initializer if list(one.dims) == [DEPTH, OUTPUTS]][0]
        errors["optix"] = (lost(changed), float((changed == 0).mean()))
    moments, sweep = (statistics.median(column) for column in zip(*times["numpy"]))
    whole = statistics.median(sum(pair) for pair in times["numpy"])
    own = statistics.median(times["optix"])
    print(f"{options.samples * POSITIONS} positions, {options.threads} threads, medians of {options.rounds}")
    for name, seconds, more in (
        ("numpy", whole, f" ({moments:.3f} s second moments, {sweep:.3f} s factor and sweep)"),
        ("optix", own, ""),
    ):
        error, zeros = errors[name]
        print(f"{name:6} {seconds:.3f} s{more}, {zeros:.4f} zeros, {error:.4f} of the output's energy lost")
    print(f"optix over numpy: {own / whole:.2f}")


if __name__ == "__main__":
    main()
