"""VFlowOpt: keep what the hubs of the vision tower look at, recycle the others by cells, and drop twice more inside.

Yang et al., "VFlowOpt: A Token Pruning Framework for LMMs with Visual Information Flow-Guided Optimization", ICCV 2025,
arXiv:2508.05211.
Hubs are patches that get ``t`` times the mean attention of a layer of the tower; importance is what a patch gets from
them, plus ``alpha`` times how much there is to see in it, its entropy, which the published schedules leave out. Of the
least important tokens those in one cell of the grid become one before the LLM, by importance; inside it the same
importance decides twice more.
Differs from the authors' code: entropy is that of the pixels of the picture, brought back to 0..255 (there normalised
pixels lose their sign in 8 bits: ``entropy_source="official_wrap"``); where no patch is a hub all are (there importance
is no number); every image has its own budget, and several in a prompt are recycled too (there they, and batches, are
not); recycled tokens are never weighted below 0; ties go to the lowest index. Other keep ratios than the published 50,
25 and 10 % lie on straight lines between those, an extension; so are other towers than that of LLaVA-OneVision and
decoders of other depths. Videos are dropped from without recycling.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtprune.blocks.flow_schedule import DEPTH, LAYERS, PUBLISHED, Schedule, last_share, schedule
from vtprune.blocks.forecast import Forecast, at_ratio
from vtprune.blocks.graph_scores import hub_context
from vtprune.blocks.patch_entropy import entropy_share, strange_share
from vtprune.blocks.recycle import best_of_cells, cells_of
from vtprune.blocks.stages import check_layers, fit_layers, pool_sizes, stages_at
from vtprune.blocks.tower_layer import check_tower_layer, whole_layer
from vtprune.policies.base import check_choices, check_ratio, register, top_rows
from vtprune.tokens import BEFORE_LLM, ModelFacts, Selection, VisualTokens

_MEMORY = "vflowopt"
STRANGE = (
    "pixels do not come back into 0..255 by the mean and the standard deviation that are taken for this tower; give "
    "pixel_mean and pixel_std as the image processor has them"
)


@register("vflowopt")
@dataclass
class VFlowOpt:
    """Importance by what hubs see; before the LLM the rest is recycled by cells, inside it tokens are dropped twice.

    keep_ratio:     fraction of visual tokens that the decoder's layers have on average, in (0, 1]; 0.5 if neither it
                    nor ``schedule`` is given.
    schedule:       0.5, 0.25 or 0.1, instead of it: all numbers as published, which come close to that.
    r_v:            fraction kept before the LLM, recycled tokens aside. None: by keep_ratio.
    r_1:            fraction of the rest kept at the first inner stage. None: by keep_ratio.
    r_2:            the same at the second. None: what makes the mean over the layers keep_ratio, 1 at most.
    t:              hubs get more than t times the mean attention. None: by keep_ratio.
    m:              side of the cells that are recycled, in tokens. None: by keep_ratio.
    alpha:          weight of the entropy, from -1 to 1.
    layers:         the two inner stages: first decoder layers that see fewer tokens, in a model of ``of`` layers.
    of:             depth that ``layers`` are meant for; they are scaled to the model. None: taken as they are.
    layer:          of the vision tower, negative ones counted from the end; None: the last that the LLM reads and in
                    which all patches of an image see each other.
    recycle:        whether tokens of images are recycled.
    entropy_source: "raw_rgb", the pixels of the picture, or "official_wrap", what the released code makes of them.
    pixel_mean:     image_mean of the image processor, three numbers. None: that of the published ones for the tower.
    pixel_std:      its image_std, the same.
    budget:         "segment" gives every image or video its own share, "prompt" pools them.
    newlines:       whether newline tokens, which are the last to go, are counted, as in the authors' code.
    """

    keep_ratio: float | None = None
    schedule: float | None = None
    r_v: float | None = None
    r_1: float | None = None
    r_2: float | None = None
    t: float | None = None
    m: float | None = None
    alpha: float = 0.0
    layers: tuple[int, ...] = LAYERS
    of: int | None = DEPTH
    layer: int | None = None
    recycle: bool = True
    entropy_source: Literal["raw_rgb", "official_wrap"] = "raw_rgb"
    pixel_mean: tuple[float, ...] | None = None
    pixel_std: tuple[float, ...] | None = None
    budget: Literal["segment", "prompt"] = "segment"
    newlines: bool = True

    positions: ClassVar[str] = "compact-vision"
    keep_ratio_is: ClassVar[str] = "layers"

    def __post_init__(self):
        if self.keep_ratio is None and self.schedule is None:
            self.keep_ratio = 0.5
        for option in ("keep_ratio", "r_v", "r_1", "r_2"):
            if getattr(self, option) is not None:
                _check_share(option, getattr(self, option))
        check_choices(self, {"schedule": (None, *sorted(PUBLISHED)), "budget": ("segment", "prompt")})
        check_choices(self, {"entropy_source": ("raw_rgb", "official_wrap"), "recycle": (True, False)})
        if self.schedule is not None and self.keep_ratio is not None:
            raise ValueError(
                f"schedule holds all numbers: give it or keep_ratio; got {self.schedule!r} and {self.keep_ratio!r}"
            )
        _check_number("t", self.t, 0, optional=True)
        _check_number("m", self.m, 1, optional=True)
        _check_number("alpha", self.alpha, -1)
        if abs(self.alpha) > 1:
            raise ValueError(f"alpha is a number from -1 to 1; got {self.alpha!r}")
        self.layers = check_layers(self.layers, self.of)
        if len(self.layers) != 2:
            raise ValueError(f"layers are the two inner stages; got {self.layers!r}")
        check_tower_layer(self.layer)
        for option in ("pixel_mean", "pixel_std"):
            _check_three(option, getattr(self, option))

    @property
    def sites(self) -> tuple[int, ...]:
        return (BEFORE_LLM, *dict.fromkeys(self.layers))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self._graph, *(["pixels"] if self.alpha else [])})

    @property
    def _graph(self) -> str:
        return f"vision_graph:{-1 if self.layer is None else self.layer}"

    def fitted(self, facts: ModelFacts) -> "VFlowOpt":
        """The stages at the same fractions of this model's depth, and the layer of its tower."""
        layers, layer = fit_layers(self.layers, self.of, facts.depth), whole_layer(self.layer, facts, "VFlowOpt")
        return replace(self, layers=layers, of=facts.depth, layer=layer)

    @property
    def numbers(self) -> Schedule:
        """Those in force, by keep_ratio or as published, but for the options given."""
        depth = self.of or max(DEPTH, self.layers[1] + 1)
        if self.keep_ratio is None:
            base = PUBLISHED[self.schedule]
        else:
            base = schedule(self.keep_ratio, self.layers, depth)
        given = {name: getattr(self, name) for name in ("t", "m", "r_v", "r_1", "r_2")}
        found = replace(base, **{name: value for name, value in given.items() if value is not None})
        if self.r_2 is None and (found.r_v, found.r_1) != (base.r_v, base.r_1):
            shares = [found.r_v, found.r_v * found.r_1]
            left = last_share(shares, self.keep_ratio or self.schedule, self.layers, depth)
            found = replace(found, r_2=min(1.0, max(0.0, left / shares[1])))
        return found

    def keep_at(self, site: float, n: int) -> int:
        """How many of ``n`` tokens of a pool stay at an inner stage, and before the LLM but for recycled ones."""
        numbers, ratio = self.numbers, 1.0
        if site == BEFORE_LLM:
            ratio = numbers.r_v
        else:
            for stage in stages_at(self.layers, site):
                ratio *= (numbers.r_1, numbers.r_2)[stage]
        return max(1, n - round(n * (1 - ratio)))

    def least(self, n: int) -> int:
        """How many of the ``n`` tokens of a pool go before the LLM to make room for recycled ones, those too."""
        kept = self.keep_at(BEFORE_LLM, n)
        return 0 if kept == n else min(n, n - kept + int(n / self.numbers.m**2))

    def forecast(self, tokens: VisualTokens) -> Forecast:
        """As many as there are, where cells of recycled tokens are all taken."""
        sizes = pool_sizes(tokens, self.budget)
        segments = [[segment] for segment in tokens.segments if len(segment)]
        segments = [tokens.segments] if self.budget == "prompt" else segments

        def left(ratio: float) -> dict[float, int]:
            changed, living, found = at_ratio(self, ratio), list(sizes), {}
            for site in self.sites[self.sites.index(tokens.site) :]:
                for i, (n, some) in enumerate(zip(living, segments, strict=True)):
                    if site != BEFORE_LLM or not changed._recycles(some):
                        living[i] = changed.keep_at(site, n)
                    else:
                        gone = changed.least(n)
                        living[i] = n - gone + min(gone, _cells(some, changed.numbers.m))
                found[site] = sum(living)
            return found

        return Forecast(left)

    def select(self, tokens: VisualTokens) -> Selection:
        """Before the LLM the best of every pool and the recycled ones, inside it the best of what is left."""
        sizes = [self.keep_at(tokens.site, n) for n in pool_sizes(tokens, self.budget)]
        if sizes == pool_sizes(tokens, self.budget):
            return Selection.all(tokens)
        score, merge = self.importance(tokens), torch.arange(len(tokens), device=tokens.hidden.device)
        for segments in self._pools(tokens):
            rows = slice(segments[0].span.start, segments[-1].span.stop)
            n = rows.stop - rows.start
            if tokens.site == BEFORE_LLM and self._recycles(segments):
                merge[rows] = rows.start + self._recycled(tokens, score[rows], rows)
            else:
                gone = torch.ones(n, dtype=torch.bool, device=merge.device)
                gone[top_rows(score[rows], self.keep_at(tokens.site, n))] = False
                merge[rows][gone] = -1
        note = self._note(tokens)
        keep = (merge == torch.arange(len(tokens), device=merge.device)).nonzero().flatten()
        if bool((merge[merge >= 0].unique(return_counts=True)[1] == 1).all()):
            return Selection(keep, note=note)
        weight = score.clamp(min=torch.finfo(torch.float32).tiny)
        return Selection(keep, torch.where(merge < 0, -1, torch.searchsorted(keep, merge)), weight, note=note)

    def importance(self, tokens: VisualTokens) -> Tensor:
        """(N,) float32: the same at all sites; 1 for newlines, more than patches have."""
        rows = torch.arange(len(tokens)) if tokens.rows is None else tokens.rows
        if _MEMORY in tokens.memory:
            return tokens.memory[_MEMORY][rows.to(tokens.hidden.device)]
        score = tokens.signals[self._graph].scores(lambda picture, there: hub_context(picture, self.numbers.t))
        if self.alpha:
            how = {"source": self.entropy_source, "mean": self.pixel_mean, "std": self.pixel_std}
            score = score + self.alpha * tokens.signals["pixels"].scores(partial(entropy_share, **how))
        for segment in tokens.segments:
            if segment.grids and tokens.coords is not None:
                newline = (tokens.coords[segment.span] < 0).any(1).to(score.device)
                score[segment.span][newline] = 1.0
        if tokens.site == BEFORE_LLM:
            tokens.memory[_MEMORY] = score
        return score

    def _note(self, tokens: VisualTokens) -> str:
        """Told once, where pixels are looked at: that they seem to be normalised in another way."""
        if not self.alpha or self.entropy_source != "raw_rgb" or tokens.site != BEFORE_LLM:
            return ""
        strange = tokens.signals["pixels"].scores(
            lambda pixels, there: strange_share(pixels, self.pixel_mean, self.pixel_std)
        )
        return STRANGE if float(strange.mean()) > 0.01 else ""

    def _pools(self, tokens: VisualTokens) -> list[list]:
        segments = [segment for segment in tokens.segments if len(segment)]
        return [segments] if self.budget == "prompt" else [[segment] for segment in segments]

    def _recycles(self, segments: list) -> bool:
        return self.recycle and all(segment.kind == "image" and segment.grids for segment in segments)

    def _recycled(self, tokens: VisualTokens, score: Tensor, rows: slice) -> Tensor:
        """(n,) int64: which row of the pool each becomes part of, itself if it stays, -1 if it goes."""
        n = rows.stop - rows.start
        low = torch.ones(n, dtype=torch.bool, device=score.device)
        low[top_rows(score, n - self.least(n))] = False
        sizes = torch.tensor([len(segment) for segment in tokens.segments], device=score.device)
        segment = torch.arange(len(sizes), device=score.device).repeat_interleave(sizes)[rows]
        cell = cells_of(tokens.coords[rows].to(score.device), segment, self.numbers.m).masked_fill(~low, -1)
        return torch.where(low, best_of_cells(score, cell), torch.arange(n, device=score.device))


def _cells(segments: list, m: float) -> int:
    """How many cells of side ``m`` the grids of images have."""
    grids = [grid for segment in segments for grid in segment.grids]
    return sum(t * (int((h - 1) / m) + 1) * (int((w - 1) / m) + 1) for t, h, w in grids)


def _check_share(option: str, value: object) -> None:
    if option == "keep_ratio":
        check_ratio(value)
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value <= 1:
        raise ValueError(f"{option} is a fraction of tokens KEPT, in (0, 1], or None; got {value!r}")


def _check_number(option: str, value: object, low: float, *, optional: bool = False) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (value is None and optional) and not (number and low <= value < float("inf")):
        raise ValueError(f"{option} is a number of {low} or more{' or None' * optional}; got {value!r}")


def _check_three(option: str, value: object) -> None:
    listed = isinstance(value, (tuple, list)) and len(value) == 3
    if value is not None and not (listed and all(isinstance(x, (int, float)) and x > 0 for x in value)):
        raise ValueError(f"{option} is three numbers above 0, as an image processor has them, or None; got {value!r}")
