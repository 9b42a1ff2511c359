"""V2Drop: drop, in stages inside the LLM, the visual tokens that the layer before changed least.

Chen et al., "Variation-aware Vision Token Dropping for Faster Large Vision-Language Models", CVPR 2026,
arXiv:2509.01552.
Differs from the authors' code: batches and padding work (there the first row of a batch decides for all), images are
found by their placeholders (there by a fixed place and number, in any prompt that is longer), every image has its own
budget, layers are scaled to the model's depth, changes are measured in at least float32, ties go to the lowest index.
One ``keep_ratio`` for all stages is an extension, there the numbers are edited in the source; so are models other than
LLaVA-1.5 and Qwen2-VL, and video.
"""

from dataclasses import dataclass, replace
from itertools import accumulate
from operator import mul
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtprune.blocks.forecast import Forecast, staged
from vtprune.blocks.stages import Pool, check_layers, fit_layers, pool_sizes, pools, stages_at, with_layer_mean
from vtprune.policies.base import check_choices, check_ratio, register, top_rows
from vtprune.tokens import ModelFacts, Selection, VisualTokens

LLAVA = ((3, 17, 22), (0.5, 0.5, 0.0), 32)
QWEN = ((3, 16, 22), (0.25, 0.05, 0.0), 28)
"""Published layers, fractions of the current count and the depth they are meant for."""

_MEMORY = "v2drop"


@register("v2drop")
@dataclass
class V2Drop:
    """Scores by the length of what the layer before a stage added to a token's hidden state.

    keep_ratio:  mean over the decoder layers of the fraction of visual tokens that a layer has, in (0, 1]: the
                 published fractions of the original count move in a straight line towards 1 or 0 to meet it. None takes
                 ``keep_ratios`` as they are; as published that is 0.35 of LLaVA-1.5's tokens, one of them in the end.
    keep_ratios: fraction of the CURRENT count kept at each stage, in [0, 1]; counts are rounded down to 1 or more.
                 None: 0.25, 0.05 and 0 on Qwen-VL models, else 0.5, 0.5 and 0.
    layers:      the stages: first decoder layers that see the shorter sequence. None: 3, 16 and 22 of 28 on Qwen-VL
                 models, else 3, 17 and 22 of 32; given together with ``keep_ratios`` or not at all.
    of:          depth that ``layers`` are meant for; they are scaled to the model. None: taken as they are.
    budget:      "segment" gives every image or video its own share, "prompt" pools them.
    """

    keep_ratio: float | None = None
    keep_ratios: tuple[float, ...] | None = None
    layers: tuple[int, ...] | None = None
    of: int | None = None
    budget: Literal["segment", "prompt"] = "segment"

    needs: ClassVar[frozenset[str]] = frozenset()
    exact_count: ClassVar[bool] = False
    keep_ratio_is: ClassVar[str] = "layers"

    def __post_init__(self):
        check_choices(self, {"budget": ("segment", "prompt")})
        if self.keep_ratio is not None:
            check_ratio(self.keep_ratio)
        if (self.layers is None) != (self.keep_ratios is None) or (self.layers is None and self.of is not None):
            raise ValueError(
                "layers and keep_ratios are given together, of with them or not at all; got "
                f"layers={self.layers!r}, keep_ratios={self.keep_ratios!r} and of={self.of!r}"
            )
        if self.layers is not None:
            self.layers = check_layers(self.layers, self.of)
            self.keep_ratios = _fractions(self.keep_ratios, self.layers)

    @property
    def _schedule(self) -> tuple[tuple[int, ...], tuple[float, ...], int]:
        if self.layers is None:
            return LLAVA
        return self.layers, self.keep_ratios, self.of or self.layers[-1] + 1

    @property
    def sites(self) -> tuple[int, ...]:
        """The stages, and the layers before them, whose inputs are remembered."""
        layers = self._schedule[0]
        return tuple(sorted({*layers, *(layer - 1 for layer in layers)}))

    def fitted(self, facts: ModelFacts) -> "V2Drop":
        """The stages for this kind of model, at the same fractions of its depth."""
        layers, ratios, of = self.layers, self.keep_ratios, self.of
        if layers is None:
            layers, ratios, of = QWEN if facts.model_type.startswith("qwen") else LLAVA
        return replace(self, layers=fit_layers(layers, of, facts.depth), keep_ratios=ratios, of=facts.depth)

    def forecast(self, tokens: VisualTokens) -> Forecast:
        layers = self._schedule[0]

        def kept(policy: V2Drop, site: float, living: int, size: int) -> int:
            return policy.count(Pool(slice(0, living), size, -1), stages_at(layers, site))

        return staged(self, tuple(dict.fromkeys(layers)), pool_sizes(tokens, self.budget), kept)

    def select(self, tokens: VisualTokens) -> Selection:
        """The rows of every pool that changed most; before other layers all, with their hidden states remembered."""
        layers, note = self._schedule[0], ""
        found, keep = pools(tokens, self.budget), torch.arange(len(tokens), device=tokens.hidden.device)
        if tokens.site in layers:
            keep = torch.cat([self._best(tokens, pool) for pool in found])
            note = self._note(tokens.site)
        if tokens.site + 1 in layers:
            tokens.memory[_MEMORY] = tokens.hidden[keep]
        return Selection(keep, note=note)

    def _best(self, tokens: VisualTokens, pool: Pool) -> Tensor:
        k = self.count(pool, stages_at(self._schedule[0], tokens.site))
        if k == pool.size:
            return torch.arange(pool.rows.start, pool.rows.stop, device=tokens.hidden.device)
        now, before = (h[pool.rows] for h in (tokens.hidden, tokens.memory[_MEMORY]))
        wide = torch.promote_types(now.dtype, torch.float32)
        return pool.rows.start + top_rows((now.to(wide) - before.to(wide)).norm(dim=-1), k)

    def count(self, pool: Pool, stages: list[int]) -> int:
        """How many of a pool's living tokens these stages, one after the other, leave: 1 or more."""
        layers, ratios, depth = self._schedule
        n = pool.size
        if self.keep_ratio is None:
            for stage in stages:
                n = max(1, int(n * ratios[stage]))
            return n
        of_original = with_layer_mean(layers, tuple(accumulate(ratios, mul)), depth, self.keep_ratio)
        # a mean that is met exactly may end up a rounding error below a whole number
        return max(1, min(n, int(pool.count * of_original[stages[-1]] + 1e-9)))

    def _note(self, site: float) -> str:
        layers, _, depth = self._schedule
        if self.keep_ratio is None or site != layers[0] or self.keep_ratio >= layers[0] / depth:
            return ""
        return (
            f"the {layers[0]} of {depth} layers before the first stage alone have more visual tokens than "
            f"keep_ratio={self.keep_ratio} allows all layers, so one token is left behind them"
        )


def _fractions(keep_ratios: object, layers: tuple[int, ...]) -> tuple[float, ...]:
    listed = isinstance(keep_ratios, (tuple, list)) and len(keep_ratios) == len(layers)
    if not listed or not all(
        isinstance(r, (int, float)) and not isinstance(r, bool) and 0 <= r <= 1 for r in keep_ratios
    ):
        raise ValueError(
            f"keep_ratios are fractions KEPT, in [0, 1], one for each of layers={layers}; got {keep_ratios!r}"
        )
    return tuple(keep_ratios)
