"""FasterVLM: keep the visual tokens that the vision tower's [CLS] token attends to in its last layer but one.

Zhang et al., "[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster", 2024,
arXiv:2412.01818.
Differs from the authors' code: every image has its own count (there a batch shares one); the tiles of an image cut into
several share it (there each tile keeps as many), and only patches that reach the prompt are candidates (there patches
of the padding can be picked, and are lost); ties go to the lowest index. A vision tower without a class token, where
the attention that a patch gets from all patches in the last layer stands in, and videos are extensions.
"""

from dataclasses import dataclass

from torch import Tensor

from vtprune.blocks.class_attention import ClassAttention
from vtprune.policies.base import register
from vtprune.tokens import VisualTokens


@register("fastervlm")
@dataclass
class FasterVLM(ClassAttention):
    """Scores by the [CLS] token's attention to each patch in one layer, mean over heads."""

    def score(self, tokens: VisualTokens) -> Tensor:
        return self.class_score(tokens)
