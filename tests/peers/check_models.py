"""Every model below a folder, on our engines and in onnxruntime, on the same random inputs:

    python check_models.py --optix target/release/optix MODELS [--engine cpu --engine flex] [--out DIR]

The largest |difference| over the largest |reference| of all outputs; the reference is onnxruntime with its rewriting of
graphs off. Beside it the same for onnxruntime with rewriting on: where that is large, so may ours be. Free dimensions are
1 for the batch and 64 elsewhere; where those do not suit a model, SIZES and VALUES below say what does. A model that
onnxruntime itself cannot run on such inputs is listed as such. Exits with 1 when ours refuses one that it runs.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

import common

TYPES = {"float": np.float32, "float16": np.float16, "double": np.float64, "int64": np.int64, "int32": np.int32, "bool": np.bool_}
# (part of the file name, part of the input's name) -> shape
SIZES = {
    ("PP-OCRv6_rec", "x"): (1, 3, 48, 160), ("PP-OCRv6_det", "x"): (1, 3, 160, 160), ("ppocr_mobile", "x"): (1, 3, 48, 192),
    ("silero_vad_openvino", "input"): (1, 576), ("silero_vad.onnx", "input"): (1, 576), ("silero_vad_16k_sequence", "input"): None,
    ("silero", "input"): (1, 512), ("silero", "state"): (2, 1, 128), ("model", "past_key_values"): (1, 3, 4, 64),
}  # fmt: skip
VALUES = {"sr": 16000}


def shape_of(model, argument):
    for (file, name), shape in SIZES.items():
        if file in model.name and name in argument.name:
            if shape is not None:
                return shape
            break
    return tuple(d if isinstance(d, int) and d > 0 else (1 if axis == 0 else 64) for axis, d in enumerate(argument.shape))


def feeds_of(model, arguments, random):
    feeds = {}
    for argument in arguments:
        kind = TYPES[argument.type.removeprefix("tensor(").removesuffix(")")]
        if argument.name in VALUES:
            feeds[argument.name] = np.array(VALUES[argument.name], kind)
        elif np.issubdtype(kind, np.floating):
            feeds[argument.name] = (0.3 * random.standard_normal(shape_of(model, argument))).astype(kind)
        else:
            feeds[argument.name] = random.integers(0, 2 if "mask" in argument.name else 200, shape_of(model, argument)).astype(kind)
    return feeds


def worst(expected, found):
    """Over all outputs; infinite for another shape."""
    result = 0.0
    for name, reference in expected.items():
        if not isinstance(reference, np.ndarray):
            continue  # a sequence or a map
        if name not in found or found[name].size != reference.size:
            return float("inf")
        if reference.size:
            result = max(result, common.relative(reference, found[name].reshape(reference.shape)))
    return result


def infer(options, engine, model, feeds, names, work):
    """name -> array, or what is wrong."""
    import onnx

    sample = work / "test_data_set_0"
    sample.mkdir(exist_ok=True)
    for old in sample.iterdir():
        old.unlink()
    for index, name in enumerate(names):
        tensor = onnx.numpy_helper.from_array(feeds[name], name)
        (sample / f"input_{index}.pb").write_bytes(tensor.SerializeToString())
    out = work / "out.npz"
    line = [options.optix, "infer", model, "--data", work, "-o", out, "--engine", engine]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode != 0:
        return done.stderr.strip().splitlines()[0][:200]
    with np.load(out) as found:
        return {name: found[name] for name in found.files}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=pathlib.Path)
    parser.add_argument("--optix", type=lambda path: pathlib.Path(path).resolve(), required=True)
    parser.add_argument("--engine", action="append", help="default: cpu and flex")
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    engines = options.engine or ["cpu", "flex"]
    import onnxruntime as ort

    rows, failed = [], False
    for path in sorted(options.models.rglob("*.onnx")):
        common.note(path.name)
        name = str(path.relative_to(options.models))
        try:
            plain = common.session(path, level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
            names = [output.name for output in plain.get_outputs()]
            feeds = feeds_of(path, plain.get_inputs(), np.random.default_rng(0))
            expected = dict(zip(names, plain.run(None, feeds), strict=True))
            rewritten = dict(zip(names, common.session(path).run(None, feeds), strict=True))
        except Exception as error:  # onnxruntime raises its own kinds
            rows.append([name, f"onnxruntime: {str(error)[:120]}", *["-"] * len(engines)])
            continue
        row = [name, f"{worst(expected, rewritten):.1e}"]
        for engine in engines:
            with tempfile.TemporaryDirectory() as work:
                got = infer(options, engine, path, feeds, [i.name for i in plain.get_inputs()], pathlib.Path(work))
            failed |= isinstance(got, str)
            row.append(got if isinstance(got, str) else f"{worst(expected, got):.1e}")
        rows.append(row)
    text = "# Every model, on every engine\n\n" + common.table(["model", "onnxruntime, rewriting on", *engines], rows) + "\n"
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "check_models.md").write_text(text)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
