"""AIM: average similar tokens of each frame before the LLM, then drop more and more of them by PageRank inside it.

Zhong et al., "AIM: Adaptive Inference of Multi-Modal LLMs via Token Merging and Pruning", ICCV 2025, arXiv:2412.03248.
Differs from the authors' code: pruned tokens leave the sequence (there they are masked, which saves nothing, and go on
to pass their share of the rank); the schedule fits any depth (there 28 layers; other depths are an extension); every
image or video has a budget of its own, of which one token stays to the end; tokens keep their order where a round
merges only some of them; padded batches work; ranks are computed in float32 whatever attention implementation
the model runs; ties go to the lowest index. Positions are those of the prompt. ``keep_ratio`` is an extension.

Every stage makes all attention scores of a layer, which shorter prompts in later layers have to earn back: once on a
CPU where the map of one head takes no more than 64 MiB, elsewhere six times over in blocks.
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtprune.blocks.bipartite import merge_pairs
from vtprune.blocks.forecast import Forecast, at_ratio
from vtprune.blocks.frame_budget import even_budgets
from vtprune.blocks.frame_grid import frame_grids
from vtprune.blocks.grouping import group_selection, joined
from vtprune.blocks.stages import layer_mean, pool_sizes, pools
from vtprune.policies.base import check_choices, check_ratio, quirks, register, top_rows
from vtprune.tokens import BEFORE_LLM, ModelFacts, Selection, VisualTokens

PUBLISHED_LAYERS = 28
MERGE_RATIO = 0.25
COMPAT = ("order-by-similarity",)
CHOICES = {"budget": ("segment", "prompt"), "size_weighted": (False, True)}


@register("aim")
@dataclass
class AIM:
    """Merges each frame by bipartite matching; from half to three quarters of the layers on drops at an even pace.

    keep_ratio:    mean over the decoder layers of the fraction of visual tokens that a layer sees, in (0, 1]. It sets
                   the two below: tokens are merged as far as it takes with pruning to the end, and where that alone is
                   too much, none are merged and pruning stops early. None: as they are, which is 0.165 at 28 layers.
    merge_ratio:   fraction of each frame's tokens KEPT by merging, in (0, 1]; published with 0.25, the default.
    end_ratio:     fraction of the merged tokens that the last stage leaves, in [0, 1]; published with 0, the default,
                   of which one token of each image or video stays.
    size_weighted: whether a merged token counts for all that it stands for in the next round; as published it does not.
    budget:        "segment" prunes each image or video by its own count, "prompt" all of a prompt by one, as released.
    layers:        decoder layers of the model; filled in by ``wrap``, 28 until then.
    compat:        "order-by-similarity": where a round merges only some tokens, the others come first, most similar
                   first, as in the released code.
    """

    keep_ratio: float | None = None
    merge_ratio: float | None = None
    end_ratio: float | None = None
    size_weighted: bool = False
    budget: Literal["segment", "prompt"] = "segment"
    layers: int | None = None
    compat: str = ""

    keep_ratio_is: ClassVar[str] = "layers"

    def __post_init__(self):
        if self.keep_ratio is not None:
            check_ratio(self.keep_ratio)
            if self.merge_ratio is not None or self.end_ratio is not None:
                raise ValueError(
                    f"keep_ratio={self.keep_ratio!r} sets merge_ratio and end_ratio; give it alone, or these two; got "
                    f"merge_ratio={self.merge_ratio!r} and end_ratio={self.end_ratio!r}"
                )
        for option in ("merge_ratio", "end_ratio"):
            value = getattr(self, option)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and 0 <= value <= 1 and (value or option == "end_ratio")):
                raise ValueError(f"{option} is the fraction of tokens KEPT, a number up to 1; got {value!r}")
        if self.layers is not None and (
            isinstance(self.layers, bool) or not isinstance(self.layers, int) or self.layers < 1
        ):
            raise ValueError(f"layers is None or an integer of 1 or more; got {self.layers!r}")
        check_choices(self, CHOICES)
        self._quirks = quirks(self.compat, COMPAT)

    def fitted(self, facts: ModelFacts) -> "AIM":
        """Takes over the model's depth."""
        if self.layers not in (None, facts.depth):
            raise ValueError(
                f"layers is the depth of the decoder and is filled in by wrap; this one has {facts.depth} layers, got "
                f"layers={self.layers!r}; leave it out"
            )
        return dataclasses.replace(self, layers=facts.depth)

    @property
    def depth(self) -> int:
        return self.layers or PUBLISHED_LAYERS

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"attention_rank"} if len(self.sites) > 1 else ())

    @property
    def sites(self) -> tuple[int, ...]:
        return (BEFORE_LLM, *(site for site in self._ramp() if site < self.depth))

    def _ramp(self) -> dict[int, float]:
        """First layer that sees the outcome of a stage -> how far the pruning has come, up to 1."""
        first, last = round(self.depth / 2), round(self.depth * 3 / 4)
        return {layer + 1: (layer + 1 - first) / (last + 1 - first) for layer in range(first, last + 1)}

    def ratios(self) -> tuple[float, float]:
        """What merging keeps, and what of that the last stage leaves."""
        if self.keep_ratio is None:
            return self.merge_ratio or MERGE_RATIO, self.end_ratio or 0.0
        ramp = {site: gone for site, gone in self._ramp().items() if site < self.depth}
        full = layer_mean(tuple(ramp), [1 - gone for gone in ramp.values()], self.depth) if ramp else 1.0
        if self.keep_ratio <= full:
            return self.keep_ratio / full, 0.0
        return 1.0, (self.keep_ratio - full) / (1 - full)

    def forecast(self, tokens: VisualTokens) -> Forecast:
        """Every frame merged to its count, then every pool cut to its own."""
        # the frames of each image or video, and its tokens that are in none
        found = [[len(rows) for rows in frames] for frames in self._frames(tokens)]
        rests = [n - sum(sizes) for n, sizes in zip(pool_sizes(tokens, "segment"), found, strict=True)]
        ramp, sites = self._ramp(), self.sites[1:]

        def left(ratio: float) -> dict[float, int]:
            merge_ratio, end_ratio = at_ratio(self, ratio).ratios()
            pairs = zip(found, rests, strict=True)
            living = [rest + sum(_merged_to(sizes, merge_ratio, True)) for sizes, rest in pairs]
            living = [sum(living)] if self.budget == "prompt" else living
            after = {site: sum(_left_of(n, n, end_ratio, ramp[site]) for n in living) for site in sites}
            return {BEFORE_LLM: sum(living), **after}

        return Forecast(left)

    def select(self, tokens: VisualTokens) -> Selection:
        """Merges before the LLM; later the best rows of every pool, by what it had when the LLM began."""
        if tokens.site == BEFORE_LLM:
            return self._merged(tokens, self.ratios()[0])
        (_, end_ratio), gone, keep = self.ratios(), self._ramp()[tokens.site], []
        for pool in pools(tokens, self.budget):
            k = _left_of(pool.size, pool.count, end_ratio, gone)
            whole = k == pool.size  # nothing is looked at for a pool that stays whole
            rows = torch.arange(k, device=tokens.hidden.device)
            keep.append(pool.rows.start + (rows if whole else top_rows(tokens.signals["attention_rank"][pool.rows], k)))
        return Selection(torch.cat(keep))

    def _merged(self, tokens: VisualTokens, merge_ratio: float) -> Selection:
        by_similarity, parts = bool(self._quirks), []
        how = {"weighted": self.size_weighted, "by_similarity": by_similarity}
        for frames in self._frames(tokens):
            counts = _merged_to([len(rows) for rows in frames], merge_ratio, self.keep_ratio is not None)
            for rows, k in zip(frames, counts, strict=True):
                parts.append((rows, merge_pairs(tokens.hidden[rows.to(tokens.hidden.device)], k, **how)))
        return group_selection(joined(parts, len(tokens), tokens.hidden.device), in_place=not by_similarity)

    def _frames(self, tokens: VisualTokens) -> list[list[Tensor]]:
        """The rows of every frame of every image and video."""
        coords = None if tokens.coords is None else tokens.coords.cpu()
        segments = [frame_grids(segment, coords) for segment in tokens.segments if len(segment)]
        return [[torch.cat([grid.rows for grid in frame]) for frame in frames] for frames in segments]


def _merged_to(sizes: list[int], merge_ratio: float, together: bool) -> list[int]:
    """How many tokens the frames of an image or video become, each 1 or more: rounded one by one, or together."""
    if not together:
        return [max(1, round(n * merge_ratio)) for n in sizes]
    return [max(1, k) for k in even_budgets(sizes, round(sum(sizes) * merge_ratio))]


def _left_of(living: int, size: int, end_ratio: float, gone: float) -> int:
    """How many of the ``living`` tokens of a pool that had ``size`` when the LLM began a stage leaves.

    gone: how far the pruning has come with it, up to 1, where ``end_ratio`` are left.
    """
    return max(1, min(living, int(size * (1 - (1 - end_ratio) * gone) + 1e-9)))
