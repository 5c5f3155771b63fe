"""Arithmetic of ``f16``, ``bf16`` and pairs of them: functions of their bits (ptx/halves.h)."""

from __future__ import annotations

from tools.ptx_emulator.table.forms import form

for name in ("add", "sub", "mul"):
    form(f"{name}[.rn].<T:HALVES>", "bits = bits bits", f"{name}_{{T}}({{a}}, {{b}})")
    form(f"{name}[.rn].sat.<T:f16|f16x2>", "bits = bits bits", f"{name}_sat_{{T}}({{a}}, {{b}})")
form("fma.rn.<T:HALVES>", "bits = bits bits bits", "fma_{T}({a}, {b}, {c})")
form("fma.rn.sat.<T:f16|f16x2>", "bits = bits bits bits", "fma_sat_{T}({a}, {b}, {c})")
form("fma.rn.relu.<T:HALVES>", "bits = bits bits bits", "fma_relu_{T}({a}, {b}, {c})")
for name in ("neg", "abs"):
    form(f"{name}.<T:HALVES>", "bits = bits", f"{name}_{{T}}({{a}})")
for name in ("max", "min"):
    form(f"{name}.<T:HALVES>", "bits = bits bits", f"{name}_{{T}}({{a}}, {{b}})")
    form(f"{name}.NaN.<T:HALVES>", "bits = bits bits", f"{name}_nan_{{T}}({{a}}, {{b}})")
form("ex2.approx.<T:f16|f16x2>", "bits = bits", "ex2_{T}({a})")
form("ex2.approx.ftz.<T:bf16|bf16x2>", "bits = bits", "ex2_{T}({a})")
form("tanh.approx.<T:HALVES>", "bits = bits", "tanh_{T}({a})")
