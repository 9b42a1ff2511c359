"""gather_tokens: the rows of a batch that live on."""

import torch
from torch import Tensor

from vtprune_kernels.dispatch import use_triton


def gather_tokens_reference(x: Tensor, columns: Tensor) -> Tensor:
    """What ``gather_tokens`` means, in torch."""
    return take_rows(x, columns, 1)


def take_rows(x: Tensor, columns: Tensor, dim: int) -> Tensor:
    """Entries of dimension ``dim`` > 0 of x (..., B or 1, L, ...) by sample: (B, K) int64 -> (..., B, K, ...)."""
    # index_select copies whole rows, in a half to a third of the time that indexing and Tensor.gather take on a CPU;
    # Tensor.gather also changed the bits of signalling NaNs
    batch, lead, length = columns.shape[0], dim - 1, x.shape[dim]
    if x.shape[lead] == 1:
        y = x.select(lead, 0).index_select(lead, columns.flatten())
        return y.unflatten(lead, columns.shape)
    sample = torch.arange(batch, device=x.device)[:, None]
    if x.stride(lead) == length * x.stride(dim):
        y = x.flatten(lead, dim).index_select(lead, (columns + length * sample).flatten())
        return y.unflatten(lead, columns.shape)
    # flattened it would be copied first
    return x[(slice(None),) * lead + (sample, columns)]


def gather_tokens(x: Tensor, columns: Tensor) -> Tensor:
    """y[b, i] = x[b, columns[b, i]].

    x:       (B, L, D), any dtype and strides.
    columns: (B, K) int64 in [0, L), any order, repeats allowed. The range is not checked on a GPU.
    Returns (B, K, D), contiguous, the dtype and the bits of ``x``.
    Raises:  ValueError (shapes, devices, range), TypeError (columns are not int64).
    """
    _check(x, columns)
    if use_triton(x, columns) and x.element_size() <= 8:
        from vtprune_kernels.gather_triton import gather_tokens_triton

        return gather_tokens_triton(x, columns)
    return gather_tokens_reference(x, columns)


def _check(x: Tensor, columns: Tensor) -> None:
    if x.ndim != 3 or columns.ndim != 2 or x.shape[0] != columns.shape[0]:
        shapes = f"{tuple(x.shape)} and {tuple(columns.shape)}"
        raise ValueError(f"gather_tokens takes x (B, L, D) and columns (B, K) of one B; got {shapes}")
    check_columns(columns, x.shape[1], x.device)


def check_columns(columns: Tensor, length: int, device: torch.device, name: str = "columns") -> None:
    """Raises what is wrong with ``columns`` as places in [0, length) of a tensor on ``device``."""
    if columns.dtype != torch.int64:
        raise TypeError(f"{name} are int64; got {columns.dtype}: call {name}.long()")
    if device != columns.device:
        raise ValueError(f"x and {name} live on one device; got {device} and {columns.device}: move {name} to x's")
    # elsewhere the check would wait for the device
    if columns.device.type == "cpu" and columns.numel():
        low, high = int(columns.min()), int(columns.max())
        if low < 0 or high >= length:
            raise ValueError(f"{name} lie in [0, {length}), the rows of x; got values in {low}..{high}")
