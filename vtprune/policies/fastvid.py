"""FastVID: cut a video where it changes, keep salient tokens of every frame, merge the rest into a few dense anchors.

Shen et al., "FastVID: Dynamic Density Pruning for Fast Video Large Language Models", NeurIPS 2025, arXiv:2503.11187.
Differs from the authors' code: tokens that its rounding loses, or that fit nowhere, go to the next most salient ones,
so that the count is exact (``compat="overflow-lost"`` loses them); anchors that are more than a frame has room for do
not fail; a video may have fewer frames than segments; no noise is added to densities; several videos and batches work,
each video by itself. Not from there, since models in transformers do not have or keep it: salience is what a patch gets
from all patches in the last layer of the vision tower (there, of SigLIP, the attention of a pooling head that is not
run; of Qwen2.5-VL, one mean query before its rotation), and a frame is described by the mean of its tokens (there, of
SigLIP, by what that head pooled).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtprune.blocks.anchor_budget import AnchorBudget, by_frame, by_run, by_segment
from vtprune.blocks.assign import Sums, blends, kept, nearest
from vtprune.blocks.density_peaks import distances, peak_scores
from vtprune.blocks.frame_segments import consecutive_similarity, cut_below
from vtprune.blocks.video_frames import frame_means, frame_sizes
from vtprune.policies.base import check_choices, register, top_rows
from vtprune.policies.video_base import VideoPolicy
from vtprune.tokens import ModelFacts, VisualTokens

NEIGHBOURS = 4
SAME_FRAME = 0.95
"""From this similarity on frames in a row count as one, with ``split="runs"``."""
SIGNAL = "vision_attention"
STANDS_IN = (
    "FastVID goes by what patches get in the last layer of the vision tower and by the means of frames; the published "
    "method reads a pooling head that models in transformers do not run"
)


@register("fastvid")
@dataclass
class FastVID(VideoPolicy):
    """Keeps the most salient tokens of each frame, and anchors in some frames that all other tokens are merged into.

    segments:  the fewest segments that a video is cut into (c in the paper).
    threshold: frames less similar than this are cut apart (tau); None: 0.84 on Qwen-VL models, else 0.9.
    context:   share of the tokens kept that are anchors (d), in [0, 1].
    period:    every how many frames anchors stand (p), 1 or more.
    beta:      the least weight of an anchor in what it becomes, in [0, 1].
    split:     how tokens are shared, as in the three published versions: "frame" gives each frame as many and merges
               anchors into themselves too (LLaVA-OneVision); "segment" shares a segment's, and merges what other
               frames' anchors are, but not a frame's own; "runs" does so with frames that hardly differ as one
               (Qwen-VL). None: by the model, "segment" where it is another.
    compat:    "overflow-lost" keeps fewer tokens where shares do not divide evenly or do not fit.
    """

    segments: int = 8
    threshold: float | None = None
    context: float = 0.4
    period: int = 4
    beta: float = 0.6
    split: Literal["frame", "segment", "runs"] | None = None

    needs: ClassVar[frozenset[str]] = frozenset({SIGNAL})
    notes: ClassVar[tuple[str, ...]] = (STANDS_IN,)
    known_compat: ClassVar[tuple[str, ...]] = ("overflow-lost",)

    def __post_init__(self):
        super().__post_init__()
        check_choices(self, {"split": (None, "frame", "segment", "runs")})
        for option in ("segments", "period"):
            value = getattr(self, option)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{option} is an integer of 1 or more; got {value!r}")
        for option, low in (("threshold", -1), ("context", 0), ("beta", 0)):
            value = getattr(self, option)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (value is None and option == "threshold") and not (number and low <= value <= 1):
                raise ValueError(f"{option} is a number in [{low}, 1]; got {value!r}")

    def fitted(self, facts: ModelFacts) -> "FastVID":
        """With what this kind of model was published with, where no option says it."""
        qwen_vl = facts.model_type.startswith("qwen") and "vl" in facts.model_type.split("_")
        usual = "runs" if qwen_vl else "frame" if facts.model_type == "llava_onevision" else "segment"
        threshold = self.threshold if self.threshold is not None else (0.84 if qwen_vl else 0.9)
        return dataclasses.replace(super().fitted(facts), threshold=threshold, split=self.split or usual)

    def prune(self, tokens: VisualTokens, video: Tensor, k: int) -> Sequence[Sums]:
        x = tokens.hidden[video.clamp(min=0)].float()
        salience = tokens.signals[SIGNAL][video.clamp(min=0)].float()
        return self.merged(video, x, salience, frame_means(x, video >= 0), k)

    def merged(self, video: Tensor, x: Tensor, salience: Tensor, frames: Tensor, k: int) -> list[Sums]:
        """video: (T, N), -1 for none. x: (T, N, C) float32. salience: (T, N). frames: (T, Cg), a vector for each."""
        sizes = frame_sizes(video)
        similarity = consecutive_similarity(frames)
        lengths = cut_below(similarity, 0.9 if self.threshold is None else self.threshold, self.segments)
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        ratio, segments = self.share(video, k), sizes.tolist()
        segments = [segments[s : s + n] for s, n in zip(starts, lengths, strict=True)]
        alike = [similarity[s : s + n - 1] for s, n in zip(starts, lengths, strict=True)]
        budgets = [self._budget(some, ns, ratio) for some, ns in zip(alike, segments, strict=True)]
        n_salient = torch.tensor([n for budget in budgets for n in budget.salient], device=video.device)
        n_anchors = torch.tensor([n for budget in budgets for n in budget.anchors], device=video.device)
        salient = self._salient(salience.masked_fill(video < 0, -torch.inf), sizes, n_salient, n_anchors, k)
        parts, anchors = [kept(video[salient])], n_anchors.tolist()
        for start, length in zip(starts, lengths, strict=True):
            segment = slice(start, start + length)
            free = ~salient[segment] & (video[segment] >= 0)
            parts += self._anchored(video[segment], x[segment], free, anchors[segment])
        return parts

    def _budget(self, similarity: Tensor, sizes: Sequence[int], ratio: float) -> AnchorBudget:
        """Of one segment. similarity: (length - 1,) of its frames to the next. sizes: tokens of each frame."""
        # the decimals that were written, not the binary number next to them
        each = [int(n * Decimal(str(float(ratio)))) for n in sizes]
        if self.split == "frame":
            return by_frame(sizes, each, self.context, self.period)
        if self.split == "runs":
            runs = cut_below(similarity, SAME_FRAME, 1)
            return by_run(runs, sizes, sum(each), self.context, self.period)
        return by_segment(sizes, sum(each), self.context, self.period)

    def _salient(self, salience: Tensor, sizes: Tensor, n_salient: Tensor, n_anchors: Tensor, k: int) -> Tensor:
        """(T, N) bool: the most salient tokens of each frame, and of all frames until ``k`` tokens are kept.

        salience: -inf for what is no token, so that it stands behind the ``sizes`` (T,) tokens of its frame.
        """
        order = salience.sort(dim=1, descending=True, stable=True).indices
        rank = torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
        )
        salient = rank < n_salient[:, None]
        total = int(n_salient.sum() + n_anchors.sum())
        missing = k - total if "overflow-lost" not in self._quirks else 1 - total
        if missing > 0:
            # a frame must keep as many others as it has anchors
            room = ~salient & (rank < (sizes - n_anchors)[:, None])
            more = salience.masked_fill(~room, -torch.inf).flatten()
            salient.view(-1)[top_rows(more, min(missing, int(room.sum())))] = True
        return salient

    def _anchored(self, rows: Tensor, x: Tensor, free: Tensor, anchors: Sequence[int]) -> list[Sums]:
        """The anchors of one segment, (L, N) rows, made of its tokens that are ``free``."""
        parts = []
        for frame, n in enumerate(anchors):
            if not n:
                continue
            places = free[frame].nonzero().flatten()
            peaks = places[top_rows(peak_scores(distances(x[frame, places]), NEIGHBOURS), n)]
            pool = free.clone()
            pool[frame, peaks] = self.split == "frame"
            owner = nearest(x.flatten(0, 1), x[frame, peaks], "cosine").view_as(rows)
            parts.append(blends(rows[frame, peaks], rows[pool], owner[pool], self.beta))
        return parts
