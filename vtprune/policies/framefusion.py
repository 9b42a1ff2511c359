"""FrameFusion: merge similar tokens of consecutive frames in the first layers, then prune by last-query attention.

Fu et al., "FrameFusion: Combining Similarity and Importance for Video Token Reduction on Large Vision Language Models",
ICCV 2025, arXiv:2501.01986.
Differs from the authors' code: the budget is averaged over the layers that the model has (there over 28, whatever the
model); batches, padding, several videos and images work, each with its own budget (there the first video alone is
reduced, and a prompt without one fails); text between frames is never pruned (there it may be, inside the span of a
video); attention rows are recomputed in float32, causal even for several queries (there not, if the model passed a
mask); merged tokens are averaged in at least float32 (there one by one in the model's dtype); one token of each clip
stays; rows of zeros never merge; similarities of float16 states are computed in float32; where merging alone spent the
budget everything stays, with a note (there it fails); ties go to the lowest index. Newline tokens are neither merged
nor pruned (for LLaVA-Video they are patches there). Images, which have no frames to merge, and other models than the
published ones are an extension.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtprune.blocks.forecast import Forecast, at_ratio
from vtprune.blocks.frame_runs import (
    IMAGES,
    IMAGES_AS_FRAMES,
    anchors,
    clip_of_segments,
    previous_in_time,
    running_means,
    similarity_to,
    usual_images,
)
from vtprune.blocks.layer_budget import required, used
from vtprune.policies.base import check_choices, check_ratio, quirks, register, top_rows
from vtprune.tokens import BEFORE_LLM, ModelFacts, Selection, VisualTokens, inside

PUBLISHED_LAYERS = 28
COMPAT = ("28-layers", "released-means")
CHOICES = {"budget": ("segment", "prompt"), "images": IMAGES}
_MEMORY = "framefusion"


@dataclass
class Progress:
    """What happened so far to tokens that share a budget.

    sparsity: share that each merging call dropped. merging, pruning: whether that is still to come.
    """

    sparsity: list[float] = field(default_factory=list)
    merging: bool = True
    pruning: bool = True

    def end(self) -> None:
        self.merging = self.pruning = False


@register("framefusion")
@dataclass
class FrameFusion:
    """Merges tokens into the same place of the frame before until few are alike; then the best by attention stay.

    keep_ratio: mean over the decoder layers of the fraction of visual tokens that a layer's attention sees, in (0, 1]
                (the publication's cost); how many are left at the end depends on how many could be merged.
    similarity: cosine similarity from which a token is merged, in [-1, 1]; published with 0.6 for LLaVA-Video and 0.5
                for Qwen2-VL and InternVL.
    stop_below: merging ends once less than this share of the tokens was similar, in [0, 1].
    queries:    how many tokens at the end of the prompt judge importance, 1 or more; None: 4 on Qwen-VL models, else 1.
    images:     "apart": every image is a clip of its own, and nothing of it is merged. "frames": consecutive images of
                equal grids are the frames of one clip. "spaced": so they are where text stands between them, not where
                they touch, as tiles do. None: "spaced" on InternVL, which gets videos so, else "apart".
    budget:     "segment" merges and prunes each clip by a budget of its own, "prompt" all of a prompt by one.
    layers:     decoder layers of the model; filled in by ``wrap``, 28 until then.
    compat:     what the released code does, one or several joined by commas: "28-layers" averages the budget over 28
                layers, whatever the model; "released-means" adds merged tokens up one by one in the model's dtype.
    """

    keep_ratio: float = 0.3
    similarity: float = 0.6
    stop_below: float = 0.1
    queries: int | None = None
    images: Literal["apart", "spaced", "frames"] | None = None
    budget: Literal["segment", "prompt"] = "segment"
    layers: int | None = None
    compat: str = ""

    exact_count: ClassVar[bool] = False
    keep_ratio_is: ClassVar[str] = "layers"
    refits: ClassVar[bool] = True

    def __post_init__(self):
        check_ratio(self.keep_ratio)
        _check_number("similarity", self.similarity, -1)
        _check_number("stop_below", self.stop_below, 0)
        for option in ("queries", "layers"):
            value = getattr(self, option)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{option} is None or an integer of 1 or more; got {value!r}")
        check_choices(self, CHOICES)
        self._quirks = quirks(self.compat, COMPAT)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self._signal})

    @property
    def _signal(self) -> str:
        return "last_query_attention" if (self.queries or 1) == 1 else "text_attention"

    @property
    def sites(self) -> tuple[float, ...]:
        return (BEFORE_LLM, *(inside(layer) for layer in range(self.layers or PUBLISHED_LAYERS)))

    def fitted(self, facts: ModelFacts) -> "FrameFusion":
        """Takes over the model's depth, and what its kind of model was published with where no option says more."""
        if self.layers not in (None, facts.depth):
            raise ValueError(
                f"layers is the depth of the decoder and is filled in by wrap; this one has {facts.depth} layers, got "
                f"layers={self.layers!r}; leave it out"
            )
        qwen_vl = facts.model_type.startswith("qwen") and "vl" in facts.model_type.split("_")
        return dataclasses.replace(
            self,
            layers=facts.depth,
            queries=self.queries or (4 if qwen_vl else 1),
            images=self.images or usual_images(facts),
        )

    # ---- the answer

    def forecast(self, tokens: VisualTokens) -> Forecast:
        """What this call leaves if the budget is to be met by it: by merging, or by pruning once merging has ended."""
        memory = tokens.memory.get(_MEMORY, {"progress": {}})
        clips = memory.get("clips") or self._clips(tokens, [])
        pools = self._pools(tokens, [clips[segment.source] for segment in tokens.segments])
        progress = {key: memory["progress"].get(key, Progress()) for key, _ in pools}

        def left(ratio: float) -> dict[float, int]:
            changed, total = at_ratio(self, ratio), 0
            for key, rows in pools:
                n, dropped = rows.stop - rows.start, changed._required(progress[key])
                if not progress[key].pruning or dropped is None:
                    total += n
                else:
                    total += max(1, n - int(dropped * n) if progress[key].merging else round(n * (1 - dropped)))
            return {tokens.site: total}

        n_layers = PUBLISHED_LAYERS if "28-layers" in self._quirks else self.layers or PUBLISHED_LAYERS
        spent = max((used(one.sparsity) for one in progress.values() if one.pruning), default=0.0)
        # nothing is pruned below what the layers so far have had already
        return Forecast(left, least=min(1.0, spent / n_layers + 1e-9))

    def select(self, tokens: VisualTokens) -> Selection:
        """One call: clips whose merging goes on merge, clips whose merging has ended prune, once, and then rest."""
        notes: list[str] = []
        memory = tokens.memory.setdefault(_MEMORY, {"progress": {}})
        if "clips" not in memory:
            memory["clips"] = self._clips(tokens, notes)
        clips = [memory["clips"][segment.source] for segment in tokens.segments]
        pools = [(rows, memory["progress"].setdefault(key, Progress())) for key, rows in self._pools(tokens, clips)]
        pruned = torch.zeros(len(tokens), dtype=torch.bool)
        merged = torch.zeros_like(pruned)
        # pools whose merging ends now are pruned in the next call
        pruning = [pool for pool in pools if pool[1].pruning and not pool[1].merging]
        merging = [pool for pool in pools if pool[1].merging]
        if pruning:
            self._prune(tokens, pruning, pruned, notes)
        if not merging:
            return dataclasses.replace(_answer(tokens, pruned, notes), last=True)
        previous = previous_in_time(_clip_of_rows(tokens, clips), _places(tokens))
        similar = similarity_to(tokens.hidden, previous).cpu()
        for rows, progress in merging:
            merged[rows] = self._joins(progress, similar[rows], notes)
        if not bool(merged.any()):
            return _answer(tokens, pruned, notes)
        anchor = anchors(previous, merged)
        answer = _answer(tokens, pruned, notes, anchor)
        if "released-means" not in self._quirks:
            return answer
        runs = (index.to(tokens.hidden.device) for index in (previous, merged, anchor))
        return dataclasses.replace(answer, merge=None, values=running_means(tokens.hidden, *runs)[answer.keep])

    def _clips(self, tokens: VisualTokens, notes: list[str]) -> dict[int, int]:
        """Which clip each source belongs to."""
        clips = clip_of_segments(tokens.segments, tokens.position, self.images or "apart")
        if self.images == "spaced" and len(set(clips)) < len(clips):
            notes.append(IMAGES_AS_FRAMES)
        return {segment.source: clip for segment, clip in zip(tokens.segments, clips, strict=True)}

    def _pools(self, tokens: VisualTokens, clips: list[int]) -> list[tuple[int | str, slice]]:
        """(name, living rows) of the tokens that share a budget."""
        if self.budget == "prompt":
            return [("prompt", slice(0, len(tokens)))]
        spans: dict[int, slice] = {}
        for clip, segment in zip(clips, tokens.segments, strict=True):
            first = spans.get(clip, segment.span)
            if len(segment):
                spans[clip] = slice(first.start, segment.span.stop)
        return list(spans.items())

    def _required(self, progress: Progress) -> float | None:
        compat = "28-layers" in self._quirks
        n_layers = PUBLISHED_LAYERS if compat else self.layers or PUBLISHED_LAYERS
        return required(progress.sparsity, self.keep_ratio, n_layers)

    def _joins(self, progress: Progress, similar: Tensor, notes: list[str]) -> Tensor:
        """(n,) bool: the tokens of a pool that are merged into the one before them; takes ``progress`` along."""
        candidates = similar >= self.similarity  # a nan compares false
        n, most = len(candidates), self._required(progress)
        if most is None:
            self._spent(progress, notes)
            return torch.zeros_like(candidates)
        count = int(candidates.sum())
        if count / n < most:
            progress.sparsity.append(count / n)
            progress.merging = count / n >= self.stop_below
            return candidates
        # merging alone meets the budget
        progress.end()
        joins = torch.zeros_like(candidates)
        joins[top_rows(similar.masked_fill(~candidates, -torch.inf), int(most * n))] = True
        return joins

    def _prune(self, tokens: VisualTokens, pools: list, pruned: Tensor, notes: list[str]) -> None:
        """Marks, of each pool, all but the tokens that the end of the prompt attends to most."""
        for rows, progress in pools:
            dropped = self._required(progress)
            if dropped is None:
                self._spent(progress, notes)
                continue
            progress.end()
            n = rows.stop - rows.start
            k = max(1, round(n * (1 - dropped)))
            if k < n:
                pruned[rows] = True
                pruned[rows.start + top_rows(self._importance(tokens)[rows].cpu(), k)] = False

    def _importance(self, tokens: VisualTokens) -> Tensor:
        """(N,) float32: attention from the end of the prompt, mean over heads and queries."""
        rows = tokens.signals[self._signal]
        return rows if rows.dim() == 1 else rows[-self.queries :].mean(0)

    def _spent(self, progress: Progress, notes: list[str]) -> None:
        progress.end()
        notes.append(
            f"the first layers alone had more visual tokens than keep_ratio={self.keep_ratio} allows all layers, so "
            "none were pruned; a larger stop_below ends merging earlier"
        )


def _answer(tokens: VisualTokens, pruned: Tensor, notes: list[str], anchor: Tensor | None = None) -> Selection:
    """Rows that are neither pruned nor merged away, and where the merged ones go. anchor: None merges nothing."""
    device, note = tokens.hidden.device, "; ".join(dict.fromkeys(notes))
    if anchor is None:
        return Selection((~pruned).nonzero().flatten().to(device), note=note)
    kept = (anchor == torch.arange(len(anchor))) & ~pruned
    merge = (kept.cumsum(0) - 1)[anchor].masked_fill(pruned, -1)
    return Selection(kept.nonzero().flatten().to(device), merge.to(device), note=note)


def _clip_of_rows(tokens: VisualTokens, clips: list[int]) -> Tensor:
    """(N,) int64."""
    return torch.tensor(clips).repeat_interleave(torch.tensor([len(segment) for segment in tokens.segments]))


def _places(tokens: VisualTokens) -> Tensor:
    """(N, 4) int64 view, frame, row and column on the CPU."""
    return torch.full((len(tokens), 4), -1) if tokens.coords is None else tokens.coords.cpu()


def _check_number(option: str, value: object, low: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= 1:  # nan compares false
        raise ValueError(f"{option} is a number in [{low}, 1]; got {value!r}")
