"""MSVD-QA: open questions about short clips, made from their captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vtprune.bench.tasks.base import register
from vtprune.bench.tasks.short_answer import ShortAnswer


@register
@dataclass(frozen=True)
class MSVDQA(ShortAnswer):
    """Videos are ``videos/<video_name>.avi``."""

    name: ClassVar[str] = "msvd_qa"
    summary: ClassVar[str] = "open questions about short clips"
    source: ClassVar[str] = "Xu et al., ACM Multimedia 2017; MSVD_Zero_Shot_QA"
    published: ClassVar[tuple[str, ...]] = ("MSVD_Zero_Shot_QA",)
    places: ClassVar[tuple[str, ...]] = ("videos", "YouTubeClips")
