"""Weights alone in few bits: optix beside onnxruntime's MatMulNBitsQuantizer (default, HQQ, k_quant), whole processes.

    python weight_only.py --optix target/release/optix --models DIR [--bits 4] [--blocks 32,128] [--rounds 3]

MiniLM. Per file: mean squared error of the products' weights against the float ones (and relative to k_quant of the same
block size), SQNR of the outputs on the evaluation samples and accuracy of a probe on the embeddings, both in onnxruntime;
bytes; CPU seconds and peak memory of the process that made it. The peers leave embedding tables float, so does optix here
but for the rows that say "tables int8". HQQ needs the package torch.
"""

import argparse
import pathlib
import sys
import time

import common
import numpy as np


def make(algorithm, block, bits, source, out):
    """The peer: one algorithm in this process."""
    import onnx
    from onnxruntime.quantization import matmul_nbits_quantizer as q

    model = onnx.load(source)
    if algorithm == "hqq":
        config = q.HQQWeightOnlyQuantConfig(block_size=block, bits=bits)
    elif algorithm == "k_quant":
        config = q.KQuantWeightOnlyQuantConfig()
    else:
        config = None
    quantizer = q.MatMulNBitsQuantizer(
        model, bits=bits, block_size=block, is_symmetric=algorithm == "default-symmetric", accuracy_level=4, algo_config=config,
    )  # fmt: skip
    quantizer.process()
    quantizer.model.save_model_to_file(str(out), False)


def unpack(packed, bits, count):
    """Integers of `bits` bits along the last axis, the first in the lowest bits."""
    parts = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, -1).reshape(*packed.shape[:-1], -1)[..., :count]


