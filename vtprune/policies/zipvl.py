"""ZipVL: in some layers inside the LLM, as few visual tokens stay as hold a share tau of the attention of probe rows.

He et al., "ZipVL: Efficient Large Vision-Language Models with Dynamic Token Sparsification", arXiv:2410.08584: the
count of a layer comes from the probe rows' plain attention (equation 6), its members from the attention per row that
can see a token (equations 7 and 8). There is no released code.
Differs from the paper: tokens that a layer drops are gone for all later layers and leave the sequence, so the MLP is
saved too (there every layer chooses anew among all, and attention alone is saved); it acts at every fourth layer of 32
(there at all: ``layers``), because the attention of the probe rows is an extra cost; visual tokens compete among
themselves, and text and the prompt's last token always stay; decoding goes on from what the prefill left, and nothing
is quantized. ``keep_ratio``, with counts that are set instead of found, several images, batches, and models with mRoPE
are an extension.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from vtprune.blocks.forecast import Forecast, staged
from vtprune.blocks.probe_mass import count_to_mass, mass_per_row
from vtprune.blocks.probe_rows import Probes
from vtprune.blocks.stages import check_layers, fit_layers, pool_sizes, pools, stages_at
from vtprune.policies.base import Ranked, best_of, check_choices, check_ratio, register
from vtprune.policies.checks import check_tau
from vtprune.tokens import ModelFacts, Selection, VisualTokens

TAU = 0.975


@register("zipvl")
@dataclass
class ZipVL:
    """Scores by the attention of the last tokens and some random ones in the layer at each stage, before it runs.

    tau:        share of the probe rows' attention to the visual tokens that the kept ones hold, in (0, 1]. None: 0.975,
                unless there is a keep_ratio.
    keep_ratio: fraction of visual tokens KEPT after the last stage, in (0, 1], instead of tau: the counts fall evenly
                from stage to stage, and only the members are ZipVL's.
    layers:     the stages: first decoder layers that see the shorter sequence, counted in a model of ``of`` layers.
    of:         depth that ``layers`` are meant for; they are scaled to the model. None: taken as they are.
    recent:     how many of the last tokens are probed.
    random:     how many of the others, drawn anew in every layer.
    seed:       of the draw; the report repeats it.
    budget:     "segment" gives every image or video its own share, "prompt" pools them.
    """

    tau: float | None = None
    keep_ratio: float | None = None
    layers: tuple[int, ...] = tuple(range(4, 32, 4))
    of: int | None = 32
    recent: int = 64
    random: int = 64
    seed: int = 0
    budget: Literal["segment", "prompt"] = "segment"

    def __post_init__(self):
        check_choices(self, {"budget": ("segment", "prompt")})
        self.layers = check_layers(self.layers, self.of)
        self.probes.check()
        if self.keep_ratio is not None:
            check_ratio(self.keep_ratio)
            if self.tau is not None:
                raise ValueError(
                    "tau finds the counts and keep_ratio sets them, so give one; got "
                    f"tau={self.tau!r} and keep_ratio={self.keep_ratio!r}"
                )
        elif self.tau is None:
            self.tau = TAU
        if self.tau is not None:
            check_tau(self.tau)

    @property
    def probes(self) -> Probes:
        return Probes(self.recent, self.random, self.seed)

    @property
    def signal(self) -> str:
        return f"probe_attention:peek@{self.probes}"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal})

    @property
    def sites(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(self.layers))

    @property
    def notes(self) -> tuple[str, ...]:
        some = f"the last {self.recent} tokens and {self.random} others, drawn with seed {self.seed}"
        return (f"probe rows of ZipVL: {some}, at layers {', '.join(map(str, self.sites))}",)

    def fitted(self, facts: ModelFacts) -> "ZipVL":
        """The stages at the same fractions of this model's depth, each at the next layer that has attention; some may
        fall together. Raises ValueError where none is left."""
        wanted = fit_layers(self.layers, self.of, facts.depth)
        attending = [layer for layer in range(facts.depth) if layer not in facts.linear]
        layers = tuple(min(layer for layer in attending if layer >= at) for at in wanted if at <= attending[-1])
        if not layers:
            raise ValueError(
                f"ZipVL looks at attention, and this {facts.model_type} has none from layer {wanted[0]} on; choose "
                f"earlier layers than {self.layers!r}"
            )
        return replace(self, layers=layers, of=facts.depth)

    def left_at(self, site: float, living: int, size: int) -> int:
        """How many of the ``living`` tokens of a pool that had ``size`` a keep_ratio leaves at a site."""
        done = (stages_at(self.layers, site)[-1] + 1) / len(self.layers)
        return max(1, min(living, round(size * self.keep_ratio**done)))

    def forecast(self, tokens: VisualTokens) -> Forecast:
        return staged(self, self.sites, pool_sizes(tokens, self.budget), ZipVL.left_at)

    def ranked(self, tokens: VisualTokens) -> list[Ranked]:
        """Every pool with its attention per row that can see a token, and its count."""
        (mass, seen), found = tokens.signals[self.signal], pools(tokens, self.budget)
        if self.keep_ratio is None:
            counts = [count_to_mass(mass[pool.rows], self.tau) for pool in found]
        else:
            counts = [self.left_at(tokens.site, pool.size, pool.count) for pool in found]
        score = _with_last(mass_per_row(mass, seen), tokens)
        return [Ranked(pool.rows, k, score[pool.rows]) for pool, k in zip(found, counts, strict=True)]

    def select(self, tokens: VisualTokens) -> Selection:
        """The best rows of every pool; nothing is looked at where everything is to stay."""
        if self.keep_ratio == 1:
            return Selection.all(tokens)
        return best_of(self.ranked(tokens))


def _with_last(score: Tensor, tokens: VisualTokens) -> Tensor:
    """The scores; of a prompt that ends with a visual token, that comes first."""
    if tokens.position is not None and bool((tokens.text_position < tokens.position[-1]).all()):
        score = score.clone()
        score[-1] = torch.inf
    return score
