"""A peer as a process of its own:  python peer_quantize.py METHOD SUBJECT OUT.onnx [options]

static   onnxruntime.quantization: quant_pre_process, then quantize_static in QDQ form, int8 weights per channel, uint8
         activations, ranges by --calibrate over the first --samples calibration samples, one sample at a time as its readers do
dynamic  onnxruntime.quantization: quantize_dynamic, int8 weights per channel
nncf     nncf.quantize on the same samples; --full for its full bias correction, and the kind of model that --subject is
"""

import argparse
import os
import pathlib
import resource

import common


def samples(options, subject):
    arrays = subject.arrays("calib")[0]
    count = min(options.samples, len(next(iter(arrays.values()))))
    return [common.taken(arrays, i, min(subject.batch, 1)) for i in range(count)]


def by_onnxruntime(options, subject):
    from onnxruntime import quantization

    per_channel = not options.per_tensor
    if options.method == "dynamic":
        quantization.quantize_dynamic(subject.path, options.out, weight_type=quantization.QuantType.QInt8, per_channel=per_channel)
        return

    class Reader(quantization.CalibrationDataReader):
        def __init__(self, feeds):
            self.feeds = iter(feeds)

        def get_next(self):
            return next(self.feeds, None)

    source = subject.path
    if not options.no_preprocess:
        from onnxruntime.quantization.shape_inference import quant_pre_process

        source = options.out.with_suffix(".prepared.onnx")
        quant_pre_process(str(subject.path), str(source))
    kind = {"min-max": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}[options.calibrate]
    quantization.quantize_static(
        str(source), str(options.out), Reader(samples(options, subject)), quant_format=quantization.QuantFormat.QDQ,
        per_channel=per_channel, weight_type=quantization.QuantType.QInt8, activation_type=quantization.QuantType.QUInt8,
        calibrate_method=quantization.CalibrationMethod[kind],
    )  # fmt: skip
    if source != subject.path:
        source.unlink()


def by_nncf(options, subject):
    import nncf
    import onnx

    data = samples(options, subject)
    extra = {"model_type": nncf.ModelType.TRANSFORMER} if subject.judged == "embedding" else {}
    quantized = nncf.quantize(
        onnx.load(subject.path), nncf.Dataset(data), subset_size=len(data), fast_bias_correction=not options.full, **extra
    )
    onnx.save(quantized, options.out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=["static", "dynamic", "nncf"])
    parser.add_argument("subject")
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--models", type=pathlib.Path)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--calibrate", choices=["min-max", "entropy", "percentile"], default="min-max")
    parser.add_argument("--no-preprocess", action="store_true", help="leave quant_pre_process out (it fails on some models)")
    parser.add_argument("--per-tensor", action="store_true")
    parser.add_argument("--full", action="store_true", help="nncf: correct biases layer by layer instead of all at once")
    parser.add_argument("--memory", type=int, default=10, help="GiB of address space at most")
    options = parser.parse_args()
    # onnxruntime's histograms keep every activation of every sample: more than this is a failure.
    resource.setrlimit(resource.RLIMIT_AS, (options.memory << 30, options.memory << 30))
    options.out = options.out.resolve()
    subject = next(s for s in common.subjects(options.models) if s.name == options.subject)
    # onnxruntime leaves temporary files of failed runs in the working directory.
    os.chdir(options.out.parent)
    (by_nncf if options.method == "nncf" else by_onnxruntime)(options, subject)


if __name__ == "__main__":
    main()
