"""SAP: a uniform grid over every picture stays, whatever the scores say, and they choose the rest of the budget.

Ye et al., "ATP-LLaVA: Adaptive Token Pruning for Large Vision Language Models", CVPR 2025, arXiv:2412.00447: its
spatial part. The published method learns thresholds for scores and grid, and has no released code; here the grid comes
first and the best of the other tokens fill what is left of the count that the scoring policy has anyway, so any policy
that chooses by scores can have a grid. Anyres views and frames have a grid each; models that merge patches have it over
merged tokens. A grid that follows the budget (neither rate nor stride given) is an extension.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from vtprune.around import Around
from vtprune.blocks.forecast import Forecast, at_ratio
from vtprune.blocks.spatial_grid import fitting_stride, grid_first, on_grid, stride_of
from vtprune.blocks.stages import is_index
from vtprune.policies.base import POLICIES, Policy, check_how_many, keep_ratio_is, ranks, register
from vtprune.tokens import ModelFacts, Selection, VisualTokens

NO_GRID = "{} of the visual tokens were chosen by scores alone: where they stand in the picture is not known"
NO_ROOM = "the budget of {} tokens has no room for a grid, so they were chosen by scores alone"


@register("sap")
@dataclass
class SpatialGridKeep(Around):
    """Keeps, of every pool of a policy's tokens, a grid of every stride-th row and column, and the best by its scores.

    scorer:     the policy that scores and counts: one that keeps the best by scores, or its name.
    rate:       about the share of the tokens that the grid has, in (0, 1]: stride = round(sqrt(1 / rate)). Published
                with 0.5 in shallow layers, 0.25, and 0.0625 in deep ones.
    stride:     instead of it, how many rows and columns apart the grid's tokens are, 1 or more. With neither the grid
                is the finest that takes no more than half of the count; where none does, scores alone choose.
    keep_ratio: fraction of visual tokens KEPT, as the scorer counts it, grid included; None: the scorer's own.
    n_keep:     absolute number of visual tokens kept, for scorers that have it.

    Raises ValueError for a scorer that does not tell its scores; when tokens are chosen, ValueError for a grid of a
    given rate or stride that is larger than the count, and NotImplementedError for one over tokens of unknown places.
    """

    inner: ClassVar[str] = "scorer"

    scorer: str | Policy = "fastv"
    rate: float | None = None
    stride: int | None = None
    keep_ratio: float | None = None
    n_keep: int | None = None

    def __post_init__(self):
        check_how_many(self.keep_ratio, self.n_keep)
        self.scorer = _scorer(self.scorer)
        if self.rate is not None and self.stride is not None:
            raise ValueError(f"give rate or stride, not both; got rate={self.rate!r} and stride={self.stride!r}")
        number = isinstance(self.rate, (int, float)) and not isinstance(self.rate, bool)
        if self.rate is not None and not (number and 0 < self.rate <= 1):
            raise ValueError(f"rate is the share of the tokens that the grid has, in (0, 1]; got {self.rate!r}")
        if self.stride is not None and not is_index(self.stride, 1):
            raise ValueError(f"stride is an integer of 1 or more; got {self.stride!r}")
        if self.n_keep is not None and not hasattr(self.scorer, "n_keep"):
            raise ValueError(f"{_name(self.scorer)} takes no n_keep; give keep_ratio; got n_keep={self.n_keep!r}")
        if self.keep_ratio is None and self.n_keep is None:
            self.keep_ratio = getattr(self.scorer, "keep_ratio", None)
            self.n_keep = getattr(self.scorer, "n_keep", None)
        self.keep_ratio_is = keep_ratio_is(self.scorer)

    def fitted(self, facts: ModelFacts) -> "SpatialGridKeep":
        """The scorer fitted to the model."""
        return replace(self, scorer=self.scorer.fitted(facts)) if hasattr(self.scorer, "fitted") else self

    def forecast(self, tokens: VisualTokens) -> Forecast:
        """What the scorer counts."""
        return self._counting().forecast(tokens)

    def _counting(self) -> Policy:
        """The scorer with this budget."""
        if self.keep_ratio is None and self.n_keep is None:
            return self.scorer
        changed = at_ratio(self.scorer, self.keep_ratio)
        if self.n_keep is not None:
            changed.n_keep = self.n_keep
        return changed

    def select(self, tokens: VisualTokens) -> Selection:
        """The grid and the best other rows of every pool, in prompt order."""
        if self.keep_ratio == 1:
            return Selection.all(tokens)
        notes: list[str] = []
        coords, keep = self._places(tokens, notes), []
        for pool in self._counting().ranked(tokens):
            places = coords[pool.rows]
            whole = pool.k == len(places)
            grid = torch.ones(len(places), dtype=torch.bool) if whole else self._grid(places, pool.k, notes)
            keep.append(pool.rows.start + grid_first(pool.score, grid.to(pool.score.device), pool.k))
        return Selection(torch.cat(keep), note="; ".join(dict.fromkeys(notes)))

    def _places(self, tokens: VisualTokens, notes: list[str]) -> Tensor:
        """(N, 4) on the CPU: view, frame, row and column of each token, -1 where unknown, which is noted."""
        coords = torch.full((len(tokens), 4), -1) if tokens.coords is None else tokens.coords.cpu()
        lost = [s for s in tokens.segments if len(s) and not s.grids and bool((coords[s.span, 0] < 0).all())]
        if lost and (self.rate or self.stride):
            raise NotImplementedError(
                "a grid takes the places of visual tokens in their picture, which this model's family does not know of "
                f"{lost[0].kind} {lost[0].source} ({len(lost[0])} tokens). Use {_name(self.scorer)} without a grid, or "
                "leave rate and stride out, which gives a grid to the images that have one"
            )
        if lost:
            notes.append(NO_GRID.format(sum(map(len, lost))))
        return coords

    def _grid(self, places: Tensor, k: int, notes: list[str]) -> Tensor:
        """(n,) bool: the grid among the tokens of a pool of which k stay."""
        if self.rate is None and self.stride is None:
            stride = fitting_stride(places, k // 2)
            if stride is None:
                if bool((places[:, 0] >= 0).any()):
                    notes.append(NO_ROOM.format(k))
                return torch.zeros(len(places), dtype=torch.bool)
            return on_grid(places, stride)
        stride = self.stride or stride_of(self.rate)
        grid = on_grid(places, stride)
        if int(grid.sum()) > k:
            fits = fitting_stride(places, k, stride + 1)
            hint = f"stride={fits} is the finest that fits" if fits else "no grid fits, so leave it out"
            raise ValueError(
                f"a grid of stride={stride} has {int(grid.sum())} of these {len(places)} visual tokens, and {k} are to "
                f"be kept: keep more, or take a coarser grid ({hint})"
            )
        return grid


def _scorer(scorer: object) -> Policy:
    """A policy that tells its scores, by name or as it is. Raises ValueError that says which do."""
    if isinstance(scorer, str) and ranks(POLICIES.get(scorer)):
        return POLICIES[scorer]()
    if isinstance(scorer, (str, type)) or not ranks(scorer):
        known = ", ".join(sorted(name for name, policy in POLICIES.items() if ranks(policy)))
        raise ValueError(f"scorer is a policy that keeps the best by scores, or its name ({known}); got {scorer!r}")
    return scorer


def _name(policy: object) -> str:
    return type(policy).__name__
