"""What the projector was given for each visual token, for policies that merge before it as their publications do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vtprune import compat
from vtprune.families.base import Family, Source

INPUTS, CLASSES = 0, 1
"""Where the taps put what they saw, beside each other."""


@dataclass(frozen=True)
class Unprojected:
    """The visual tokens of one sample in the width of the vision tower.

    features: (N, C) what the projector was given; means where the model pools after it.
    classes:  the (C,) class token of each image or video (of its first tile), by ``Segment.source``; None where the
              tower has none or the projector takes another width.
    project:  the model's projector: (K, C) -> (K, D).
    """

    features: Tensor
    classes: tuple[Tensor | None, ...]
    project: Callable[[Tensor], Tensor]

    def of(self, rows: Tensor, device: torch.device) -> Unprojected:
        """Of some rows (N',), on a device."""
        classes = tuple(None if row is None else row.to(device) for row in self.classes)
        return replace(self, features=self.features[rows.to(self.features.device)].to(device), classes=classes)


def joined(parts: Sequence[Unprojected]) -> Unprojected:
    """Several images and videos as one sample, in prompt order."""
    features = torch.cat([part.features for part in parts])
    return Unprojected(features, tuple(row for part in parts for row in part.classes), parts[0].project)


class UnprojectedTap:
    """A forward hook for the projector or a layer of the tower: keeps what the first was given, what the second gave.

    collected: answers where to put it, a dict of lists, or None while nobody collects.
    """

    def __init__(self, collected: Callable[[], dict[int, list[Tensor]] | None], place: int):
        self.collected, self.place = collected, place

    def __call__(self, module: nn.Module, args: tuple, kwargs: Mapping[str, Any], output: Any) -> None:
        collected = self.collected()
        if collected is None:
            return
        if self.place == INPUTS:
            seen = args[0] if args else next(iter(kwargs.values()))
        else:
            seen = (output[0] if isinstance(output, tuple) else output)[:, 0]
        collected.setdefault(self.place, []).append(seen)


def unprojected_hooks(
    family: Family, model: nn.Module, collected: Callable[[], dict[int, list[Tensor]] | None]
) -> list[tuple[nn.Module, UnprojectedTap]]:
    """(module, forward hook) pairs on the projector, and for the class token on the layers before it."""
    pairs = [(family.projector(model), UnprojectedTap(collected, INPUTS))]
    index = compat.feature_layer(model.config)
    if not isinstance(index, int) or index == 0:
        return pairs
    for layer in {id(found): found for found in _layers(family, model, index)}.values():
        pairs.append((layer, UnprojectedTap(collected, CLASSES)))
    return pairs


def _layers(family: Family, model: nn.Module, index: int) -> Iterable[nn.Module]:
    """Of every tower with a class token the layer that gives the hidden states ``index``, 0 being those before any."""
    for kind, tower in family.towers(model).items():
        if family.has_class_token(model, kind):
            attention = family.vision_layers(model, kind)[index if index < 0 else index - 1]
            yield next(module for module in tower.modules() if any(part is attention for part in module.children()))


def unprojected_of(
    family: Family,
    model: nn.Module,
    kind: str,
    arguments: Mapping,
    collected: Mapping[int, list[Tensor]],
    sources: Sequence[Source],
) -> list[Unprojected]:
    """What the taps saw during one encoder call, source by source; arguments as of ``Family.spread``."""
    seen, lengths = torch.cat(collected[INPUTS]), [len(source) for source in sources]
    wide = seen.transpose(1, 2).to(torch.promote_types(seen.dtype, torch.float32))
    features = family.spread(model, kind, arguments, wide, lengths)
    classes: list[Tensor | None] = [None] * len(sources)
    rows = torch.cat(collected[CLASSES]) if CLASSES in collected else seen[:0, 0]
    if kind == "image" and rows.shape == (len(seen), seen.shape[2]):
        # numbers of tiles, arranged like their patches: a source begins with a patch of its first tile
        tiles = torch.arange(len(seen), dtype=wide.dtype, device=seen.device)[:, None, None]
        spread = family.spread(model, kind, arguments, tiles.expand(-1, 1, seen.shape[1]), lengths)
        classes = [rows[int(numbers[0, 0])] for numbers in spread]
    project = partial(_project, family.projector(model))
    return [Unprojected(f.T.to(seen.dtype), (row,), project) for f, row in zip(features, classes, strict=True)]


@torch.no_grad()
def _project(projector: nn.Module, x: Tensor) -> Tensor:
    return projector(x[None])[0]
