"""gather_site: everything that a site shortens, in one launch: hidden states, rotary tables, ids, attention mask."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vtprune_kernels.dispatch import use_triton
from vtprune_kernels.gather import check_columns, take_rows

Mask = tuple[Tensor, Tensor, Tensor]
"""A mask (B or 1, H, Q, L) with the queries (B, K) and the keys (B, P) that live on."""


def gather_site_reference(
    tensors: Sequence[Tensor],
    columns: Sequence[Tensor],
    dims: Sequence[int],
    mask: Mask | None,
) -> tuple[Tensor, ...]:
    """What ``gather_site`` means, in torch, for one ``columns`` and one dimension > 0 per tensor."""
    out = [take_rows(x, c, dim) for x, c, dim in zip(tensors, columns, dims, strict=True)]
    if mask is not None:
        out.append(_mask_reference(*mask))
    return tuple(out)


def _mask_reference(mask: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """(B or 1, H, Q, L) -> (B, H, K, P)."""
    # the rows first, as rows: a fraction of the mask is left for the slower pass over single numbers
    rows = take_rows(mask.transpose(1, 2), queries, 1).transpose(1, 2)
    return rows.gather(3, keys[:, None, None].expand(-1, *rows.shape[1:3], -1))


def gather_site(
    tensors: Sequence[Tensor],
    columns: Tensor | Sequence[Tensor],
    *,
    dims: int | Sequence[int] = -2,
    mask: Mask | None = None,
) -> tuple[Tensor, ...]:
    """Rows of every x, and rows and columns of a mask m: what a site shortens, from one call.

    y[..., b, i, ...] = x[..., b, columns[b, i], ...]        n[b, h, i, j] = m[b, h, queries[b, i], keys[b, j]]

    tensors: each (..., B or 1, L, ...), any dtype and strides; L may differ. A batch of 1 serves every sample.
    columns: (B, K) int64 in [0, L), one for all tensors or one for each. The range is not checked on a GPU.
    dims:    which dimension is L, one for all or one for each; the dimension before it is the batch.
    mask:    None, or (m, queries, keys): m (B or 1, H, Q, L), queries (B, K) in [0, Q), keys (B, P) in [0, L).
    Returns one y (..., B, K, ...) for each of ``tensors``, then n (B, H, K, P) if there is a mask; contiguous, with the
    dtypes and the bits of what they were taken from.
    Raises:  ValueError (shapes, devices, range, lengths of lists), TypeError (columns are not int64).
    """
    tensors = tuple(tensors)
    columns = (columns,) * len(tensors) if isinstance(columns, Tensor) else tuple(columns)
    dims = (dims,) * len(tensors) if isinstance(dims, int) else tuple(dims)
    if not len(tensors) == len(columns) == len(dims):
        counts = f"{len(tensors)}, {len(columns)} and {len(dims)}"
        raise ValueError(f"gather_site takes one columns and one of dims for each tensor, or one for all; got {counts}")
    dims = tuple(_check_rows(*item) for item in zip(tensors, columns, dims, strict=True))
    if mask is not None:
        _check_mask(*mask)
    everything = (*tensors, *columns, *(mask or ()))
    if everything and use_triton(*everything) and all(x.element_size() <= 8 for x in everything):
        from vtprune_kernels.gather_site_triton import gather_site_triton

        return gather_site_triton(tensors, columns, dims, mask)
    return tuple(y.contiguous() for y in gather_site_reference(tensors, columns, dims, mask))


def _check_rows(x: Tensor, columns: Tensor, dim: int) -> int:
    """The dimension, counted from the left."""
    at = dim + x.dim() if dim < 0 else dim
    if not 0 < at < x.dim():
        raise ValueError(
            f"the sequence is a dimension of the tensor and not its first, before it stands the batch; got dimension "
            f"{dim} of {tuple(x.shape)}"
        )
    if columns.ndim != 2 or x.shape[at - 1] not in (1, columns.shape[0]):
        shapes = f"{tuple(x.shape)} with dimension {dim} and columns {tuple(columns.shape)}"
        raise ValueError(f"a tensor is (..., B or 1, L, ...) for columns (B, K); got {shapes}")
    check_columns(columns, x.shape[at], x.device)
    return at


def _check_mask(mask: Tensor, queries: Tensor, keys: Tensor) -> None:
    batch = queries.shape[:1]
    if mask.ndim != 4 or (queries.ndim, keys.ndim) != (2, 2) or keys.shape[:1] != batch:
        shapes = f"{tuple(mask.shape)}, {tuple(queries.shape)} and {tuple(keys.shape)}"
        raise ValueError(f"a mask is (B or 1, H, Q, L) with queries (B, K) and keys (B, P); got {shapes}")
    if mask.shape[:1] not in (batch, torch.Size([1])):
        raise ValueError(f"a mask has the batch of its queries, {batch[0]}, or 1; got {mask.shape[0]}")
    check_columns(queries, mask.shape[2], mask.device, "queries")
    check_columns(keys, mask.shape[3], mask.device, "keys")
