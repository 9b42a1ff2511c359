"""Greedy determinantal point process: picks tokens that are relevant and no combination of those picked before."""

import torch
from torch import Tensor

from vtprune_kernels.greedy_rules import DPP
from vtprune_kernels.greedy_select import greedy_select


@torch.no_grad()
def clip_relevance(image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
    """(..., N) float32: MINUS the cosine of each patch to a text, mean over the text's parts; higher is kept.

    Maps of patches against texts are known to come out inverted in CLIP, hence the sign.

    image_embeds: (..., N, C), patches of the last layer but one through CLIP's last norm and visual projection.
    text_embeds:  (M, C), CLIP's text embeddings of the question, one for each part that fits its text tower.
    Source: CDPruner, Zhang et al., NeurIPS 2025, arXiv:2506.10967.
    """
    image, text = (x.float() / x.float().norm(dim=-1, keepdim=True) for x in (image_embeds, text_embeds))
    return -(image @ text.T).mean(-1)


def unit_scale(relevance: Tensor) -> Tensor:
    """Relevance from just above 0 to just above 1, over all numbers given, in float32; 1 where all are equal."""
    relevance = relevance.float()
    low, high = relevance.min(), relevance.max()
    return torch.where(high > low, (relevance - low + 1e-6) / (high - low), torch.ones_like(relevance))


@torch.no_grad()
def dpp(features: Tensor, relevance: Tensor, k: int) -> Tensor:
    """The ``k`` picks of greedy maximisation of det(L), L = diag(r) S diag(r), (k,) int64 in order, 1 <= k <= N.

    S are the cosines of (N, D) features, r is the (N,) relevance. When the picks span all tokens as far as float32 can
    tell, the rest goes by relevance. No (N, N) matrix is made of more than 1024 tokens. Ties: the lowest index.
    Source: Chen, Zhang and Zhou, NeurIPS 2018, arXiv:1709.05135, as CDPruner has it.
    """
    return greedy_select(features, k, DPP(relevance.to(features.device)))


@torch.no_grad()
def dpp_unguarded(features: Tensor, relevance: Tensor, k: int) -> Tensor:
    """The picks of ``dpp`` without a guard at the rank, as released: beyond it they repeat, so fewer are returned.

    (at most k,) int64, ascending. The root of a residual below 0 is nan, which is larger than every number to a search
    for the largest one. The result beyond the rank depends on rounding.
    """
    x = features.float()
    x = x / x.norm(dim=-1, keepdim=True)
    kernel = relevance[:, None].float() * (x @ x.T) * relevance.float()
    left, rows, order = kernel.diagonal().clone(), [], []
    for _ in range(k):
        j = int(left.cpu().numpy().argmax())  # nan before all numbers, the first of equals
        row = kernel[j] - sum((earlier[j] * earlier for earlier in rows), torch.zeros_like(left))
        row = row / left[j].sqrt()
        rows.append(row)
        order.append(j)
        left = left - row.square()
        left[j] = -float("inf")
    return torch.tensor(sorted(set(order)), device=features.device)
