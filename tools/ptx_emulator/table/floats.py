"""Arithmetic of ``f32`` and ``f64``."""

from __future__ import annotations

from tools.ptx_emulator.table.forms import form

for name, sign in (("add", "+"), ("sub", "-"), ("mul", "*")):
    form(f"{name}[.rn][.ftz][.sat].f32", "f32 = f32 f32", f"{{a}} {sign} {{b}}")
    form(f"{name}[.rn].f64", "f64 = f64 f64", f"{{a}} {sign} {{b}}")
    form(
        f"{name}.<mode:rz|rm|rp>[.ftz][.sat].f32", "f32 = f32 f32", f"{name}_{{mode}}({{a}}, {{b}})"
    )
    form(f"{name}.<mode:rz|rm|rp>.f64", "f64 = f64 f64", f"{name}_{{mode}}({{a}}, {{b}})")
form("fma.rn[.ftz][.sat].f32", "f32 = f32 f32 f32", "__builtin_fmaf({a}, {b}, {c})")
form("fma.rn.f64", "f64 = f64 f64 f64", "__builtin_fma({a}, {b}, {c})")
form("fma.<mode:rz|rm|rp>[.ftz][.sat].f32", "f32 = f32 f32 f32", "fma_{mode}({a}, {b}, {c})")
form("fma.<mode:rz|rm|rp>.f64", "f64 = f64 f64 f64", "fma_{mode}({a}, {b}, {c})")
form("mad.rn[.ftz][.sat].f32", "f32 = f32 f32 f32", "__builtin_fmaf({a}, {b}, {c})")
form("mad.rn.f64", "f64 = f64 f64 f64", "__builtin_fma({a}, {b}, {c})")
form("div.rn[.ftz].f32", "f32 = f32 f32", "{a} / {b}")
form("div.rn.f64", "f64 = f64 f64", "{a} / {b}")
form("div.<mode:rz|rm|rp>[.ftz].f32", "f32 = f32 f32", "div_{mode}({a}, {b})")
form("div.<kind:approx|full>[.ftz].f32", "f32 = f32 f32", "div_{kind}({a}, {b})")
form("rcp.rn[.ftz].f32", "f32 = f32", "1.f / {a}")
form("rcp.rn.f64", "f64 = f64", "1. / {a}")
form("sqrt.rn[.ftz].f32", "f32 = f32", "__builtin_sqrtf({a})")
form("sqrt.rn.f64", "f64 = f64", "__builtin_sqrt({a})")

# What the hardware approximates; ptx/approximations.h.
for name in ("rcp", "sqrt", "rsqrt", "ex2", "lg2", "sin", "cos"):
    form(f"{name}.approx[.ftz].f32", "f32 = f32", f"{name}_approx({{a}})")
form("tanh.approx.f32", "f32 = f32", "tanh_approx({a})")
form("rsqrt.approx.f64", "f64 = f64", "1. / __builtin_sqrt({a})")
form("rcp.approx.ftz.f64", "f64 = f64", "rcp_approx({a})")

for kind, suffix in (("f32", "f"), ("f64", "")):
    ftz = "[.ftz]" if kind == "f32" else ""
    form(f"abs{ftz}.{kind}", f"{kind} = {kind}", f"__builtin_fabs{suffix}({{a}})")
    form(f"neg{ftz}.{kind}", f"{kind} = {kind}", "-{a}")
    form(f"copysign.{kind}", f"{kind} = {kind} {kind}", f"__builtin_copysign{suffix}({{b}}, {{a}})")
    form(f"testp.finite.{kind}", f"pred = {kind}", "__builtin_isfinite({a})")
    form(f"testp.infinite.{kind}", f"pred = {kind}", "bool(__builtin_isinf({a}))")
    form(f"testp.number.{kind}", f"pred = {kind}", "{a} == {a}")
    form(f"testp.notanumber.{kind}", f"pred = {kind}", "{a} != {a}")
    form(f"testp.normal.{kind}", f"pred = {kind}", "bool(__builtin_isnormal({a}))")
    form(f"testp.subnormal.{kind}", f"pred = {kind}", "is_subnormal({a})")
for name, function in (("max", "larger"), ("min", "smaller")):
    form(f"{name}[.ftz].f32", "f32 = f32 f32", f"{function}({{a}}, {{b}})")
    form(f"{name}.f64", "f64 = f64 f64", f"{function}({{a}}, {{b}})")
    form(f"{name}[.ftz].NaN.f32", "f32 = f32 f32", f"{function}_or_nan({{a}}, {{b}})")
