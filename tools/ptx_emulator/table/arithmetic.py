"""Arithmetic of integers. They wrap: the C++ is compiled with -fwrapv."""

from __future__ import annotations

from tools.ptx_emulator.table.forms import form

form("add.<T:INT>", "T = T T", "{a} + {b}")
form("sub.<T:INT>", "T = T T", "{a} - {b}")
form("add.sat.s32", "s32 = s32 s32", "add_saturating({a}, {b})")
form("sub.sat.s32", "s32 = s32 s32", "sub_saturating({a}, {b})")
form("mul.lo.<T:INT>", "T = T T", "{a} * {b}")
form("mul.hi.<T:INT>", "T = T T", "({wide}({a}) * {wide}({b})) >> (8 * sizeof({T}))")
form("mul.wide.<T:s16|u16|INT32>", "wide = T T", "{wide}({a}) * {wide}({b})")
form("mad.lo.<T:INT>", "T = T T T", "{a} * {b} + {c}")
form(
    "mad.hi.<T:INT>",
    "T = T T T",
    "{T}(({wide}({a}) * {wide}({b})) >> (8 * sizeof({T}))) + {c}",
)
form("mad.wide.<T:s16|u16|INT32>", "wide = T T wide", "{wide}({a}) * {wide}({b}) + {c}")
form("mul24.lo.<T:INT32>", "T = T T", "mul24({a}, {b})")
form("mul24.hi.<T:INT32>", "T = T T", "mul24({a}, {b}) >> 16")
form("mad24.lo.<T:INT32>", "T = T T T", "{T}(mul24({a}, {b})) + {c}")
form("mad24.hi.<T:INT32>", "T = T T T", "{T}(mul24({a}, {b}) >> 16) + {c}")
form("sad.<T:INT>", "T = T T T", "{c} + ({a} < {b} ? {b} - {a} : {a} - {b})")
form("div.<T:INT>", "T = T T", "divide({a}, {b})")
form("rem.<T:INT>", "T = T T", "remainder({a}, {b})")
form("abs.<T:s16|s32|s64>", "T = T", "{a} < 0 ? -{a} : {a}")
form("neg.<T:s16|s32|s64>", "T = T", "-{a}")
form("min.<T:INT>", "T = T T", "{a} < {b} ? {a} : {b}")
form("max.<T:INT>", "T = T T", "{a} > {b} ? {a} : {b}")
form("dp4a.<T:INT32>.<U:INT32>", "s32 = T U s32", "dot4({a}, {b}, {c})")
form("dp2a.lo.<T:INT32>.<U:INT32>", "s32 = T U s32", "dot2({a}, {b}, {c})")
form("dp2a.hi.<T:INT32>.<U:INT32>", "s32 = T U s32", "dot2({a}, {b} >> 16, {c})")

# With a carry, which is a variable of every function.
form("add.cc.<T:INT32_64>", "bits = bits bits", "add_carry({a}, {b}, 0, carry)")
form("addc.cc.<T:INT32_64>", "bits = bits bits", "add_carry({a}, {b}, carry, carry)")
form("addc.<T:INT32_64>", "bits = bits bits", "{a} + {b} + carry")
form("sub.cc.<T:INT32_64>", "bits = bits bits", "sub_borrow({a}, {b}, 0, carry)")
form("subc.cc.<T:INT32_64>", "bits = bits bits", "sub_borrow({a}, {b}, carry, carry)")
form("subc.<T:INT32_64>", "bits = bits bits", "{a} - {b} - carry")
form("mad.lo.cc.<T:INT32_64>", "bits = T T bits", "add_carry(low({a}, {b}), {c}, 0, carry)")
form("madc.lo.cc.<T:INT32_64>", "bits = T T bits", "add_carry(low({a}, {b}), {c}, carry, carry)")
form("madc.lo.<T:INT32_64>", "bits = T T bits", "low({a}, {b}) + {c} + carry")
form("mad.hi.cc.<T:INT32_64>", "bits = T T bits", "add_carry(high({a}, {b}), {c}, 0, carry)")
form("madc.hi.cc.<T:INT32_64>", "bits = T T bits", "add_carry(high({a}, {b}), {c}, carry, carry)")
form("madc.hi.<T:INT32_64>", "bits = T T bits", "high({a}, {b}) + {c} + carry")
