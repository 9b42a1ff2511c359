"""MVBench: twenty kinds of questions about what happens in short videos, two hundred of each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

from vtprune.bench.clip import find, require_any
from vtprune.bench.files import find_one, need, read_records
from vtprune.bench.metrics.choice import lettered
from vtprune.bench.question import Question, Visual
from vtprune.bench.tasks.base import Scored, register
from vtprune.bench.tasks.multiple_choice import MultipleChoice, letter_of, listed

# subset -> where its videos lie. Parts of videos come cut (``*_segment``, revision ``video`` of the data set) or whole
STAR = (("star/Charades_segment",), ("star/Charades_v1_480",))
CLEVRER = (("clevrer/video_validation",), ())
PERCEPTION = (("perception/videos",), ())
PLACES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "action_sequence": STAR,
    "action_prediction": STAR,
    "action_antonym": (("ssv2_video_mp4", "ssv2_video"), ()),
    "fine_grained_action": (("Moments_in_Time_Raw/videos",), ()),
    "unexpected_action": (("FunQA_test/test",), ()),
    "object_existence": CLEVRER,
    "object_interaction": STAR,
    "object_shuffle": PERCEPTION,
    "moving_direction": CLEVRER,
    "action_localization": (("sta/sta_video_segment",), ("sta/sta_video",)),
    "scene_transition": (("scene_qa/video",), ()),
    "action_count": PERCEPTION,
    "moving_count": CLEVRER,
    "moving_attribute": CLEVRER,
    "state_change": PERCEPTION,
    "fine_grained_pose": (("nturgbd_convert", "nturgbd"), ()),
    "character_order": PERCEPTION,
    "egocentric_navigation": (("vlnqa",), ()),
    "episodic_reasoning": (("tvqa/video_fps3_hq_segment",), ("tvqa/frames_fps3_hq",)),
    "counterfactual_inference": CLEVRER,
}
ROOTS = ("", "video/", "data0613/", "video/data0613/")
"""What stands before these folders: nothing, the folder of the main revision, that of videos added in June 2024."""

FRAMES, FRAME_RATE = "episodic_reasoning", 3.0
"""The subset whose videos (TVQA) are folders of frames, and the frames of a second."""

LAST = "Answer with the option's letter from the given choices directly."


@register
@dataclass(frozen=True)
class MVBench(MultipleChoice):
    """``json/<subset>.json`` and the folders of videos, of either revision of the data set; asked as lmms-eval asks.

    subsets: some of the twenty; none given means all.
    """

    name: ClassVar[str] = "mvbench"
    summary: ClassVar[str] = "twenty kinds of questions about what happens in short videos"
    source: ClassVar[str] = "Li et al., MVBench, CVPR 2024, arXiv:2311.17005; data set OpenGVLab/MVBench"
    visual: ClassVar[Literal["image", "video", "either"]] = "video"
    by: ClassVar[str] = "subset"
    order: ClassVar[tuple[str, ...]] = tuple(PLACES)

    subsets: tuple[str, ...] = ()

    def __post_init__(self):
        unknown = [one for one in self.subsets if one not in PLACES]
        if unknown or len(set(self.subsets)) < len(self.subsets):
            raise ValueError(f"subsets are some of {', '.join(PLACES)}, each once; got {', '.join(self.subsets)}")

    def questions(self) -> Iterator[Question]:
        subsets, tables = self.subsets or tuple(PLACES), self.files()
        require_any(self.folder, sorted({place for one in subsets for kind in PLACES[one] for place in rooted(kind)}))
        for subset, path in zip(subsets, tables, strict=True):
            for i, record in enumerate(read_records(path)):
                yield self._question(subset, i, record, f"{path}, record {i + 1}")

    def files(self) -> list[Path]:
        subsets = self.subsets or tuple(PLACES)
        return [find_one(self.folder, (f"json/{one}.json", f"{one}.json"))[0] for one in subsets]

    def metrics(self, scored: Sequence[Scored]) -> dict[str, float]:
        """The published figure, the mean of the subsets' accuracies; then each of these."""
        return self.mean_of_parts("mean accuracy of subsets", scored)

    def _question(self, subset: str, i: int, record: dict[str, Any], where: str) -> Question:
        video, text, said, answer = need(record, "video", "question", "candidates", "answer", where=where)
        options = listed(said, where)
        return Question(
            id=f"{subset}-{i}",
            text=f"Question:{text}\nOption:\n{lettered(options, '(A) ')}\n{LAST}",
            visuals=(self._clip(subset, video, record),),
            answer=letter_of(answer, options, where),
            cluster=f"{PLACES[subset][0][0].partition('/')[0]}/{whole_name(video)}",
            options=options,
            labels={"subset": subset},
        )

    def _clip(self, subset: str, name: str, record: dict[str, Any]) -> Visual:
        """The clip under its name; under that of the part that was cut from it; or whole, and the part counts."""
        ready, whole = PLACES[subset]
        start, end = record.get("start"), record.get("end")
        tries = [(name, rooted(ready))]
        if start is not None and end is not None:
            tries.append((f"{PurePosixPath(name).stem}_{start}_{end}.mp4", rooted(ready)))
        if whole:
            tries.append((name, rooted(whole)))
        source, hit = find(self.folder, tries)
        if not whole or hit != len(tries) - 1:
            start = end = None
        fps = FRAME_RATE if subset == FRAMES and isinstance(source, Path) and source.is_dir() else None
        seconds = [None if one is None else float(one) for one in (start, end)]
        return Visual("video", source, name, *seconds, fps=fps)


def rooted(places: Sequence[str]) -> list[str]:
    """The folders wherever the data set's archives were unpacked."""
    return [root + place for root in ROOTS for place in places]


def whole_name(video: str) -> str:
    """What the video is called that a part "<video>_<start>_<end>.mp4" was cut from."""
    return re.sub(r"_\d+(\.\d+)?_\d+(\.\d+)?$", "", PurePosixPath(video).with_suffix("").name)
