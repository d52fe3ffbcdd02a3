"""Runs small random one-node models in onnxruntime and packs them, its answers included, as operator cases.

    pip install -r requirements.txt
    python make_contrib_cases.py [--out ../../fixtures/contrib/cases.bin.gz]

The operators of the domain com.microsoft have no cases in the standard, and of some standard operators (recurrent layers)
the standard's cases leave most forms out. Each case is one node run by onnxruntime's CPU kernels, graph optimizations off.
The format is that of fixtures/node, whose packing script writes it. Integer results are the runtime's own rounding.
"""

import argparse
import gzip
import hashlib
import io
import itertools
import pathlib
import sys
import zlib
from collections import namedtuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "fixtures" / "node"))
import pack  # noqa: E402

MS = "com.microsoft"
Case = namedtuple("Case", "name model data_sets rtol atol")
CASES = []


class Random:
    """Numbers that depend on the case's name alone, so that adding a case leaves the others as they are."""

    def __init__(self, name):
        self.rng = np.random.default_rng(zlib.crc32(name.encode()))

    def f(self, *shape, dtype=np.float32, scale=1.0):
        return (self.rng.standard_normal(shape) * scale).astype(dtype)

    def u(self, low, high, *shape, dtype=np.float32):
        return self.rng.uniform(low, high, shape).astype(dtype)

    def i(self, low, high, *shape, dtype=np.int64):
        return self.rng.integers(low, high, shape, endpoint=True).astype(dtype)

    def q(self, *shape, dtype=np.uint8):
        info = np.iinfo(dtype)
        return self.i(info.min, info.max, *shape, dtype=dtype)


