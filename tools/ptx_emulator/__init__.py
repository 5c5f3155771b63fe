"""PTX, which nvcc makes of CUDA sources, as C++ that runs in the kernel emulator.

``python -m tools.ptx_emulator.translate KERNELS.ptx -o KERNELS.cpp``; the C++ includes
``ptx/ptx.h`` of ``tests/emulator/include`` and links with the emulator's runtime. What the
instructions are stands in ``table``, one module for each kind of them.
"""
