"""ActivityNet-QA: open questions about videos of human activities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vtprune.bench.tasks.base import register
from vtprune.bench.tasks.short_answer import ShortAnswer


@register
@dataclass(frozen=True)
class ActivityNetQA(ShortAnswer):
    """Videos are ``all_test/v_<video_name>.mp4``, some .mkv or .webm; the name may begin with "v_" itself."""

    name: ClassVar[str] = "activitynet_qa"
    summary: ClassVar[str] = "open questions about human activities"
    source: ClassVar[str] = "Yu et al., ActivityNet-QA, AAAI 2019, arXiv:1906.02467; Activitynet_Zero_Shot_QA"
    published: ClassVar[tuple[str, ...]] = ("Activitynet_Zero_Shot_QA", "ActivityNet_Zero_Shot_QA")
    places: ClassVar[tuple[str, ...]] = ("all_test", "test_videos", "videos")
    types: ClassVar[tuple[str, ...]] = (
        "motion",
        "spatial relationship",
        "temporal relationship",
        "yes or no",
        "color",
        "object",
        "location",
        "number",
        "other",
    )

    def video_names(self, video: str) -> tuple[str, ...]:
        return (video,) if video.startswith("v_") else (f"v_{video}", video)
