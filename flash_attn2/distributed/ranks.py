"""Who takes part: a number of ranks, a process group, or a mesh of devices."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.distributed as dist

from flash_attn2._impl.arguments import as_int

MAX_RANKS = 2**16


class Ranks(NamedTuple):
    """Ranks of the outer scheme by those that share heads. Rank `i * heads + j` is the i-th of the
    outer scheme, and the j-th of those that share its rows."""

    outer: int
    heads: int
    rank: int | None = None
    """This process; None: of numbers alone, nobody."""
    group: Any = None
    """All of them, where they are one group."""
    outer_group: Any = None
    """Of a mesh of two dimensions."""
    heads_group: Any = None

    @property
    def size(self) -> int:
        return self.outer * self.heads

    @property
    def groups(self) -> list[Any]:
        """Through which, one after the other, something gets from each rank to all. None of plans
        that are made of numbers."""
        given = [self.group] if self.group is not None else [self.heads_group, self.outer_group]
        return [group for group in given if group is not None]


class _Sizes(NamedTuple):
    """Given as a pair of numbers."""

    outer: int
    heads: int


def ranks_of(given: Any, ring_dim: str, heads_dim: str) -> tuple[Ranks, bool]:
    """Of what `context_plan` takes; and whether it says both degrees. Else all are `outer`.

    TypeError for anything else; ValueError for numbers below 1, meshes of more dimensions, or
    without these names.
    """
    if isinstance(given, tuple):
        if len(given) != 2:
            raise ValueError(f"ranks must be a pair (ring, heads), got {given}")
        sizes = _Sizes(*(_count(name, x) for name, x in zip(_Sizes._fields, given, strict=True)))
        _count("ranks", sizes.outer * sizes.heads)
        return Ranks(*sizes), True
    if dist.is_available():
        from torch.distributed.device_mesh import DeviceMesh

        if isinstance(given, DeviceMesh):
            return _of_mesh(given, ring_dim, heads_dim)
        if isinstance(given, dist.ProcessGroup):
            return Ranks(given.size(), 1, given.rank(), given), False
    try:
        return Ranks(_count("ranks", given), 1), False
    except TypeError:
        raise TypeError(
            "ranks must be an int, a pair of them, a ProcessGroup or a DeviceMesh, got "
            f"{type(given).__name__}"
        ) from None


def _count(name: str, value: Any) -> int:
    count = as_int(name, value)
    if not 1 <= count <= MAX_RANKS:
        raise ValueError(f"{name} must be from 1 to {MAX_RANKS}, got {count}")
    return count


def _of_mesh(mesh: Any, ring_dim: str, heads_dim: str) -> tuple[Ranks, bool]:
    names = mesh.mesh_dim_names or ()
    if mesh.ndim == 1:
        group = mesh.get_group()
        return Ranks(mesh.size(), 1, group.rank(), group), False
    if mesh.ndim != 2:
        raise ValueError(f"a mesh must have one or two dimensions, got {mesh.ndim}")
    for argument, name in (("ring_dim", ring_dim), ("heads_dim", heads_dim)):
        if name not in names:
            raise ValueError(f"{argument} must be a dimension of the mesh, {names}, got {name!r}")
    if ring_dim == heads_dim:
        raise ValueError(f"ring_dim and heads_dim must be two dimensions, got {ring_dim!r} twice")
    outer, heads = mesh.get_group(ring_dim), mesh.get_group(heads_dim)
    rank = outer.rank() * heads.size() + heads.rank()
    return Ranks(outer.size(), heads.size(), rank, None, outer, heads), True
