"""Forward mode, batched gradients, torch.vmap and torch.export with open shapes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from functions import FUNCTIONS, each_function, problem
from support import ONE_DTYPE, Target, cu_seqlens_of_one, targets
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jvp, linearize, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from flash_attn2 import (
    flash_attn_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_with_kvcache,
)
