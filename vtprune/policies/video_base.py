"""The base of policies that prune videos, each by itself and frame by frame, and leave images whole."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from vtprune.blocks.assign import Sums, kept, merge_matrix
from vtprune.blocks.forecast import Forecast, at_ratio
from vtprune.blocks.frame_runs import IMAGES, usual_images
from vtprune.blocks.video_frames import frame_sizes, other_rows, rows_of, uneven_frames, video_counts
from vtprune.policies.base import ScorePolicy, check_choices, quirks
from vtprune.tokens import ModelFacts, Selection, VisualTokens

NO_VIDEO = "{} prunes videos; this prompt has images only, and they were kept whole"


@dataclass
class VideoPolicy(ScorePolicy):
    """Base of policies that prune each video by itself: write ``prune`` and you are done.

    Images are kept whole and counted nowhere. With budget="prompt" the videos of a prompt share one budget by size.
    Where all tokens of a video are to be kept, they stay as they are.

    images: "apart": an image is no frame of a video. "frames": consecutive images of equal grids are the frames of one
            clip. "spaced": so they are where text stands between them, not where they touch, as tiles do. None:
            "spaced" on InternVL, which gets videos so, else "apart".
    compat: what the released code does that the publication does not mean, one or several joined by commas, see the
            class; nothing by default.
    """

    images: Literal["apart", "spaced", "frames"] | None = None
    compat: str = ""

    # images are not counted
    exact_count: ClassVar[bool] = False
    known_compat: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        super().__post_init__()
        check_choices(self, {"images": IMAGES})
        self._quirks = quirks(self.compat, self.known_compat)

    def fitted(self, facts: ModelFacts) -> "VideoPolicy":
        """Takes over how this kind of model gets videos, where no option says it."""
        return dataclasses.replace(self, images=self.images or usual_images(facts))

    def prune(self, tokens: VisualTokens, video: Tensor, k: int) -> Sequence[Sums]:
        """What is left of one video, of which ``k`` are to be kept, fewer than there are.

        video: (T, N) rows, frame by frame; -1 fills up frames that lack tokens.
        """
        raise NotImplementedError(f"{type(self).__name__} must define prune(tokens, video, k) -> [Sums, ...]")

    def prepare(self, tokens: VisualTokens, videos: Sequence[Tensor]) -> None:
        """Called once with all videos of a sample, before the first is pruned."""

    def share(self, video: Tensor, k: int) -> float:
        """The fraction of a video's tokens to keep: as it was given, or what ``k`` is of them."""
        return self.keep_ratio if self.n_keep is None else k / len(rows_of(video))

    def forecast(self, tokens: VisualTokens) -> Forecast:
        """The count of every video; images are whole."""
        videos, _ = uneven_frames(tokens, self.images or "apart")
        sizes = [frame_sizes(video).tolist() for video in videos]
        rest = len(tokens) - sum(map(sum, sizes))

        def left(ratio: float) -> dict[float, int]:
            changed = at_ratio(self, ratio)
            counts = video_counts(videos, changed.count, self.budget)
            return {tokens.site: rest + sum(changed.most(some, k) for some, k in zip(sizes, counts))}

        return Forecast(left)

    def most(self, sizes: Sequence[int], k: int) -> int:
        """How many tokens a video of frames of such sizes is left with, when ``k`` are asked for."""
        return min(sum(sizes), k)

    def select(self, tokens: VisualTokens) -> Selection:
        videos, notes = uneven_frames(tokens, self.images or "apart")
        if not videos:
            none = NO_VIDEO.format(type(self).__name__)
            return dataclasses.replace(Selection.all(tokens), note="; ".join(notes) or none)
        self.prepare(tokens, videos)
        parts = [kept(other_rows(videos, len(tokens), tokens.hidden.device))]
        for video, k in zip(videos, video_counts(videos, self.count, self.budget), strict=True):
            rows = rows_of(video)
            parts += [kept(rows)] if k >= len(rows) else self.prune(tokens, video, k)
        return self.answer(tokens, parts, "; ".join(notes))

    def answer(self, tokens: VisualTokens, parts: Sequence[Sums], note: str) -> Selection:
        """The parts as a selection, which merges only where a part does."""
        keep, merge = merge_matrix(parts, len(tokens))
        # one source for each row that is kept can only be that row itself
        return Selection(keep, None if len(merge.values()) == len(keep) else merge, note=note)
