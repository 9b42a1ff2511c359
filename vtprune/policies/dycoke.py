"""DyCoke: of every four frames keep the first whole, and of the others what changed most.

Tao et al., "DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models", CVPR 2025, arXiv:2411.15024,
the part before the LLM. Its second part, which chooses anew among cached tokens in decode steps, is not offered.
Differs from the authors' code: tokens keep their order (there they stand by similarity inside a pruned frame,
``compat="similarity-order"``); the third frame of the last four is pruned like the others
(``compat="last-group-whole"``); any number of frames works, and of an odd number the last one stays
(``compat="drop-odd-frame"``; there four frames or fewer fail); similarities are computed in float32; ties go to the
lowest index. What the abstract calls merging drops tokens, there and here. Videos of other models than LLaVA-OneVision,
several of them, and images that are the frames of a video are an extension. ``keep_ratio_of`` gives the keep_ratio that
stands for the share which is dropped there.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtprune.blocks.assign import Sums, kept, merge_matrix
from vtprune.blocks.forecast import Forecast, at_ratio
from vtprune.blocks.frame_runs import IMAGES, usual_images
from vtprune.blocks.video_frames import other_rows, video_frames
from vtprune.policies.base import check_choices, check_ratio, quirks, register
from vtprune.tokens import BEFORE_LLM, ModelFacts, Selection, VisualTokens
from vtprune_kernels.frame_similarity import frame_similarity

GROUP = 4
BACK = (0, 1, 2, 1)
"""How many frames before each of a group the one lies that it is compared to; the first is not compared."""
COMPAT = ("similarity-order", "last-group-whole", "drop-odd-frame")

NO_VIDEO = "DyCoke prunes videos by what changes in time; this prompt has images only, and they were kept whole"


def keep_ratio_of(dropped: float) -> float:
    """The keep_ratio for the share of a pruned frame that the publication drops, in [0, 1]; 0.7 there."""
    if not 0 <= dropped <= 1:
        raise ValueError(f"dropped is the share of a pruned frame that goes, in [0, 1]; got {dropped!r}")
    return 1 - dropped * (GROUP - 1) / GROUP


@register("dycoke")
@dataclass
class DyCoke:
    """Compares the second frame of four to the first, the third to the first, the fourth to the third.

    Images are kept whole and counted nowhere. A video whose frames are no multiple of four keeps somewhat more.

    keep_ratio: fraction of the visual tokens of four frames KEPT, in [0.25, 1]: a frame of N that is pruned keeps
                floor((4 * keep_ratio - 1) * N / 3). The publication's evaluation has 0.475.
    images:     "apart": an image is no frame of a video. "frames": consecutive images of equal grids are the frames of
                one clip. "spaced": so they are where text stands between them, not where they touch, as tiles do. None:
                "spaced" on InternVL, which gets videos so, else "apart".
    compat:     what the released code does, one or several joined by commas: "similarity-order" puts the tokens of a
                pruned frame in the order of rising similarity; "last-group-whole" prunes no third frame of the last
                four; "drop-odd-frame" loses the last frame of an odd number of more than four.
    """

    keep_ratio: float = 0.475
    images: Literal["apart", "spaced", "frames"] | None = None
    compat: str = ""

    needs: ClassVar[frozenset[str]] = frozenset()
    sites: ClassVar[tuple[float, ...]] = (BEFORE_LLM,)
    positions: ClassVar[str] = "compact"
    exact_count: ClassVar[bool] = False

    def __post_init__(self):
        check_ratio(self.keep_ratio)
        if self.keep_ratio < 1 / GROUP:
            raise ValueError(
                "DyCoke keeps the first of every four frames whole, so keep_ratio is in [0.25, 1]; got "
                f"{self.keep_ratio!r}"
            )
        check_choices(self, {"images": IMAGES})
        self._quirks = quirks(self.compat, COMPAT)

    def fitted(self, facts: ModelFacts) -> "DyCoke":
        """Takes over how this kind of model gets videos, where no option says it."""
        return dataclasses.replace(self, images=self.images or usual_images(facts))

    def kept_of(self, n: int) -> int:
        """How many of the ``n`` tokens of a pruned frame stay, 0 or more."""
        return math.floor((GROUP * self.keep_ratio - 1) * n / (GROUP - 1) + 1e-9)

    def forecast(self, tokens: VisualTokens) -> Forecast:
        shapes = [video.shape for video in video_frames(tokens, self.images or "apart")[0]]
        rest = len(tokens) - sum(t * n for t, n in shapes)

        def left(ratio: float) -> dict[float, int]:
            changed, total = at_ratio(self, ratio), rest
            for t, n in shapes:
                pruned = sum(self._pruned(i, t) for i in range(self._frames(t)))
                total += (self._frames(t) - pruned) * n + pruned * changed.kept_of(n)
            return {tokens.site: total}

        return Forecast(left, least=1 / GROUP)

    def select(self, tokens: VisualTokens) -> Selection:
        """First frames, and of the others the tokens least like their place in the frame they are compared to."""
        device, n = tokens.hidden.device, len(tokens)
        videos, notes = video_frames(tokens, self.images or "apart")
        if not videos:
            return dataclasses.replace(Selection.all(tokens), note="; ".join(notes) or NO_VIDEO)
        previous = torch.full((n,), -1, device=device)
        for video in videos:
            for t in range(len(video)):
                if self._pruned(t, len(video)):
                    previous[video[t]] = video[t - BACK[t % GROUP]]
        similarity = frame_similarity(tokens.hidden, previous)
        parts = [kept(other_rows(videos, n, device))]
        for video in videos:
            order = torch.cat([self._frame(t, video, similarity) for t in range(self._frames(len(video)))])
            parts.append(Sums(order.sort().values, order, torch.ones(len(order), device=device)))
        if "similarity-order" in self._quirks:
            return Selection(*merge_matrix(parts, n), note="; ".join(notes))
        return Selection(torch.cat([part.place for part in parts]).sort().values, note="; ".join(notes))

    def _frames(self, count: int) -> int:
        """How many of a video's frames there are."""
        return count - count % 2 if "drop-odd-frame" in self._quirks and count > GROUP else count

    def _pruned(self, t: int, count: int) -> bool:
        spared = "last-group-whole" in self._quirks and t % GROUP == 2 and t + 2 >= count
        return t % GROUP > 0 and not spared

    def _frame(self, t: int, frames: Tensor, similarity: Tensor) -> Tensor:
        """The rows of frame ``t`` that stay: all, or by rising similarity. frames: (T, N)."""
        if not self._pruned(t, len(frames)):
            return frames[t]
        return frames[t][similarity[frames[t]].sort(stable=True).indices[: self.kept_of(frames.shape[1])]]
