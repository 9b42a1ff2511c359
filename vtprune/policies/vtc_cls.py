"""VTC-CLS: keep the visual tokens that the vision tower's [CLS] token attends to, summed over a few of its layers.

Wang et al., "[CLS] Token Tells Everything Needed for Training-free Efficient MLLMs", 2024, arXiv:2412.05819.
Differs from the authors' code: every image is scored by itself (there a batch is averaged) and may have any number of
patches and keep any number, one included; ties go to the lowest index; layers are named one by one. There the layers
run from a first one to the last but one: ``layers=layers_from_start(16, 24)`` is its command line's default on a tower
of 24 layers. Images in several tiles or with several views are an extension, the publication has none, and so is a
vision tower without a class token, where the attention that a patch gets from all patches in the last layer stands in.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from vtprune.policies.base import ScorePolicy, register
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
class VTCCLS(ScorePolicy):
    """Scores by the [CLS] token's attention to each patch: mean over heads, sum over layers.

    layers:      layers of the vision tower, negative ones counted from the end; the last one never takes part.
    score_dtype: "model" computes in the vision tower's dtype as published, "float32" in single precision.
    signal:      "cls", or "vision", which stands in for it; "auto" takes the first where the tower has a class token.
    """

    layers: tuple[int, ...] = (-4, -3, -2)
    score_dtype: Literal["model", "float32"] = "model"
    signal: Literal["auto", "cls", "vision"] = "auto"

    positions: ClassVar[str] = "compact"

    def __post_init__(self):
        super().__post_init__()
        named = isinstance(self.layers, Sequence) and not isinstance(self.layers, str) and len(self.layers)
        if not named or any(isinstance(i, bool) or not isinstance(i, int) for i in self.layers):
            raise ValueError(
                f"layers is a sequence of layer indices of the vision tower, such as (-4, -3, -2); got {self.layers!r}"
            )
        self.layers = tuple(self.layers)
        if -1 in self.layers or len(set(self.layers)) < len(self.layers):
            raise ValueError(
                f"layers names different layers, and never the last (-1), which VTC-CLS leaves out; got {self.layers!r}"
            )
        if self.score_dtype not in ("model", "float32"):
            raise ValueError(f"score_dtype is 'model' or 'float32'; got {self.score_dtype!r}")
        if self.signal not in ("auto", "cls", "vision"):
            raise ValueError(f"signal is 'auto', 'cls' or 'vision'; got {self.signal!r}")

    def fitted(self, facts: ModelFacts) -> "VTCCLS":
        """With the signal that the model's vision tower has. Raises ValueError when its last layer was asked for."""
        if facts.tower_layers - 1 in self.layers and facts.tower_layers:
            raise ValueError(
                f"VTC-CLS leaves out the last layer of the vision tower, here {facts.tower_layers - 1}; "
                f"got layers={self.layers}"
            )
        if self.signal != "auto":
            return self
        return replace(self, signal="cls" if facts.class_token else "vision")

    @property
    def notes(self) -> tuple[str, ...]:
        if self.signal != "vision":
            return ()
        return ("the vision tower's patches, looked at by all others in its last layer, stand in for its class token",)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self._signal})

    @property
    def _signal(self) -> str:
        return "vision_attention" if self.signal == "vision" else f"cls_attention:{','.join(map(str, self.layers))}"

    def score(self, tokens: VisualTokens) -> Tensor:
        rows = tokens.signals[self._signal]  # (layers, heads, N), or (N,) of the stand-in
        if self.signal == "vision":
            return rows
        rows = rows.float() if self.score_dtype == "float32" else rows
        return rows.mean(1).sum(0)
