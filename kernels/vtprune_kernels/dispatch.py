"""One question, asked in one place: does this call run in Triton?"""

import os
from importlib.util import find_spec

import torch
from torch import Tensor

HAS_TRITON = find_spec("triton") is not None


def use_triton(*tensors: Tensor) -> bool:
    """Triton is installed, VTPRUNE_REFERENCE unset, all tensors are on one CUDA device, and no gradient is wanted.

    The kernels have no backward pass: where autograd would record the call, the reference runs.
    """
    if not HAS_TRITON or os.environ.get("VTPRUNE_REFERENCE") or not all(t.is_cuda for t in tensors):
        return False
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return False
    return len({t.device for t in tensors}) == 1
