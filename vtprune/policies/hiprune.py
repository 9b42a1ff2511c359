"""HiPrune: keep what a middle layer of the vision tower looks at, the patches around it, and the best of a deep layer.

Liu et al., "HiPrune: Hierarchical Attention for Efficient Token Pruning in Vision-Language Models", ACL 2026,
arXiv:2508.00553.
Differs from the authors' code: neighbours are those above, below, left and right inside the grid (there places in a
line, so that the end of a row neighbours the next row, and the first or last patch of all is added at the edges:
``compat="released-row-wrap"``); every image has its own budget whatever else is in the batch or the prompt, and all
views of an image share it (``tiles="split"`` gives each crop its part, as published); where anchors and their
neighbours are more than the budget, those of the best anchors stay (there it fails); the attention that patches get is
summed without a map; ties go to the lowest index. Layers are those published for LLaVA-1.5 (8 and 22 of 24), in towers
without a class token those for Qwen2.5-VL (15 and 31 of 32), and as deep in towers of another depth, an extension; so
are videos, where a video is one image and neighbours lie in the same frame.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtprune.blocks.anyres import tile_rows
from vtprune.blocks.frame_budget import even_budgets
from vtprune.policies.base import ScorePolicy, check_choices, quirks, register, top_rows
from vtprune.tokens import ModelFacts, Selection, VisualTokens

COMPAT = ("released-row-wrap",)


@register("hiprune")
@dataclass
class HiPrune(ScorePolicy):
    """Anchors by the attention that patches get in a middle layer, their neighbours, the rest by a deep layer.

    alpha:   of ``alpha / 5`` of the budget the anchors are taken, from 0 to 5; up to four neighbours come with each.
    shallow: the layer of the vision tower that gives the anchors, negative ones counted from the end; None: 3/8 of its
             layers, without a class token half of them.
    deep:    the layer that gives the rest; None: the last but one, without a class token the last.
    tiles:   "pooled" ranks all views of an anyres image together, "split" shares its budget among thumbnail and crops
             by size and treats each as an image.
    compat:  "released-row-wrap" takes neighbours in the line of patches instead of in the grid, a fault.
    """

    alpha: float = 0.1
    shallow: int | None = None
    deep: int | None = None
    tiles: Literal["pooled", "split"] = "pooled"
    compat: str = ""

    positions: ClassVar[str] = "compact"

    def __post_init__(self):
        super().__post_init__()
        number = isinstance(self.alpha, (int, float)) and not isinstance(self.alpha, bool)
        if not number or not 0 <= self.alpha <= 5:
            raise ValueError(
                f"alpha is a number from 0 to 5, a fifth of it is the share of anchors; got {self.alpha!r}"
            )
        for option in ("shallow", "deep"):
            layer = getattr(self, option)
            if layer is not None and (isinstance(layer, bool) or not isinstance(layer, int)):
                raise ValueError(f"{option} is the index of a layer of the vision tower or None; got {layer!r}")
        check_choices(self, {"tiles": ("pooled", "split")})
        self._wraps = "released-row-wrap" in quirks(self.compat, COMPAT)

    def fitted(self, facts: ModelFacts) -> "HiPrune":
        """With the layers for the model's vision tower, where none are given."""
        layers = facts.tower_layers
        shallow, deep = (layers * 3 // 8 - 1, -2) if facts.class_token else (layers // 2 - 1, -1)
        shallow, deep = max(0, shallow) if layers else self._layers[0], deep if layers != 1 else -1
        return replace(
            self,
            shallow=shallow if self.shallow is None else self.shallow,
            deep=deep if self.deep is None else self.deep,
        )

    @property
    def _layers(self) -> tuple[int, int]:
        return 8 if self.shallow is None else self.shallow, -2 if self.deep is None else self.deep

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(f"vision_attention:{layer}" for layer in self._layers)

    def select(self, tokens: VisualTokens) -> Selection:
        """Of every image, or of every tile of it, the anchors, their neighbours and the best of the others."""
        shallow, deep = (tokens.signals[f"vision_attention:{layer}"].cpu() for layer in self._layers)
        places, keep = _places(tokens), []
        for pool in self.pools(tokens):
            for rows, k in self._shares(tokens, pool):
                taken = self._around(shallow[rows], places[rows], k)
                rest = deep[rows].index_fill(0, taken, float("-inf"))
                keep += [rows[taken], rows[top_rows(rest, k - len(taken))]]
        return Selection(torch.cat(keep).sort().values.to(tokens.hidden.device))

    def _shares(self, tokens: VisualTokens, pool: slice) -> list[tuple[Tensor, int]]:
        """The rows that are ranked together, and how many of them are kept."""
        rows, k = torch.arange(pool.start, pool.stop), self.count(pool.stop - pool.start)
        if self.tiles == "pooled":
            return [(rows, k)]
        coords = None if tokens.coords is None else tokens.coords.cpu()
        inside = [s for s in tokens.segments if len(s) and pool.start <= s.span.start and s.span.stop <= pool.stop]
        tiles = [tile for segment in inside for tile in tile_rows(segment, coords)]
        return list(zip(tiles, even_budgets([len(tile) for tile in tiles], k), strict=True))

    def _around(self, score: Tensor, places: Tensor, k: int) -> Tensor:
        """(at most k,) int64: the anchors, best first, each followed by its neighbours; nobody twice."""
        anchors = score.sort(descending=True, stable=True).indices[: round(k * self.alpha / 5)]
        if self._wraps:
            width = _width(places)
            around = (anchors[:, None] + torch.tensor([-1, 1, -width, width])).clamp(0, len(score) - 1)
        else:
            around = _neighbours(places, anchors)
        found = torch.cat([anchors[:, None], around], 1).flatten().tolist()
        return torch.tensor(list(dict.fromkeys(place for place in found if place >= 0))[:k], dtype=torch.int64)


def _places(tokens: VisualTokens) -> Tensor:
    """(N, 5) int64 on the CPU: segment, view, frame, row and column, the last four -1 where they are not known."""
    coords = torch.full((len(tokens), 4), -1) if tokens.coords is None else tokens.coords.cpu()
    sizes = torch.tensor([len(segment) for segment in tokens.segments])
    return torch.cat([torch.arange(len(sizes)).repeat_interleave(sizes)[:, None], coords], 1)


def _width(places: Tensor) -> int:
    """Columns of a grid."""
    column = places[:, 4]
    return int(column.max() - column.min()) + 1


def _neighbours(places: Tensor, of: Tensor) -> Tensor:
    """(a, 4) int64: the rows to the left, to the right, above and below of the rows ``of`` (a,); -1 where none is."""
    span = (places.amax(0) + 3).tolist()
    code = torch.zeros(len(places), dtype=torch.int64)
    for size, place in zip(span, places.T, strict=True):
        code = code * size + place + 1
    known = places.amin(1) >= 0
    # nobody stands beside a place that is not known
    code = code.masked_fill(~known, -span[4] - 1)
    order = code.argsort(stable=True)
    wanted = code[of, None] + torch.tensor([-1, 1, -span[4], span[4]])
    at = order[torch.searchsorted(code[order], wanted).clamp(max=len(code) - 1)]
    return at.masked_fill((code[at] != wanted) | ~known[of, None], -1)
