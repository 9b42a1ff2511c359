"""DivPrune: keep the visual tokens that are farthest from each other, whatever they show.

Alvar et al., "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", CVPR 2025, arXiv:2503.02175.
Differs from the authors' code: a picked token is no candidate any more (there tokens that are alike can be picked and
put into the prompt several times); a token of zeros, whose cosine to others is undefined, is kept last (there it is
kept first, and the search ends); every image of every sample is searched by itself (there the first sample decides for
all, and images share one search, as with ``budget="prompt"``); distances are float32; the same picks come without a
matrix of all pairs; ties go to the lowest index.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtprune.blocks.greedy_max_min import distances, max_min, max_min_of
from vtprune.blocks.greedy_pools import picked
from vtprune.policies.base import ScorePolicy, check_choices, quirks, register
from vtprune.tokens import Selection, VisualTokens

COMPAT = ("released-duplicates",)


@register("divprune")
@dataclass
class DivPrune(ScorePolicy):
    """Picks the token whose nearest other is farthest, then always the one whose nearest pick is, by 1 - cosine.

    score_dtype: "float32", or "model", which computes distances in the dtype of the tokens as published.
    newlines:    whether newline and separator tokens of high-resolution images compete, as published, or are all kept.
    compat:      "released-duplicates" leaves picked tokens among the candidates, in the dtype of the tokens. Picked
                 again, a token is kept once, so fewer are kept than were asked for.
    """

    score_dtype: Literal["float32", "model"] = "float32"
    newlines: bool = False
    compat: str = ""

    positions: ClassVar[str] = "compact"

    def __post_init__(self):
        super().__post_init__()
        check_choices(self, {"score_dtype": ("float32", "model"), "newlines": (False, True)})
        self._quirks = quirks(self.compat, COMPAT)

    def select(self, tokens: VisualTokens) -> Selection:
        def pick(pool: slice, k: int) -> Tensor:
            features = tokens.hidden[pool]
            if self._quirks:
                with torch.no_grad():
                    return max_min_of(distances(features), k, again=True).unique()
            return max_min(features, k, in_dtype=self.score_dtype == "model")

        return picked(tokens, self.pools(tokens), self.count, pick)
