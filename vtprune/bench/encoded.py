"""What the vision tower gave for a batch: conditions that are shown the same, and do not look into it, share it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from vtprune import compat
from vtprune.signals import parse


class Encoded:
    """The encoder's outputs of one batch, by modality. seconds: that it took; None before there are any."""

    def __init__(self):
        self.outputs: dict[str, Any] = {}
        self.seconds: float | None = None

    def arguments(self, model: nn.Module, policy: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What ``generate`` is called with: the inputs, or what was made of their pixels before.

        A model takes outputs out of the dict that it is given, so that is a copy; where there are none yet, the dict
        remembers what ``generate`` puts into it.
        """
        if not compat.takes_encoded(model) or looks_into_the_tower(policy):
            return dict(inputs)
        if not self.outputs:
            return {**inputs, "mm_encoder_outputs": _Remembering(self.outputs)}
        found = {name: value for name, value in inputs.items() if not name.startswith("pixel_values")}
        return {**found, "mm_encoder_outputs": dict(self.outputs)}


class _Remembering(dict):
    """A dict that writes what is put into it into another one, too."""

    def __init__(self, other: dict):
        super().__init__()
        self.other = other

    def __setitem__(self, name: str, value: Any) -> None:
        self.other[name] = value
        super().__setitem__(name, value)


def looks_into_the_tower(policy: Any) -> bool:
    """Whether a policy asks for something that arises while the vision tower or the projector runs."""
    return any(parse(need).kind == "tower" for need in policy.needs)
