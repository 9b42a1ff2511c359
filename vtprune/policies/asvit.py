"""AS-ViT's score: keep what the vision tower's [CLS] token attends to, each head weighted by what it makes of a patch.

Liu et al., "Adaptive Sparse ViT: Towards Learnable Adaptive Token Pruning by Fully Exploiting Self-Attention", IJCAI
2023, arXiv:2209.13802.
A head's weight at a patch is its share of the length of what all heads put out there, before the output projection.
Differs from the authors' code: the number kept is asked for and is each image's own (there a threshold is trained in
each of three layers, and a batch shares the mean of what it lets through); the score is that of layers of the tower
whose output the LLM reads, and tokens are dropped once, before the LLM; several ``layers`` add up. Any policy that
reads the class token takes this score by ``signal="head_weighted_cls"``. A vision tower without a class token, where
the attention that a patch gets from all patches in the last layer stands in, images in several tiles and videos are
extensions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from vtprune.blocks.class_attention import HEAD_WEIGHTED, ReadsClassToken, tower_layers
from vtprune.policies.base import register
from vtprune.tokens import VisualTokens


@register("asvit")
@dataclass
class ASViT(ReadsClassToken):
    """Scores by the [CLS] token's attention to each patch, heads weighted by their outputs there, summed over layers.

    layers: of the vision tower, negative ones counted from the end.
    """

    layers: tuple[int, ...] = (-2,)
    signal: Literal["auto", "head_weighted_cls", "vision"] = "auto"

    SIGNALS: ClassVar[Mapping[str, str]] = {HEAD_WEIGHTED: HEAD_WEIGHTED}

    def __post_init__(self):
        super().__post_init__()
        self.layers = tower_layers(self.layers)

    @property
    def class_layers(self) -> tuple[int, ...]:
        return self.layers

    def score(self, tokens: VisualTokens) -> Tensor:
        return self.class_rows(tokens).mean(1).sum(0)
