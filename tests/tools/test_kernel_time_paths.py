"""Machine code to paths: control bits, tiles from names, and loops recognised with checks."""

from __future__ import annotations

import dataclasses

import pytest
from sass_text import Line, code, listing

from tools.kernel_time.control import Control, ListingError, parse
from tools.kernel_time.flow import Flow, Load
from tools.kernel_time.paths import counts_of, paths_of
from tools.kernel_time.tiles import CALL_DRAWS, Counts, Tile, TileError, tile_of
from tools.nvcc.units import VARIANTS

MMA = Line("HMMA.16816.F32 R4, R8, R12, R4")
COPY = Line("LDGSTS.E.BYPASS.LTC128B.128 [R3], [R4.64]")
BARRIER = Line("BAR.SYNC.DEFER_BLOCKING 0x0")
STORE = Line("STG.E.128 [R2.64], R4")
MOVE = Line("MOV R1, R2")
EXIT = Line("EXIT")

# What the kernels below have.
TILE = Tile(
    kind="fwd",
    head_dim=16,
    block_m=16,
    block_n=16,
    warps=1,
    prologue=Counts(copies=1),
    turn=Counts(mmas=2, copies=1, barriers=1),
    epilogue=Counts(stores=1),
)


_FORWARD_128 = "7FwdTileELi128ELi128ELi128ELi32ELi4ELi1ELb0ELi2ELi1ELb0EEELNS_7VariantE0E"
_BACKWARD_128 = (
    "_ZN3fa24sm805entryINS0_9BwdKernelINS0_9BwdConfigIN7cutlass6half_tEXtlNS0_7BwdTile"
    "ELi128ELi128ELi64ELi4ELi2ELi32ELb0ELb0ELi2ELi1ELi128ELi1EEELNS_7VariantE0EEEEEEEvNT_4ArgsE"
)


def _named(plain: str, variant: str) -> str:
    """The name of another variant's kernel; enumerators stand in the order of ``VARIANTS``."""
    return plain.replace("VariantE0E", f"VariantE{VARIANTS.index(variant)}E")


def branch(to: int, predicate: str = "@P0") -> Line:
    return Line(f"{predicate} BRA {16 * to:#x}".strip())


# A masked loop, which may be skipped, then the steady one. Each skips its copy on the last turn.
#  0     1            2     3     4        5              6     7      8     9            10
#  COPY  skip to 11   MMA   MMA   BARRIER  skip the copy  COPY  MOVE   MOVE  back to 2    MOVE
#  11   12   13       14             15    16         17     18
#  MMA  MMA  BARRIER  skip the copy  COPY  back to 11 STORE  EXIT
TWO_LOOPS = [
    *[COPY, branch(11), MMA, MMA, BARRIER, branch(7), COPY, MOVE, MOVE, branch(2), MOVE],
    *[MMA, MMA, BARRIER, branch(16), COPY, branch(11), STORE, EXIT],
]


