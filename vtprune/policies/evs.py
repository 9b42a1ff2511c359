"""EVS: drop video tokens that look like the same place of the frame before.

Bagrov et al., "Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference", 2025,
arXiv:2510.14624.
Differs from the released code (that of the serving engine vLLM): similarities are computed in float32 (there in the
model's dtype, where those of bfloat16 often tie); the count is exact in the decimals of keep_ratio (there 99 of 1,000
tokens are kept at 0.1); positions are those of the unpruned prompt, the text after a video included (there that text
goes on after the width of a frame); a note says where the first frame alone is more than was asked for. One budget for
all videos of a prompt, and images that are the frames of a video, are extensions.
"""

import dataclasses
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune.blocks.forecast import Forecast, at_ratio
from vtprune.blocks.frame_runs import (
    IMAGES,
    IMAGES_AS_FRAMES,
    clip_of_segments,
    previous_in_time,
    usual_images,
)
from vtprune.policies.base import ScorePolicy, check_choices, quirks, register, top_rows
from vtprune.tokens import ModelFacts, Selection, VisualTokens
from vtprune_kernels.frame_similarity import frame_similarity

COMPAT = ("raw-count", "model-dtype")
CHOICES = {"images": IMAGES}
BLOCK = 4096  # rows
FIRST = 255.0
"""The score of what has no frame before it: above every other, which are at most 2."""

NO_VIDEO = "EVS prunes videos by what changes in time; this prompt has images only, and they were kept whole"
FIRST_ONLY = (
    "the first frame of a video is always kept whole; it alone has more visual tokens than were asked for, so no "
    "others were kept"
)
NO_TIME = "none of the visual tokens has an earlier frame at its place, so all were kept"


@register("evs")
@dataclass
class EVS(ScorePolicy):
    """Scores a token by 1 - cosine similarity to the same place one frame earlier; the first frame is always whole.

    Images are kept whole and counted nowhere. With budget="prompt" the videos of a prompt share one budget.

    images: "apart": an image is no frame of a video. "frames": consecutive images of equal grids are the frames of one
            clip. "spaced": so they are where text stands between them, not where they touch, as tiles do. None:
            "spaced" on InternVL, which gets videos so, else "apart".
    compat: what the released code does, one or several joined by commas: "raw-count" cuts off what the binary product
            n * (1 - q), q = 1 - keep_ratio, comes to; "model-dtype" computes scores in the dtype of the tokens.
    """

    images: Literal["apart", "spaced", "frames"] | None = None
    compat: str = ""

    # the first frame may be more than the count that was asked for
    exact_count: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        check_choices(self, CHOICES)
        self._quirks = quirks(self.compat, COMPAT)

    def fitted(self, facts: ModelFacts) -> "EVS":
        """Takes over how this kind of model gets videos, where no option says it."""
        return dataclasses.replace(self, images=self.images or usual_images(facts))

    def count(self, n: int) -> int:
        """How many of ``n`` tokens to keep, first frames aside: rounded down, at most n; it may be 0."""
        if self.n_keep is not None:
            return min(n, self.n_keep)
        # the decimals that were written, not the binary number next to them
        ratio = Decimal(str(float(self.keep_ratio)))
        return int(n * (1 - float(1 - ratio))) if "raw-count" in self._quirks else int(n * ratio)

    def forecast(self, tokens: VisualTokens) -> Forecast:
        """The count of every pool, or its first frames where those are more."""
        clips = clip_of_segments(tokens.segments, tokens.position, self.images or "apart")
        first = _previous(tokens, clips) < 0
        pools = [(len(rows), int(first[rows].sum())) for rows in self._videos(tokens, clips)]
        rest = len(tokens) - sum(n for n, _ in pools)

        def left(ratio: float) -> dict[float, int]:
            changed = at_ratio(self, ratio)
            return {tokens.site: rest + sum(max(least, changed.count(n)) for n, least in pools)}

        return Forecast(left)

    def select(self, tokens: VisualTokens) -> Selection:
        """Images, first frames, and of the other tokens those that changed most."""
        clips = clip_of_segments(tokens.segments, tokens.position, self.images or "apart")
        pools = self._videos(tokens, clips)
        if not pools:
            return dataclasses.replace(Selection.all(tokens), note=NO_VIDEO)
        score, notes = self._score(tokens, clips), []
        if self.images == "spaced" and len(set(clips)) < len(clips):
            notes.append(IMAGES_AS_FRAMES)
        kept = torch.ones(len(tokens), dtype=torch.bool)
        for rows in pools:
            first, wanted = int((score[rows] == FIRST).sum()), self.count(len(rows))
            kept[rows] = False
            kept[rows[top_rows(score[rows], max(first, wanted))]] = True
            if first > wanted:
                notes.append(FIRST_ONLY if first < len(rows) else NO_TIME)
        note = "; ".join(dict.fromkeys(notes))
        return Selection(kept.nonzero().flatten().to(tokens.hidden.device), note=note)

    def _videos(self, tokens: VisualTokens, clips: list[int]) -> list[Tensor]:
        """The rows that share a budget: those of each clip of several frames, or of all of them."""
        rows: dict[int, list[Tensor]] = {}
        for clip, segment in zip(clips, tokens.segments, strict=True):
            if len(segment) and (segment.kind == "video" or clips.count(clip) > 1):
                rows.setdefault(clip, []).append(torch.arange(segment.span.start, segment.span.stop))
        pools = [torch.cat(some) for some in rows.values()]
        return [torch.cat(pools)] if pools and self.budget == "prompt" else pools

    def _score(self, tokens: VisualTokens, clips: list[int]) -> Tensor:
        """(N,) on the CPU: 1 - cosine similarity to the same place one frame earlier, ``FIRST`` where there is none."""
        x, previous = tokens.hidden, _previous(tokens, clips)
        if "model-dtype" not in self._quirks:
            score = 1 - frame_similarity(x, previous.to(x.device))
            return score.cpu().masked_fill(previous < 0, FIRST)
        score = torch.full((len(tokens),), FIRST, dtype=x.dtype, device=x.device)
        # a block bounds the copies that are made of the rows
        for rows in (previous >= 0).nonzero().flatten().split(BLOCK):
            now, before = (x[i.to(x.device)] for i in (rows, previous[rows]))
            score[rows.to(x.device)] = 1 - F.cosine_similarity(now, before, dim=-1, eps=1e-8)
        return score.cpu()


def _previous(tokens: VisualTokens, clips: list[int]) -> Tensor:
    """(N,) on the CPU: the row at the same place one frame earlier, -1 where there is none."""
    sizes = [len(segment) for segment in tokens.segments]
    places = torch.full((len(tokens), 4), -1) if tokens.coords is None else tokens.coords.cpu()
    return previous_in_time(torch.tensor(clips).repeat_interleave(torch.tensor(sizes)), places)
