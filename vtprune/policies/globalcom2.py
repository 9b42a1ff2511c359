"""GlobalCom2: the thumbnail of a high-resolution image steers how many and which tokens each of its crops keeps.

Liu et al., "Global Compression Commander: Plug-and-Play Inference Acceleration for High-Resolution Large
Vision-Language Models", AAAI 2026, arXiv:2501.05179.
Differs from the authors' code: counts are those asked for, and what rounding down loses goes to the crops of the
largest fractions (``exact_budget=False`` rounds down everywhere, as published); the thumbnail's tokens stay in raster
order (``order="method"`` sorts them by score); crops with padding keep their tokens in place, where there they move to
rows of the padded grid, which is not offered; every image has its own budget; ties go to the lowest index. The layer is
the last but one of the vision tower, whose output the published models use. Scores are the class token's logits;
``signal="softmax"`` takes its attention instead, an extension. Images without crops (also those of models that treat
every tile as an image of its own) and videos are ranked by score alone, also an extension, and so is a vision tower
without a class token, where the attention that a patch gets from all patches in the last layer stands in.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune.blocks.anyres import Anyres, anyres
from vtprune.blocks.class_attention import HEAD_WEIGHTED, ReadsClassToken
from vtprune.blocks.emission import in_order
from vtprune.blocks.share import Share
from vtprune.blocks.view_budget import segment_budgets, whole_budgets
from vtprune.policies.base import check_choices, register, top_rows
from vtprune.tokens import ModelFacts, Selection, VisualTokens

NO_CROPS = (
    "images without a thumbnail and crops, and videos, were ranked by score alone; GlobalCom2 was published for crops"
)


@register("globalcom2")
@dataclass
class GlobalCom2(ReadsClassToken):
    """Crops share the budget by how much the thumbnail sees in them; their tokens are ranked by crop and thumbnail.

    temperature:  of the softmax over the crops' sums; the smaller, the more the best crop gets.
    layer:        of the vision tower whose class token is asked, negative ones counted from the end.
    exact_budget: whether what is lost by rounding down is handed out.
    order:        "raster" leaves the thumbnail's tokens where they were, "method" sorts them by falling score.
    signal:       "logits", "softmax", "head_weighted_cls" (the softmax with weighted heads), or "vision", which stands
                  in for them; "auto" takes the first where the tower has a class token, else the last.
    """

    temperature: float = 10.0
    layer: int = -2
    exact_budget: bool = True
    order: Literal["raster", "method"] = "raster"
    signal: Literal["auto", "logits", "softmax", "head_weighted_cls", "vision"] = "auto"

    SIGNALS: ClassVar[Mapping[str, str]] = {
        "logits": "cls_logits",
        "softmax": "cls_attention",
        HEAD_WEIGHTED: HEAD_WEIGHTED,
    }

    def __post_init__(self):
        super().__post_init__()
        number = isinstance(self.temperature, (int, float)) and not isinstance(self.temperature, bool)
        if not number or not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature is a number above 0; got {self.temperature!r}")
        if isinstance(self.layer, bool) or not isinstance(self.layer, int):
            raise ValueError(f"layer is the index of a layer of the vision tower; got {self.layer!r}")
        check_choices(self, {"exact_budget": (True, False), "order": ("raster", "method")})

    def fitted(self, facts: ModelFacts) -> "GlobalCom2":
        """With the signal that the model's vision tower has. Raises ValueError for an order that positions forbid."""
        if self.order == "method" and not facts.line_positions:
            raise ValueError(
                f"order='method' moves tokens to other places of a line of positions, which {facts.model_type} does "
                "not have; use order='raster'"
            )
        return super().fitted(facts)

    def count(self, n: int) -> int:
        """How many of ``n`` tokens to keep, 1 to n; rounded down if ``exact_budget`` is False."""
        return super().count(n) if self.exact_budget or self.n_keep else max(1, int(n * self.keep_ratio))

    def score(self, tokens: VisualTokens) -> Tensor:
        """(N,) float32: the mean over heads."""
        return self.class_rows(tokens)[0].float().mean(0)

    def select(self, tokens: VisualTokens) -> Selection:
        """The best of every thumbnail and every crop; of other images and videos the best of all."""
        score, parts, note = self.score(tokens).cpu(), [], ""
        coords = None if tokens.coords is None else tokens.coords.cpu()
        for segment, k in segment_budgets(tokens, self.count, self.budget == "prompt"):
            views = anyres(segment, coords)
            if views is None or not k:
                rows, note = segment.span.start + self._thumbnail(score[segment.span], k), NO_CROPS
            else:
                rows = self._views(views, score, k)
            parts.append((segment.span, rows))
        return in_order(tokens, parts, note)

    def _thumbnail(self, score: Tensor, k: int) -> Tensor:
        """(k,) int64: the best, in the order in which they enter the LLM."""
        return top_rows(score, k) if self.order == "raster" else score.sort(descending=True, stable=True).indices[:k]

    def allot(self, tokens: VisualTokens) -> tuple[list[Share], str]:
        """How many tokens each thumbnail and each crop keeps, for another policy to choose."""
        score, found, note = self.score(tokens).cpu(), [], ""
        coords = None if tokens.coords is None else tokens.coords.cpu()
        for segment, k in segment_budgets(tokens, self.count, self.budget == "prompt"):
            views = anyres(segment, coords)
            if views is None or not k:
                found, note = [*found, Share(torch.arange(segment.span.start, segment.span.stop), k)], NO_CROPS
                continue
            few, budgets = self._budgets(views, score, k)
            crops = zip(views.members(), budgets, strict=True)
            found += [Share(views.thumbnail, few), *(Share(views.canvas[member], n) for member, n in crops)]
        return [share for share in found if len(share.rows)], note

    def _budgets(self, views: Anyres, score: Tensor, k: int) -> tuple[int, list[int]]:
        """How many tokens of the thumbnail and of every crop are kept; one at least."""
        n = len(views.thumbnail) + len(views.canvas)
        keep_ratio = self.keep_ratio if self.keep_ratio and not self.exact_budget else k / n
        scales = crop_scales(score[views.thumbnail], views, keep_ratio, self.temperature)
        few = int(len(views.thumbnail) * keep_ratio)
        wish, total = [size * scale for size, scale in zip(views.sizes, scales.tolist(), strict=True)], None
        if self.exact_budget:
            few, whole = len(views.thumbnail) * k // n, sum(wish)
            total = k - few
            wish = [w * total / whole for w in wish]
        budgets = whole_budgets(wish, views.sizes, total)
        return few if few or any(budgets) else 1, budgets

    def _views(self, views: Anyres, score: Tensor, k: int) -> Tensor:
        """The rows kept of an anyres image, in the order in which they enter the LLM."""
        thumbnail, canvas = score[views.thumbnail], score[views.canvas]
        few, budgets = self._budgets(views, score, k)
        seen = F.interpolate(thumbnail.view(1, 1, *views.side), size=views.size, mode="bilinear").flatten()
        best = []
        for member, budget in zip(views.members(), budgets, strict=True):
            both = F.normalize(canvas[member], dim=0) + F.normalize(seen[member], dim=0)
            best.append(member[top_rows(both, budget)])
        crops = torch.cat(best).sort().values
        return torch.cat([views.thumbnail[self._thumbnail(thumbnail, few)], views.canvas[crops]])


def crop_scales(score: Tensor, views: Anyres, keep_ratio: float, temperature: float) -> Tensor:
    """(crops,) float64: the share of its tokens that each crop keeps, at most 1; ``keep_ratio`` on average.

    score: (S,) of the thumbnail, which is cut into cells of equal numbers of rows and columns, the last ones taking
    what is left over.
    """
    rows, columns = (
        (torch.arange(side) // max(1, side // n)).clamp(max=n - 1)
        for side, n in zip(views.side, views.crops, strict=True)
    )
    cell = (rows[:, None] * views.crops[1] + columns).flatten()
    total = torch.zeros(len(views.sizes), dtype=torch.float64).index_add_(0, cell, score.double())
    power = ((total - total.max()) / temperature).exp()
    share = power / (power.sum() + 1e-8)
    return (keep_ratio * (1 + share - share.mean())).clamp(max=1)
