"""MSRVTT-QA: open questions about web videos, made from their captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vtprune.bench.tasks.base import register
from vtprune.bench.tasks.short_answer import ShortAnswer


@register
@dataclass(frozen=True)
class MSRVTTQA(ShortAnswer):
    """Videos are ``videos/all/<video_name>.mp4``."""

    name: ClassVar[str] = "msrvtt_qa"
    summary: ClassVar[str] = "open questions about web videos"
    source: ClassVar[str] = "Xu et al., ACM Multimedia 2017; MSRVTT_Zero_Shot_QA"
    published: ClassVar[tuple[str, ...]] = ("MSRVTT_Zero_Shot_QA",)
    places: ClassVar[tuple[str, ...]] = ("videos/all", "videos")
