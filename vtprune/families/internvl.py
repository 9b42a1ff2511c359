"""InternVL and Qianfan-OCR: square tiles after pixel shuffle; the frames of a video come as images."""

from vtprune.families.base import Family, register


@register
class InternVL(Family):
    model_types = ("internvl", "qianfan_ocr")