def dequantized(model):
    """node name -> float weights [K,N] of every product whose weights are quantized."""
    from onnx import numpy_helper

    constants = {i.name: i for i in model.graph.initializer}
    array = lambda name: numpy_helper.to_array(constants[name])
    producers = {output: node for node in model.graph.node for output in node.output}
    found = {}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            a = {x.name: x.i for x in node.attribute}
            bits, block, depth, outputs = a["bits"], a["block_size"], a["K"], a["N"]
            blocks = -(-depth // block)
            integers = unpack(array(node.input[1]).reshape(outputs, blocks, -1), bits, block).astype(np.float64)
            scales = array(node.input[2]).reshape(outputs, blocks).astype(np.float64)
            zeros = np.full((outputs, blocks), 2.0 ** (bits - 1))
            if len(node.input) > 3 and node.input[3]:
                zeros = array(node.input[3])
                zeros = unpack(zeros.reshape(outputs, -1), bits, blocks) if zeros.dtype == np.uint8 else zeros.reshape(outputs, blocks)
            weights = (integers - zeros[..., None].astype(np.float64)) * scales[..., None]
            # The peers mark the names of nodes.
            found[node.name.removesuffix(f"_Q{bits}")] = weights.reshape(outputs, -1)[:, :depth].T
        elif node.op_type == "MatMul" and node.input[1] in producers and producers[node.input[1]].op_type == "DequantizeLinear":
            source = producers[node.input[1]]
            attributes = {x.name: x.i for x in source.attribute}
            integers, scales = array(source.input[0]).astype(np.float64), array(source.input[1]).astype(np.float64)
            zeros = array(source.input[2]).astype(np.float64) if len(source.input) > 2 else np.zeros_like(scales)
            if block := attributes.get("block_size", 0):
                spread = lambda x: np.repeat(x, block, axis=attributes["axis"]).take(range(integers.shape[attributes["axis"]]), attributes["axis"])
                scales, zeros = spread(scales), spread(zeros)
            found[node.name] = (integers - zeros) * scales
    return found


def weight_error(path, originals):
    """Mean squared error over all weights of products, and how many products are quantized."""
    import onnx

    found = dequantized(onnx.load(path))
    wrong = sum(np.square(weights - originals[name]).sum() for name, weights in found.items())
    return float(wrong / sum(originals[name].size for name in found)), len(found)


def k_quant(originals, block, bits):
    """Mean squared error and CPU seconds of onnxruntime's k_quant function alone: the process around it fails where a row of
    weights has an odd number of blocks."""
    from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

    wrong = count = 0.0
    start = time.process_time()
    for weights in originals.values():
        rows = np.pad(weights.T.astype(np.float32), ((0, 0), (0, -len(weights) % block))).reshape(-1, block)
        integers, scales, zeros = quant_tensor_k_quant_cpu(rows, bits, block)
        wrong += np.square((integers - zeros.astype(np.float64)) * scales - rows).sum()
        count += weights.size
    return float(wrong / count), time.process_time() - start


def main():
    if sys.argv[1:2] == ["--peer"]:
        algorithm, block, bits, source, out = sys.argv[2:]
        return make(algorithm, int(block), int(bits), source, out)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.arguments(parser)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--blocks", default="32,128")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=400, help="samples that outputs are judged on, and as many that the probe learns from")
    parser.add_argument("--only", help="optix's rows to make, separated by semicolons, such as \"mse;mse, qdq\"")
    parser.add_argument("--peers", default="default,default-symmetric,k_quant,hqq")
    options = parser.parse_args()
    if not options.models:
        parser.error("--models is needed")
    work = common.work_folder(options)
    subject = next(s for s in common.subjects(options.models) if s.name == "minilm")

    import onnx
    from onnx import numpy_helper

    model = onnx.load(subject.path)
    constants = {i.name: i for i in model.graph.initializer}
    products = [n for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in constants]
    originals = {n.name: numpy_helper.to_array(constants[n.input[1]]).astype(np.float64) for n in products}

    commands = {}
    for block in options.blocks.split(","):
        for algorithm in options.peers.split(","):
            name = f"onnxruntime {algorithm} b{block}"
            out = work / f"{name.replace(' ', '-')}.onnx"
            line = [common.python_of(options), pathlib.Path(__file__).resolve(), "--peer", algorithm, block, options.bits, subject.path, out]
            commands[name] = (line, out)
        if not options.optix:
            continue
        n_bits = ["format=matmul-n-bits"]
        variants = {
            "mse": [*n_bits, "embeddings=false"],
            "rtn": [*n_bits, "embeddings=false", "algorithm=rtn"],
            "hqq": [*n_bits, "embeddings=false", "algorithm=hqq", "zero-points=float"],
            "mse, symmetric": [*n_bits, "embeddings=false", "symmetric=true"],
            "mse, float zero points": [*n_bits, "embeddings=false", "zero-points=float"],
            "mse, qdq": ["embeddings=false"],
            "mse, tables int8": n_bits,
        }
        for variant, settings in variants.items():
            if options.only and variant not in options.only.split(";"):
                continue
            name = f"optix {variant} b{block}"
            out = work / f"{name.replace(' ', '-').replace(',', '')}.onnx"
            line = [options.optix, "quantize", subject.path, "-o", out, "--method", "weight-only", "--bits", options.bits]
            line += ["--block-size", block, "--progress", "never", "-q", *(x for s in settings for x in ("--set", f"quantize-weights.{s}"))]
            commands[name] = (line, out)
    costs = common.interleaved({name: line for name, (line, _) in commands.items()}, options.rounds, before=lambda name: commands[name][1].unlink(missing_ok=True))

    feeds, labels = subject.arrays("eval")
    first = lambda arrays: {name: value[: options.samples] for name, value in arrays.items()}
    feeds, labels = first(feeds), labels[: options.samples]
    with np.load(subject.folder / "train.npz") as train:
        inputs, train_labels = first({k: train[k] for k in train.files if k != "label"}), train["label"][: options.samples]
    embed = lambda path, feeds: common.outputs(path, feeds, subject.batch, subject.output)
    reference = embed(subject.path, feeds)
    score = common.probe(embed(subject.path, inputs), train_labels, reference, labels)
    rows = [["float", "", "", "", f"{score:.4f}", subject.path.stat().st_size // 1000, "", "", ""]]
    document = {"bits": options.bits, "version": common.optix_version(options.optix) if options.optix else None, "rows": {}}
    errors = {}
    for block in options.blocks.split(","):
        errors[block], seconds = k_quant(originals, int(block), options.bits)
        rows.append([f"onnxruntime k_quant b{block}, its function alone", f"{errors[block]:.4e}", "1.000", "", "", "", f"{seconds:.3f}", "", len(originals)])
        document["rows"][rows[-1][0]] = {"weight_mse": errors[block], "cpu_s": seconds}
    for name, (_, out) in commands.items():
        if isinstance(costs[name], str):
            rows.append([name, costs[name], *[""] * 7])
            document["rows"][name] = {"failed": costs[name]}
            continue
        common.note(name)
        error, count = weight_error(out, originals)
        base = errors[name.rsplit("b", 1)[1]]
        got = embed(out, feeds)
        row = {
            "weight_mse": error, "to_k_quant": error / base, "products": count,
            "sqnr_db": common.sqnr(reference, got),
            "probe": common.probe(embed(out, inputs), train_labels, got, labels), "bytes": out.stat().st_size,
            "cpu_s": common.median(costs[name], "cpu_s"), "peak_mb": common.median(costs[name], "peak_kb") / 1000,
        }  # fmt: skip
        document["rows"][name] = row
        rows.append([
            name, f"{error:.4e}", f"{error / base:.3f}", f"{row['sqnr_db']:.2f}", f"{row['probe']:.4f}", row["bytes"] // 1000,
            common.spread(costs[name], "cpu_s"), common.spread(costs[name], "peak_kb", 1e-3, 0), count,
        ])  # fmt: skip
    header = ["file", "weight MSE", "to k_quant", "SQNR dB", "probe", "KB", "CPU s", "peak MB", "products"]
    common.publish(options, "weight_only", common.table(header, rows), document)


if __name__ == "__main__":
    main()
