"""pack and unpack: padded ragged batches to rows without padding, as FlashAttention takes them, and back."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune_kernels.dispatch import use_triton


def pack_reference(x: Tensor, valid: Tensor, total: int) -> Tensor:
    """The rows that ``pack`` returns, in torch; ``total`` is how many there are."""
    rows = _places(valid, total)
    if len(x) == 1 or x.stride(0) == x.shape[1] * x.stride(1):
        return x.flatten(0, 1).index_select(0, rows)
    # flattened it would be copied first
    return x[rows // x.shape[1], rows % x.shape[1]]


def unpack_reference(
    packed: Tensor, cu_seqlens: Tensor, length: int, valid: Tensor | None, side: Literal["left", "right"]
) -> Tensor:
    """What ``unpack`` means, in torch; ``side`` is not looked at where there is ``valid``."""
    if valid is None:
        counts, column = cu_seqlens.diff()[:, None], torch.arange(length, device=packed.device)
        valid = column >= length - counts if side == "left" else column < counts
    y = packed.new_zeros(math.prod(valid.shape), *packed.shape[1:])
    return y.index_copy_(0, _places(valid, len(packed)), packed).unflatten(0, valid.shape)


def _places(valid: Tensor, total: int) -> Tensor:
    """(B, L) bool, ``total`` of them True -> (total,) where, in the flattened batch."""
    # elsewhere the shape of nonzero's answer would have to be waited for
    return valid.flatten().nonzero().flatten() if valid.device.type == "cpu" else _counted_places(valid, total)


def _counted_places(valid: Tensor, total: int) -> Tensor:
    """``_places`` without a device sync."""
    flat = valid.flatten()
    # everything else is written to one place more, which is cut off
    rank = torch.where(flat, flat.cumsum(0) - 1, total).clamp_(max=total)
    places = torch.zeros(total + 1, dtype=torch.int64, device=flat.device)
    return places.scatter_(0, rank, torch.arange(len(flat), device=flat.device))[:total]


def pack(x: Tensor, valid: Tensor, *, counts: Sequence[int] | None = None) -> tuple[Tensor, Tensor, int]:
    """packed[cu_seqlens[b] + r] = x[b, j] where j is the r-th column of sample b with valid[b, j].

    x:      (B, L, ...), any dtype and strides.
    valid:  (B, L) bool, False for padding: on the left, on the right or in between; samples may be empty.
    counts: how many columns of each sample are valid, where the caller has these numbers on the host: then nothing
            waits for the device. None counts them, which on a GPU is ONE HOST SYNC: the shape of the answer depends on
            them. Wrong counts are not noticed on a GPU.
    Returns packed (T, ...), contiguous, the bits of ``x``; cu_seqlens (B + 1,) int32 on x's device, where the samples
    begin and the last one ends; max_seqlen, the rows of the longest sample.
    Raises:  ValueError (shapes, devices, counts, 2**31 rows or more), TypeError (valid is not bool).
    """
    if x.ndim < 2 or valid.shape != x.shape[:2]:
        shapes = f"{tuple(x.shape)} and {tuple(valid.shape)}"
        raise ValueError(f"pack takes x (B, L, ...) and valid (B, L); got {shapes}")
    _check_valid(valid, x.device)
    n = valid.sum(1)
    if counts is None or valid.device.type == "cpu":
        counted = n.tolist()
        if counts is not None and list(counts) != counted:
            raise ValueError(f"counts say how many columns of each sample are valid, {counted}; got {list(counts)}")
        counts = counted
    if len(counts) != len(valid):
        raise ValueError(f"counts hold one number for each of the {len(valid)} samples; got {len(counts)}")
    total = sum(counts)
    if total >= 2**31:
        raise ValueError(f"cu_seqlens are int32, so a batch packs at most 2**31 - 1 rows; got {total}: split it")
    cu_seqlens = F.pad(n.cumsum(0), (1, 0)).to(torch.int32)
    if use_triton(x, valid) and x.element_size() <= 8:
        from vtprune_kernels.pack_triton import pack_triton

        packed = pack_triton(x, valid, total)
    else:
        packed = pack_reference(x, valid, total)
    return packed, cu_seqlens, max(counts, default=0)


def unpack(
    packed: Tensor,
    cu_seqlens: Tensor,
    *,
    length: int | None = None,
    valid: Tensor | None = None,
    side: Literal["left", "right"] = "left",
) -> Tensor:
    """x[b, j] = packed[cu_seqlens[b] + r] where column j of sample b holds its r-th row, and 0 where it is padding.

    packed:     (T, ...), any dtype.
    cu_seqlens: (B + 1,) int32, from 0 to T, as ``pack`` returns them. The values are not checked on a GPU.
    length:     L: every sample gets its padding on ``side``. Or
    valid:      (B, L) bool, which columns hold the rows; ``side`` is not looked at then.
    Returns (B, L, ...), contiguous, the bits of ``packed``. Never waits for the device.
    Raises:  ValueError (shapes, devices, values, both or none of length and valid), TypeError (dtypes).
    """
    length = _check_unpack(packed, cu_seqlens, length, valid, side)
    if use_triton(packed, cu_seqlens, *(() if valid is None else (valid,))) and packed.element_size() <= 8:
        from vtprune_kernels.pack_triton import unpack_triton

        return unpack_triton(packed, cu_seqlens, length, valid, side)
    return unpack_reference(packed, cu_seqlens, length, valid, side)


def _check_valid(valid: Tensor, device: torch.device) -> None:
    if valid.dtype != torch.bool:
        raise TypeError(f"valid is bool, True where a column counts; got {valid.dtype}: call valid.bool()")
    if valid.device != device:
        raise ValueError(f"the rows and valid live on one device; got {device} and {valid.device}: move valid there")


def _check_unpack(
    packed: Tensor, cu_seqlens: Tensor, length: int | None, valid: Tensor | None, side: Literal["left", "right"]
) -> int:
    """The padded length."""
    if packed.ndim < 1 or cu_seqlens.ndim != 1 or not len(cu_seqlens):
        shapes = f"{tuple(packed.shape)} and {tuple(cu_seqlens.shape)}"
        raise ValueError(f"unpack takes packed (T, ...) and cu_seqlens (B + 1,); got {shapes}")
    if cu_seqlens.dtype != torch.int32:
        raise TypeError(f"cu_seqlens are int32; got {cu_seqlens.dtype}: call cu_seqlens.int()")
    if cu_seqlens.device != packed.device:
        both = f"{packed.device} and {cu_seqlens.device}"
        raise ValueError(f"packed and cu_seqlens live on one device; got {both}: move cu_seqlens to packed's")
    if (length is None) == (valid is None):
        raise ValueError("unpack takes either length, the padded length, or valid, the columns to fill; give one")
    if side not in ("left", "right"):
        raise ValueError(f"side is where the padding goes, 'left' or 'right'; got {side!r}")
    if valid is not None:
        if valid.ndim != 2 or len(valid) != len(cu_seqlens) - 1:
            shape = tuple(valid.shape)
            raise ValueError(f"valid is (B, L) for the {len(cu_seqlens) - 1} samples of cu_seqlens; got {shape}")
        _check_valid(valid, packed.device)
        length = valid.shape[1]
    # elsewhere the check would wait for the device
    if cu_seqlens.device.type == "cpu":
        counts, ends = cu_seqlens.diff(), (int(cu_seqlens[0]), int(cu_seqlens[-1]))
        if ends != (0, len(packed)) or bool((counts < 0).any()):
            raise ValueError(f"cu_seqlens rise from 0 to the {len(packed)} rows of packed; got {cu_seqlens.tolist()}")
        if valid is None and len(counts) and int(counts.max()) > length:
            raise ValueError(f"length is at least the longest sample's, {int(counts.max())}; got {length}")
        if valid is not None and not torch.equal(valid.sum(1), counts.long()):
            raise ValueError(f"valid has {valid.sum(1).tolist()} columns to fill; the samples hold {counts.tolist()}")
    return length
