"""Reads what nvcc tells about the kernels of one translation unit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.nvcc.compiler import Front, MachineCode, compile_fronts, compile_machine_code
from tools.nvcc.instances import with_shared_bytes
from tools.nvcc.toolchain import Toolchain
from tools.nvcc.units import shared_variable


@dataclass(frozen=True)
class Resources:
    """What ptxas reports of one kernel; sizes in bytes, per thread.

    ``serialises``: its wgmmas wait for each other, for a reason that ptxas says.
    """

    registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    serialises: bool = False


@dataclass(frozen=True)
class RegisterShares:
    """How warpgroups of a kernel share its registers: one warpgroup keeps ``kept`` of a thread's,
    each of the others takes as many as ``taken``.
    """

    threads: int
    kept: int
    taken: int

    @property
    def needed(self) -> int:
        """Registers of all threads."""
        return _WARPGROUP * self.kept + (self.threads - _WARPGROUP) * self.taken


@dataclass(frozen=True)
class Compilation:
    """A translation unit, compiled for one architecture.

    ``shared_bytes`` is what a launch of its kernel asks for; ``resources`` and
    ``register_shares``, of kernels that have any (text: why they cannot be told), go by mangled
    name.
    """

    arch: str
    cubin: Path
    seconds: float
    peak_rss_bytes: int
    shared_bytes: int
    resources: dict[str, Resources]
    register_shares: dict[str, RegisterShares | str]


@dataclass(frozen=True)
class Unreadable:
    """A translation unit, compiled for one architecture, of which nvcc or ptxas said something
    else than is known here."""

    arch: str
    reason: str


_WARPGROUP = 128
_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_PTX_ENTRY = re.compile(r"\.entry (\w+)\((.*?)(?=\.entry|\Z)", re.DOTALL)
_THREADS = re.compile(r"\.maxntid (\d+)")
_SHARES = {kind: re.compile(rf"setmaxnreg\.{kind}\.\S+ (\d+);") for kind in ("dec", "inc")}
_SERIALISES = re.compile(r"wgmma\.mma_async instructions are serialized .*'(\w+)'")


def parse_ptxas(text: str) -> dict[str, Resources]:
    """Resources by mangled kernel name, from the output of ``ptxas -v``.

    Device functions that were not inlined have entries of their own there and are left out.
    """
    resources = {}
    serialising = set(_SERIALISES.findall(text))
    for block in text.split("Compiling entry function ")[1:]:
        name = _ENTRY.match(f"Compiling entry function {block}")
        stack, registers = _STACK.search(block), _REGISTERS.search(block)
        if not (name and stack and registers):
            raise ValueError(f"unexpected ptxas output: {block.splitlines()[0]}")
        resources[name[1]] = Resources(
            registers=int(registers[1]),
            stack_bytes=int(stack[1]),
            spill_store_bytes=int(stack[2]),
            spill_load_bytes=int(stack[3]),
            serialises=name[1] in serialising,
        )
    return resources


def parse_shared_bytes(ptx: str, unit: str) -> int:
    """The value of the variable that ``with_shared_bytes`` adds."""
    variable = shared_variable(unit)
    found = re.search(rf"\.u32 {variable}(?: = (\d+))?;", ptx)
    if found is None:
        raise ValueError(f"no {variable} in the PTX")
    return int(found[1] or 0)  # PTX leaves a zero out


def parse_register_shares(ptx: str) -> dict[str, RegisterShares | str]:
    """Of kernels with ``setmaxnreg``; in words, what one does that gives or takes several
    numbers."""
    found: dict[str, RegisterShares | str] = {}
    for entry in _PTX_ENTRY.finditer(ptx):
        kept, taken = (set(share.findall(entry[0])) for share in _SHARES.values())
        if not kept | taken:
            continue
        threads = _THREADS.search(entry[0])
        if threads is None or len(kept) != 1 or len(taken) != 1:
            of_threads = f" of {threads[1]} threads" if threads else ""
            found[entry[1]] = f"setmaxnreg to {sorted(kept)} and {sorted(taken)}{of_threads}"
        else:
            found[entry[1]] = RegisterShares(int(threads[1]), int(kept.pop()), int(taken.pop()))
    return found


def _number(arch: str) -> int:
    """Of an architecture such as 80 or 90a."""
    return int(arch.rstrip("a"))


def compile_units(
    toolchain: Toolchain,
    archs_of: Mapping[Path, Sequence[str]],
    folder: Path,
    flags: Sequence[str],
) -> Iterator[tuple[str, Compilation | Unreadable]]:
    """Compile the units of a group, each for ``sm_<arch>`` of its architectures, in ``folder``.

    As in a build, there is one PTX for all, of the oldest. ``seconds`` counts its making each time,
    ``peak_rss_bytes`` is that of nvcc's largest process; where nothing has changed since, both are
    those of then. Raises ``CompileError`` with nvcc's output if it fails; what it says and is not
    understood costs that unit alone.
    """
    oldest = min((arch for archs in archs_of.values() for arch in archs), key=_number)
    texts = {source.stem: with_shared_bytes(source) for source in archs_of}
    fronts = compile_fronts(toolchain, texts, folder, oldest, flags)
    for source, archs in archs_of.items():
        unit, front = source.stem, fronts[source.stem]
        ptx = front.ptx.read_text()
        for arch in archs:
            code = compile_machine_code(toolchain, front, arch)
            try:
                found: Compilation | Unreadable = _read(unit, ptx, front, code)
            except ValueError as error:  # other units, and architectures, are not to be lost
                found = Unreadable(arch, str(error))
            yield unit, found


def _read(unit: str, ptx: str, front: Front, code: MachineCode) -> Compilation:
    """ValueError where a text is none that is known."""
    return Compilation(
        arch=code.arch,
        cubin=code.cubin,
        seconds=front.taken.seconds + code.taken.seconds,
        peak_rss_bytes=max(front.taken.peak_rss_bytes, code.taken.peak_rss_bytes),
        shared_bytes=parse_shared_bytes(ptx, unit),
        resources=parse_ptxas(code.taken.output),
        register_shares=parse_register_shares(ptx),
    )
