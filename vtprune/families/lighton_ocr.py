"""LightOnOCR: Mistral3's grids of any shape under other names of its parts."""

from collections.abc import Mapping

from torch import nn

from vtprune.families.base import register
from vtprune.families.mistral import Mistral3


@register
class LightOnOcr(Mistral3):
    model_types = ("lighton_ocr",)

    def towers(self, model: nn.Module) -> Mapping[str, nn.Module]:
        return {"image": self.base(model).vision_encoder}

    def projector(self, model: nn.Module) -> nn.Module:
        return self.base(model).vision_projection
