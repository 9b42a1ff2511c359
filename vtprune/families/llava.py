"""LLaVA 1.5, ViP-LLaVA, PaliGemma and Gemma3: one square grid for each image, every placeholder a patch."""

from vtprune.families.base import Family, register


@register
class Llava(Family):
    model_types = ("llava", "vipllava", "paligemma", "gemma3")
