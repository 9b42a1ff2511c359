"""LLaVA 1.5, ViP-LLaVA, PaliGemma and Gemma 3: one square grid for each image, every placeholder a patch."""

from torch import nn

from vtprune.families.base import Family, register


@register
class Llava(Family):
    model_types = ("llava", "vipllava", "paligemma")


@register
class Gemma3(Family):
    model_types = ("gemma3",)

    def has_token_projector(self, model: nn.Module) -> bool:
        return False  # it pools
