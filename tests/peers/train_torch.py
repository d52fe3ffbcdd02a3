"""Training throughput of `optix distill` beside PyTorch's, on the same model, samples, batch and optimizer:

    python train_torch.py --optix target/release/optix MODEL.onnx --calib DATA.toml --images FILE.gz [--batch 64] [--rounds 3]

Both train MODEL against itself with some weights moved (so that there is something to learn): the teacher answers for every
batch, the loss is the divergence of logits at temperature 2, AdamW steps follow. Seconds are those of `--steps` steps less those of
a run with few, so that start and reading do not count; rounds are interleaved, medians are given. Needs torch, onnx and numpy.
PyTorch runs a module made of the model's nodes: Conv, Gemm, Relu, Clip, Add, GlobalAveragePool, Flatten.
"""

import argparse
import gzip
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np


def images(path):
    raw = gzip.open(path).read()
    count = int.from_bytes(raw[4:8], "big")
    pictures = np.frombuffer(raw, np.uint8, count * 784, 16).reshape(count, 1, 28, 28).astype(np.float32)
    return (pictures / 255 - 0.2860) / 0.3530


def module(path):
    """The model as a torch module, its initializers parameters."""
    import onnx
    import torch
    from onnx import numpy_helper

    model = onnx.load(path)
    graph = model.graph

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = torch.nn.ParameterDict()
            self.names, self.constants = {}, {}
            for tensor in graph.initializer:
                key = f"p{len(self.names)}"
                self.names[tensor.name] = key
                self.weights[key] = torch.nn.Parameter(torch.from_numpy(numpy_helper.to_array(tensor).copy()))
            for node in graph.node:
                if node.op_type == "Constant":
                    self.constants[node.output[0]] = float(numpy_helper.to_array(node.attribute[0].t))

        def forward(self, x):
            values = {graph.input[0].name: x}
            get = lambda name: self.weights[self.names[name]] if name in self.names else values.get(name, self.constants.get(name))
            for node in graph.node:
                attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
                given = [get(name) for name in node.input]
                match node.op_type:
                    case "Conv":
                        pads = attributes.get("pads", [0, 0, 0, 0])
                        made = torch.nn.functional.conv2d(*given, stride=attributes.get("strides", 1), padding=pads[:2], groups=attributes.get("group", 1))
                    case "Gemm":
                        made = torch.nn.functional.linear(given[0], given[1] if attributes.get("transB") else given[1].T, given[2])
                    case "Relu":
                        made = torch.relu(given[0])
                    case "Clip":
                        made = torch.clamp(given[0], given[1], given[2])
                    case "Add":
                        made = given[0] + given[1]
                    case "GlobalAveragePool":
                        made = given[0].mean((2, 3), keepdim=True)
                    case "Flatten":
                        made = given[0].flatten(1)
                    case "Constant":
                        continue
                    case other:
                        sys.exit(f"no module for {other}")
                values[node.output[0]] = made
            return values[graph.output[0].name]

    return Net()


def by_torch(options, pictures, steps):
    """Seconds of so many steps."""
    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    student, teacher = module(options.moved), module(options.model)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.0)
    order = np.random.default_rng(0).permutation(len(pictures))
    started = time.perf_counter()
    for step in range(steps):
        at = [order[(step * options.batch + i) % len(order)] for i in range(options.batch)]
        batch = torch.from_numpy(pictures[at])
        with torch.no_grad():
            wanted = torch.nn.functional.log_softmax(teacher(batch) / 2, 1)
        found = torch.nn.functional.log_softmax(student(batch) / 2, 1)
        loss = 4 * torch.nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
    return time.perf_counter() - started


def by_optix(options, work, steps):
    line = [options.optix, "distill", options.moved, "--teacher", options.model, "-o", work / "out.onnx", "--calib", options.calib]
    line += ["--steps", str(steps), "--batch-size", str(options.batch), "--threads", str(options.threads), "--set", "distill.patience=100", "-q"]
    started = time.perf_counter()
    subprocess.run(list(map(str, line)), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def moved(path, out):
    """The model with noise on its weights: a student with something to learn."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    random = np.random.default_rng(1)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size > 1:
            noise = random.standard_normal(values.shape).astype(np.float32) * values.std() * 0.2
            tensor.CopyFrom(numpy_helper.from_array(values + noise, tensor.name))
    onnx.save(model, out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--optix", required=True, type=pathlib.Path)
    parser.add_argument("--calib", required=True, type=pathlib.Path)
    parser.add_argument("--images", required=True, type=pathlib.Path)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--few", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    pictures = images(options.images)
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        options.moved = work / "moved.onnx"
        moved(options.model, options.moved)
        rates = {"optix": [], "torch": []}
        for _ in range(options.rounds):
            for name, seconds in [("torch", lambda n: by_torch(options, pictures, n)), ("optix", lambda n: by_optix(options, work, n))]:
                few, many = seconds(options.few), seconds(options.steps)
                rates[name].append((options.steps - options.few) * options.batch / (many - few))
        found = {name: statistics.median(all) for name, all in rates.items()}
        for name, all in rates.items():
            print(f"{name}: {found[name]:.0f} images/s ({min(all):.0f} to {max(all):.0f})")
        print(f"ratio {found['optix'] / found['torch']:.2f}")


if __name__ == "__main__":
    main()
