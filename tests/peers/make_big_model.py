"""Makes a large ONNX model for the figures on loading and saving:  python make_big_model.py OUT.onnx [--megabytes 500]

A chain of MatMul, Add and Relu with 1024 x 1024 weights stored inline (raw_data); random numbers, so that nothing can
be compressed or shared, from a fixed seed. The file is written tensor by tensor, never held in memory as a whole.
"""

import argparse
import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper

WIDTH = 1024


def varint(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def delimited(field, length):
    """Tag and length of a length-delimited protobuf field."""
    return varint(field << 3 | 2) + varint(length)


def weight(random, name, shape):
    data = (random.standard_normal(shape, dtype=np.float32) * np.float32(WIDTH**-0.5)).astype("<f4")
    return TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, raw_data=data.tobytes()).SerializeToString(deterministic=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--megabytes", type=int, default=500)
    options = parser.parse_args()
    layers = round(options.megabytes * 1e6 / (4 * WIDTH * WIDTH))

    nodes, before = [], "x"
    for k in range(layers):
        after = "y" if k == layers - 1 else f"r{k}"
        nodes.append(helper.make_node("MatMul", [before, f"w{k}"], [f"m{k}"], name=f"matmul_{k}"))
        nodes.append(helper.make_node("Add", [f"m{k}", f"b{k}"], [f"a{k}"], name=f"add_{k}"))
        nodes.append(helper.make_node("Relu", [f"a{k}"], [after], name=f"relu_{k}"))
        before = after
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", WIDTH])
    head = helper.make_graph(nodes, "big", [], []).SerializeToString(deterministic=True)
    tail = helper.make_graph([], "", [value("x")], [value("y")])
    tail.ClearField("name")
    tail = tail.SerializeToString(deterministic=True)

    shapes = [(f"{kind}{k}", shape) for k in range(layers) for kind, shape in (("w", [WIDTH, WIDTH]), ("b", [WIDTH]))]
    sizes = {}
    for kind, shape in (("w", [WIDTH, WIDTH]), ("b", [WIDTH])):
        empty = TensorProto(name=f"{kind}0", data_type=TensorProto.FLOAT, dims=shape).SerializeToString()
        data = 4 * int(np.prod(shape))
        sizes[kind] = len(empty) - len("w0") + len(delimited(9, data)) + data
    size = lambda name: sizes[name[0]] + len(name)
    body = len(head) + len(tail) + sum(len(delimited(5, size(name))) + size(name) for name, _ in shapes)

    outer = onnx.ModelProto(ir_version=10, producer_name="make_big_model.py").SerializeToString(deterministic=True)
    imports = onnx.ModelProto(opset_import=[helper.make_opsetid("", 21)]).SerializeToString(deterministic=True)
    random = np.random.Generator(np.random.PCG64(0))
    with open(options.out, "wb") as out:
        out.write(outer + delimited(7, body) + head)
        for name, shape in shapes:
            data = weight(random, name, shape)
            if len(data) != size(name):
                raise AssertionError(f"{name}: {len(data)} bytes, {size(name)} foreseen")
            out.write(delimited(5, len(data)) + data)
        out.write(tail + imports)
    print(f"{options.out}: {layers} layers, {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
