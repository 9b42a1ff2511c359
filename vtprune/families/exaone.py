"""EXAONE 4.5 and HyperCLOVA X Vision: Qwen2.5-VL's kind of vision tower, and positions that are one number each."""

from torch import Tensor, nn

from vtprune.families.base import register
from vtprune.families.qwen_vl import QwenVL


@register
class HyperClovaX(QwenVL):
    model_types = ("hyperclovax_vision_v2",)
    step_argument = ""


@register
class Exaone(HyperClovaX):
    model_types = ("exaone4_5",)

    def attention_input(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        return hidden  # norms stand behind attention and MLP