def case(name, op, make, outputs=1, domain=MS, opset=21, rtol=1e-3, atol=1e-5, node=None, **attributes):
    """make: from a Random to the list of inputs, None where omitted. outputs: a number, or names with "" where omitted.
    node: attributes whose names are parameters here."""
    attributes |= node or {}
    inputs = make(Random(name))
    names = [f"x{k}" if x is not None else "" for k, x in enumerate(inputs)]
    results = [f"y{k}" for k in range(outputs)] if isinstance(outputs, int) else outputs
    feeds = {n: x for n, x in zip(names, inputs, strict=True) if n}
    declared = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for n, x in feeds.items()]
    node = helper.make_node(op, names, results, domain=domain, **{k: v for k, v in attributes.items() if v is not None})
    wanted = [r for r in results if r]
    sets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    model = lambda infos: helper.make_model(
        helper.make_graph([node], name, declared, infos), opset_imports=sets, ir_version=10, producer_name="optix"
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    untyped = model([onnx.ValueInfoProto(name=r) for r in wanted])
    session = ort.InferenceSession(untyped.SerializeToString(), options, providers=["CPUExecutionProvider"])
    got = session.run(wanted, feeds)
    infos = [helper.make_tensor_value_info(r, helper.np_dtype_to_tensor_dtype(y.dtype), y.shape) for r, y in zip(wanted, got)]
    CASES.append(Case(name, model(infos), [(list(feeds.values()), got)], rtol, atol))


def recurrent():
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}
    length, batch, width, hidden = 4, 3, 2, 3

    def make(op, r, directions=1, layout=0, bias=True, lens=None, h0=True, c0=True, peep=False):
        g = gates[op]
        swap = lambda x: np.ascontiguousarray(x.swapaxes(0, 1)) if layout else x
        inputs = [
            swap(r.f(length, batch, width)), r.f(directions, g * hidden, width), r.f(directions, g * hidden, hidden),
            r.f(directions, 2 * g * hidden) if bias else None,
            np.array(lens, np.int32) if lens else None,
            swap(r.f(directions, batch, hidden)) if h0 else None,
        ]  # fmt: skip
        if op == "LSTM":
            inputs.append(swap(r.f(directions, batch, hidden)) if c0 else None)
            inputs.append(r.f(directions, 3 * hidden) if peep else None)
        return inputs

    for op, number in (("RNN", 1), ("GRU", 2), ("LSTM", 3)):
        low = op.lower()
        outs = 3 if op == "LSTM" else 2
        run = lambda name, kwargs={}, **attributes: case(
            f"{low}_{name}", op, lambda r: make(op, r, **kwargs), outputs=outs, domain="", opset=14, hidden_size=hidden, **attributes
        )
        run("forward")
        run("reverse", direction="reverse")
        run("bidirectional", dict(directions=2), direction="bidirectional")
        run("lengths", dict(lens=[4, 1, 3]))
        run("reverse_lengths", dict(lens=[2, 4, 1]), direction="reverse")
        run("bidirectional_lengths", dict(directions=2, lens=[2, 4, 1]), direction="bidirectional")
        run("plain", dict(bias=False, h0=False, c0=False))
        # Of a cell beyond the clip, onnxruntime and the standard think differently.
        run("clip", clip=3.0 if op == "LSTM" else 0.4)
        for activation, alpha, beta in (
            ("Relu", None, None), ("Affine", 0.7, 0.1), ("LeakyRelu", 0.2, None), ("LeakyRelu", None, None),
            ("ThresholdedRelu", 0.3, None), ("ScaledTanh", 0.6, 1.3), ("HardSigmoid", 0.3, 0.4),
            ("Elu", 0.8, None), ("Softsign", None, None), ("Softplus", None, None), ("Sigmoid", None, None),
        ):  # fmt: skip
            many = lambda x: [x] * max(number - 1, 1) if x is not None else None
            given = "" if alpha is not None or activation not in ("LeakyRelu",) else "_default"
            # Gates that are no gates let the state grow without bounds.
            gate = ["Sigmoid"] if number > 1 else []
            run(f"activation_{activation.lower()}{given}", activations=gate + [activation] * (number - len(gate)),
                activation_alpha=many(alpha), activation_beta=many(beta))  # fmt: skip
    case("gru_linear_before_reset", "GRU", lambda r: make("GRU", r), 2, "", 14, hidden_size=hidden, linear_before_reset=1)
    case("gru_linear_before_reset_bidirectional", "GRU", lambda r: make("GRU", r, directions=2), 2, "", 14, hidden_size=hidden,
         linear_before_reset=1, direction="bidirectional")  # fmt: skip
    case("gru_mixed_activations", "GRU", lambda r: make("GRU", r, directions=2), 2, "", 14, hidden_size=hidden, direction="bidirectional",
         activations=["HardSigmoid", "Tanh", "Sigmoid", "LeakyRelu"], activation_alpha=[0.3, 0.2], activation_beta=[0.4])  # fmt: skip
    for name, extra in (("", {}), ("_bidirectional", dict(directions=2)), ("_lengths", dict(lens=[1, 4, 2]))):
        direction = "bidirectional" if "directions" in extra else "forward"
        case(f"lstm_peepholes{name}", "LSTM", lambda r: make("LSTM", r, peep=True, **extra), 3, "", 14, hidden_size=hidden, direction=direction)
        case(f"lstm_peepholes_clip{name}", "LSTM", lambda r: make("LSTM", r, peep=True, **extra), 3, "", 14, hidden_size=hidden,
             direction=direction, clip=1.5)  # fmt: skip
    case("lstm_input_forget", "LSTM", lambda r: make("LSTM", r), 3, "", 14, hidden_size=hidden, input_forget=1)
    case("lstm_only_last_cell", "LSTM", lambda r: make("LSTM", r), ["", "", "c"], "", 14, hidden_size=hidden)


