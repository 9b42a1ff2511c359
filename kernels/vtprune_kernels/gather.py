"""gather_tokens: the rows of a batch that live on."""

import torch
from torch import Tensor

from vtprune_kernels.dispatch import use_triton


def gather_tokens_reference(x: Tensor, columns: Tensor) -> Tensor:
    """What ``gather_tokens`` means, in torch."""
    # indexing copies rows; Tensor.gather took twice the time on a CPU and changed the bits of signalling NaNs
    return x[torch.arange(x.shape[0], device=x.device)[:, None], columns]


def gather_tokens(x: Tensor, columns: Tensor) -> Tensor:
    """y[b, i] = x[b, columns[b, i]].

    x:       (B, L, D), any dtype and strides.
    columns: (B, K) int64 in [0, L), any order, repeats allowed. The range is not checked on a GPU.
    Returns (B, K, D), contiguous, the dtype and the bits of ``x``.
    Raises:  ValueError (shapes, devices, range), TypeError (columns are not int64).
    """
    _check(x, columns)
    if use_triton(x, columns):
        from vtprune_kernels.gather_triton import gather_tokens_triton

        return gather_tokens_triton(x, columns)
    return gather_tokens_reference(x, columns)


def _check(x: Tensor, columns: Tensor) -> None:
    if x.ndim != 3 or columns.ndim != 2 or x.shape[0] != columns.shape[0]:
        shapes = f"{tuple(x.shape)} and {tuple(columns.shape)}"
        raise ValueError(f"gather_tokens takes x (B, L, D) and columns (B, K) of one B; got {shapes}")
    if columns.dtype != torch.int64:
        raise TypeError(f"columns are int64; got {columns.dtype}: call columns.long()")
    if x.device != columns.device:
        raise ValueError(f"x and columns live on one device; got {x.device} and {columns.device}: move columns to x's")
    # elsewhere the check would wait for the device
    if columns.device.type == "cpu" and columns.numel():
        low, high = int(columns.min()), int(columns.max())
        if low < 0 or high >= x.shape[1]:
            raise ValueError(f"columns lie in [0, {x.shape[1]}), the rows of x; got values in {low}..{high}")
