"""GLM-4.1V, GLM-4.5V and GLM-4.6V: mRoPE, dynamic resolution, each token made of a block of patches."""

from vtprune.families.base import register
from vtprune.families.qwen_vl import QwenVL


@register
class Glm4v(QwenVL):
    model_types = ("glm4v",)
