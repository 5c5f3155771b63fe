#pragma once

// For the C++ that tools/ptx_emulator makes of PTX. Small, so that it costs nothing to compile:
// what takes more than a few instructions is in ../../src/ptx.

#include "ptx/arithmetic.h"
#include "ptx/bits.h"
#include "ptx/conversions.h"
#include "ptx/floats.h"
#include "ptx/halves.h"
#include "ptx/mbarrier.h"
#include "ptx/memory.h"
#include "ptx/module.h"
#include "ptx/tensor_core.h"
#include "ptx/types.h"
#include "ptx/warp.h"
