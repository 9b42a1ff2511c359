"""Attention of a few queries, or all of a prompt, to the entries of a cache: as rows, in blocks, or summed up."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune_kernels.attention_columns import EVERYTHING, Visible, attention_columns, check_attention, score_blocks


def causal(rows: Tensor, keys: Tensor, *, window: int | None = None, valid: Tensor | None = None) -> Visible:
    """Each query sees the keys up to its own place, or the last ``window`` of these places.

    rows:   (R,) or (B, R) int64 places of the queries; -1 for one that is padding and sees nothing.
    keys:   (N,) or (B, N) int64 places of the keys, ascending: columns of the prompt, not coordinates of a rotation.
    valid:  (N,) or (B, N) bool, False for entries that hold nothing.
    Raises ValueError for keys that do not ascend (looked at on a CPU alone).
    """
    given = [t if t is None or t.dim() == 2 else t[None] for t in (rows, keys, valid)]
    batch = max(len(t) for t in given if t is not None)
    rows, keys, valid = (None if t is None else t.expand(batch, -1).contiguous() for t in given)
    if keys.device.type == "cpu" and bool((keys.diff(dim=1) < 0).any()):
        raise ValueError("the places of the keys ascend here; sort the entries, or use Visible(allowed=...)")
    first = None if window is None else torch.searchsorted(keys, rows - window, right=True)
    return Visible(first=first, last=torch.searchsorted(keys, rows, right=True) - 1, valid=valid)


def of_batch(visible: Visible, batch: int) -> Visible:
    """The same for each of ``batch`` samples, where it was said for one."""
    parts = {name: t for name, t in vars(visible).items() if t is not None}
    return Visible(**{name: t.expand(batch, *t.shape[1:]) if len(t) == 1 else t for name, t in parts.items()})


@dataclass(frozen=True)
class Probe:
    """Attention of some query heads and rows of one sample. attention: (h, r, N) float32, 0 where nothing is seen."""

    sample: int
    heads: slice
    rows: slice
    attention: Tensor


@torch.no_grad()
def probe_blocks(
    q: Tensor, k: Tensor, *, scale: float, visible: Visible = EVERYTHING, softcap: float | None = None
) -> Iterator[Probe]:
    """All attention of the queries, a block at a time; heads of a block are those of whole groups.

    q: (B, H, R, d) after norms and rotation. k: (B, H_kv, N, d) in its dtype. A block holds about 1 MiB on a CPU and
    64 MiB elsewhere, at least a row of the heads of one group. Rows that see nothing are zero or left out. ``visible``
    of one sample holds for all.
    Raises as ``attention_rows`` does.
    """
    visible = of_batch(visible, len(k))
    check_attention("probe_blocks", q, k, visible, softcap)
    n = k.shape[2]
    for block in score_blocks(q, k, scale, softcap, visible):
        rows = block.scores.softmax(-1)
        if block.hidden is not None:
            rows = rows.masked_fill(block.hidden, 0)
        rows = F.pad(rows.float(), (block.columns.start, n - block.columns.stop))
        yield Probe(block.b, block.heads, block.rows, rows)


@torch.no_grad()
def probe_rows(
    q: Tensor, k: Tensor, *, scale: float, visible: Visible = EVERYTHING, softcap: float | None = None
) -> Tensor:
    """(B, H, R, N) float32: attention of every head and query; for few queries, as it is held. Takes what
    ``probe_blocks`` takes. Means over heads need less: ``attention_rows`` of the kernels, and ``received``."""
    out = torch.zeros(*q.shape[:3], k.shape[2], device=q.device)
    for block in probe_blocks(q, k, scale=scale, visible=visible, softcap=softcap):
        out[block.sample, block.heads, block.rows] = block.attention
    return out


@torch.no_grad()
def received(
    q: Tensor,
    k: Tensor,
    *,
    scale: float,
    visible: Visible = EVERYTHING,
    heads: Literal["group", "all"] = "group",
    over: Literal["sum", "queries", "seeing"] = "sum",
    softcap: float | None = None,
) -> Tensor:
    """How much attention each key gets from all queries; no row is ever held for all of them.

    q:       (B, H, R, d) after norms and rotation. k: (B, H_kv, N, d) in its dtype.
    heads:   "group": the mean over the query heads of each key head, (B, H_kv, N). "all": over all of them, (B, N).
    over:    "sum" over the queries, accumulated attention; "queries": its mean over those that see anything; "seeing":
             its mean over those that see the key, so that early keys gain nothing by being seen more often.
    visible: which keys each query sees, of each sample or of one for all.
    Returns float32. Raises ValueError for other choices, and as ``attention_columns`` does.
    """
    if heads not in ("group", "all"):
        raise ValueError(f"heads is 'group' (one number for each key head) or 'all' (their mean); got {heads!r}")
    if over not in ("sum", "queries", "seeing"):
        raise ValueError(f"over is 'sum', 'queries' or 'seeing', see the docstring; got {over!r}")
    visible = of_batch(visible, len(k))
    check_attention("received", q, k, visible, softcap)
    (batch, _, n, _), n_rows, mean = k.shape, q.shape[2], "seeing" if over == "seeing" else "queries"
    options = {"scale": scale, "over": mean, "softcap": softcap}
    if heads == "all":
        out = attention_columns(q, k, visible=visible, **options)
    else:
        out = _by_group(q, k, visible, options)
    if over == "sum":
        count = seeing(visible, batch, n_rows, n, out.device).sum(1)
        out = out * count.view(batch, *[1] * (out.dim() - 1))
    return out


def _by_group(q: Tensor, k: Tensor, visible: Visible, options: Mapping[str, Any]) -> Tensor:
    batch, groups = k.shape[:2]
    grouped = q.unflatten(1, (groups, -1))
    if visible.allowed is not None:
        # a mask of all queries and keys is not repeated
        each = (attention_columns(grouped[:, g], k[:, g, None], visible=visible, **options) for g in range(groups))
        return torch.stack(list(each), 1)
    # groups become samples: what is summed over heads is summed over those of a sample
    parts = {name: t.repeat_interleave(groups, 0) for name, t in vars(visible).items() if t is not None}
    out = attention_columns(grouped.flatten(0, 1), k.flatten(0, 1)[:, None], visible=Visible(**parts), **options)
    return out.unflatten(0, (batch, groups))


def seeing(visible: Visible, batch: int, rows: int, keys: int, device: torch.device) -> Tensor:
    """(B, R) bool: which queries see any key at all."""
    visible = of_batch(visible, batch)
    zeros = torch.zeros(batch, rows, dtype=torch.int64, device=device)
    first = zeros if visible.first is None else visible.first.clamp(min=0)
    last = zeros + keys - 1 if visible.last is None else visible.last.clamp(max=keys - 1)
    if visible.allowed is not None:
        index, allowed = torch.arange(keys, device=device), visible.allowed
        if visible.valid is not None:
            allowed = allowed & visible.valid[:, None]
        return (allowed & (index >= first[..., None]) & (index <= last[..., None])).any(-1)
    if visible.valid is None:
        return first <= last
    before = F.pad(visible.valid.cumsum(1), (1, 0))
    seen = before.gather(1, (last + 1).clamp(min=0)) > before.gather(1, first.clamp(max=keys))
    return seen & (first <= last)
