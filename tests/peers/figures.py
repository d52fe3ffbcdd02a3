"""The project's figures against the peers, in one run:

    python figures.py --optix target/release/optix [--rounds 5] [--big BIG.onnx] [--parts inspect,save,start,quantize] [--out DIR]

Whole processes, interleaved (A B A B), medians with the least and the most; CPU is user + system seconds, memory is the
peak resident set (launch.py). The peers are Python's onnx for loading and saving, cp for writing, and
onnxruntime.quantization for quantizing. Accuracy, SQNR, fusion and latency of both int8 files are taken in onnxruntime on
the first 5,000 Fashion-MNIST test images. Without --optix only the peers run.
"""

import argparse
import os
import pathlib
import subprocess

import common

LOAD = "import sys, onnx; onnx.load(sys.argv[1])"
LOAD_SAVE = "import sys, onnx; onnx.save(onnx.load(sys.argv[1]), sys.argv[2])"
MEGABYTE = 1 / 1024  # of kilobytes


def verdict(good, text):
    return f"{'met' if good else '**missed**'}: {text}"


def rows_of(costs):
    rows = []
    for name, own in costs.items():
        if isinstance(own, str):
            rows.append([name, f"failed: {own}", "", ""])
        else:
            rows.append([name, common.spread(own, "wall_s"), common.spread(own, "cpu_s"), common.spread(own, "peak_kb", MEGABYTE, 1)])
    return rows


def timing_table(costs):
    return common.table(["command", "wall s", "CPU s", "peak MiB"], rows_of(costs))


def ran(costs, *names):
    return all(name in costs and not isinstance(costs[name], str) for name in names)


def part_inspect(options, work, big):
    commands = {"onnx.load": [common.python_of(options), "-c", LOAD, big]}
    if options.optix:
        commands = {"optix inspect": [options.optix, "inspect", big], **commands}
    big.read_bytes()  # into the page cache, for both
    costs = common.interleaved(commands, options.rounds)
    text, met = f"## inspect, {big.stat().st_size / 1e6:.0f} MB\n\n{timing_table(costs)}\n", []
    if ran(costs, "optix inspect", "onnx.load"):
        wall, peak = common.median(costs["optix inspect"], "wall_s"), common.median(costs["optix inspect"], "peak_kb") * MEGABYTE
        load = costs["onnx.load"]
        met = [
            verdict(wall < 0.05, f"inspect {1000 * wall:.1f} ms wall (limit 50), onnx.load takes {common.median(load, 'wall_s') / wall:.0f} times as long"),
            verdict(peak < 48, f"inspect {peak:.1f} MiB peak (limit 48), onnx.load {common.median(load, 'peak_kb') * MEGABYTE:.0f} MiB"),
        ]
    return text, costs, met


def part_save(options, work, big):
    recipe, target = work / "empty.toml", work / "saved.onnx"
    recipe.write_text("version = 1\n")
    copies = [work / f"copy{k}.onnx" for k in range(3)]
    copy = "".join(f'cp "$1" "{path}"; ' for path in copies)
    synced = copy + "sync " + " ".join(f'"{path}"' for path in copies)
    commands = {
        "cp, three times": ["sh", "-ec", copy, "sh", big],
        "cp, three times, and sync": ["sh", "-ec", synced, "sh", big],
        "onnx.load + onnx.save": [common.python_of(options), "-c", LOAD_SAVE, big, target],
    }
    if options.optix:
        commands = {"optix run, no steps": [options.optix, "run", recipe, big, "-o", target], **commands}

    def clean(_name):
        for path in (target, *copies):
            path.unlink(missing_ok=True)
        os.sync()  # nobody pays for what the one before left unwritten

    big.read_bytes()
    costs = common.interleaved(commands, options.rounds, clean)
    text, met = f"## load and save, {big.stat().st_size / 1e6:.0f} MB\n\n{timing_table(costs)}\n", []
    if ran(costs, "optix run, no steps"):
        clean("")
        subprocess.run([options.optix, "run", recipe, big, "-o", target], check=True, capture_output=True)
        same = subprocess.run(["cmp", "-s", big, target]).returncode == 0
        own, plain = costs["optix run, no steps"], costs["cp, three times"]
        wall, peak = common.median(own, "wall_s"), common.median(own, "peak_kb") * MEGABYTE
        met = [
            verdict(wall <= common.median(plain, "wall_s"),
                    f"load and save {wall:.2f} s wall, three copies {common.median(plain, 'wall_s'):.2f} s"
                    f" ({common.median(costs['cp, three times, and sync'], 'wall_s'):.2f} s when they too are synced)"),
            verdict(peak < 64, f"load and save {peak:.1f} MiB peak (limit 64)"),
            verdict(same, f"the file written is byte for byte the file read: {same}"),
        ]  # fmt: skip
    clean("")
    return text, costs, met


def part_start(options, work, big):
    if not options.optix:
        return "", {}, []
    costs = common.interleaved({"optix --help": [options.optix, "--help"], "python -c pass": [common.python_of(options), "-c", "pass"]}, 4 * options.rounds)
    size = pathlib.Path(options.optix).stat().st_size
    met = []
    if ran(costs, "optix --help"):
        wall = common.median(costs["optix --help"], "wall_s")
        met = [verdict(wall < 0.010, f"--help {1000 * wall:.2f} ms (limit 10)"), verdict(size < 40e6, f"binary {size / 1e6:.1f} MB (limit 40)")]
    return f"## start\n\n{timing_table(costs)}\n", {**costs, "binary_bytes": size}, met


