#!/bin/sh
# All figures and checks against the peers, from a clone:  benches/figures.sh [OUT] [arguments for every script, e.g. --models DIR]
# Builds the release binary, makes a Python environment with the pinned peers under target/, writes OUT/*.md and OUT/*.json
# (default target/figures). Takes some minutes; the figures want a machine that does nothing else.
set -eu
cd "$(dirname "$0")/.."
out=target/figures
case "${1:-}" in
    "" | -*) ;;
    *) out=$1; shift ;;
esac
cargo build --release
python=target/peers/bin/python
[ -x "$python" ] || python3 -m venv target/peers
"$python" -m pip install -q -r tests/peers/requirements.txt
# The figures use the fixtures only; --models is for the other two.
"$python" tests/peers/figures.py --optix target/release/optix --out "$out"
status=0
"$python" tests/peers/check_ort.py --optix target/release/optix --out "$out" "$@" || status=$?
"$python" tests/peers/quantize_real.py --optix target/release/optix --out "$out" "$@"
exit "$status"
