"""FlashVID: keep salient and diverse tokens, merge the rest along trees over frames, and cut once more inside the LLM.

Fan et al., "FlashVID: Efficient Video Large Language Models via Training-free Tree-based Spatiotemporal Token Merging",
ICLR 2026, arXiv:2602.08024.
Differs from the authors' code: a tree becomes the mean of its tokens (there its sum is divided by fewer, so that the
vector grows with the length of the tree: ``compat="tree-counter"``); a segment of one frame merges only tokens that
were not picked (there picked ones too, so that one place is sent twice: ``compat="duplicates"``, which sends the later
copy); no token is picked twice (``compat="v2-repeat"``). Published numbers belong to these three together. Vision
markers of a prompt stay; a video may have fewer frames than segments; no noise is added to densities; similarities are
float32; both cuts are fitted to the depth of the model; where positions are renumbered they are so again at the second
cut; several videos and batches work, each video by itself.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtprune.blocks.assign import Sums, kept, merge_matrix
from vtprune.blocks.calibrated_max_min import calibrated_max_min
from vtprune.blocks.forecast import Forecast, at_ratio
from vtprune.blocks.frame_clusters import cluster_frames, rounded_up
from vtprune.blocks.frame_segments import consecutive_similarity, cut_below
from vtprune.blocks.frame_trees import link_frames, tree_sums
from vtprune.blocks.inner_cut import InnerCut
from vtprune.blocks.video_frames import frame_means, frame_sizes, rows_of, uneven_frames, video_counts
from vtprune.policies.base import register, top_rows
from vtprune.policies.video_base import VideoPolicy
from vtprune.tokens import BEFORE_LLM, ModelFacts, Selection, VisualTokens

SALIENCE, LAST_QUERY = "vision_attention", "last_query_attention"
NEIGHBOURS = 7
_MEMORY = "flashvid"


@register("flashvid")
@dataclass
class FlashVID(VideoPolicy):
    """Picks salient tokens unlike each other, merges the others over time and inside frames, then cuts before a layer.

    keep_ratio is the mean over the decoder layers of the fraction of a video's tokens that a layer has; counts are
    rounded up, so that a frame may have one more.

    segments:   the fewest segments that a video is cut into.
    threshold:  frames less similar than this are cut apart, in [-1, 1].
    picked:     share of a frame's tokens that are picked and stay as they are (alpha), in [0, 1].
    similarity: a token is linked to one of the frame before if their cosine is above this, in [-1, 1].
    relevance:  whether picks also go by the inner product with the frames of the segment; None: not on Qwen models.
    layer:      the decoder layer before which the last query cuts, 1 or more; None: 20 of 28, 28 of 36 on Qwen3-VL, and
                as deep in models of other depths.
    inner:      share of its tokens that this cut keeps, in (0, 1]; 1 does without it; None: 0.1 on Qwen3-VL, else 0.3.
    layers:     decoder layers of the model; filled in by ``wrap``, 28 until then.
    compat:     "tree-counter" divides the sum of a tree by 1 and the number of tokens linked to its root; "duplicates"
                clusters the picks of a lone frame too; "v2-repeat" lets one token be picked again, with ``relevance``.
    """

    segments: int = 8
    threshold: float = 0.9
    picked: float = 0.7
    similarity: float = 0.8
    relevance: bool | None = None
    layer: int | None = None
    inner: float | None = None
    layers: int | None = None

    positions: ClassVar[str] = "compact"
    keep_ratio_is: ClassVar[str] = "layers"
    known_compat: ClassVar[tuple[str, ...]] = ("tree-counter", "duplicates", "v2-repeat")

    def __post_init__(self):
        super().__post_init__()
        for option in ("segments", "layer", "layers"):
            value = getattr(self, option)
            integer = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if not integer and not (value is None and option != "segments"):
                raise ValueError(f"{option} is an integer of 1 or more; got {value!r}")
        for option, low in (("threshold", -1), ("picked", 0), ("similarity", -1), ("inner", 0)):
            value = getattr(self, option)
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= 1
            if not (value is None and option == "inner") and not (number and (value or option != "inner")):
                raise ValueError(f"{option} is a number from {low} to 1; got {value!r}")
        if self.relevance not in (None, True, False):
            raise ValueError(f"relevance is True, False or None (by the model); got {self.relevance!r}")
        self._cut = InnerCut.of(self.layer, self.inner, self.layers)

    def fitted(self, facts: ModelFacts) -> "FlashVID":
        """With what this kind of model was published with, fitted to its depth, where no option says it."""
        if self.layers not in (None, facts.depth) or (self.layer or 0) >= facts.depth:
            raise ValueError(
                f"this decoder has {facts.depth} layers: layer is below that, and layers is filled in by wrap; got "
                f"layer={self.layer!r} and layers={self.layers!r}"
            )
        cut = InnerCut.of(self.layer, self.inner, facts.depth, qwen3=facts.model_type.startswith("qwen3_vl"))
        relevance = not facts.model_type.startswith("qwen") if self.relevance is None else self.relevance
        more = {"relevance": relevance, "layer": cut.layer, "inner": cut.share, "layers": facts.depth}
        return dataclasses.replace(super().fitted(facts), **more)

    @property
    def sites(self) -> tuple[int, ...]:
        return (BEFORE_LLM, self._cut.layer) if self._cut.share < 1 else (BEFORE_LLM,)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({SALIENCE, LAST_QUERY} if self._cut.share < 1 else {SALIENCE})

    def count(self, n: int) -> int:
        """How many of the ``n`` tokens of a video are left before the LLM, but for rounding in each frame."""
        keep_ratio = self.keep_ratio if self.n_keep is None else min(1.0, self.n_keep / n)
        return min(n, rounded_up(n * self._cut.before(keep_ratio)))

    def forecast(self, tokens: VisualTokens) -> Forecast:
        """Frames are rounded up; tokens of a frame that trees and clusters share may be one more or a few less."""
        videos, _ = uneven_frames(tokens, self.images or "apart")
        rest = len(tokens) - sum(len(rows_of(video)) for video in videos)

        def left(ratio: float) -> dict[float, int]:
            changed = at_ratio(self, ratio)
            came = []
            for video, k in zip(videos, video_counts(videos, changed.count, self.budget), strict=True):
                sizes, share = frame_sizes(video).tolist(), self._cut.before(ratio)
                whole = k >= sum(sizes)
                came.append(sum(sizes) if whole else sum(min(n, rounded_up(n * share)) for n in sizes))
            found = {BEFORE_LLM: rest + sum(came)}
            if self._cut.share < 1:
                found[self._cut.layer] = rest + sum(min(n, rounded_up(n * self._cut.at(ratio))) for n in came)
            return found

        return Forecast(left)

    def select(self, tokens: VisualTokens) -> Selection:
        if tokens.site == BEFORE_LLM:
            return super().select(tokens)
        return self._cut_again(tokens)

    def prune(self, tokens: VisualTokens, video: Tensor, k: int) -> Sequence[Sums]:
        """The picks of every frame, and what its other tokens are merged into."""
        sizes, there, at = frame_sizes(video), video >= 0, video.clamp(min=0)
        share = self._cut.before(self.keep_ratio) if self.n_keep is None else k / int(sizes.sum())
        x, salience = tokens.hidden[at].float(), tokens.signals[SALIENCE][at].float()
        lengths, parts = cut_below(consecutive_similarity(frame_means(x, there)), self.threshold, self.segments), []
        for rows, frames, worth, ns in zip(*(some.split(lengths) for some in (video, x, salience, sizes)), strict=True):
            stay = [min(n, rounded_up(n * share)) for n in ns.tolist()]
            n_picked = [rounded_up(n * self.picked) for n in stay]
            picked = self._picked(frames, worth, rows >= 0, n_picked)
            merged = self._merged(frames, picked, rows >= 0, sum(stay), sum(stay) - sum(n_picked))
            flat = rows.flatten()
            # where a pick is a centre too, what its cluster became is sent
            picked.view(-1)[merged.place] = False
            parts += [kept(rows[picked]), Sums(flat[merged.place], flat[merged.source], merged.weight)]
        return parts

    def picks(self, x: Tensor, salience: Tensor, k: int, mean: Tensor | None = None) -> Tensor:
        """(L, k) tokens of each frame of a segment, or of some of them. x: (L, N, C) float32. salience: (L, N).

        mean: (C,) of the frames of the segment; None: of ``x``.
        """
        if self.relevance is False:
            return calibrated_max_min(x, salience, k)
        relevance = x @ (x.mean(1).mean(0) if mean is None else mean)
        return calibrated_max_min(x, salience * relevance, k, again="v2-repeat" in self._quirks)

    def _picked(self, x: Tensor, salience: Tensor, there: Tensor, counts: Sequence[int]) -> Tensor:
        """(L, N) bool: the ``counts`` (L,) tokens that are picked of each frame of a segment, of those ``there``."""
        picked = torch.zeros_like(there)
        if bool(there.all()):
            return picked.scatter_(1, self.picks(x, salience, counts[0]), True) if counts[0] else picked
        mean, sizes = frame_means(x, there).mean(0), there.sum(1).tolist()
        for frame, (n, k) in enumerate(zip(sizes, counts, strict=True)):
            if k:
                picked[frame, self.picks(x[frame : frame + 1, :n], salience[frame : frame + 1, :n], k, mean)[0]] = True
        return picked

    def _merged(self, x: Tensor, picked: Tensor, there: Tensor, fewest: int, n_merged: int) -> Sums:
        """What tokens of a segment that are not picked become, by flat ids. x: (L, N, C). picked, there: (L, N) bool.

        fewest: how many of the segment's tokens trees leave at least. n_merged: how many clusters leave.
        """
        free = there if len(x) == 1 and "duplicates" in self._quirks else there & ~picked
        parent = link_frames(x, free, self.similarity, fewest + int((~there).sum()))
        trees = tree_sums(parent, free, "tree-counter" in self._quirks)
        return cluster_frames(trees, x, n_merged, NEIGHBOURS)

    def answer(self, tokens: VisualTokens, parts: Sequence[Sums], note: str) -> Selection:
        if "tree-counter" not in self._quirks:
            return super().answer(tokens, parts, note)
        # the weights of a row may sum to more than 1
        keep, merge = merge_matrix(parts, len(tokens))
        return Selection(keep, values=torch.sparse.mm(merge, tokens.hidden.float()), note=note)

    def prepare(self, tokens: VisualTokens, videos: Sequence[Tensor]) -> None:
        """Which image or video of the sample belongs to which of ``videos``, and how many tokens that had."""
        clips = {}
        for segment in tokens.segments:
            for i, video in enumerate(videos):
                if len(segment) and bool((video == segment.span.start).any()):
                    clips[segment.source] = (i, len(rows_of(video)))
        tokens.memory[_MEMORY] = clips

    def _cut_again(self, tokens: VisualTokens) -> Selection:
        """Of what is left of each video, the tokens that the last query attends to most."""
        pools: dict[tuple[int, int], list[Tensor]] = {}
        for segment in tokens.segments:
            if len(segment) and (clip := tokens.memory.get(_MEMORY, {}).get(segment.source)):
                pools.setdefault(clip, []).append(torch.arange(segment.span.start, segment.span.stop))
        stays = torch.ones(len(tokens), dtype=torch.bool, device=tokens.hidden.device)
        for (_, n), rows in pools.items():
            rows = torch.cat(rows).to(stays.device)
            share = self._cut.at(self.keep_ratio if self.n_keep is None else min(1.0, self.n_keep / n))
            if (k := rounded_up(len(rows) * share)) < len(rows):
                stays[rows] = False
                stays[rows[top_rows(tokens.signals[LAST_QUERY][rows], k)]] = True
        return Selection(stays.nonzero().flatten())
