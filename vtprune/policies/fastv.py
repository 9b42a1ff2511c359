"""FastV: drop the visual tokens that the last prompt token ignores after layer K.

Chen et al., "An Image is Worth 1/2 Tokens After Layer 2", ECCV 2024, arXiv:2403.06764, section 4.1.
Differs from the authors' code: every sample and every image is ranked by itself (there the first row of a batch decides
for all); the attention row is recomputed in float32, whatever attention implementation the model runs; ties go to the
lowest index; the mode that only masks tokens and the one that ranks them anew in every decode step are not offered.
``keep_ratio`` is 1 - R of the paper.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtprune.policies.base import ScorePolicy, register
from vtprune.tokens import VisualTokens


@register("fastv")
@dataclass
class FastV(ScorePolicy):
    """Scores by the last prompt token's attention, averaged over heads, in layer ``layer - 1``.

    layer: K in the paper, 1 or more; the first decoder layer that sees the shorter sequence.
    """

    layer: int = 2

    needs: ClassVar[frozenset[str]] = frozenset({"last_query_attention"})

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.layer, bool) or not isinstance(self.layer, int) or self.layer < 1:
            raise ValueError(
                f"FastV reads the attention of layer - 1, so layer is an integer of 1 or more; got {self.layer!r}. "
                "To prune before the LLM choose a policy that needs no decoder attention"
            )

    @property
    def sites(self) -> tuple[int, ...]:
        return (self.layer,)

    def score(self, tokens: VisualTokens) -> Tensor:
        return tokens.signals["last_query_attention"]
