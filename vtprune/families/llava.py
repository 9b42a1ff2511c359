"""LLaVA 1.5 and PaliGemma: one square grid for each image, every placeholder a patch."""

from vtprune.families.base import Family, register


@register
class Llava(Family):
    model_types = ("llava", "paligemma", "gemma3")
