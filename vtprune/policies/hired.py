"""HiRED: the thumbnail's attention in the first vision layer says how many tokens each crop may keep.

Arif et al., "HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution Vision-Language Models",
AAAI 2025, arXiv:2408.10945.
Differs from the authors' code: a crop's budget counts the marked patches of the thumbnail whose centres it shows (there
the patches are cut into runs of whole rows, one for each crop, whatever the crops show: ``compat="released-strips"``);
counts are those asked for, and what rounding down loses goes to the crops of the largest fractions
(``exact_budget=False`` rounds down everywhere, as published); padding is no candidate, where there selected tokens may
lie in it and are lost; newlines stay; ties go to the lowest index. Images without crops are ranked by the late layer
alone, as published; so are videos and the tiles of models that treat each as an image of its own, an extension, and so
is a vision tower without a class token, where the attention that a patch gets from all patches in the first and the
last layer stands in.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtprune.blocks.anyres import Anyres, anyres
from vtprune.blocks.class_attention import ClassSignal, ReadsClassToken
from vtprune.blocks.share import Share
from vtprune.blocks.view_budget import segment_budgets, whole_budgets
from vtprune.policies.base import check_choices, quirks, register, top_rows
from vtprune.tokens import Selection, VisualTokens

COMPAT = ("released-strips",)


@register("hired")
@dataclass
class HiRED(ReadsClassToken):
    """Ranks by the class token's attention; crops share the budget by their part of the thumbnail's marks.

    alpha:        share of the budget that the thumbnail gets, from 0 to 1; the best 1 - alpha of it are marked.
    layers:       of the vision tower, negative ones counted from the end: the one that marks and the one that ranks.
    exact_budget: whether what is lost by rounding down is handed out.
    compat:       "released-strips" counts marks in runs of the thumbnail's rows instead of by crop, a fault.
    """

    alpha: float = 0.5
    layers: tuple[int, int] = (0, -2)
    exact_budget: bool = True
    signal: ClassSignal = "auto"
    compat: str = ""

    STANDS_IN: ClassVar[str] = (
        "what patches get from all others in the vision tower's first and last layer stands in for its class token"
    )

    def __post_init__(self):
        super().__post_init__()
        number = isinstance(self.alpha, (int, float)) and not isinstance(self.alpha, bool)
        if not number or not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is the thumbnail's share of the budget, from 0 to 1; got {self.alpha!r}")
        pair = isinstance(self.layers, (tuple, list)) and len(self.layers) == 2
        if not pair or any(isinstance(layer, bool) or not isinstance(layer, int) for layer in self.layers):
            raise ValueError(f"layers are two indices of layers of the vision tower, as (0, -2); got {self.layers!r}")
        self.layers = tuple(self.layers)
        check_choices(self, {"exact_budget": (True, False)})
        self._strips = "released-strips" in quirks(self.compat, COMPAT)

    @property
    def class_layers(self) -> tuple[int, ...]:
        return self.layers

    @property
    def needs(self) -> frozenset[str]:
        if self.signal == "vision":
            return frozenset({"vision_attention:0", "vision_attention:-1"})
        return super().needs

    def count(self, n: int) -> int:
        """How many of ``n`` tokens to keep, 1 to n; rounded down if ``exact_budget`` is False."""
        return super().count(n) if self.exact_budget or self.n_keep else max(1, int(n * self.keep_ratio))

    def select(self, tokens: VisualTokens) -> Selection:
        """The best of every thumbnail and every crop; of other images and videos the best of all."""
        early, late = self._scores(tokens)
        coords, keep = None if tokens.coords is None else tokens.coords.cpu(), []
        for segment, k in segment_budgets(tokens, self.count, self.budget == "prompt"):
            views = anyres(segment, coords)
            best = segment.span.start + top_rows(late[segment.span], k)
            if views is not None and k:
                shares = self._shares(views, early, k)
                best = torch.cat([share.rows[top_rows(late[share.rows], share.k)] for share in shares]).sort().values
            keep.append(best)
        return Selection(torch.cat(keep).to(tokens.hidden.device))

    def _scores(self, tokens: VisualTokens) -> tuple[Tensor, Tensor]:
        """(N,) each on the CPU: what marks and what ranks, summed over heads in the tower's dtype."""
        if self.signal == "vision":
            return tokens.signals["vision_attention:0"].cpu(), tokens.signals["vision_attention:-1"].cpu()
        [name] = self.needs
        early, late = tokens.signals[name].sum(1).cpu()
        return early, late

    def allot(self, tokens: VisualTokens) -> tuple[list[Share], str]:
        """How many tokens each thumbnail and each crop keeps, for another policy to choose."""
        (early, _), found = self._scores(tokens), []
        coords = None if tokens.coords is None else tokens.coords.cpu()
        for segment, k in segment_budgets(tokens, self.count, self.budget == "prompt"):
            views = anyres(segment, coords)
            if views is None or not k:
                found.append(Share(torch.arange(segment.span.start, segment.span.stop), k))
            else:
                found += self._shares(views, early, k)
        return [share for share in found if len(share.rows)], ""

    def _shares(self, views: Anyres, early: Tensor, k: int) -> list[Share]:
        """Those of the thumbnail and of every crop of an anyres image; one token at least."""
        thumbnail, canvas = views.thumbnail, views.canvas
        full = min(int(k * self.alpha), len(thumbnail))
        rest = min(k - full, len(canvas))
        if self.exact_budget:
            full = k - rest
        marked = top_rows(early[thumbnail], int(len(thumbnail) * (1 - self.alpha)))
        share = self._marks(views)[marked].bincount(minlength=len(views.sizes)).float() / max(1, len(marked))
        budgets = whole_budgets((share * rest).tolist(), views.sizes, rest if self.exact_budget else None)
        crops = [Share(canvas[member], n) for member, n in zip(views.members(), budgets, strict=True)]
        return [Share(thumbnail, full if full or any(budgets) else 1), *crops]

    def _marks(self, views: Anyres) -> Tensor:
        """(S,) int64: the crop that each patch of the thumbnail speaks for."""
        size = len(views.thumbnail)
        return torch.arange(size) * len(views.sizes) // size if self._strips else views.shown
