"""Holds the tables of passes/src/precision/operators.rs against their sources:

    python check_types.py

The versions from which operators take float16 and bfloat16 against the type constraints of every version of every schema
of onnx; the operators with float16 kernels against the kernel registry of onnxruntime's CPU provider. Prints what differs
and exits with 1 when something does.
"""

import re
import sys

import common
import onnx

SOURCE = common.ROOT / "passes" / "src" / "precision" / "operators.rs"
# Slots that stay float32 whatever the others are (is_fixed_input, is_fixed_output), by the name of their type.
FIXED = {("Resize", "tensor(float)"), ("Resize", "T2"), ("LayerNormalization", "U"), ("Dropout", "T1"), ("OneHot", "T1"), ("OneHot", "T2")}


def table():
    text = SOURCE.read_text(encoding="utf-8")
    body = text[text.index("const ADMITTED") : text.index("static VERSIONS")]
    rows = re.findall(r'\(\s*(\d+),\s*(?:Some\((\d+)\)|None),\s*"([^"]*)"', body)
    return {name: (int(half), int(brain) if brain else None) for half, brain, names in rows for name in names.replace("\\", " ").split()}


def schemas():
    """Operator -> [(version, types of every slot that may be float32)], oldest first."""
    found = {}
    for schema in sorted(onnx.defs.get_all_schemas_with_history(), key=lambda schema: schema.since_version):
        if schema.domain:
            continue
        types = {one.type_param_str: set(one.allowed_type_strs) for one in schema.type_constraints}
        slots = [(p.type_str, types.get(p.type_str, {p.type_str})) for p in [*schema.inputs, *schema.outputs]]
        floats = [kinds for name, kinds in slots if "tensor(float)" in kinds and (schema.name, name) not in FIXED]
        found.setdefault(schema.name, []).append((schema.since_version, floats))
    return found


def first(versions, kind):
    """The first version from which on every slot takes the type in every later version too."""
    since = None
    for version, floats in versions:
        if floats and all(kind in kinds for kinds in floats):
            since = since or version
        else:
            since = None
    return since


def main():
    known, wrong = schemas(), []
    for name, (half, brain) in table().items():
        expected = (first(known[name], "tensor(float16)"), first(known[name], "tensor(bfloat16)"))
        if expected != (half, brain):
            wrong.append(f"{name}: the table says {half}, {brain}; the schemas say {expected[0]}, {expected[1]}")
    import onnxruntime.capi.onnxruntime_pybind11_state as state

    kernels = [kernel for kernel in state.get_all_opkernel_def() if kernel.provider == "CPUExecutionProvider" and kernel.domain == ""]
    native = {kernel.op_name for kernel in kernels if any("tensor(float16)" in kinds for kinds in kernel.type_constraints.values())}
    text = SOURCE.read_text(encoding="utf-8")
    listed = set(re.search(r'const NATIVE_HALF: &str =\s*"([^"]*)"', text).group(1).replace("\\", " ").split())
    for name in sorted(listed - native):
        wrong.append(f"{name}: listed as native, and the registry has no float16 kernel")
    for name in sorted((native & set(table())) - listed):
        wrong.append(f"{name}: the registry has a float16 kernel, and it is not listed")
    print("\n".join(wrong) or f"{len(table())} operators and {len(listed)} kernels agree")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
