"""Make the PTX that tests of single instructions run: a kernel for each INSTRUCTION of a C++ file.

Usage: instruction_kernels.py TESTS.cpp -o KERNELS.ptx
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

HEAD = ".version 8.0\n.target sm_80\n.address_size 64\n"
KERNEL = """
.visible .entry {name}(.param .u64 operands, .param .u64 results)
{{
  .reg .b32 %thread, %block, %size;
  .reg .b64 %from, %to, %offset;
  .reg .b16 %byte;
{registers}
  mov.u32 %thread, %tid.x;
  mov.u32 %block, %ctaid.x;
  mov.u32 %size, %ntid.x;
  mad.lo.u32 %thread, %block, %size, %thread;
  ld.param.u64 %from, [operands];
  ld.param.u64 %to, [results];
  mad.wide.u32 %from, %thread, 32, %from;
  mad.wide.u32 %to, %thread, 8, %to;
{loads}
  {instruction};
{store}
  ret;
}}
"""
BITS = {"bool": 1, "f16": 16, "bf16": 16, "f16x2": 32, "bf16x2": 32}


def bits(kind: str) -> int:
    return BITS.get(kind) or int(kind[1:])


def register(kind: str, name: str) -> str:
    declared = kind if kind in ("f32", "f64") else "pred" if kind == "bool" else f"b{bits(kind)}"
    return f"  .reg .{declared} %{name};"


def load(kind: str, name: str, index: int) -> str:
    if kind == "bool":
        return f"  ld.global.u8 %byte, [%from+{8 * index}];\n  setp.ne.u16 %{name}, %byte, 0;"
    return f"  ld.global.b{bits(kind)} %{name}, [%from+{8 * index}];"


def store(kind: str) -> str:
    if kind == "bool":
        return "  selp.u16 %byte, 1, 0, %d;\n  st.global.u8 [%to], %byte;"
    return f"  st.global.b{bits(kind)} [%to], %d;"


def kernel(opcode: str, result: str, parameters: str) -> str:
    operands = [item.split() for item in parameters.split(",")]
    plain = f"{opcode} %d, {', '.join(f'%{name}' for _, name in operands)}"
    return KERNEL.format(
        name="test_" + re.sub(r"[^A-Za-z0-9]", "_", opcode),
        registers="\n".join([register(result, "d"), *(register(*o) for o in operands)]),
        loads="\n".join(load(kind, name, i) for i, (kind, name) in enumerate(operands)),
        instruction=opcode if "%" in opcode else plain,
        store=store(result),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tests", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    rows = re.findall(
        r'^INSTRUCTION\(\s*"([^"]+)",\s*(\w+),\s*\(([^)]*)\),', options.tests.read_text(), re.M
    )
    options.output.write_text(HEAD + "".join(kernel(*row) for row in rows))


if __name__ == "__main__":
    main()
