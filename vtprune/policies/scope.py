"""SCOPE: keep visual tokens that stand for what no other kept one does, weighted by the class token's attention.

Deng et al., "SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodel LLMs", NeurIPS 2025,
arXiv:2510.24214.
Differs from the authors' code: its alpha and its way to combine are options (there environment variables); every image
has its own count (there a batch or the tiles of an image divide one); float32, with sums in float64, where there the
dtype of the vision tower rounds; ties go to the lowest index. A vision tower without a class token, where the attention
that a patch gets from all patches in the last layer stands in and tokens are compared after the projector, is an
extension, and so are videos.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from vtprune.blocks.class_attention import ClassAttention
from vtprune.blocks.greedy_coverage import AFTER_PROJECTOR, cover_tokens, is_number
from vtprune.blocks.greedy_pools import picked
from vtprune.policies.base import check_choices, register
from vtprune.tokens import ModelFacts, Selection, VisualTokens


@register("scope")
@dataclass
class SCOPE(ClassAttention):
    """Picks by ``gain * a ** alpha``: a sums the class token's attention over heads, gain is the coverage a token adds.

    Coverage is the sum over all tokens of the cosine to the most similar pick, at least 0.

    alpha:    exponent of the attention; 0 leaves coverage alone.
    combine:  "multiply", or "add" for ``gain + a ** alpha``.
    features: what is compared: "unprojected", as published, or "projected", the visual tokens themselves; "auto" is
              the first where the vision tower has a class token.
    """

    alpha: float = 1.0
    combine: Literal["multiply", "add"] = "multiply"
    features: Literal["auto", "unprojected", "projected"] = "auto"

    def __post_init__(self):
        super().__post_init__()
        if not is_number(self.alpha) or not 0 <= self.alpha < math.inf:
            raise ValueError(f"alpha is a number of 0 or more; got {self.alpha!r}")
        check_choices(self, {"combine": ("multiply", "add"), "features": ("auto", "unprojected", "projected")})

    def fitted(self, facts: ModelFacts) -> "SCOPE":
        """With the signal and the features that the model has."""
        features = "unprojected" if facts.class_token else "projected"
        return replace(super().fitted(facts), features=features if self.features == "auto" else self.features)

    @property
    def notes(self) -> tuple[str, ...]:
        return super().notes + ((AFTER_PROJECTOR,) if self.features == "projected" else ())

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | ({"unprojected"} if self.features == "unprojected" else frozenset())

    def score(self, tokens: VisualTokens) -> Tensor:
        """(N,) float32, what a token is worth by itself."""
        return self.class_rows(tokens)[0].float().sum(0) ** self.alpha

    def select(self, tokens: VisualTokens) -> Selection:
        def pick(pool: slice, k: int) -> Tensor:
            return cover_tokens(x[pool], k, worth[pool], self.combine)

        pools = self.pools(tokens)
        if all(self.count(pool.stop - pool.start) == pool.stop - pool.start for pool in pools):
            return Selection.all(tokens)
        x = tokens.signals["unprojected"].features if self.features == "unprojected" else tokens.hidden
        worth = self.score(tokens)
        return picked(tokens, pools, self.count, pick)
