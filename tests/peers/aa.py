"""How often a comparison of a model with itself shows a difference:

    python aa.py --optix target/release/optix [--model FILE] [--engine cpu] [--count 100] [--seconds 2] [--limit 90] [--out DIR]

Runs `optix profile MODEL --vs MODEL` --count times and counts the 95% intervals of the ratio that contain 1. What follows `--`
is handed on to optix (sizes of inputs, threads). Exits with 1 when there are fewer than --limit in a hundred.
"""

import argparse
import json
import statistics
import subprocess
import sys

import common


def main():
    parser = common.arguments(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter), models=False)
    parser.add_argument("--model", default=str(common.FIXTURES / "models" / "fmnist_mobilenet.onnx"))
    parser.add_argument("--engine", default="cpu")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--limit", type=float, default=90)
    parser.add_argument("rest", nargs="*", help="options for optix, behind --")
    options = parser.parse_args()
    if not options.optix:
        parser.error("--optix is needed")

    found = []
    for number in range(options.count):
        line = [options.optix, "profile", options.model, "--vs", options.model, "--engine", options.engine]
        line += ["--seconds", str(options.seconds), "--progress", "never", "--json", *options.rest]
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"exit {done.returncode}: {done.stderr}")
        ratio = json.loads(done.stdout)["ratio"]["ratio"]
        found.append(ratio | {"contains": ratio["low"] <= 1 <= ratio["high"]})
        if (number + 1) % 10 == 0:
            common.note(f"{number + 1}: {sum(one['contains'] for one in found)} contain 1")
    share = 100 * sum(one["contains"] for one in found) / len(found)
    widths = [one["high"] / one["low"] - 1 for one in found]
    text = (
        f"{common.optix_version(options.optix)}, {options.engine}, {options.model}: {share:.0f}% of {len(found)} intervals contain 1 "
        f"(limit {options.limit:.0f}%); median width {100 * statistics.median(widths):.2f}%, "
        f"ratios from {min(one['value'] for one in found):.4f} to {max(one['value'] for one in found):.4f}"
    )
    common.publish(options, "aa", text, {"share": share, "runs": found})
    sys.exit(0 if share >= options.limit else 1)


main()
