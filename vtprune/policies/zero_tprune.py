"""Zero-TPrune: tokens vote for each other along the vision tower's attention; what is like others goes, then the rest.

Wang et al., "Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the Attention Graph in Pre-Trained
Transformers", CVPR 2024, arXiv:2305.17328.
There is no released code; this follows the publication: a ranking by one vote (I'), of whose lower half the tokens most
like one of the upper half are dropped (S), and a vote of those that are left, along the attention among them (I), whose
best are kept. So a large background whose patches are alike cannot vote itself up. Votes go along attention (a
displayed formula sums over rows, which gives every token the same), and scores have mean 1, without which the published
bounds on a head's variance take no head.
Differs from the publication: tokens are dropped once, before the LLM, by the last layer of the tower whose output it
reads, instead of in several layers of a classifier, so the class token starts with one vote like all others
(``emphasize_cls`` gives it the published weight); how many of the dropped go for being alike is an option; ties go to
the lowest index. Where several patches make a token their mean counts; in towers with windows the last layer without
them serves. Images in several tiles, which share one budget and vote tile by tile, and videos, which vote frame by
frame, are extensions.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune.blocks.graph_scores import voted
from vtprune.blocks.tower_layer import check_tower_layer, whole_layer
from vtprune.policies.base import ScorePolicy, check_choices, register, top_rows
from vtprune.policies.checks import check_index, check_number
from vtprune.tokens import ModelFacts, Selection, VisualTokens

BLOCK = 1024  # rows that are compared at a time
FIRST, MIDDLE, LAST = 50, 10, 1
"""Votes in the first third of a tower, between, and in its last three layers; published: 30 to 50, 5 to 10, and 1."""


@register("zero_tprune")
@dataclass
class ZeroTPrune(ScorePolicy):
    """Drops tokens like more important ones, then the least important by weighted PageRank of the attention graph.

    iterations:     how often tokens vote in the last ranking; None: 50 in the first third of the tower's layers, 10 in
                    the middle, 1 in the last three.
    similar_share:  of the tokens that are dropped, how many for being like others; rounded down, at most half of all.
    v_min:          heads take part whose scores have at least this variance ...
    v_max:          ... and at most this; all where none does.
    emphasize_cls:  whether a class token starts with as many votes as the root of the number of patches.
    layer:          of the vision tower, negative ones counted from the end; None: the last that the LLM reads and in
                    which all patches of an image see each other.
    """

    iterations: int | None = None
    similar_share: float = 0.5
    v_min: float = 0.01
    v_max: float = 0.7
    emphasize_cls: bool = False
    layer: int | None = None

    positions: ClassVar[str] = "compact"

    def __post_init__(self):
        super().__post_init__()
        check_index("iterations", self.iterations, optional=True)
        check_number("similar_share", self.similar_share, 0)
        bounds = (self.v_min, self.v_max)
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in bounds)
        if not numbers or not 0 <= self.v_min <= self.v_max:
            raise ValueError(
                f"v_min and v_max are numbers with 0 <= v_min <= v_max; got {self.v_min!r}, {self.v_max!r}"
            )
        check_choices(self, {"emphasize_cls": (False, True)})
        check_tower_layer(self.layer)

    def fitted(self, facts: ModelFacts) -> "ZeroTPrune":
        """With the layer and the number of votes for the model's vision tower."""
        layer = whole_layer(self.layer, facts, "Zero-TPrune")
        place, layers = layer % max(1, facts.tower_layers), facts.tower_layers
        rounds = LAST if place >= layers - 3 else FIRST if place < layers / 3 else MIDDLE
        return replace(self, layer=layer, iterations=self.iterations or rounds)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self._graph, self._keys})

    @property
    def _graph(self) -> str:
        return f"vision_graph:{-1 if self.layer is None else self.layer}"

    @property
    def _keys(self) -> str:
        return f"vision_keys:{-1 if self.layer is None else self.layer}"

    def select(self, tokens: VisualTokens) -> Selection:
        """Of every pool those that are left of S and do best in I."""
        pools = [(pool, self.count(pool.stop - pool.start)) for pool in self.pools(tokens)]
        alive = torch.ones(len(tokens), dtype=torch.bool, device=tokens.hidden.device)
        if all(k == pool.stop - pool.start for pool, k in pools):
            return Selection.all(tokens)
        first, keys = self._score(tokens, 1, alive), tokens.signals[self._keys].flatten(0, 1).T
        for pool, k in pools:
            n = pool.stop - pool.start
            alike = min(int((n - k) * self.similar_share), n // 2)
            alive[pool.start + duplicates(first[pool], keys[pool], alike)] = False
        score = self._score(tokens, self.iterations or LAST, alive).masked_fill(~alive, -torch.inf)
        return Selection(torch.cat([pool.start + top_rows(score[pool], k) for pool, k in pools]))

    def _score(self, tokens: VisualTokens, rounds: int, alive: Tensor) -> Tensor:
        """(N,) float32: what tokens get from the patches of those that are alive."""
        vote = partial(voted, rounds=rounds, v_min=self.v_min, v_max=self.v_max, emphasis=self.emphasize_cls)
        return tokens.signals[self._graph].scores(vote, alive)


def duplicates(score: Tensor, key: Tensor, r: int) -> Tensor:
    """(r,) int64: of the half with lower scores, rounded down, the rows whose keys are most like one of the others.

    score: (n,). key: (n, d), compared by cosine in float32. r: at most n // 2. Of equal rows the first stays.
    """
    upper = top_rows(score, len(score) - len(score) // 2)
    lower = torch.ones_like(score, dtype=torch.bool).index_fill(0, upper, False).nonzero().flatten()
    if not r:
        return lower[:0]
    unit = F.normalize(key.float(), dim=-1)
    likest = torch.cat([(unit[rows] @ unit[upper].T).amax(1) for rows in lower.split(BLOCK)])
    return lower.flip(0)[likest.flip(0).sort(descending=True, stable=True).indices[:r]]
