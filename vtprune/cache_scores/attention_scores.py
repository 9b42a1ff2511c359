"""Scores of cache entries by the attention they got: from all queries, from the last ones, from the very last."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune.cache_scores.probe import received
from vtprune_kernels.attention_columns import EVERYTHING, Visible


def observed(
    q: Tensor, k: Tensor, *, scale: float, visible: Visible = EVERYTHING, softcap: float | None = None
) -> Tensor:
    """(B, H_kv, N) float32: the mean attention of those queries that see the key, over the heads of each group.

    q: (B, H, R, d) all queries of the prompt, or some, with ``visible`` of them. k: (B, H_kv, N, d).
    """
    return received(q, k, scale=scale, visible=visible, over="seeing", softcap=softcap)


def snapkv(
    q: Tensor,
    k: Tensor,
    *,
    scale: float,
    visible: Visible,
    pool: int = 5,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """(B, H_kv, N) float32: the mean attention of the last queries, over neighbours too; the last keys above all.

    Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", NeurIPS 2024, arXiv:2404.14469.

    q:       (B, H, R, d) the last R queries. k: (B, H_kv, N, d). visible: of these queries.
    pool:    how many neighbours the mean is over, odd; places beyond the ends count as zeros. 1 for none.
    window:  how many of the last keys are not pooled and get the largest score + 1; R if None.
    Raises ValueError for another ``pool`` or ``window``.
    """
    window = q.shape[2] if window is None else window
    check_pool(pool)
    if not 0 <= window <= k.shape[2]:
        raise ValueError(f"window is a number of the last of {k.shape[2]} keys; got {window!r}")
    mean = received(q, k, scale=scale, visible=visible, over="queries", softcap=softcap)
    before = mean[..., : k.shape[2] - window]
    if before.shape[-1]:
        before = smoothed(before, pool)
    return protected(before, last=window)


def smoothed(score: Tensor, pool: int) -> Tensor:
    """(..., N) means of scores (..., N) over ``pool`` neighbours; places beyond the ends count as zeros."""
    return F.avg_pool1d(score, pool, stride=1, padding=pool // 2)


def check_pool(pool: object) -> None:
    """Raises ValueError unless ``pool`` is an odd number of neighbours."""
    if isinstance(pool, bool) or not isinstance(pool, int) or pool < 1 or pool % 2 == 0:
        raise ValueError(f"pool is an odd number of neighbours, 1 or more; got {pool!r}")


def tova(q: Tensor, k: Tensor, *, scale: float, visible: Visible = EVERYTHING, softcap: float | None = None) -> Tensor:
    """(B, H_kv, N) float32: the attention of the last query, the mean over all heads; the last key above all.

    Oren et al., "Transformers are Multi-State RNNs", EMNLP 2024, arXiv:2401.06104. The same for each key head.

    q: (B, H, 1, d) the last query. k: (B, H_kv, N, d).
    Raises ValueError for another number of queries.
    """
    if q.shape[2] != 1:
        raise ValueError(f"this score is the attention of one query, the last; got {q.shape[2]}: pass q[:, :, -1:]")
    mean = received(q, k, scale=scale, visible=visible, heads="all", over="queries", softcap=softcap)
    return protected(mean[:, None, :-1].expand(-1, k.shape[1], -1), last=1)


def protected(score: Tensor, *, first: int = 0, last: int = 0) -> Tensor:
    """(..., H_kv, first + N + last): entries before and after these get the sample's largest score, of all heads, + 1.

    score: (..., H_kv, N).
    """
    if not score.shape[-1]:
        return torch.ones(*score.shape[:-1], first + last, device=score.device)
    above = score.amax((-2, -1), keepdim=True) + 1
    return torch.cat([above.expand(*score.shape[:-1], first), score, above.expand(*score.shape[:-1], last)], -1)
