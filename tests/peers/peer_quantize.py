"""The peer as a process of its own:  python peer_quantize.py static|dynamic SUBJECT OUT.onnx [options]

static   onnxruntime.quantization: quant_pre_process, then quantize_static in QDQ form, int8 weights per channel, uint8
         activations, min-max ranges over the first --samples calibration samples, one sample at a time as its readers do
dynamic  quantize_dynamic, int8 weights per channel
"""

import argparse
import os
import pathlib

import common


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=["static", "dynamic"])
    parser.add_argument("subject")
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--models", type=pathlib.Path)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--no-preprocess", action="store_true", help="leave quant_pre_process out (it fails on some models)")
    parser.add_argument("--per-tensor", action="store_true")
    options = parser.parse_args()
    options.out = options.out.resolve()
    subject = next(s for s in common.subjects(options.models) if s.name == options.subject)
    # onnxruntime leaves temporary files of failed runs in the working directory.
    os.chdir(options.out.parent)

    from onnxruntime import quantization

    per_channel = not options.per_tensor
    if options.method == "dynamic":
        quantization.quantize_dynamic(subject.path, options.out, weight_type=quantization.QuantType.QInt8, per_channel=per_channel)
        return

    class Reader(quantization.CalibrationDataReader):
        def __init__(self, arrays):
            count = min(options.samples, len(next(iter(arrays.values()))))
            self.feeds = iter([common.taken(arrays, i, min(subject.batch, 1)) for i in range(count)])

        def get_next(self):
            return next(self.feeds, None)

    source = subject.path
    if not options.no_preprocess:
        from onnxruntime.quantization.shape_inference import quant_pre_process

        source = options.out.with_suffix(".prepared.onnx")
        quant_pre_process(str(subject.path), str(source))
    quantization.quantize_static(
        str(source), str(options.out), Reader(subject.arrays("calib")[0]), quant_format=quantization.QuantFormat.QDQ,
        per_channel=per_channel, weight_type=quantization.QuantType.QInt8, activation_type=quantization.QuantType.QUInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
    )  # fmt: skip
    if source != subject.path:
        source.unlink()


if __name__ == "__main__":
    main()