def addresses(steps: object) -> list[int]:
    return [step.coded.instruction.address // 16 for step in steps]  # type: ignore[attr-defined]


def test_control_bits() -> None:
    line = Line(
        "IMAD R6, R6, R2, RZ",
        stall=5,
        yields=True,
        result_at=3,
        operands_at=1,
        waits_for=0b100101,
        reuse=0b0010,
    )
    assert Control.of(line.upper_half) == Control(5, True, 3, 1, 0b100101, 0b0010)
    assert Control.of(Line("NOP", stall=15).upper_half) == Control(15, False)


def test_control_bits_as_a_compiler_set_them() -> None:
    # S2R R0, SR_CTAID.X of a kernel of nvcc 13: its result is waited for on scoreboard 1.
    assert Control.of(0x000E620000002500) == Control(stall=1, yields=False, result_at=1)


def test_a_listing_without_encodings_is_an_error() -> None:
    with pytest.raises(ListingError, match="no upper half"):
        list(parse([line for line in listing([MMA, MMA]).splitlines() if "0x000f" not in line]))


def test_forward_tile_of_a_name() -> None:
    name = (
        "_ZN3fa24sm805entryINS0_9FwdKernelINS0_9FwdConfigIN7cutlass6half_tEXtlNS0_7FwdTile"
        "ELi256ELi256ELi128ELi64ELi4ELi2ELb0ELi1ELi1ELb0EEELNS0_7VariantE0EEEEEEEvNT_4ArgsE"
    )
    tile = tile_of(name)
    assert (tile.kind, tile.head_dim, tile.block_m, tile.block_n, tile.warps) == (
        *("fwd", 256, 128, 64),
        8,
    )
    # A warp has 32 rows: of S half the keys, of O half the head dim, 128 MMAs each. The scores of
    # the first tile stand before the loop, with the copies of two tiles of keys.
    assert tile.turn == Counts(mmas=256, copies=16, barriers=2)
    assert tile.prologue == Counts(mmas=128, copies=40)
    assert tile.epilogue == Counts(mmas=128, stores=16)
    # In other variants nothing stands outside, and pairs meet once more.
    modified = tile_of(name.replace("VariantE0E", "VariantE1E"))
    assert modified.turn == Counts(mmas=256, copies=16, barriers=3)
    assert (modified.prologue, modified.epilogue) == (Counts(copies=24), Counts(stores=16))


def test_forward_tile_of_warps_that_share_no_rows() -> None:
    name = _FORWARD_128
    tile = tile_of(name)
    # Of 32 rows and 32 keys, each product has 64 MMAs; at 128 the first scores stand outside, too.
    assert tile.turn == Counts(mmas=128, copies=8, barriers=2)
    assert tile.prologue == Counts(mmas=64, copies=28)
    assert tile.epilogue == Counts(mmas=64, stores=16)
    # Neither in other variants nor in narrower heads.
    for other in (
        name.replace("VariantE0E", "VariantE1E"),
        name.replace("Li128ELi128ELi128", "Li96ELi96ELi128"),
    ):
        assert (tile_of(other).prologue.mmas, tile_of(other).epilogue.mmas) == (0, 0)


def test_backward_tile_of_a_name() -> None:
    name = (
        "_ZN3fa24sm805entryINS0_9BwdKernelINS0_9BwdConfigIN7cutlass6half_tEXtlNS0_7BwdTile"
        "ELi128ELi128ELi64ELi4ELi2ELi32ELb0ELb0ELi2ELi1ELi128ELi1EEELNS0_7VariantE0EEEEEEEvNT_4ArgsE"
    )
    tile = tile_of(name)
    assert (tile.kind, tile.block_m, tile.block_n, tile.threads) == ("bwd", 64, 128, 256)
    assert tile.turn == Counts(mmas=320, copies=9, reductions=32, barriers=2)
    assert tile.prologue.copies == 25


@pytest.mark.parametrize("variant", ["listed", "listeddropout"])
def test_a_backward_step_of_a_list_fetches_the_next_entry(variant: str) -> None:
    listed = _named(_BACKWARD_128, variant)
    assert tile_of(listed).turn.copies == tile_of(_BACKWARD_128).turn.copies + 1
    assert tile_of(_named(_BACKWARD_128, "dropout")).turn.copies == 9


def test_dropout_draws_random_bits() -> None:
    # A lane has 8 scores of a call in each of its 4 rows; backward a warp calls for 8 of its 32
    # queries at a time.
    for name in (_FORWARD_128, _BACKWARD_128):
        assert tile_of(_named(name, "dropout")).turn.draws == 4 * CALL_DRAWS
        assert tile_of(_named(name, "listeddropout")).turn.draws == 4 * CALL_DRAWS
        assert tile_of(_named(name, "modified")).turn.draws == 0


def test_tiles_with_values_of_another_width() -> None:
    name = "7FwdTileELi192ELi128ELi128ELi48ELi4ELi1ELb0ELi2ELi1ELb0EEELNS_7VariantE0E"
    tile = tile_of(name)
    assert tile.head_dim == 160
    # 32 rows of a warp: of S 6 blocks of keys and 12 of depth, of O 3 of depth and 16 of columns.
    assert tile.turn == Counts(mmas=2 * (6 * 12 + 3 * 16), copies=48 * 320 // 1024, barriers=2)
    assert tile.epilogue.stores == 128 * 128 // 1024
    name = "7BwdTileELi192ELi64ELi64ELi2ELi4ELi16ELb0ELb0ELi1ELi1ELi128ELi1EEELNS_7VariantE0E"
    tile = tile_of(name)
    assert tile.head_dim == 160
    assert tile.turn == Counts(mmas=208, copies=11, reductions=48, barriers=3)
    assert tile.epilogue.stores == 10


def test_tiles_with_whole_scores() -> None:
    name = "7FwdTileELi512ELi512ELi32ELi32ELi2ELi2ELb0ELi1ELi1ELb1EEELNS_7VariantE0E"
    tile = tile_of(name)
    assert tile.warps == 4
    # 16 rows of a warp: of S 4 blocks of keys and 32 of depth, of O 2 of depth and 32 of columns.
    assert tile.turn == Counts(mmas=4 * 32 + 2 * 32, copies=32 * 1024 // 1024, barriers=2)
    assert tile.prologue.mmas == 0


def test_tiles_with_shared_scores() -> None:
    name = "7BwdTileELi512ELi32ELi32ELi2ELi2ELi16ELb0ELb0ELi1ELi1ELi512ELi2EEELNS_7VariantE0E"
    tile = tile_of(name)
    assert tile.warps == 8
    # 16 keys of a warp, half of the depth of S' or dP'; then 64 columns of dV, dK and dQ each.
    assert tile.turn.mmas == 4 * 16 + 3 * 2 * 2 * 8
    assert (tile.turn.copies, tile.turn.reductions, tile.turn.barriers) == (17, 64, 4)


def test_tiles_with_scores_of_pairs() -> None:
    """One barrier more, for what warps give each other; not in the small tile."""
    name = "7BwdTileELi256ELi64ELi64ELi2ELi4ELi16ELb0ELb0ELi1ELi1ELi256ELi1EEELNS_7VariantE0E"
    assert tile_of(name).turn == Counts(mmas=320, copies=17, reductions=64, barriers=4)
    small = name.replace("64ELi64ELi2ELi4", "32ELi32ELi2ELi2")
    assert tile_of(small).turn == Counts(mmas=160, copies=17, reductions=64, barriers=3)


def test_names_without_a_tile_or_with_another_are_refused() -> None:
    with pytest.raises(TileError, match="no tile"):
        tile_of("_ZN3fa24sm8012rows_entryEv")
    with pytest.raises(TileError, match="has 10 fields"):
        tile_of("_ZN3fa27FwdTileELi256ELi64EEELNS_7VariantE0E")


def test_paths_of_a_kernel_with_two_loops() -> None:
    paths = paths_of(code(TWO_LOOPS), TILE)
    assert addresses(paths.prologue) == [0, 1]
    assert paths.prologue[-1].taken
    assert addresses(paths.steady) == [11, 12, 13, 14, 15, 16]
    assert [step.taken for step in paths.steady] == [False] * 5 + [True]
    assert paths.masked is not None
    assert addresses(paths.masked) == [2, 3, 4, 5, 6, 7, 8, 9]
    assert addresses(paths.epilogue) == [17, 18]
    assert paths.peeled == 0


def test_two_bodies_of_one_loop_are_told_apart() -> None:
    # The body for masked tiles stands behind the exit, and jumps back.
    both = [
        *[COPY, COPY, branch(9), MMA, MMA, BARRIER, branch(1), STORE, EXIT],
        *[MOVE, MMA, MMA, BARRIER, branch(6, "")],
    ]
    paths = paths_of(code(both), TILE)
    assert addresses(paths.steady) == [1, 2, 3, 4, 5, 6]
    assert paths.masked is not None
    assert addresses(paths.masked) == [1, 2, 9, 10, 11, 12, 13, 6]


@pytest.mark.parametrize(
    ("at", "line", "message"),
    [
        (12, MOVE, "the epilogue has 1 mmas, the tile asks for 0"),
        (13, MOVE, "the steady turn has 0 barriers, the tile asks for 1"),
        (15, MOVE, "the steady turn has 0 copies, the tile asks for 1"),
        (6, MOVE, "the masked turn has 0 copies, the tile asks for 1"),
        (0, MOVE, "the prologue has 0 copies, the tile asks for 1"),
        (17, MOVE, "the epilogue has 0 stores, the tile asks for 1"),
    ],
)
def test_counts_that_differ_from_the_tile_are_errors(at: int, line: Line, message: str) -> None:
    changed = [*TWO_LOOPS[:at], line, *TWO_LOOPS[at + 1 :]]
    with pytest.raises(TileError, match=message):
        paths_of(code(changed), TILE)


DRAW = Line("IMAD.WIDE.U32 R4, R4, R5, RZ")


def test_no_turn_goes_through_a_loop_within() -> None:
    # Block 3 is the loop; 6 to 8 stand on the other way.
    lines = [COPY, MMA, branch(6), COPY, branch(3), branch(9, ""), COPY, MOVE, MOVE]
    lines += [MMA, BARRIER, branch(1), STORE, EXIT]
    paths = paths_of(code(lines), TILE)
    assert addresses(paths.steady) == [1, 2, 6, 7, 8, 9, 10, 11]


def test_a_turn_of_dropout_goes_through_whole_calls_of_philox() -> None:
    # Skipped without dropout; a block of fewer products is left out as ever.
    draws = [DRAW] * CALL_DRAWS
    lines = [COPY, MMA, branch(5), *draws[:2], COPY, branch(7 + CALL_DRAWS), *draws]
    lines += [MMA, BARRIER, branch(1), STORE, EXIT]
    tile = dataclasses.replace(TILE, turn=dataclasses.replace(TILE.turn, draws=CALL_DRAWS))
    paths = paths_of(code(lines), tile)
    assert addresses(paths.steady) == [1, 2, *range(5, 10 + CALL_DRAWS)]
    assert len(paths_of(code(lines), TILE).steady) == len(paths.steady) - CALL_DRAWS
    more = dataclasses.replace(tile, turn=dataclasses.replace(TILE.turn, draws=2 * CALL_DRAWS))
    with pytest.raises(TileError, match="has 10 draws, the tile asks for 20"):
        paths_of(code(lines), more)


def test_turns_outside_the_loop_are_counted() -> None:
    tile = dataclasses.replace(
        TILE,
        prologue=dataclasses.replace(TILE.prologue, mmas=1),
        epilogue=dataclasses.replace(TILE.epilogue, mmas=1),
    )
    ahead = [COPY, MMA, COPY, MMA, MMA, BARRIER, branch(2), MMA, STORE, EXIT]
    assert paths_of(code(ahead), tile).peeled == 1


def test_no_loop_with_the_mmas_of_the_tile_is_an_error() -> None:
    with pytest.raises(TileError, match="no loop has a turn of 2 MMAs"):
        paths_of(code([COPY, MMA, COPY, BARRIER, branch(1), STORE, EXIT]), TILE)


def test_turns_of_ordered_sums_are_not_on_the_steady_path() -> None:
    sums = Line("RED.E.ADD.F32.FTZ.RN.STRONG.GPU [R2.64], R4")
    semaphore = Line("RED.E.ADD.S32.STRONG.GPU [R2.64], R4")
    assert counts_of([c.instruction for c in code([sums, semaphore])]).reductions == 1


def test_a_way_goes_past_rare_blocks_and_predicated_exits() -> None:
    flow = Flow([c.instruction for c in code([branch(3), MOVE, MOVE, Line("@P1 EXIT"), EXIT])])

    def load(index: int) -> Load:
        return Load(0, 0, len(flow.blocks[index].instructions))

    way = flow.best_way(0, flow.exits, range(len(flow.blocks)), load)
    assert way is not None
    assert [list(flow.blocks[index].instructions) for index in way] == [[0], [3, 4]]
