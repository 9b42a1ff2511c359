"""QuoTA: a video's frames share its visual tokens by how relevant they are, and every frame is resized to its share.

Luo et al., "QuoTA: Query-oriented Token Assignment via CoT Query Decouple for Long Video Comprehension", AAAI 2026,
arXiv:2503.08689.
Differs from the authors' code: the scores are an option, so any scorer serves (``vtprune.quota`` has the published
one, decoupling of the question and sampling of frames); scores that are all 0 give every frame the same share, where
there the division fails; its v4 and v5, which stop with a name error there, run, in at least float32 and with ties to
the lowest index; the best frame of a clip keeps a token where every budget rounds to 0. Resizing what reaches the
decoder (``features="pooled"``, for any family) is an extension where the published pipeline resizes the projector's
output: a frame has no more tokens than it had, so weights are capped as for v2 to v5. So are grids that are not square,
several videos, images and samples, models with mRoPE, where tokens stand at rows of the unpruned prompt, and even
shares where no scores are given.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtprune.blocks.cells import share
from vtprune.blocks.clip_grids import clip_grids
from vtprune.blocks.forecast import Forecast, at_ratio
from vtprune.blocks.frame_budget import even_budgets, frame_budgets, frame_weights
from vtprune.blocks.frame_grid import check_whole, checked_scores, frame_grids, given_scores, split_scores
from vtprune.blocks.frame_rows import Part, merged_rows, new_rows, resize_frames
from vtprune.blocks.resize import LINES, MERGING, MODES, resized_length
from vtprune.blocks.share import Share
from vtprune.policies.base import ScorePolicy, check_choices, register
from vtprune.tokens import ModelFacts, Segment, Selection, VisualTokens

Scores = Tensor | Sequence[float] | Callable[[VisualTokens, Segment], Tensor | Sequence]

NO_SCORES = (
    "every frame got the same share, because no frame_scores were given; give one number for each frame, such as the "
    "scorers of vtprune.quota make, or ask through vtprune.quota.answer"
)
ALL_ZERO = "every frame got the same share, because every score is 0"
AS_FRAMES = (
    "the images of this prompt were taken as the frames of one video and share one budget, because frame_scores were "
    "given and there is no video"
)
IN_PLACE = (
    "resized tokens stand at the row of the unpruned prompt nearest to their centre; QuoTA was published for models "
    "whose positions are a line, so this is an extension"
)


@dataclass(frozen=True)
class Clip:
    """Frames that share a budget. frames: the parts of each. scores: (T,) or None. span: rows that it may use."""

    frames: list[tuple[Part, ...]]
    scores: Tensor | None
    span: slice

    @property
    def sizes(self) -> list[int]:
        """(T,) cells of each frame."""
        return [sum(map(len, frame)) for frame in self.frames]

    @property
    def n(self) -> int:
        """Visual tokens before, newlines aside."""
        return sum(len(part.rows) for frame in self.frames for part in frame)


@register("quota")
@dataclass
class QuoTA(ScorePolicy):
    """Every frame gets ``int(B * w)`` of the budget B, w its share of all ``scores ** exponent``, and is resized to it.

    frame_scores: relevance of each frame, 0 or more: (T,) for the only video; one such list for each video, in prompt
                  order; or a function of the tokens and a segment. With budget="prompt", and in prompts with images
                  only, images are frames too. Two frames that make one slice of the grid are averaged. A list serves
                  every sample of a batch.
    exponent:     of the scores; the larger, the more the best frames get; 0 gives every frame the same.
    resize:       "bilinear" (v1, the default there), "pool" (v2, adaptive average pooling), "sample" (v3, evenly spaced
                  tokens), "merge" (v4, rounds of bipartite merging), "merge_rows" (v5, the same along rows, then
                  columns).
    features:     "pooled" resizes the visual tokens themselves, "unpooled" those of videos as the projector gave them,
                  before the model's own pooling, where a frame may get more tokens than it had.
    newline_mode: with "unpooled" features: "one" leaves newlines as the model has them, "grid" drops them and
                  ends every row of every resized grid with one, beside the budget.
    in_place:     whether merged tokens stand where the token they were merged into stood, instead of in the published
                  order; None: on models whose positions are no line.
    """

    frame_scores: Scores | None = field(default=None, repr=False, compare=False)
    exponent: float = 2.0
    resize: Literal["bilinear", "pool", "sample", "merge", "merge_rows"] = "bilinear"
    features: Literal["pooled", "unpooled"] = "pooled"
    newline_mode: Literal["one", "grid"] = "one"
    in_place: bool | None = None

    positions: ClassVar[str] = "compact"
    exact_count: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        number = isinstance(self.exponent, (int, float)) and not isinstance(self.exponent, bool)
        if not number or not 0 <= self.exponent < math.inf:
            raise ValueError(f"exponent is a number of 0 or more; got {self.exponent!r}")
        check_choices(self, {"resize": tuple(MODES)})
        if self.features not in ("pooled", "unpooled"):
            raise ValueError(
                f"features is 'pooled' or 'unpooled' (before the model's own pooling); got {self.features!r}"
            )
        if self.in_place not in (None, True, False):
            raise ValueError(f"in_place is True, False or None (as the model's positions are); got {self.in_place!r}")
        if self.newline_mode not in ("one", "grid"):
            raise ValueError(f"newline_mode is 'one' or 'grid' (a newline ends every row); got {self.newline_mode!r}")
        if self.newline_mode == "grid" and (self.features == "pooled" or self.resize in LINES):
            raise ValueError(
                "newline_mode='grid' ends the rows of a resized grid, which takes features='unpooled' and resize "
                f"'bilinear', 'pool' or 'merge_rows'; got features={self.features!r} and resize={self.resize!r}"
            )
        if self.frame_scores is not None and not callable(self.frame_scores):
            self.frame_scores = given_scores(self.frame_scores)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"projected_features"} if self.features == "unpooled" else ())

    @property
    def newlines(self) -> bool:
        """Whether the model's own newlines are replaced."""
        return self.newline_mode == "grid"

    @property
    def notes(self) -> tuple[str, ...]:
        return (IN_PLACE,) if self.in_place else ()

    @property
    def allot_notes(self) -> tuple[str, ...]:
        """What there is to say where another policy chooses: nothing is resized."""
        return ()

    def fitted(self, facts: ModelFacts) -> "QuoTA":
        """Decides ``in_place`` by the kind of positions."""
        return self if self.in_place is not None else dataclasses.replace(self, in_place=not facts.line_positions)

    def forecast(self, tokens: VisualTokens) -> Forecast:
        """What the resized frames come to; scores are asked for once."""
        clips = self._clips(tokens)

        def left(ratio: float) -> dict[float, int]:
            changed, total = at_ratio(self, ratio), 0
            for clip in clips:
                budgets = zip(clip.frames, changed._budgets(clip, []), strict=True)
                total += sum(changed._length(frame, n) for frame, n in budgets)
            return {tokens.site: total}

        return Forecast(left)

    def select(self, tokens: VisualTokens) -> Selection:
        """The resized frames of every clip. Raises NotImplementedError for a grid that is not whole."""
        if self.features == "pooled" and self.resize not in LINES:
            check_whole(clip_grids(tokens, "apart"))
        notes = [AS_FRAMES] if self.budget != "prompt" and self._as_frames(tokens) else []
        clips = self._clips(tokens)
        drawn = [resize_frames(clip.frames, self._budgets(clip, notes), self.resize) for clip in clips]
        note = "; ".join(dict.fromkeys(notes))
        if self.features == "pooled":
            in_place = bool(self.in_place) or self.resize not in MERGING
            return Selection(*merged_rows(sum(drawn, []), len(tokens), in_place), note=note)
        newline = self._newline(tokens) if self.newlines else None
        made = [new_rows(some, clip.span, newline) for clip, some in zip(clips, drawn, strict=True)]
        return Selection(torch.cat([rows for rows, _ in made]), values=torch.cat([x for _, x in made]), note=note)

    def allot(self, tokens: VisualTokens) -> tuple[list[Share], str]:
        """How many tokens each frame keeps, for another policy to choose. Raises ValueError for unpooled features."""
        if self.features != "pooled":
            raise ValueError(
                f"features={self.features!r} makes new tokens of every frame, of which no other policy can choose; use "
                "features='pooled'"
            )
        notes, found = [AS_FRAMES] if self.budget != "prompt" and self._as_frames(tokens) else [], []
        for clip in self._clips(tokens):
            budgets = self._shares(clip.sizes, self._usable(clip, notes), self.count(clip.n))
            rows = [torch.cat([part.rows for part in frame]).sort().values.cpu() for frame in clip.frames]
            found += [Share(some, k) for some, k in zip(rows, budgets, strict=True)]
        return found, "; ".join(dict.fromkeys(notes))

    def _usable(self, clip: Clip, notes: list[str]) -> Tensor | None:
        """The scores of a clip's frames; None, with a note, where they tell nothing."""
        if clip.scores is not None and bool(clip.scores.any()):
            return clip.scores
        if len(clip.frames) > 1:
            notes.append(NO_SCORES if clip.scores is None else ALL_ZERO)
        return None

    def _as_frames(self, tokens: VisualTokens) -> bool:
        """Whether all images share one budget, by the option or because scores of them would have no effect else."""
        several = sum(len(segment) > 0 for segment in tokens.segments) > 1
        lone = several and all(segment.kind == "image" for segment in tokens.segments)
        return self.budget == "prompt" or (lone and self.frame_scores is not None)

    def _clips(self, tokens: VisualTokens) -> list[Clip]:
        coords = None if tokens.coords is None else tokens.coords.cpu()
        segments = [segment for segment in tokens.segments if len(segment)]
        frames = {segment.source: self._frames(tokens, segment, coords) for segment in segments}
        pooled = self._as_frames(tokens)
        scored = segments if pooled else [s for s in segments if s.kind == "video"] or segments
        counts, given = [len(frames[segment.source]) for segment in scored], self.frame_scores
        if callable(given):
            given = tuple(checked_scores(given(tokens, segment)) for segment in scored)
        found = {} if given is None else dict(zip((s.source for s in scored), split_scores(given, counts), strict=True))
        if pooled:
            scores = torch.cat(list(found.values())) if found else None
            return [Clip([f for some in frames.values() for f in some], scores, slice(0, len(tokens)))]
        return [Clip(frames[s.source], found.get(s.source), s.span) for s in segments]

    def _frames(self, tokens: VisualTokens, segment: Segment, coords: Tensor | None) -> list[tuple[Part, ...]]:
        device, frames = tokens.hidden.device, frame_grids(segment, coords)
        rows = [[(grid, grid.rows.to(device)) for grid in grids] for grids in frames]
        if self.features == "pooled" or segment.kind != "video":
            return [tuple(Part(tokens.hidden[r], g.height, g.width, r) for g, r in some) for some in rows]
        features = tokens.signals["projected_features"][segment.source]
        if len(features) != len(frames):
            raise ValueError(
                f"the projector gave {len(features)} frames and the video has {len(frames)} in the prompt; use "
                "features='pooled'"
            )
        side = math.isqrt(features.shape[1])
        shape = (side, side) if side * side == features.shape[1] else (1, features.shape[1])
        return [(Part(x, *shape, torch.cat([r for _, r in some])),) for x, some in zip(features, rows, strict=True)]

    def _budgets(self, clip: Clip, notes: list[str]) -> list[int]:
        """Tokens of every frame; lowered together until what they make fits the rows of the clip."""
        room, sizes, scores = clip.span.stop - clip.span.start, clip.sizes, self._usable(clip, notes)
        total = self.count(clip.n)
        wanted = self.n_keep if self.n_keep and self.features == "unpooled" else total
        while True:
            budgets = self._shares(sizes, scores, total)
            used = sum(self._length(frame, n) for frame, n in zip(clip.frames, budgets, strict=True))
            if used <= room or total == 1:
                break
            total = min(total - 1, total * room // used)
        if total < wanted:
            notes.append(
                f"the budget of {wanted} tokens, newlines not counted, was lowered to {total} to fit the {room} visual "
                "tokens that the clip has in the prompt"
            )
        return budgets

    def _shares(self, sizes: list[int], scores: Tensor | None, total: int) -> list[int]:
        if scores is None or len(sizes) == 1:
            return even_budgets(sizes, total)
        weights = frame_weights(scores, self.exponent)
        may_grow = self.features == "unpooled" and self.resize == "bilinear"
        budgets = frame_budgets(weights, total, None if may_grow else sizes)
        if not any(budgets):
            budgets[int(weights.argmax())] = 1
        return budgets

    def _length(self, frame: tuple[Part, ...], budget: int) -> int:
        """Tokens that a frame becomes."""
        shares = zip(frame, share([len(part) for part in frame], budget), strict=True)
        return sum(resized_length(n, p.height, p.width, self.resize, self.newlines) for p, n in shares if n)

    def _newline(self, tokens: VisualTokens) -> Tensor:
        """(D,) the newline that the model put into this prompt."""
        found = [
            int(row) + segment.span.start
            for segment in tokens.segments
            if segment.grids and tokens.coords is not None
            for row in (tokens.coords[segment.span, 0] < 0).nonzero()[:1]
        ]
        if not found:
            raise ValueError(
                "newline_mode='grid' copies the newline token that the model puts into the prompt, and this prompt has "
                "none; use newline_mode='one'"
            )
        return tokens.hidden[found[0]]
