"""Importance by the class token of the vision tower: what is read of it, and what stands in for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from vtprune.policies.base import ScorePolicy, check_choices
from vtprune.tokens import ModelFacts, VisualTokens

STANDS_IN = "the vision tower's patches, looked at by all others in its last layer, stand in for its class token"
HEAD_WEIGHTED = "head_weighted_cls"

ClassSignal = Literal["auto", "cls", "head_weighted_cls", "vision"]
"""What most of these policies take as ``signal``."""


class ReadsClassToken(ScorePolicy):
    """Base of policies that have an option ``signal`` and rank by what the vision tower's class token pays to patches.

    A policy with options of its own declares ``signal`` as a field, and says in ``class_layers`` which layers it reads.

    signal: "cls", what the class token pays; "head_weighted_cls", the same with every head weighted, patch by patch, by
            its share of the length of what the heads make of that patch (AS-ViT); or "vision", which stands in for
            them; "auto" takes what the method reads where the tower has a class token, else the last.
    """

    SIGNALS: ClassVar[Mapping[str, str]] = {"cls": "cls_attention", HEAD_WEIGHTED: HEAD_WEIGHTED}
    """Values of ``signal`` -> the signal of ``vtprune.signals``; of "auto" the first, where there is a class token."""
    STANDS_IN: ClassVar[str] = STANDS_IN

    positions: ClassVar[str] = "compact"

    def __post_init__(self):
        super().__post_init__()
        check_choices(self, {"signal": ("auto", *self.SIGNALS, "vision")})

    def fitted(self, facts: ModelFacts) -> "ReadsClassToken":
        """With the signal that the model's vision tower has."""
        if self.signal != "auto":
            return self
        return replace(self, signal=next(iter(self.SIGNALS)) if facts.class_token else "vision")

    @property
    def notes(self) -> tuple[str, ...]:
        return (self.STANDS_IN,) if self.signal == "vision" else ()

    @property
    def class_layers(self) -> tuple[int, ...]:
        """The layers of the vision tower whose class token is read, negative ones counted from the end."""
        return (self.layer,)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.class_signal})

    @property
    def class_signal(self) -> str:
        """The need that gives the class token's rows, or what stands in for them."""
        if self.signal == "vision":
            return "vision_attention"
        name = self.SIGNALS.get(self.signal) or next(iter(self.SIGNALS.values()))
        return f"{name}:{','.join(map(str, self.class_layers))}"

    def class_rows(self, tokens: VisualTokens) -> Tensor:
        """(layers, heads, N) in the dtype of the signal; (1, 1, N) of the stand-in and of heads taken as one."""
        rows = tokens.signals[self.class_signal]
        return rows if rows.dim() > 1 else rows[None, None]


def tower_layers(layers: object) -> tuple[int, ...]:
    """``layers`` as a tuple. Raises ValueError unless they are one or more integers."""
    listed = isinstance(layers, Sequence) and not isinstance(layers, str) and len(layers) > 0
    if not listed or any(isinstance(layer, bool) or not isinstance(layer, int) for layer in layers):
        raise ValueError(
            f"layers is a sequence of layer indices of the vision tower, such as (-4, -3, -2); got {layers!r}"
        )
    return tuple(layers)


@dataclass
class ClassAttention(ReadsClassToken):
    """Base of policies that read what the class token of the vision tower pays to every patch in one layer.

    layer:  of the vision tower, negative ones counted from the end; -2 gives the features that LLaVA reads.
    """

    layer: int = -2
    signal: ClassSignal = "auto"

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.layer, bool) or not isinstance(self.layer, int):
            raise ValueError(f"layer is the index of a layer of the vision tower, such as -2; got {self.layer!r}")

    def class_score(self, tokens: VisualTokens) -> Tensor:
        """(N,) mean over heads, in the dtype of the signal."""
        return self.class_rows(tokens)[0].mean(0)