def products():
    def blocked(r, k, n, bits, block, dtype=np.float32, zero=None, g_idx=False, bias=False, rows=(3,)):
        blocks = -(-k // block)
        b = r.i(0, 255, n, blocks, block * bits // 8, dtype=np.uint8)
        scales = r.u(0.01, 0.1, n, blocks, dtype=dtype)
        zeros = None
        if zero == "packed":
            zeros = r.i(0, 255, n, -(-blocks * bits // 8), dtype=np.uint8)
        elif zero == "float":
            zeros = r.u(0, 2**bits - 1, n, blocks, dtype=dtype)
        inputs = [r.f(*rows, k, dtype=dtype), b, scales, zeros, None, None]
        if g_idx:
            inputs[4] = r.i(0, blocks - 1, k, dtype=np.int32)
        if bias:
            inputs[5] = r.f(n, dtype=dtype)
        return inputs

    for bits, block in itertools.product((2, 4, 8), (16, 32)):
        for zero in (None, "packed"):
            name = f"matmul_nbits_{bits}_block{block}_{zero or 'middle'}"
            case(name, "MatMulNBits", lambda r: blocked(r, 70, 5, bits, block, zero=zero), K=70, N=5, bits=bits, block_size=block, atol=1e-4)
    nbits = dict(K=70, N=5, bits=4, block_size=16, atol=1e-4)
    case("matmul_nbits_float_zero", "MatMulNBits", lambda r: blocked(r, 70, 5, 4, 16, zero="float"), **nbits)
    case("matmul_nbits_bias", "MatMulNBits", lambda r: blocked(r, 70, 5, 4, 16, bias=True), **nbits)
    case("matmul_nbits_stack", "MatMulNBits", lambda r: blocked(r, 70, 5, 4, 16, rows=(2, 3)), **nbits)
    case("matmul_nbits_g_idx", "MatMulNBits", lambda r: blocked(r, 70, 5, 4, 16, g_idx=True), **nbits)
    case("matmul_nbits_fp16", "MatMulNBits", lambda r: blocked(r, 70, 5, 4, 16, dtype=np.float16), **{**nbits, "atol": 1e-2})

    scale = lambda r, *s: r.u(0.01, 0.05, *s)
    for b_type, per in itertools.product((np.uint8, np.int8), (False, True)):
        shape = (5,) if per else ()
        kind = f"{np.dtype(b_type).name}{'_columns' if per else ''}"
        case(f"dynamic_quantize_matmul_{kind}", "DynamicQuantizeMatMul",
             lambda r: [r.f(3, 4), r.q(4, 5, dtype=b_type), scale(r, *shape), r.i(-9 if b_type == np.int8 else 0, 9, *shape, dtype=b_type),
                        r.f(5)], atol=1e-4)  # fmt: skip
        for a_type in (np.uint8, np.int8):
            if (a_type, b_type) == (np.int8, np.uint8):
                continue
            case(f"matmul_integer_to_float_{np.dtype(a_type).name}_{kind}", "MatMulIntegerToFloat",
                 lambda r: [r.q(2, 3, 4, dtype=a_type), r.q(4, 5, dtype=b_type), scale(r), scale(r, *shape), r.i(0, 9, dtype=a_type),
                            r.i(0, 9, *shape, dtype=b_type), r.f(5)])  # fmt: skip
    case("matmul_integer_to_float_plain", "MatMulIntegerToFloat", lambda r: [r.q(3, 4), r.q(4, 5), scale(r), scale(r)])
    case("dynamic_quantize_matmul_plain", "DynamicQuantizeMatMul", lambda r: [r.f(3, 4), r.q(4, 5), scale(r)], atol=1e-4)

    for a, b in itertools.product((0, 1), (0, 1)):
        case(f"fused_matmul_{a}{b}", "FusedMatMul", lambda r: [r.f(2, *((4, 3) if a else (3, 4))), r.f(2, *((5, 4) if b else (4, 5)))],
             transA=a, transB=b, alpha=0.5)  # fmt: skip
        case(f"fused_gemm_{a}{b}", "FusedGemm", lambda r: [r.f(*((4, 3) if a else (3, 4))), r.f(*((5, 4) if b else (4, 5))), r.f(5)],
             transA=a, transB=b, alpha=0.5, beta=2.0, activation="LeakyRelu", activation_alpha=0.1)  # fmt: skip
        case(f"q_gemm_{a}{b}_alpha", "QGemm",
             lambda r: [r.q(*((4, 3) if a else (3, 4))), scale(r), r.q(), r.q(*((5, 4) if b else (4, 5)), dtype=np.int8), scale(r),
                        np.int8(3)[...], r.i(-999, 999, 5, dtype=np.int32)], transA=a, transB=b, alpha=0.5)  # fmt: skip
        for c, y in itertools.product((False, True), (False, True)):
            tail = [np.float32(0.2)[...], np.uint8(100)[...]] if y else []
            case(f"q_gemm_{a}{b}{'_bias' if c else ''}{'' if y else '_float'}", "QGemm",
                 lambda r: [r.q(*((4, 3) if a else (3, 4))), scale(r), r.q(), r.q(*((5, 4) if b else (4, 5)), dtype=np.int8), scale(r),
                            np.int8(3)[...], r.i(-999, 999, 5, dtype=np.int32) if c else None, *tail], transA=a, transB=b)  # fmt: skip
    case("q_gemm_columns", "QGemm",
         lambda r: [r.q(3, 4), scale(r), r.q(), r.q(4, 5, dtype=np.int8), scale(r, 5), r.i(-5, 5, 5, dtype=np.int8),
                    r.i(-999, 999, 5, dtype=np.int32), np.float32(0.2)[...], np.uint8(100)[...]])  # fmt: skip
    for kind, alpha in (("Relu", None), ("LeakyRelu", [0.2]), ("Tanh", None), ("Sigmoid", None), ("Clip", [-0.5, 0.5]), ("HardSigmoid", [0.3, 0.4])):
        case(f"fused_conv_{kind.lower()}", "FusedConv", lambda r: [r.f(1, 2, 5, 5), r.f(3, 2, 3, 3), r.f(3)], pads=[1, 1, 1, 1], kernel_shape=[3, 3],
             activation=kind, activation_params=alpha)  # fmt: skip
    case("fused_conv_sum", "FusedConv", lambda r: [r.f(1, 2, 5, 5), r.f(3, 2, 3, 3), r.f(3), r.f(1, 3, 5, 5)], pads=[1, 1, 1, 1], kernel_shape=[3, 3],
         activation="Relu")  # fmt: skip


def activations_and_norms():
    case("gelu", "Gelu", lambda r: [r.f(3, 7, scale=3)])
    case("quick_gelu", "QuickGelu", lambda r: [r.f(3, 7, scale=3)])
    case("quick_gelu_alpha", "QuickGelu", lambda r: [r.f(3, 7, scale=3)], alpha=0.9)
    case("bias_gelu", "BiasGelu", lambda r: [r.f(2, 3, 7, scale=3), r.f(7)])
    case("fast_gelu", "FastGelu", lambda r: [r.f(2, 3, 7, scale=3)])
    case("fast_gelu_bias", "FastGelu", lambda r: [r.f(2, 3, 7, scale=3), r.f(7)])
    case("fast_gelu_fp16", "FastGelu", lambda r: [r.f(2, 3, 7, dtype=np.float16)], rtol=2e-3, atol=2e-3)
    case("simplified_layer_norm", "SimplifiedLayerNormalization", lambda r: [r.f(2, 3, 7), r.f(7)], 1, "", epsilon=1e-5)
    case("simplified_layer_norm_axis", "SimplifiedLayerNormalization", lambda r: [r.f(2, 3, 7), r.f(3, 7)], 2, "", epsilon=0.1, axis=1)
    for name, skip in (("", (2, 3, 7)), ("_one_batch", (1, 3, 7)), ("_flat", (3, 7))):
        case(f"skip_layer_norm{name}", "SkipLayerNormalization", lambda r: [r.f(2, 3, 7), r.f(*skip), r.f(7), r.f(7), r.f(7)],
             ["y", "", "", "sum"], epsilon=1e-5)  # fmt: skip
        case(f"skip_simplified_layer_norm{name}", "SkipSimplifiedLayerNormalization", lambda r: [r.f(2, 3, 7), r.f(*skip), r.f(7), r.f(7)],
             ["y", "", "", "sum"], epsilon=1e-5)  # fmt: skip
    case("skip_layer_norm_plain", "SkipLayerNormalization", lambda r: [r.f(4, 7), r.f(4, 7), r.f(7)])
    case("skip_simplified_layer_norm_plain", "SkipSimplifiedLayerNormalization", lambda r: [r.f(4, 7), r.f(4, 7), r.f(7)])
    case("skip_layer_norm_fp16", "SkipLayerNormalization", lambda r: [r.f(2, 3, 8, dtype=np.float16) for _ in range(2)] + [r.f(8, dtype=np.float16)],
         rtol=2e-3, atol=2e-3)  # fmt: skip
    embed = lambda r: [r.i(0, 5, 2, 3, dtype=np.int32), r.i(0, 1, 2, 3, dtype=np.int32), r.f(6, 4), r.f(5, 4), r.f(2, 4), r.f(4), r.f(4)]
    case("embed_layer_norm", "EmbedLayerNormalization", embed, 2)
    case("embed_layer_norm_mask", "EmbedLayerNormalization", lambda r: embed(r) + [np.array([[1, 1, 0], [1, 0, 0]], np.int32)], 2)
    case("embed_layer_norm_positions", "EmbedLayerNormalization", lambda r: embed(r) + [None, r.i(0, 4, 2, 3, dtype=np.int32)], 3, epsilon=0.01)

    def segmentless(r):
        inputs = embed(r)
        inputs[1] = inputs[4] = None
        return inputs

    case("embed_layer_norm_no_segments", "EmbedLayerNormalization", segmentless, 2)


def quantized():
    scale = lambda r: r.u(0.01, 0.05)
    for t in (np.uint8, np.int8):
        kind = np.dtype(t).name
        point = lambda r: r.i(-20 if t == np.int8 else 90, 40 if t == np.int8 else 160, dtype=t)
        for op in ("Add", "Mul"):
            for name, a, b in (("", (2, 3, 17), (2, 3, 17)), ("_row", (2, 3, 17), (17,)), ("_scalar", (2, 3, 17), (1,)), ("_spread", (2, 1, 5), (3, 1))):
                case(f"qlinear_{op.lower()}_{kind}{name}", f"QLinear{op}",
                     lambda r: [r.q(*a, dtype=t), scale(r), point(r), r.q(*b, dtype=t), scale(r), point(r), r.u(0.03, 0.06), point(r)])  # fmt: skip
        case(f"qlinear_concat_{kind}", "QLinearConcat",
             lambda r: [scale(r), point(r), r.q(2, 3, 4, dtype=t), scale(r), point(r), r.q(2, 2, 4, dtype=t), scale(r), point(r)], axis=1)  # fmt: skip
        for name, attributes in (
            ("", {}), ("_pads", dict(pads=[1, 1, 1, 1])), ("_include", dict(pads=[1, 1, 1, 1], count_include_pad=1)), ("_strides", dict(strides=[2, 1])),
        ):  # fmt: skip
            case(f"qlinear_average_pool_{kind}{name}", "QLinearAveragePool",
                 lambda r: [r.q(1, 3, 6, 5, dtype=t), scale(r), point(r), scale(r), point(r)], kernel_shape=[3, 2], **attributes)  # fmt: skip
        case(f"qlinear_average_pool_{kind}_last", "QLinearAveragePool",
             lambda r: [r.q(2, 6, 5, 3, dtype=t), scale(r), point(r), scale(r), point(r)], kernel_shape=[3, 2], channels_last=1)  # fmt: skip
        case(f"qlinear_global_average_pool_{kind}", "QLinearGlobalAveragePool",
             lambda r: [r.q(2, 3, 6, 5, dtype=t), scale(r), point(r), scale(r), point(r)])  # fmt: skip
        case(f"qlinear_global_average_pool_{kind}_last", "QLinearGlobalAveragePool",
             lambda r: [r.q(2, 6, 5, 3, dtype=t), scale(r), point(r), scale(r), point(r)], channels_last=1)  # fmt: skip
        case(f"qlinear_leaky_relu_{kind}", "QLinearLeakyRelu", lambda r: [r.q(60, dtype=t), scale(r), point(r), scale(r), point(r)], alpha=0.2)
        case(f"qlinear_sigmoid_{kind}", "QLinearSigmoid",
             lambda r: [r.q(60, dtype=t), scale(r), point(r), np.float32(1 / 256)[...], np.array(np.iinfo(t).min, t)])  # fmt: skip
        case(f"qlinear_where_{kind}", "QLinearWhere",
             lambda r: [r.i(0, 1, 3, 1).astype(bool), r.q(3, 4, dtype=t), scale(r), point(r), r.q(4, dtype=t), scale(r), point(r), scale(r), point(r)])  # fmt: skip
        case(f"ms_quantize_{kind}", "QuantizeLinear", lambda r: [r.f(3, 4, scale=3), scale(r), point(r)])
        case(f"ms_quantize_{kind}_channels", "QuantizeLinear", lambda r: [r.f(3, 4, scale=3), r.u(0.01, 0.05, 3), r.i(0, 9, 3, dtype=t)], axis=0)
        case(f"ms_dequantize_{kind}", "DequantizeLinear", lambda r: [r.q(3, 4, dtype=t), scale(r), point(r)])
        case(f"ms_dequantize_{kind}_channels", "DequantizeLinear", lambda r: [r.q(3, 4, dtype=t), r.u(0.01, 0.05, 4), r.i(0, 9, 4, dtype=t)], axis=1)
    for t in (np.uint16, np.int16):
        kind = np.dtype(t).name
        case(f"ms_quantize_{kind}", "QuantizeLinear", lambda r: [r.f(3, 4, scale=30), r.u(0.001, 0.002), r.i(0, 999, dtype=t)])
        case(f"ms_dequantize_{kind}", "DequantizeLinear", lambda r: [r.q(3, 4, dtype=t), scale(r), r.i(0, 999, dtype=t)])
    case("ms_dequantize_int32", "DequantizeLinear", lambda r: [r.i(-99999, 99999, 3, 4, dtype=np.int32), scale(r)])


def softmaxes():
    for t, (version, axis) in itertools.product((np.uint8, np.int8), ((13, 2), (13, 1), (12, 1))):
        point = lambda r: r.i(-20 if t == np.int8 else 90, 40 if t == np.int8 else 160, dtype=t)
        case(f"qlinear_softmax_{np.dtype(t).name}_{version}_{axis}", "QLinearSoftmax",
             lambda r: [r.q(2, 3, 10, dtype=t), r.u(0.01, 0.05), point(r), np.float32(1 / 256)[...], np.array(np.iinfo(t).min, t)],
             node={"opset": version}, axis=axis)  # fmt: skip


def tables(r, positions, half):
    angles = np.arange(positions)[:, None] * (1.0 / 100 ** (np.arange(half) / half))[None]
    return [np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)]


def attentions():
    for interleaved, rank in itertools.product((0, 1), (3, 4)):
        shape = (2, 3, 4, 6) if rank == 4 else (2, 4, 18)
        name = f"ms_rotary_{rank}d{'_interleaved' if interleaved else ''}"
        heads = dict(num_heads=3) if rank == 3 else {}
        case(name, "RotaryEmbedding", lambda r: [r.f(*shape), r.i(0, 8, 2, 4), *tables(r, 9, 3)], interleaved=interleaved, **heads)
        case(f"{name}_offset", "RotaryEmbedding", lambda r: [r.f(*shape), np.array([3]), *tables(r, 9, 3)], interleaved=interleaved, **heads)
    case("ms_rotary_plain", "RotaryEmbedding", lambda r: [r.f(2, 4, 18), r.i(0, 8, 2, 4), *tables(r, 9, 3)])
    case("ms_rotary_partial", "RotaryEmbedding", lambda r: [r.f(2, 4, 24), r.i(0, 8, 2, 4), *tables(r, 9, 2)], num_heads=3, rotary_embedding_dim=4)

    # MultiHeadAttention: query, key, value, bias, key_padding_mask, attention_bias, past_key, past_value
    b, s, t, heads, size = 2, 3, 5, 2, 4
    d = heads * size
    mha = lambda name, make, outputs=1, **attributes: case(f"mha_{name}", "MultiHeadAttention", make, outputs, num_heads=heads, **attributes)
    qkv = lambda r, kv=t: [r.f(b, s, d), r.f(b, kv, d), r.f(b, kv, d)]
    mha("plain", qkv)
    mha("scale", qkv, scale=0.3)
    mha("value_size", lambda r: [r.f(b, s, d), r.f(b, t, d), r.f(b, t, heads * 3)])
    mha("bias", lambda r: qkv(r) + [r.f(3 * d)])
    mha("causal", lambda r: qkv(r, s), unidirectional=1)
    mha("mask_lengths", lambda r: qkv(r) + [None, np.array([5, 2], np.int32)])
    mha("mask", lambda r: qkv(r) + [None, r.i(0, 1, b, t, dtype=np.int32)])
    mha("mask_filter", lambda r: qkv(r) + [None, r.i(0, 1, b, t, dtype=np.int32)], mask_filter_value=-3.0)
    for name, shape in (("full", (b, heads, s, t)), ("one", (1, 1, s, t)), ("heads", (1, heads, s, t)), ("batch", (b, 1, s, t))):
        mha(f"attention_bias_{name}", lambda r: qkv(r) + [None, None, r.f(*shape)])
    past = lambda r: [r.f(b, heads, 2, size), r.f(b, heads, 2, size)]
    mha("past", lambda r: qkv(r, s) + [None, None, None, *past(r)], 3)
    mha("past_causal", lambda r: qkv(r, s) + [None, None, None, *past(r)], 3, unidirectional=1)
    mha("past_bias", lambda r: qkv(r, s) + [r.f(3 * d), None, r.f(b, heads, s, s + 2), *past(r)], 3)
    mha("present", lambda r: qkv(r, s), 3)
    mha("cross", lambda r: [r.f(b, s, d), r.f(b, heads, t, size), r.f(b, heads, t, size)])

    # Attention: input, weights, bias, mask_index, past, attention_bias
    attention = lambda name, make, outputs=1, **attributes: case(f"ms_attention_{name}", "Attention", make, outputs, num_heads=heads, **attributes)
    start = lambda r: [r.f(b, s, 6), r.f(6, 3 * d, scale=0.5), r.f(3 * d)]
    attention("plain", start)
    attention("no_bias", lambda r: start(r)[:2])
    attention("scale", start, scale=0.3)
    attention("causal", start, unidirectional=1)
    attention("mask_lengths", lambda r: start(r) + [np.array([3, 1], np.int32)])
    attention("mask_ends_and_starts", lambda r: start(r) + [np.array([3, 2, 0, 1], np.int32)])
    attention("mask", lambda r: start(r) + [np.array([[1, 1, 0], [0, 1, 1]], np.int32)])
    attention("mask_causal", lambda r: start(r) + [np.array([[1, 1, 0], [0, 1, 1]], np.int32)], unidirectional=1)
    attention("mask_3d", lambda r: start(r) + [r.i(0, 1, b, s, s, dtype=np.int32)])
    attention("bias", lambda r: start(r) + [None, None, r.f(b, heads, s, s)])
    attention("past", lambda r: start(r) + [None, r.f(2, b, heads, 2, size)], 2)
    attention("past_causal", lambda r: start(r) + [None, r.f(2, b, heads, 2, size)], 2, unidirectional=1)
    attention("past_mask", lambda r: start(r) + [np.array([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]], np.int32), r.f(2, b, heads, 2, size)], 2)
    attention("present", start, 2)
    attention("sizes", lambda r: [r.f(b, s, 6), r.f(6, 8 + 8 + 4, scale=0.5), r.f(20)], qkv_hidden_sizes=[8, 8, 4])

    # GroupQueryAttention: query, key, value, past_key, past_value, seqlens_k, total_sequence_length, cos, sin, position_ids, attention_bias
    q_heads, kv_heads, size, buffer = 4, 2, 16, 7
    gqa = lambda name, make, **attributes: case(
        f"gqa_{name}", "GroupQueryAttention", make, 3, num_heads=q_heads, kv_num_heads=kv_heads, **attributes
    )

    def group(r, now, before, buffer=buffer, packed=False):
        """before: how many positions of the past each sample has."""
        wide, narrow = q_heads * size, kv_heads * size
        if packed:
            inputs = [r.f(len(before), now, wide + 2 * narrow), None, None]
        else:
            inputs = [r.f(len(before), now, wide), r.f(len(before), now, narrow), r.f(len(before), now, narrow)]
        first = max(before) == 0
        cache = [r.f(len(before), kv_heads, buffer, size) for _ in range(2)] if buffer else [None, None]
        lens = np.array([x + now - 1 for x in before], np.int32)
        return inputs + cache + [lens, np.array([max(before) + now], np.int32)]

    gqa("prompt", lambda r: group(r, 3, [0, 0], buffer=0))
    gqa("prompt_buffer", lambda r: group(r, 3, [0, 0]))
    gqa("prompt_rotary", lambda r: group(r, 3, [0, 0], buffer=0) + tables(r, 9, 8), do_rotary=1)
    gqa("prompt_packed", lambda r: group(r, 3, [0, 0], buffer=0, packed=True))
    gqa("prompt_window", lambda r: group(r, 5, [0, 0], buffer=0), local_window_size=2)
    gqa("prompt_softcap", lambda r: group(r, 3, [0, 0], buffer=0), softcap=1.5)
    gqa("prompt_smooth", lambda r: group(r, 3, [0, 0], buffer=0), smooth_softmax=1)
    gqa("prompt_scale", lambda r: group(r, 3, [0, 0], buffer=0), scale=0.1)
    gqa("token", lambda r: group(r, 1, [5, 5], buffer=5))
    gqa("token_ragged", lambda r: group(r, 1, [2, 5], buffer=5))
    gqa("token_rotary", lambda r: group(r, 1, [2, 5], buffer=5) + tables(r, 9, 8), do_rotary=1)
    gqa("token_rotary_interleaved", lambda r: group(r, 1, [2, 5], buffer=5) + tables(r, 9, 8), do_rotary=1, rotary_interleaved=1)
    gqa("token_rotary_packed", lambda r: group(r, 1, [2, 5], buffer=5, packed=True) + tables(r, 9, 8), do_rotary=1)
    gqa("token_window", lambda r: group(r, 1, [2, 5], buffer=5), local_window_size=3)
    gqa("token_buffer", lambda r: group(r, 1, [2, 5]))
    gqa("chunk", lambda r: group(r, 3, [4], buffer=4))
    gqa("chunk_rotary", lambda r: group(r, 3, [4], buffer=4) + tables(r, 9, 8), do_rotary=1)
    gqa("attention_bias", lambda r: group(r, 3, [0, 0], buffer=0) + [None, None, None, r.f(2, 4, 3, 3)])
    gqa("fp16", lambda r: [x.astype(np.float16) if x is not None and x.dtype == np.float32 else x for x in group(r, 3, [0, 0], buffer=0)],
        rtol=4e-3, atol=2e-3)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "fixtures" / "contrib" / "cases.bin.gz")
    options = parser.parse_args()
    for part in (recurrent, products, activations_and_norms, quantized, softmaxes, attentions):
        part()
    cases = sorted(CASES, key=lambda case: case.name)
    raw, blobs = pack.payload(cases)
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=packed, mtime=0) as stream:
        stream.write(raw)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(packed.getvalue())
    print(f"{len(cases)} cases, {blobs} blobs")
    print(f"payload {len(raw)} bytes, sha256 {hashlib.sha256(raw).hexdigest()}")
    print(f"archive {len(packed.getvalue())} bytes, sha256 {hashlib.sha256(packed.getvalue()).hexdigest()}")


if __name__ == "__main__":
    main()
