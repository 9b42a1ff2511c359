"""The model's own attention mask, narrowed from logical to physical rows and columns; never rebuilt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtprune_kernels.gather_site import gather_site


@dataclass(frozen=True)
class KeptWindow:
    """A window that counts the tokens that were kept, as where positions are renumbered.

    size: how many of them a query sees, itself included. real: (B, total) bool, False for padding; None: all are.
    """

    size: int
    real: Tensor | None


def narrow_mask(
    mask,
    columns: Tensor | None,
    positions: Tensor,
    valid: Tensor | None,
    n: int,
    start: int | Tensor,
    total: int | Tensor,
    kind: str,
    dtype: torch.dtype,
    bias: Tensor | None = None,
    window: KeptWindow | None = None,
):
    """The mask of one layer.

    mask:      what the model built for the unpruned sequence: None, (B, L) of FlashAttention, (B or 1, 1, Q, L) bool or
               additive, or a flex BlockMask. Columns of a window mask are the last ones of ``total``.
    columns:   (B, n) columns of this forward that the query rows hold, or None if no row was dropped in it.
    positions: (B, P) logical position of every key slot. valid: (B, P) or None.
    start:     logical position of the first of the n columns. total: logical length after them, () int64 for static
               caches, whose slots may be more than that.
    kind:      the model's attention implementation; dtype: of its hidden states.
    bias:      (B, P) float that is added to the scores of the keys, or None.
    window:    what the model's window is to count, if not tokens of the unpruned sequence; not for static caches.
    Returns the same form of mask for (B, n) queries and (B, P) keys; None stays None when nothing must be hidden. With
    a bias it is additive, (B, 1, n, P) in ``dtype``. Raises NotImplementedError for a bias where masks cannot add.
    """
    if bias is not None:
        check_takes_bias(kind, mask)
        shown = narrow_mask(mask, columns, positions, valid, n, start, total, kind, dtype, None, window)
        shown = _causal(columns, positions, n, start) if shown is None else shown
        return _biased(shown, bias[:, None, None, :], dtype)
    if mask is None:
        return None if valid is None else _missing_mask(columns, positions, valid, n, start, kind, dtype)
    if hasattr(mask, "mask_mod"):
        return _block_mask(mask, columns, positions, valid, n, start)
    if mask.dim() == 2:
        kept = mask.gather(1, positions)
        return kept if valid is None else kept * valid.to(kept.dtype)
    width, slots = mask.shape[-1], valid
    if isinstance(total, Tensor):
        # a static cache has slots beyond what a mask for a window shows; those hold nothing yet
        offset = (total - width).clamp(min=0)
        where = (positions - offset).clamp(0, width - 1)
    else:
        offset = max(0, total - width)
        where = (positions - offset).clamp(min=0) if offset else positions
    if columns is not None:
        (mask,) = gather_site([], [], mask=(mask, columns, where))
    else:
        mask = mask.expand(positions.shape[0], -1, -1, -1)
        mask = mask.gather(3, where[:, None, None, :].expand(-1, mask.shape[1], mask.shape[2], -1))
    if isinstance(offset, Tensor) or offset:
        seen = positions >= offset
        valid = seen if valid is None else valid & seen
    mask = mask if valid is None else _hide(mask, valid[:, None, None, :])
    return mask if window is None else _widened(mask, columns, positions, slots, n, start, window)


def _widened(
    mask: Tensor, columns: Tensor | None, positions: Tensor, valid: Tensor | None, n: int, start: int, kept: KeptWindow
) -> Tensor:
    """A narrowed mask with what its window hid of the last ``kept.size`` tokens that are there."""
    before = _causal(columns, positions, n, start)
    # what was dropped makes distances shorter, never longer, so nothing that was seen is hidden
    there = torch.ones_like(positions, dtype=torch.bool) if valid is None else valid
    place, shown = there.cumsum(1)[:, None, None, :], before & there[:, None, None, :]
    shown = shown & (shown.sum(-1, keepdim=True) - place < kept.size)
    if kept.real is not None:
        shown = shown & kept.real.gather(1, positions)[:, None, None, :]
    return mask | shown if mask.dtype == torch.bool else mask.masked_fill(shown, 0)


def check_takes_bias(kind: str, mask=None) -> None:
    """Raises NotImplementedError unless attention of this ``kind``, given masks like ``mask``, adds them to scores."""
    if "flash" in kind or "flex" in kind or (mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 4)):
        raise NotImplementedError(
            f"kept tokens that stand for several in attention need a mask that is added to the scores, which {kind!r} "
            "does not take. Load the model with attn_implementation='sdpa', or wrap it with proportional=False, which "
            "counts every merged token once"
        )


def _biased(mask: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.where(mask, bias.to(dtype), torch.finfo(dtype).min)
    return (mask + bias.to(mask.dtype)).clamp(min=torch.finfo(mask.dtype).min)


def _hide(mask: Tensor, shown: Tensor) -> Tensor:
    return mask & shown if mask.dtype == torch.bool else mask.masked_fill(~shown, torch.finfo(mask.dtype).min)


def _missing_mask(
    columns: Tensor | None, positions: Tensor, valid: Tensor, n: int, start: int, kind: str, dtype: torch.dtype
) -> Tensor:
    """The causal mask that the model left implicit, once ragged rows make it necessary."""
    if "flash" in kind:
        return valid
    shown = _causal(columns, positions, n, start) & valid[:, None, None, :]
    if kind != "eager":
        return shown
    return torch.zeros_like(shown, dtype=dtype).masked_fill(~shown, torch.finfo(dtype).min)


def _causal(columns: Tensor | None, positions: Tensor, n: int, start: int) -> Tensor:
    if columns is None:
        queries = torch.arange(start, start + n, device=positions.device)[None]
    else:
        queries = columns + start
    return positions[:, None, None, :] <= queries[:, None, :, None]


def _block_mask(mask, columns: Tensor | None, positions: Tensor, valid: Tensor | None, n: int, start: int):
    from torch.nn.attention.flex_attention import create_block_mask

    whole = mask.mask_mod
    if columns is None:
        columns = torch.arange(n, device=positions.device).expand(positions.shape[0], -1)

    def physical(b, h, q, k):
        shown = whole(b, h, columns[b, q], positions[b, k])
        return shown if valid is None else shown & valid[b, k]

    return create_block_mask(physical, *positions.shape[:1], None, n, positions.shape[1], device=positions.device)
