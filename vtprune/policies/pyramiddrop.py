"""PyramidDrop: drop, in stages inside the LLM, the visual tokens that the last prompt token ignores in the layer ahead.

Xing et al., "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction",
CVPR 2025, arXiv:2410.17247.
Differs from the authors' code: batches, padding on either side and grouped-query attention work, every image has its
own budget (there a sample has one image), at least one token of it stays, layers are scaled to the model's depth,
attention rows are computed in float32, no prompt is cut to a longest length, ties go to the lowest index. Models with
mRoPE, where positions stay original, and video are an extension.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from vtprune.blocks.forecast import Forecast, staged
from vtprune.blocks.stages import Pool, check_falling, check_layers, fit_layers, follow, pool_sizes, pools, stages_at
from vtprune.policies.base import Ranked, best_of, check_choices, check_ratio, register
from vtprune.tokens import ModelFacts, Selection, VisualTokens

_SIGNAL = "last_query_attention:peek"


@register("pyramiddrop")
@dataclass
class PyramidDrop:
    """Scores by the last prompt token's attention, averaged over heads, in the layer at each stage, before it runs.

    keep_ratio:  fraction of visual tokens KEPT after the last stage, in (0, 1]; the stages before it follow along. None
                 takes ``keep_ratios`` as they are.
    keep_ratios: fraction of the original count kept at each stage; counts are rounded down.
    layers:      the stages: first decoder layers that see the shorter sequence, counted in a model of ``of`` layers.
    of:          depth that ``layers`` are meant for; they are scaled to the model. None: taken as they are.
    budget:      "segment" gives every image or video its own share, "prompt" pools them.
    newlines:    whether newline and separator tokens compete, as in the authors' code; False protects them.
    """

    keep_ratio: float | None = None
    keep_ratios: tuple[float, ...] = (0.5, 0.25, 0.125)
    layers: tuple[int, ...] = (8, 16, 24)
    of: int | None = 32
    budget: Literal["segment", "prompt"] = "segment"
    newlines: bool = True

    needs: ClassVar[frozenset[str]] = frozenset({_SIGNAL})
    positions: ClassVar[str] = "compact"

    def __post_init__(self):
        check_choices(self, {"budget": ("segment", "prompt")})
        self.layers = check_layers(self.layers, self.of)
        self.keep_ratios = check_falling(self.keep_ratios, self.layers)
        if self.keep_ratio is not None:
            check_ratio(self.keep_ratio)
        follow(self.keep_ratios, self.keep_ratio)

    @property
    def sites(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(self.layers))

    def fitted(self, facts: ModelFacts) -> "PyramidDrop":
        """The stages at the same fractions of this model's depth; of stages that fall together the last holds."""
        return replace(self, layers=fit_layers(self.layers, self.of, facts.depth), of=facts.depth)

    def left_at(self, site: float, living: int, size: int) -> int:
        """How many of the ``living`` tokens of a pool that had ``size`` stay at a site."""
        ratio = follow(self.keep_ratios, self.keep_ratio)[stages_at(self.layers, site)[-1]]
        return max(1, min(living, int(size * ratio)))

    def forecast(self, tokens: VisualTokens) -> Forecast:
        return staged(self, self.sites, pool_sizes(tokens, self.budget), PyramidDrop.left_at)

    def _counts(self, tokens: VisualTokens) -> list[tuple[Pool, int]]:
        found = pools(tokens, self.budget)
        return [(pool, self.left_at(tokens.site, pool.size, pool.count)) for pool in found]

    def ranked(self, tokens: VisualTokens) -> list[Ranked]:
        """Every pool with its scores and what remains of its original count at this stage."""
        score = tokens.signals[_SIGNAL]
        return [Ranked(pool.rows, k, score[pool.rows]) for pool, k in self._counts(tokens)]

    def select(self, tokens: VisualTokens) -> Selection:
        """The best rows of every pool; nothing is looked at where all stay whole."""
        whole = all(k == pool.size for pool, k in self._counts(tokens))
        return Selection.all(tokens) if whole else best_of(self.ranked(tokens))
