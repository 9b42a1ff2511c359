"""What a test must know of a family to build a tiny model of it and prompts for that model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from torch import Tensor, nn

if TYPE_CHECKING:
    from tests.tiny import Sample

NEWER: dict[str, Newer] = {}
"""Families by name; each file beside this one adds its own."""


@dataclass(frozen=True)
class Newer:
    """One family.

    model:     decoder layers -> an untrained model, as its class makes it.
    image:     (size, seed) -> one image: start, placeholders and end tokens and the pixels behind them. Size is "large"
               or "small"; where the family has one size, both are it.
    clip:      (frames, seed) -> one video; None where the family has none of its own.
    types:     (B, L) ids -> what the model wants to know of each token.
    arrange:   inputs joined along their first dimension -> those of them that the processor lays out otherwise.
    beams:     whether the unwrapped model takes pictures in a beam search (transformers 5.23).
    free:      whether the clips of a batch may have unequal numbers of frames.
    apart:     whether the unwrapped model gives a sample the same logits in a batch as alone (transformers 5.23).
    mrope:     positions have time, height and width.
    hybrid:    some layers are recurrent, so that only a shortened run is an oracle, no mask.
    tolerance: of logits against an oracle in float64; what the model computes in float32 inside sets it.
    undetectable: what its structure does not tell, so that ``wrap(..., strict=False)`` refuses it unregistered; a part
               of the reason that is given. "" if it can be detected.
    """

    model: Callable[[int], nn.Module]
    image: Callable[[str, int], Sample]
    clip: Callable[[int, int], Sample] | None = None
    types: Callable[[Tensor], dict[str, Tensor]] = lambda ids: {}
    arrange: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda inputs: {}
    beams: bool = True
    free: bool = True
    apart: bool = True
    mrope: bool = False
    hybrid: bool = False
    tolerance: float = 1e-9
    undetectable: str = ""


def mostly_slow(cases: Iterable[str | tuple], usual: Collection[str | tuple]) -> list:
    """Values for ``pytest.mark.parametrize``; those that are not ``usual`` are slow."""
    slow = pytest.mark.slow(reason="every family; `make test-matrix` runs them")
    split = [(case, case if isinstance(case, tuple) else (case,)) for case in cases]
    return [pytest.param(*values, marks=() if case in usual else slow) for case, values in split]
