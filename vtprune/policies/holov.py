"""HoloV: every part of the picture gets a share of the budget, by the attention in it and how varied its tokens are.

Zou et al., "Don't Just Chase 'Highlighted Tokens' in MLLMs: Revisiting Visual Holistic Context Retention", NeurIPS
2025, arXiv:2510.02912.
Differs from the authors' code: what a crop cannot hold of its share goes to the other crops, so that exactly the wanted
number of real tokens is kept (there zeros are appended: ``compat="released-zero-pad"``); a crop of one token is scored
on the scale of the others (``compat="released-single-crop-scale"`` does not); tokens stay in raster order
(``order="method"`` sorts them by attention inside each crop); every image is cut by itself, any number of tokens may be
kept, and ties go to the lowest index. The crops are runs of tokens, as in the code; ``crops="grid"`` cuts boxes out of
the grid, an extension. So are videos, models with mRoPE, where the released code ranks tokens by the scores of others,
and a vision tower without a class token, where the attention that a patch gets from all patches in the last layer
stands in.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vtprune.blocks.anyres import tile_rows
from vtprune.blocks.cells import sample_cells
from vtprune.blocks.class_attention import ClassSignal, ReadsClassToken
from vtprune.blocks.emission import in_order
from vtprune.blocks.share import Share
from vtprune.blocks.view_budget import fill_up
from vtprune.policies.base import check_choices, quirks, register
from vtprune.tokens import ModelFacts, Selection, VisualTokens

COMPAT = ("released-zero-pad", "released-single-crop-scale")
CHOICES = {"crops": ("strips", "grid"), "order": ("raster", "method")}
SCALE = 1000
BLOCK = 1024
"""Rows of a crop that are compared with all of it at a time, which bounds the memory of large crops."""


@register("holov")
@dataclass
class HoloV(ReadsClassToken):
    """Quotas of crops by attention and variance, then the tokens of most attention in each crop.

    n_crops: into how many crops an image is cut; fewer tokens make fewer crops.
    crops:   "strips" are runs of tokens, of anyres images tile by tile; "grid" are boxes of nearly the same size.
    beta:    weight of the variance in a crop's score, 0 or more.
    layer:   of the vision tower whose class token is asked, negative ones counted from the end.
    order:   "raster" leaves the tokens where they were, "method" sorts them by falling attention in each crop.
    compat:  what the released code does, one or several joined by commas: "released-zero-pad" keeps tokens of zeros for
             what crops cannot hold, "released-single-crop-scale" scores crops of one token a thousandth.
    """

    n_crops: int = 16
    crops: Literal["strips", "grid"] = "strips"
    beta: float = 0.09
    layer: int = -2
    order: Literal["raster", "method"] = "raster"
    signal: ClassSignal = "auto"
    compat: str = ""

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.n_crops, bool) or not isinstance(self.n_crops, int) or self.n_crops < 1:
            raise ValueError(f"n_crops is how many crops an image is cut into, 1 or more; got {self.n_crops!r}")
        number = isinstance(self.beta, (int, float)) and not isinstance(self.beta, bool)
        if not number or not 0 <= self.beta < math.inf:
            raise ValueError(f"beta is the weight of the variance, a number of 0 or more; got {self.beta!r}")
        if isinstance(self.layer, bool) or not isinstance(self.layer, int):
            raise ValueError(f"layer is the index of a layer of the vision tower; got {self.layer!r}")
        check_choices(self, CHOICES)
        self._quirks = quirks(self.compat, COMPAT)

    def fitted(self, facts: ModelFacts) -> "HoloV":
        """With the signal that the model's vision tower has. Raises ValueError for an order that positions forbid."""
        if not facts.line_positions and (self.order == "method" or "released-zero-pad" in self._quirks):
            raise ValueError(
                f"order='method' and 'released-zero-pad' move tokens to other places of a line of positions, which "
                f"{facts.model_type} does not have; got order={self.order!r} and compat={self.compat!r}"
            )
        return super().fitted(facts)

    def score(self, tokens: VisualTokens) -> Tensor:
        """(N,) float32: attention, the mean over heads."""
        return self.class_rows(tokens)[0].float().mean(0)

    def select(self, tokens: VisualTokens) -> Selection:
        """Of every crop its quota of the tokens with most attention."""
        score, parts = self.score(tokens).cpu(), []
        for pool in self.pools(tokens):
            k, crops, quota = self._counts(tokens, score, pool)
            picked = [self._pick(crop, score[crop], q) for crop, q in zip(crops, quota, strict=True)]
            rows = torch.cat(picked)[:k]
            rows = rows if self.order == "method" else rows.sort().values
            parts.append((pool, torch.nn.functional.pad(rows, (0, k - len(rows)), value=-1)))
        return in_order(tokens, parts)

    def allot(self, tokens: VisualTokens) -> tuple[list[Share], str]:
        """How many tokens each crop keeps, for another policy to choose."""
        score, found = self.score(tokens).cpu(), []
        for pool in self.pools(tokens):
            _, crops, quota = self._counts(tokens, score, pool)
            found += [Share(crop.sort().values, min(q, len(crop))) for crop, q in zip(crops, quota, strict=True)]
        return found, ""

    def _counts(self, tokens: VisualTokens, score: Tensor, pool: slice) -> tuple[int, list[Tensor], list[int]]:
        """How many tokens a pool keeps, its crops, and how many each of them keeps."""
        k, crops = self.count(pool.stop - pool.start), self._crops(tokens, pool)
        quota, order = self.quotas(tokens.hidden, score, crops, k)
        if "released-zero-pad" not in self._quirks:
            quota = fill_up(quota, [len(crop) for crop in crops], k, order)
        return k, crops, quota

    def _pick(self, crop: Tensor, score: Tensor, quota: int) -> Tensor:
        """The rows of a crop that are kept, in the order of the method: by falling attention; a whole crop as it is."""
        if quota >= len(crop):
            return crop
        return crop[score.sort(descending=True, stable=True).indices[:quota]]

    def _crops(self, tokens: VisualTokens, pool: slice) -> list[Tensor]:
        """The rows of each crop of a pool; every row is in one of them."""
        n = pool.stop - pool.start
        coords = None if tokens.coords is None else tokens.coords.cpu()
        if self.crops == "grid":
            cell = sample_cells(tokens, [pool], lambda n: min(n, self.n_crops))[1].cpu()[pool]
            # views too small for a cell of their own are one together
            return [pool.start + (cell == c).nonzero().flatten() for c in cell.unique()]
        inside = [s for s in tokens.segments if len(s) and pool.start <= s.span.start and s.span.stop <= pool.stop]
        run = torch.cat([rows for segment in inside for rows in tile_rows(segment, coords)])
        return list(run.tensor_split(min(n, self.n_crops)))

    def quotas(self, hidden: Tensor, score: Tensor, crops: list[Tensor], k: int) -> tuple[list[int], list[int]]:
        """The share of ``k`` of each crop, which may be more than it holds; and the crops by falling weight."""
        spread = torch.cat([cosine_variance(hidden[crop.to(hidden.device)].float()) for crop in crops]).to(score.device)
        parts = zip(crops, spread.split([len(crop) for crop in crops]), strict=True)
        value = torch.stack([self._crop_score(score[crop], variance) for crop, variance in parts])
        weight = value / (value.sum() + 1e-6)
        quota = (weight * k).floor().long()
        order = weight.sort(descending=True, stable=True).indices
        quota[order[: max(0, k - int(quota.sum()))]] += 1
        return quota.tolist(), order.tolist()

    def _crop_score(self, attention: Tensor, variance: Tensor) -> Tensor:
        """() float32: the mean over a crop's tokens of attention (m,) and weighted variance (m,)."""
        if len(attention) == 1 and "released-single-crop-scale" in self._quirks:
            return attention[0]
        a = SCALE * attention
        return (a + self.beta * variance * a.abs().mean() / (variance.abs().mean() + 1e-6)).mean()


def cosine_variance(x: Tensor) -> Tensor:
    """(m,) float32 >= 0: how much the cosines of each of m rows (m, D) to the others vary; 0 of one row.

    The squared deviations from their mean, one for the row itself, whose cosine counts as 0, over m - 1.
    """
    u = x / (x.norm(dim=-1, keepdim=True) + 1e-6)
    found, others = [], max(1, len(u) - 1)
    for start in range(0, len(u), BLOCK):
        cosine = u[start : start + BLOCK] @ u.T
        cosine.diagonal(start).zero_()
        mean = cosine.sum(1, keepdim=True) / others
        found.append((cosine - mean).square().sum(1) / others)
    return torch.cat(found)
