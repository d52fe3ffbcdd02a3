"""Where onnxruntime clips sums of two products to int16 on this processor, and whether certify-overflow knows.

First the types: a product, a convolution and a Gemm with equal weights and the greatest activations, what comes out over
what is exact. Then the pairs: of all pairs of two weights, those that are clipped. Then the pass: for random weights, its
verdict against activations chosen to be clipped if anything can be. With --float, --int8 and --data: what the clipping
costs a real model, by turning its int8 weights into uint8, whose kernels do not clip.

On processors with VNNI nothing is clipped, and only the last lines say something.
"""

import argparse
import itertools
import json
import pathlib
import subprocess
import tempfile

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

TYPES = {"u8": np.uint8, "s8": np.int8}


def session(model, optimize=True):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def qdq(operator, shape, weights, reach, activation="u8", **attributes):
    """x -> Q -> DQ -> operator with dequantized weights -> Q -> DQ -> y; x in integers from 0 to 255, y up to reach."""
    low = 0 if activation == "u8" else -128
    middle = 0 if weights.dtype == np.int8 else 128
    constants = {
        "one": np.float32(1), "zero": np.array(low, TYPES[activation]), "w": weights,
        "w_zero": np.array(middle, weights.dtype), "y_scale": np.float32(reach / 127),
        "y_zero": np.array(low + 128, TYPES[activation]),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "one", "w_zero"], ["wd"]),
        helper.make_node(operator, ["d", "wd"], ["m"], **attributes),
        helper.make_node("QuantizeLinear", ["m", "y_scale", "y_zero"], ["mq"]),
        helper.make_node("DequantizeLinear", ["mq", "y_scale", "y_zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def integer_product(a, w):
    """MatMulInteger: int32 as it comes out of the kernel."""
    types = {np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.int8): TensorProto.INT8}
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("a", types[a.dtype], list(a.shape))],
        [helper.make_tensor_value_info("y", TensorProto.INT32, None)],
        [numpy_helper.from_array(w, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return session(model).run(None, {"a": a})[0]


def show_types():
    print("types: result over exact result; 1.000 is not clipped")
    depth, columns = 64, 8
    for magnitude, a, w in itertools.product([127, 64], TYPES, TYPES):
        middle = 0 if w == "s8" else 128
        row = [f"  {a}{w} weights {magnitude:3}:"]
        activations = np.full((4, depth), np.iinfo(TYPES[a]).max, TYPES[a])
        weights = np.full((depth, columns), magnitude, TYPES[w])
        found = integer_product(activations, weights)
        row.append(f"MatMulInteger {found.max() / (int(activations.max()) * magnitude * depth):.3f}")
        for operator, shape, layout, attributes in [
            ("MatMul", [4, depth], (depth, columns), {}),
            ("Gemm", [4, depth], (columns, depth), {"transB": 1}),
            ("Conv", [1, depth, 4, 4], (columns, depth, 1, 1), {}),
        ]:
            weights = np.full(layout, magnitude + middle, TYPES[w])
            model = qdq(operator, shape, weights, 255 * magnitude * depth, a, **attributes)
            feeds = {"x": np.full(shape, 255, np.float32)}
            found, exact = (session(model, on).run(None, feeds)[0].max() for on in (True, False))
            row.append(f"QDQ {operator} {found / exact:.3f}")
        print(" ".join(row))


def show_pairs():
    print("pairs: of all pairs of two weights of 127, those that are clipped")
    depth = 9
    pairs = list(itertools.combinations(range(depth), 2))
    weights = np.zeros((depth, len(pairs)), np.int8)
    for column, pair in enumerate(pairs):
        weights[list(pair), column] = 127
    found = integer_product(np.full((4, depth), 255, np.uint8), weights)[0]
    clipped = [pair for column, pair in enumerate(pairs) if found[column] != 2 * 255 * 127]
    print(f"  MatMulInteger, depth {depth}: {clipped}")
    for channels, height, width in [(1, 3, 3), (3, 1, 3), (2, 2, 2)]:
        count = channels * height * width
        pairs = list(itertools.combinations(range(count), 2))
        weights = np.zeros((len(pairs), count), np.int8)
        for row, pair in enumerate(pairs):
            weights[row, list(pair)] = 127
        shape = [1, channels, height + 1, width + 1]
        weights = weights.reshape(len(pairs), channels, height, width)
        model, feeds = qdq("Conv", shape, weights, 2 * 255 * 127), {"x": np.full(shape, 255, np.float32)}
        found, exact = (session(model, on).run(None, feeds)[0][0, :, 0, 0] for on in (True, False))
        places = height * width
        clipped = [
            tuple(divmod(index, places) for index in pair)
            for row, pair in enumerate(pairs) if found[row] < 0.9 * exact[row]
        ]
        print(f"  Conv, {channels} channels, kernel {height} x {width}, (channel, place): {clipped}")


def check_pass(optix):
    print("pass: its verdict on random weights, against activations that are clipped if any are")
    random, wrong, clipped_layers = np.random.default_rng(0), 0, 0
    with tempfile.TemporaryDirectory() as directory:
        place = pathlib.Path(directory)
        (place / "certify.toml").write_text('version = 1\n[[step]]\npass = "certify-overflow"\n')
        for number in range(60):
            # Around the limit: two weights of one sign go beyond 128 in some of them only.
            limit = int(random.integers(56, 128))
            depth, columns = int(random.integers(1, 12)), int(random.integers(1, 4))
            weights = random.integers(-limit, limit + 1, (depth, columns)).astype(np.int8)
            onnx.save(qdq("MatMul", [4, depth], weights, 255 * 127 * depth), place / "m.onnx")
            line = [optix, "run", "./certify.toml", "m.onnx", "-o", "out.onnx", "--json", "--lock", "never"]
            done = subprocess.run(line, cwd=place, check=True, capture_output=True, text=True)
            layer = json.loads(done.stdout)["steps"][0]["changes"]["layers"][0]
            clipped = False
            for column in range(columns):
                for sign in (1, -1):
                    a = np.where(sign * weights[:, column] > 0, 255, 0).astype(np.uint8)
                    a = np.tile(a, (4, 1))
                    exact = a.astype(np.int64) @ weights.astype(np.int64)
                    clipped |= bool((integer_product(a, weights)[:, column] != exact[:, column]).any())
            clipped_layers += clipped
            said = {"proven": False, "pairs may saturate": True}[layer["action"]]
            if clipped != said:
                wrong += 1
                print(f"  {number}: {layer['action']}, and {'something' if clipped else 'nothing'} is clipped")
    print(f"  60 layers, {clipped_layers} of them clipped, {wrong} verdicts differ from what was seen")
    return wrong


def unsigned(model):
    """The model with its int8 weights as uint8: the same numbers."""
    model = onnx.load(model)
    constants = {constant.name: constant for constant in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in constants:
            continue
        weights = numpy_helper.to_array(constants[node.input[0]])
        if weights.dtype != np.int8:
            continue
        zeros = numpy_helper.to_array(constants[node.input[2]])
        for slot, array in ((0, weights), (2, zeros)):
            name = f"{node.output[0]}_unsigned_{slot}"
            moved = (array.astype(np.int16) + 128).astype(np.uint8)
            model.graph.initializer.append(numpy_helper.from_array(moved, name))
            node.input[slot] = name
    return model


def show_cost(arguments):
    data = np.load(arguments.data)
    reference = session(arguments.float)

    def feeds(index):
        found = {}
        for value in reference.get_inputs():
            sample = data[value.name if value.name in data else data.files[0]][index]
            found[value.name] = sample[None] if sample.ndim == len(value.shape) - 1 else sample
        return found

    samples = [feeds(index) for index in range(arguments.samples)]
    outputs = lambda one: np.concatenate([one.run(None, sample)[0].ravel() for sample in samples])
    expected = outputs(reference).astype(np.float64)
    print(f"model: SQNR of {arguments.int8} to {arguments.float} on {arguments.samples} samples, dB")
    for name, one in [
        ("int8 weights", session(arguments.int8)),
        ("uint8 weights", session(unsigned(arguments.int8))),
        ("emulated in float", session(arguments.int8, optimize=False)),
    ]:
        noise = ((expected - outputs(one)) ** 2).sum()
        print(f"  {name:18} {10 * np.log10((expected ** 2).sum() / noise):6.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optix", default="target/release/optix")
    parser.add_argument("--float", help="the float model")
    parser.add_argument("--int8", help="the same in QDQ")
    parser.add_argument("--data", help="samples, .npz")
    parser.add_argument("--samples", type=int, default=8)
    arguments = parser.parse_args()
    print(f"onnxruntime {onnxruntime.__version__}")
    show_types()
    show_pairs()
    wrong = check_pass(pathlib.Path(arguments.optix).resolve())
    if arguments.float:
        show_cost(arguments)
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
