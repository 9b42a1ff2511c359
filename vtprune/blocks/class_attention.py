"""Importance by the class token of the vision tower: which layer it is read from, and what stands in for it."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from vtprune.policies.base import ScorePolicy, check_choices
from vtprune.tokens import ModelFacts, VisualTokens

STANDS_IN = "the vision tower's patches, looked at by all others in its last layer, stand in for its class token"


@dataclass
class ClassAttention(ScorePolicy):
    """Base of policies that read what the class token of the vision tower pays to every patch in one layer.

    layer:  of the vision tower, negative ones counted from the end; -2 gives the features that LLaVA reads.
    signal: "cls", or "vision", which stands in for it; "auto" takes the first where the tower has a class token.
    """

    layer: int = -2
    signal: Literal["auto", "cls", "vision"] = "auto"

    positions: ClassVar[str] = "compact"

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.layer, bool) or not isinstance(self.layer, int):
            raise ValueError(f"layer is the index of a layer of the vision tower, such as -2; got {self.layer!r}")
        check_choices(self, {"signal": ("auto", "cls", "vision")})

    def fitted(self, facts: ModelFacts) -> "ClassAttention":
        """With the signal that the model's vision tower has."""
        return self if self.signal != "auto" else replace(self, signal="cls" if facts.class_token else "vision")

    @property
    def notes(self) -> tuple[str, ...]:
        return (STANDS_IN,) if self.signal == "vision" else ()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self._signal})

    @property
    def _signal(self) -> str:
        return "vision_attention" if self.signal == "vision" else f"cls_attention:{self.layer}"

    def class_score(self, tokens: VisualTokens) -> Tensor:
        """(N,) mean over heads, in the vision tower's dtype; float32 of the stand-in."""
        rows = tokens.signals[self._signal]  # (1, heads, N), or (N,) of the stand-in
        return rows if self.signal == "vision" else rows[0].mean(0)
