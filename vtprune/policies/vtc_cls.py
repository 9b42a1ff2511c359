"""VTC-CLS: keep the visual tokens that the vision tower's [CLS] token attends to, summed over a few of its layers.

Wang et al., "[CLS] Token Tells Everything Needed for Training-free Efficient MLLMs", 2024, arXiv:2412.05819.
Differs from the authors' code: every image is scored by itself (there a batch is averaged) and may have any number of
patches and keep any number, one included; ties go to the lowest index; layers are named one by one. There the layers
run from a first one to the last but one: ``layers=layers_from_start(16, 24)`` is its command line's default on a tower
of 24 layers. Images in several tiles or with several views are an extension, the publication has none, and so is a
vision tower without a class token, where the attention that a patch gets from all patches in the last layer stands in.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vtprune.blocks.class_attention import ClassSignal, ReadsClassToken, tower_layers
from vtprune.policies.base import check_choices, register
from vtprune.tokens import ModelFacts, VisualTokens


def layers_from_start(start_layer: int, n_layers: int) -> tuple[int, ...]:
    """The layers from ``start_layer`` (negative: from the end, as in a slice) to the last but one of ``n_layers``."""
    layers = tuple(range(n_layers)[start_layer : n_layers - 1])
    if not layers:
        raise ValueError(
            f"no layer of {n_layers} lies from start_layer={start_layer} to the last but one; start earlier"
        )
    return layers


@register("vtc_cls")
@dataclass
class VTCCLS(ReadsClassToken):
    """Scores by the [CLS] token's attention to each patch: mean over heads, sum over layers.

    layers:      layers of the vision tower, negative ones counted from the end; the last one never takes part.
    score_dtype: "model" computes in the vision tower's dtype as published, "float32" in single precision.
    """

    layers: tuple[int, ...] = (-4, -3, -2)
    score_dtype: Literal["model", "float32"] = "model"
    signal: ClassSignal = "auto"

    def __post_init__(self):
        super().__post_init__()
        self.layers = tower_layers(self.layers)
        if -1 in self.layers or len(set(self.layers)) < len(self.layers):
            raise ValueError(
                f"layers names different layers, and never the last (-1), which VTC-CLS leaves out; got {self.layers!r}"
            )
        check_choices(self, {"score_dtype": ("model", "float32")})

    def fitted(self, facts: ModelFacts) -> "VTCCLS":
        """With the signal that the model's vision tower has. Raises ValueError when its last layer was asked for."""
        if facts.tower_layers - 1 in self.layers and facts.tower_layers:
            raise ValueError(
                f"VTC-CLS leaves out the last layer of the vision tower, here {facts.tower_layers - 1}; "
                f"got layers={self.layers}"
            )
        return super().fitted(facts)

    @property
    def class_layers(self) -> tuple[int, ...]:
        return self.layers

    def score(self, tokens: VisualTokens) -> Tensor:
        rows = self.class_rows(tokens)
        rows = rows.float() if self.score_dtype == "float32" else rows
        return rows.mean(1).sum(0)
