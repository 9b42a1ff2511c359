"""VisPruner: one half of the tokens is important to the vision tower's [CLS] token, the others are no duplicates.

Zhang et al., "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs", ICCV 2025,
arXiv:2412.01818.
Differs from the authors' code: every image has its own count, whatever is odd or small (there an odd number of tokens
left over fails, and a batch becomes one sequence); the tiles of an image cut into several share its count and their
duplicates are looked for together; ties go to the lowest index. A vision tower without a class token, where the
attention that a patch gets from all patches in the last layer stands in and the visual tokens themselves are compared,
and videos are extensions.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from vtprune.blocks.class_attention import ClassAttention
from vtprune.blocks.duplicates import drop_duplicates
from vtprune.policies.base import check_choices, quirks, register
from vtprune.tokens import ModelFacts, Selection, VisualTokens

COMPAT = ("released-odd-error",)


@register("vispruner")
@dataclass
class VisPruner(ClassAttention):
    """Keeps the most important tokens, and of the others those that are left when duplicates are dropped in rounds.

    important_ratio: share of the kept tokens that are important, 0 to 1; rounded down.
    step:            how many duplicates go in a round.
    features:        what is compared: "unprojected", as published, or "projected", the visual tokens themselves; "auto"
                     is the first where the vision tower has a class token.
    compat:          "released-odd-error" refuses an odd number of tokens in a round, where the released code fails.
    """

    important_ratio: float = 0.5
    step: int = 8
    features: Literal["auto", "unprojected", "projected"] = "auto"
    compat: str = ""

    def __post_init__(self):
        super().__post_init__()
        number = isinstance(self.important_ratio, (int, float)) and not isinstance(self.important_ratio, bool)
        if not number or not 0 <= self.important_ratio <= 1:
            raise ValueError(f"important_ratio is a number from 0 to 1; got {self.important_ratio!r}")
        if isinstance(self.step, bool) or not isinstance(self.step, int) or self.step < 1:
            raise ValueError(f"step is how many duplicates go in a round, 1 or more; got {self.step!r}")
        check_choices(self, {"features": ("auto", "unprojected", "projected")})
        self._quirks = quirks(self.compat, COMPAT)

    def fitted(self, facts: ModelFacts) -> "VisPruner":
        """With the signal and the features that the model has."""
        features = "unprojected" if facts.class_token else "projected"
        return replace(super().fitted(facts), features=features if self.features == "auto" else self.features)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | ({"unprojected"} if self.features == "unprojected" else frozenset())

    def select(self, tokens: VisualTokens) -> Selection:
        """The two halves of every pool, in prompt order."""
        score, x = self.class_score(tokens), tokens.hidden
        if self.features == "unprojected":
            x = tokens.signals["unprojected"].features
        keep = [pool.start + self._halves(score[pool], x[pool]) for pool in self.pools(tokens)]
        return Selection(torch.cat(keep))

    def _halves(self, score: Tensor, x: Tensor) -> Tensor:
        k = self.count(len(score))
        if k == len(score):
            return torch.arange(k, device=x.device)
        n_important = int(k * self.important_ratio)
        order = score.sort(descending=True, stable=True).indices
        left, n = order[n_important:], k - n_important
        if "released-odd-error" in self._quirks and n:
            self._check_even(len(left), n)
        return torch.cat([order[:n_important], drop_duplicates(x, left, n, self.step)]).sort().values

    def _check_even(self, left: int, n: int) -> None:
        """Raises ValueError where the released code fails: the tokens of a round do not come in pairs."""
        while left > n:
            if left % 2:
                raise ValueError(
                    f"compat='released-odd-error' takes an even number of tokens in every round; got {left}. Choose "
                    "another count, or leave compat out"
                )
            left -= min(self.step, left - n, left // 2)
