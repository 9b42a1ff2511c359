"""TGIF-QA (FrameQA): open questions about animated GIFs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vtprune.bench.tasks.base import register
from vtprune.bench.tasks.short_answer import ShortAnswer


@register
@dataclass(frozen=True)
class TGIFQA(ShortAnswer):
    """Videos are ``mp4/<video_name>.mp4``, or the GIFs themselves in ``gifs``."""

    name: ClassVar[str] = "tgif_qa"
    summary: ClassVar[str] = "open questions about animated GIFs"
    source: ClassVar[str] = "Jang et al., TGIF-QA, CVPR 2017, arXiv:1704.04497; TGIF_Zero_Shot_QA"
    published: ClassVar[tuple[str, ...]] = ("TGIF_Zero_Shot_QA",)
    places: ClassVar[tuple[str, ...]] = ("mp4", "gifs", "videos")
    types: ClassVar[tuple[str, ...]] = ("object", "number", "color", "location")
