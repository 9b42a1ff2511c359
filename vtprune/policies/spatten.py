"""SpAtten: after every layer inside the LLM, drop the tokens that were paid least attention in all layers so far.

Wang et al., "SpAtten: Efficient Sparse Attention Architecture with Cascade Token and Head Pruning", HPCA 2021,
arXiv:2012.09852: probabilities are accumulated over heads, queries and layers, and a token that was dropped is gone for
all later layers.
Differs from the paper: only visual tokens compete, each image or video for its own budget; importance is a mean over
heads, which ranks as their sum does; it ends with the prefill, so that decoding drops nothing more; heads, single
values and bits are not pruned. The published ratios of layers were set for each task; here they fall on a line from 1,
after the first layers, to ``keep_ratio``. Layers without attention are passed over. The authors' released demo is
another method: it evicts from a cache between turns, by the scores of the last query alone.

Every layer makes all its attention scores once more, in float32. ``rows="probe"`` looks from a few rows instead, which
is an approximation.
"""

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from vtprune.blocks.cascade import accumulated, first_pruned, ratio_at
from vtprune.blocks.forecast import Forecast, staged
from vtprune.blocks.probe_rows import ALL, Probes
from vtprune.blocks.stages import check_layers, fit_layers, pool_sizes, pools
from vtprune.policies.base import Ranked, best_of, check_choices, check_ratio, register
from vtprune.policies.checks import check_number
from vtprune.tokens import ModelFacts, Selection, VisualTokens

PUBLISHED_LAYERS = 12
_MEMORY = "spatten"


@register("spatten")
@dataclass
class SpAtten:
    """Scores by the attention that a token got from all queries in all layers so far.

    keep_ratio: fraction of visual tokens KEPT after the last stage, in (0, 1]; 0.5 if None. The stages before it lie on
                a line.
    untouched:  share of the layers, the first ones, that see all tokens, in [0, 1]; rounded up.
    rows:       "all" queries pay, as published, or "probe" rows: the last tokens and some random ones.
    recent:     how many of the last tokens are probed.
    random:     how many of the others, drawn anew in every layer.
    seed:       of the draw; the report repeats it.
    layers:     the stages: first decoder layers that see the shorter sequence; the attention of the layers right before
                them is accumulated. None: all but the first, where the layer before has attention.
    of:         depth that ``layers`` are counted in; they are scaled to the model. None: taken as they are.
    budget:     "segment" gives every image or video its own share, "prompt" pools them.
    """

    keep_ratio: float | None = None
    untouched: float = 0.15
    rows: Literal["all", "probe"] = "all"
    recent: int = 64
    random: int = 64
    seed: int = 0
    layers: tuple[int, ...] | None = None
    of: int | None = None
    budget: Literal["segment", "prompt"] = "segment"

    def __post_init__(self):
        check_choices(self, {"budget": ("segment", "prompt"), "rows": ("all", "probe")})
        if self.keep_ratio is None:
            self.keep_ratio = 0.5
        check_ratio(self.keep_ratio)
        check_number("untouched", self.untouched, 0)
        self.probes.check()
        if self.layers is not None:
            self.layers = check_layers(self.layers, self.of)
        elif self.of is not None:
            raise ValueError(f"of is the depth that layers are counted in, so it goes with layers; got {self.of!r}")

    @property
    def probes(self) -> Probes:
        return Probes(self.recent, self.random, self.seed)

    @property
    def signal(self) -> str:
        return f"probe_attention@{ALL if self.rows == 'all' else self.probes}"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal})

    @property
    def sites(self) -> tuple[int, ...]:
        return tuple(range(1, PUBLISHED_LAYERS)) if self.layers is None else tuple(dict.fromkeys(self.layers))

    @property
    def notes(self) -> tuple[str, ...]:
        if self.rows == "all":
            return ()
        some = f"the last {self.recent} tokens and {self.random} others, drawn with seed {self.seed}"
        return (f"importance of SpAtten is approximate: {some}, stand for all queries",)

    def fitted(self, facts: ModelFacts) -> "SpAtten":
        """The stages of this model. Raises ValueError where no layer before the last has attention."""
        layers = range(1, facts.depth) if self.layers is None else fit_layers(self.layers, self.of, facts.depth)
        layers = tuple(layer for layer in layers if layer - 1 not in facts.linear)
        if not layers:
            raise ValueError(
                f"SpAtten accumulates attention, and this {facts.model_type} has none in the layers right before "
                f"layers={self.layers!r}. Leave layers out, or choose a policy that needs no decoder attention"
            )
        return replace(self, layers=layers, of=facts.depth)

    def left_at(self, site: float, living: int, size: int) -> int:
        """How many of the ``living`` tokens of a pool that had ``size`` stay at a site: half rounds to even."""
        last = self.sites[-1]
        first = min(last, first_pruned(self.of or last + 1, self.untouched))
        return max(1, min(living, round(size * ratio_at(int(site), first, last, self.keep_ratio))))

    def forecast(self, tokens: VisualTokens) -> Forecast:
        return staged(self, self.sites, pool_sizes(tokens, self.budget), SpAtten.left_at)

    def ranked(self, tokens: VisualTokens) -> list[Ranked]:
        """Every pool with its importance and what remains of its original count at this stage."""
        score = self._importance(tokens)
        found = [(pool, self.left_at(tokens.site, pool.size, pool.count)) for pool in pools(tokens, self.budget)]
        return [Ranked(pool.rows, k, score[pool.rows]) for pool, k in found]

    def select(self, tokens: VisualTokens) -> Selection:
        """The best rows of every pool; nothing is looked at where everything is to stay."""
        if self.keep_ratio == 1:
            return Selection.all(tokens)
        return best_of(self.ranked(tokens))

    def _importance(self, tokens: VisualTokens) -> Tensor:
        """(N,) float32, the layer before this site included, once however often it is asked."""
        site, sums = tokens.memory.get(_MEMORY, (None, None))
        if site != tokens.site:
            paid, _ = tokens.signals[self.signal]
            sums = accumulated(sums, tokens.rows, paid)
            tokens.memory[_MEMORY] = tokens.site, sums
        return sums[1]