def quality(subject, models, work):
    """Per file, in onnxruntime: top-1, agreement and SQNR against the float model, bytes, fusion, latency ratio."""
    feeds, labels = subject.arrays("eval")
    float_logits = common.outputs(models["float"], feeds, subject.batch, 0)
    found = {}
    ratios = {batch: common.latency(models, feeds, batch) for batch in (1, 32)}
    for name, path in models.items():
        logits = common.outputs(path, feeds, subject.batch, 0)
        found[name] = {
            "top1": float((logits.argmax(1) == labels).mean()), "agreement": float((logits.argmax(1) == float_logits.argmax(1)).mean()),
            "sqnr_db": common.sqnr(float_logits, logits), "bytes": path.stat().st_size, "fusion": common.fused(path, work),
            "latency_ratio": {str(batch): ratios[batch][name]["ratio"] for batch in ratios},
        }  # fmt: skip
    return found


def part_quantize(options, work, big):
    text, record, met = "", {}, []
    for subject in common.subjects(None):
        made = {"onnxruntime": work / f"{subject.name}.peer.onnx"}
        commands = {"onnxruntime": [common.python_of(options), common.HERE / "peer_quantize.py", "static", subject.name, made["onnxruntime"], "--samples", "256"]}
        if options.optix:
            made["optix"] = work / f"{subject.name}.optix.onnx"
            calib = common.FIXTURES / "data" / "fmnist-calib.toml"
            own = [options.optix, "quantize", subject.path, "-o", made["optix"], "--calib", calib, "--calib-samples", "256", *options.quantize_option]
            commands = {"optix": own, **commands}
        costs = common.interleaved(commands, options.rounds, lambda name: made[name].unlink(missing_ok=True))
        files = {"float": subject.path} | {name: path for name, path in made.items() if path.exists()}
        found = quality(subject, files, work)
        record[subject.name] = {"costs": costs, "quality": found}
        text += f"## quantize {subject.name}, 256 calibration images\n\n{timing_table(costs)}\n\n"
        text += common.table(
            ["file", "top-1 (n 5,000)", "agrees with float", "SQNR dB", "KB", "conv int/float", "product int/float", "Q/DQ left", "latency / float, batch 1", "batch 32"],
            [[name, f"{q['top1']:.4f}", f"{q['agreement']:.4f}", f"{q['sqnr_db']:.2f}", f"{q['bytes'] / 1000:.1f}",
              f"{q['fusion']['integer_conv']}/{q['fusion']['float_conv']}", f"{q['fusion']['integer_product']}/{q['fusion']['float_product']}",
              q["fusion"]["quantize_left"], f"{q['latency_ratio']['1']:.3f}", f"{q['latency_ratio']['32']:.3f}"]
             for name, q in found.items()],
        ) + "\n\n"  # fmt: skip
        if ran(costs, "optix", "onnxruntime") and {"optix", "onnxruntime"} <= found.keys():
            cpu, memory = (common.median(costs["optix"], key) / common.median(costs["onnxruntime"], key) for key in ("cpu_s", "peak_kb"))
            points = 100 * (found["optix"]["top1"] - found["onnxruntime"]["top1"])
            decibels = found["optix"]["sqnr_db"] - found["onnxruntime"]["sqnr_db"]
            met += [
                verdict(cpu <= 1 / 3, f"{subject.name}: {cpu:.3f} of the peer's CPU seconds (limit 0.333)"),
                verdict(memory <= 0.5, f"{subject.name}: {memory:.3f} of the peer's peak memory (limit 0.5)"),
                verdict(points >= -0.3, f"{subject.name}: top-1 {points:+.2f} points against the peer's (limit -0.30)"),
                verdict(decibels >= -0.5, f"{subject.name}: SQNR {decibels:+.2f} dB against the peer's (limit -0.50)"),
            ]
    return text, record, met


PARTS = {"inspect": part_inspect, "save": part_save, "start": part_start, "quantize": part_quantize}


def main():
    parser = common.arguments(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter), models=False)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--big", type=pathlib.Path, help="the 500 MB model of make_big_model.py; made when absent")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--quantize-option", action="append", default=[], help="handed on to optix quantize; repeatable, e.g. --quantize-option=--observer=min-max")
    options = parser.parse_args()
    work = common.work_folder(options)
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))} is none of {', '.join(PARTS)}")
    big = (options.big or work / "big.onnx").resolve()
    if not big.exists() and {"inspect", "save"} & set(parts):
        common.note("making the 500 MB model")
        subprocess.run([common.python_of(options), common.HERE / "make_big_model.py", big], check=True, stdout=subprocess.DEVNULL)

    with open("/proc/cpuinfo", encoding="utf-8") as info:
        processor = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), "unknown processor")
    version = common.optix_version(options.optix) if options.optix else "peers only"
    text = f"# Figures\n\n{version}; {processor}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.2f} at the start; {options.rounds} rounds; median (least to most)\n\n"
    document, met = {"version": version, "processor": processor, "load": os.getloadavg()[0], "rounds": options.rounds}, []
    for name in parts:
        common.note(name)
        part, document[name], verdicts = PARTS[name](options, work, big)
        text += part + ("\n" if part else "")
        met += verdicts
    document["verdicts"] = met
    common.publish(options, "figures", text + ("## Against the limits\n\n" + "\n".join(f"- {line}" for line in met) if met else ""), document)


if __name__ == "__main__":
    main()
