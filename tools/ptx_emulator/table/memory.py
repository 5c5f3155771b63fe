"""Moves, loads, stores, asynchronous copies, atomics and fences."""

from __future__ import annotations

from collections.abc import Iterable

from tools.ptx_emulator.table.forms import Body, form, operation
from tools.ptx_emulator.types import FLOATS, SIZES

_SPACES = ("global", "shared", "local", "param", "const")
_HINTS = {
    *("nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "uni", "entry"),
    *("L1::no_allocate", "L1::evict_first", "L1::evict_last", "L1::evict_normal"),
    *("L1::evict_unchanged", "L2::64B", "L2::128B", "L2::256B"),
}
_ORDERS = {
    "weak": "kWeak",
    "volatile": "kVolatile",
    "relaxed": "kRelaxed",
    "acquire": "kAcquire",
    "release": "kRelease",
    "acq_rel": "kAcquireRelease",
}
_SCOPES = {"cta": "kCta", "gpu": "kGpu", "sys": "kGpu"}


def _space(modifiers: Iterable[str]) -> str:
    """``generic`` where none is named."""
    return next((m for m in modifiers if m in _SPACES), "generic")


def _check(body: Body, modifiers: Iterable[str], *known: Iterable[str]) -> None:
    allowed = {name for names in known for name in names}
    unknown = [m for m in modifiers if m not in allowed]
    if unknown:
        raise body.fail(f"the table of instructions does not have .{unknown[0]}")


def _order(modifiers: list[str], otherwise: str) -> str:
    return f"Order::{_ORDERS[next((m for m in modifiers if m in _ORDERS), otherwise)]}"


def _scope(modifiers: list[str]) -> str:
    return f"Scope::{_SCOPES[next((m for m in modifiers if m in _SCOPES), 'gpu')]}"


# ---- moves


@operation("mov")
def mov(body: Body, modifiers: list[str], operands: list[str]) -> str:
    """Also between a register and several in braces, the lowest bits first."""
    kind = modifiers[-1]
    if len(modifiers) != 1 or kind not in SIZES or len(operands) != 2:
        raise body.fail("the table of instructions does not have it")
    target, source = operands
    if target.startswith("{"):
        return _unpack(body, kind, body.items(target), source)
    if source.startswith("{"):
        return _pack(body, kind, target, body.items(source))
    return body.write(target, kind, body.read(source, kind))


def _unpack(body: Body, kind: str, targets: list[str], source: str) -> str:
    bits = 8 * SIZES[kind] // len(targets)
    value = body.read(source, f"b{8 * SIZES[kind]}")
    parts = (
        body.write(target, f"b{bits}", f"u{bits}(whole >> {i * bits})")
        for i, target in enumerate(targets)
        if target != "_"
    )
    return f"{{ auto const whole = {value}; {' '.join(parts)} }}"


def _pack(body: Body, kind: str, target: str, sources: list[str]) -> str:
    whole = 8 * SIZES[kind]
    bits = whole // len(sources)
    parts = (
        f"u{whole}({body.read(source, f'b{bits}')}) << {i * bits}"
        for i, source in enumerate(sources)
    )
    return body.write(target, f"b{whole}", " | ".join(parts))


# ---- loads and stores


def _vector_length(modifiers: list[str]) -> int:
    return next((int(m[1:]) for m in modifiers if m in ("v2", "v4", "v8")), 1)


@operation("ld", "ldu")
def ld(body: Body, modifiers: list[str], operands: list[str]) -> str:
    """One access, whatever the length of the vector."""
    kind = modifiers[-1]
    _check(body, modifiers, _SPACES, _HINTS, _ORDERS, _SCOPES, ("v2", "v4"), SIZES)
    targets = body.items(operands[0])
    size = SIZES[kind] * len(targets)
    if len(targets) != _vector_length(modifiers):
        raise body.fail(f"{len(targets)} targets")
    space = _space(modifiers)
    pointer = body.static_address(operands[1], size) if space == "param" else None
    if pointer is None:
        pointer = _access(body, "read", space, modifiers, operands[1], size)
    name = kind if kind in FLOATS else f"{'s' if kind[0] == 's' else 'u'}{8 * SIZES[kind]}"
    source = f"static_cast<{name} const*>({pointer})"
    if len(targets) == 1:
        return body.write(targets[0], kind, f"*{source}")
    writes = (
        body.write(target, kind, f"from[{i}]") for i, target in enumerate(targets) if target != "_"
    )
    return f"{{ auto const* from = {source}; {' '.join(writes)} }}"


@operation("st")
def st(body: Body, modifiers: list[str], operands: list[str]) -> str:
    """One access, whatever the length of the vector."""
    kind = modifiers[-1]
    _check(body, modifiers, _SPACES, _HINTS, _ORDERS, _SCOPES, ("v2", "v4"), SIZES)
    sources = body.items(operands[1])
    size = SIZES[kind] * len(sources)
    if len(sources) != _vector_length(modifiers):
        raise body.fail(f"{len(sources)} sources")
    space = _space(modifiers)
    pointer = body.static_address(operands[0], size) if space == "param" else None
    if pointer is None:
        pointer = _access(body, "write", space, modifiers, operands[0], size)
    name = kind if kind in FLOATS else f"u{8 * SIZES[kind]}"
    target = f"static_cast<{name}*>({pointer})"
    if len(sources) == 1:
        return f"*{target} = {body.read(sources[0], _stored(kind))};"
    writes = (f"to[{i}] = {body.read(s, _stored(kind))};" for i, s in enumerate(sources))
    return f"{{ auto* to = {target}; {' '.join(writes)} }}"


def _stored(kind: str) -> str:
    return kind if kind in FLOATS else f"b{8 * SIZES[kind]}"


def _access(
    body: Body, verb: str, space: str, modifiers: list[str], address: str, size: int
) -> str:
    """C++ pointer to the memory, after the checks."""
    where = f"{body.site()}, {body.address(address)}, {size}"
    order = _order(modifiers, "weak")
    if space in ("global", "generic", "shared") and order != "Order::kWeak":
        return f"{verb}_{space}_ordered({where}, {order}, {_scope(modifiers)})"
    return f"{verb}_{space}({where})"


form("isspacep.<space:global|shared|local|const|param>", "pred = u64", "is_{space}({a})")


@operation("prefetch", "prefetchu", "applypriority", "discard")
def hint(body: Body, modifiers: list[str], operands: list[str]) -> str:
    """No effect on what is computed."""
    return ";"


# ---- asynchronous copies

form("cp.async.commit_group", "=", "copy_async_commit()")
form("cp.async.wait_group", "= u32", "copy_async_wait_group({a})")
form("cp.async.wait_all", "=", "copy_async_wait_all()")


@operation("cp")
def cp(body: Body, modifiers: list[str], operands: list[str]) -> str:
    """``cp.async.ca|cg.shared.global[.L2::128B] [to], [from], bytes[, source bytes or skip]``."""
    hints = ("L2::64B", "L2::128B", "L2::256B")
    _check(body, modifiers, ("async", "ca", "cg", "shared", "global"), hints)
    if modifiers[:1] != ["async"] or len(operands) not in (3, 4) or not operands[2].isdigit():
        raise body.fail("the table of instructions does not have it")
    bytes_ = int(operands[2])
    if bytes_ not in ((16,) if "cg" in modifiers else (4, 8, 16)):
        raise body.fail(f"a copy of {bytes_} bytes")
    given = operands[2]
    if len(operands) == 4:
        given = body.source_bytes(operands[3], bytes_)
    to, source = (body.address(operand) for operand in operands[:2])
    return f"copy_async({body.site()}, {to}, {source}, {bytes_}, {given});"


# ---- atomics

_ATOMIC_TYPES = {
    "add": ("u32", "s32", "u64", "f32", "f64", "f16", "f16x2", "bf16", "bf16x2"),
    "min": ("u32", "s32", "u64", "s64"),
    "max": ("u32", "s32", "u64", "s64"),
    "inc": ("u32",),
    "dec": ("u32",),
    "exch": ("b32", "b64", "b128"),
    "cas": ("b16", "b32", "b64", "b128"),
    "and": ("b32", "b64"),
    "or": ("b32", "b64"),
    "xor": ("b32", "b64"),
}


@operation("atom", "red")
def atom(body: Body, modifiers: list[str], operands: list[str]) -> str:
    """``red`` is without a result. The order is relaxed where none is named."""
    kind = modifiers[-1]
    name = next((m for m in modifiers if m in _ATOMIC_TYPES), "")
    _check(body, modifiers, _SPACES, _ORDERS, _SCOPES, (name, "noftz"), SIZES)
    if kind not in _ATOMIC_TYPES.get(name, ()) or kind == "b128":
        raise body.fail("the table of instructions does not have it")
    # The instruction's result comes first, if it has one.
    has_result = len(operands) == (4 if name == "cas" else 3)
    target = operands[0] if has_result else "_"
    address, *values = operands[has_result:]
    bits = f"b{8 * SIZES[kind]}"
    given = [f"u64({body.read(value, bits)})" for value in values]
    call = (
        f"atomic({body.site()}, Space::k{_space(modifiers).capitalize()}, {body.address(address)}, "
        f"AtomicOp::k{name.capitalize()}, AtomicType::k{kind.capitalize()}, {given[-1]}, "
        f"{given[0] if name == 'cas' else '0'}, {_order(modifiers, 'relaxed')}, "
        f"{_scope(modifiers)}, {'true' if target != '_' else 'false'})"
    )
    if target == "_":
        return f"{call};"
    return body.write(target, bits, f"u{8 * SIZES[kind]}({call})")


# ---- fences

form("membar.cta", "=", "fence(Scope::kCta)")
form("membar.<scope:gl|sys>", "=", "fence(Scope::kGpu)")
form("fence[.sc][.acq_rel].cta", "=", "fence(Scope::kCta)")
form("fence[.sc][.acq_rel].<scope:gpu|sys>", "=", "fence(Scope::kGpu)")
