"""Which tile of a kernel is fastest on this machine's GPU.

    python -m tools.gpu_tune fwd_hd128_plain [--tile "128x48=128, 48, 4, 1, false, 2"]

Tiles are those of `csrc/sm80/tiles.h` (forward) and `csrc/sm80/backward/tiles.h`: the one that is
built, those that `candidates` names, and what `--tile` gives. Each gets a tree of its own with the
sources and the other tile in place (`trees`), where the module of its head dim is compiled; a tile
that does not compile, or whose results are wrong, says so. Then all of them take turns, each in a
process of its own (`worker`). With `--device emulated` nothing is compiled for a GPU, and the
kernel emulator runs the tile that is built in the place of each: its times mean nothing.
"""
