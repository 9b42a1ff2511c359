"""Aria, Idefics2 and DeepSeek-OCR 2: learnt queries read each image, so visual tokens have an order and no grid."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from vtprune.families.base import Family, Source, register, unknown_source


@register
class Aria(Family):
    model_types = ("aria",)

    def has_token_projector(self, model: nn.Module) -> bool:
        return False

    def sources(self, model: nn.Module, kind: str, arguments: Mapping, features: Sequence[Tensor]) -> list[Source]:
        return [unknown_source(kind, len(feature)) for feature in features]

    def vision_layers(self, model: nn.Module, kind: str = "image") -> list[nn.Module]:
        raise NotImplementedError(
            f"in {type(model).__name__} every visual token is a learnt query that has read all patches of its image, "
            "so nothing that the vision tower knows of a patch is known of a token: choose a policy without signals "
            "of the vision tower"
        )


@register
class Idefics2(Aria):
    model_types = ("idefics2",)

    def projector(self, model: nn.Module) -> nn.Module:
        return self.base(model).connector

    def sources(self, model: nn.Module, kind: str, arguments: Mapping, features: Sequence[Tensor]) -> list[Source]:
        n = self.base(model).config.perceiver_config.resampler_n_latents
        # the images of a sample come in one piece
        return [unknown_source(kind, n) for feature in features for _ in range(len(feature) // n)]


@register
class DeepseekOcr2(Aria):
    model_types = ("deepseek_ocr2",)

    def sources(self, model: nn.Module, kind: str, arguments: Mapping, features: Sequence[Tensor]) -> list[Source]:
        sources = super().sources(model, kind, arguments, features)
        # tiles, the whole picture, and a separator
        return [replace(one, patch=torch.arange(len(one)) < len(one) - 1) for one in sources]
