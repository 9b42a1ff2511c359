"""What was seen of the patches of a vision tower, for policies that make a score of it, and the way to visual tokens.

A score is made when a policy asks, picture by picture, so no map of all heads and tiles is ever held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vtprune.attention import Call, allowed_keys
from vtprune_kernels.attention_columns import EVERYTHING, Visible


@dataclass(frozen=True)
class Picture:
    """The patches that look at each other in one layer of a tower: those of a tile, an image or a frame.

    query:   (H, n, d) after norms and rotation. key: (H_kv, n, d), the same. scale: the factor on their products.
    tile:    of the tower's call. places: (n,) int64 in the tile, counted in patches; -1 is its class token.
    allowed: (n, n) bool, which keys each query sees; None: all.
    """

    query: Tensor
    key: Tensor
    scale: float
    tile: int
    places: Tensor
    allowed: Tensor | None = None

    @property
    def visible(self) -> Visible:
        """What the queries see, as attention kernels take it for a batch of one."""
        return EVERYTHING if self.allowed is None else Visible(allowed=self.allowed[None])


@dataclass(frozen=True)
class Pixels:
    """The pixels of the patches of a tile, or of an image or video where they come in one sequence.

    values: (n, 3, m) as the tower gets them, normalised: pixel / 255 = value * std + mean, channel by channel.
    mean, std: three numbers each, as towers of this kind are trained with; None where that is not known.
    tile, places: as of ``Picture``.
    """

    values: Tensor
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    tile: int
    places: Tensor


@dataclass(frozen=True, eq=False)
class Encoded:
    """What one encoder call showed of its patches.

    pictures: which of them belong together, and what was seen of them: ``Picture``, or ``Pixels``.
    shape:    (tiles, patches), class tokens left out; a packed sequence is one tile.
    spread:   (tiles, C, patches) -> (C, n) for each source: means over the patches of its visual tokens.
    lengths:  n of each source.
    """

    pictures: Sequence[Picture | Pixels]
    shape: tuple[int, int]
    spread: Callable[[Tensor], Sequence[Tensor]]
    lengths: Sequence[int]
    _touched: dict[int, Tensor] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.pictures[0].places.device

    def patches(self, source: int, marked: Tensor) -> Tensor:
        """(tiles, patches) bool: those that have a part in marked tokens (n,) bool of a source."""
        # the way from patches to tokens is linear; its gradient is the way back
        with torch.inference_mode(False), torch.enable_grad():
            scores = torch.zeros(self.shape[0], 1, self.shape[1], device=self.device, requires_grad=True)
            tokens = self.spread(scores)[source][0]
            (found,) = torch.autograd.grad(tokens, scores, marked.to(tokens))
        return found[:, 0] > 0

    def touched(self, source: int) -> Tensor:
        """(tiles, patches) bool: those of a source."""
        if source not in self._touched:
            every = torch.ones(self.lengths[source], dtype=torch.bool, device=self.device)
            self._touched[source] = self.patches(source, every)
        return self._touched[source]


@dataclass(frozen=True)
class Part:
    """Some tokens of one source. rows: (n',) int64, which of them."""

    encoded: Encoded
    source: int
    rows: Tensor

    @torch.no_grad()
    def scores(self, score: Callable[[Any, Tensor], Tensor], alive: Tensor | None) -> Tensor:
        """As ``Patches.scores``. alive: (n',) bool or None."""
        encoded, nodes = self.encoded, None
        if alive is not None:
            marked = torch.zeros(encoded.lengths[self.source], dtype=torch.bool, device=encoded.device)
            marked[self.rows[alive.to(self.rows.device)].to(encoded.device)] = True
            nodes = encoded.patches(self.source, marked)
        touched, out = encoded.touched(self.source), torch.zeros(encoded.shape, device=encoded.device)
        for picture in encoded.pictures:
            patch = picture.places >= 0
            here = touched[picture.tile, picture.places[patch]]
            if not here.any():
                continue
            living = torch.ones_like(patch)
            if nodes is not None:
                living[patch] = nodes[picture.tile, picture.places[patch]]
                if not living[patch].any():
                    continue
            value = score(picture, living).float()
            out[picture.tile, picture.places[patch]] = value[patch]
        return encoded.spread(out[:, None])[self.source][0][self.rows.to(encoded.device)]


@dataclass(frozen=True)
class Patches:
    """What was seen of the patches behind the visual tokens of a sample: who looks at whom in a layer, or pixels.

    parts:  its images and videos, in prompt order. device: of the visual tokens.
    """

    parts: tuple[Part, ...]
    device: torch.device

    def scores(self, score: Callable[[Any, Tensor], Tensor], alive: Tensor | None = None) -> Tensor:
        """(N,) float32: the mean over the patches of each token of what ``score`` says of them.

        score: gets a picture and (n,) bool, which of its patches are there, the class token among them -> (n,) float.
        alive: (N,) bool, tokens whose patches are there; those of other tokens are not, nor those of no token, and have
               0. None: all patches are there.
        """
        sizes = [len(part.rows) for part in self.parts]
        some = [None] * len(sizes) if alive is None else alive.split(sizes)
        return torch.cat([part.scores(score, a) for part, a in zip(self.parts, some, strict=True)]).to(self.device)

    def of(self, rows: Tensor, device: torch.device) -> Patches:
        """Of some ascending rows (N',), on a device."""
        parts, start = [], 0
        for part in self.parts:
            stop = start + len(part.rows)
            inside = rows[(rows >= start) & (rows < stop)] - start
            parts.append(replace(part, rows=part.rows[inside.to(part.rows.device)]))
            start = stop
        return Patches(tuple(parts), device)

    def only(self, mask: Tensor) -> Patches:
        """Of the tokens that reach the prompt, (n,) bool."""
        return self.of(mask.nonzero().flatten(), self.device)


def joined(parts: Sequence[Patches]) -> Patches:
    """Several images and videos as one sample, in prompt order."""
    return Patches(tuple(part for graph in parts for part in graph.parts), parts[0].device)


def patches_of(
    pictures: Sequence[Picture | Pixels], shape: tuple[int, int], spread: Callable, lengths: Sequence[int]
) -> list[Patches]:
    """What was seen of each source of one encoder call."""
    encoded = Encoded(pictures, shape, spread, lengths)
    return [Patches((Part(encoded, i, torch.arange(n)),), encoded.device) for i, n in enumerate(lengths)]


def pictures_of(
    calls: Sequence[Call], inputs: Mapping[str, Any], causal: bool, class_token: bool, first: int = 0
) -> tuple[list[Picture], tuple[int, int]]:
    """The pictures of one call of an attention module, and how many tiles and patches it has.

    inputs: of the module; how a packed sequence is divided is read from its ``cu_seq_lens_q`` or mask.
    causal: whether patches see no later ones where neither says anything. first: number of the first tile.
    """
    query, offset, found = calls[0].query, int(class_token), []
    mask, ends = inputs.get("attention_mask"), inputs.get("cu_seq_lens_q")
    if len(calls) > 1:
        lengths = [call.query.shape[2] for call in calls]
        bounds = torch.tensor([0, *lengths]).cumsum(0).tolist()
        for call, start in zip(calls, bounds, strict=False):
            places = torch.arange(start, start + call.query.shape[2], device=query.device) - offset
            found.append(Picture(call.query[0], call.key[0], call.scaling, first, places))
        return found, (1, bounds[-1] - offset)
    tiles, n = query.shape[0], query.shape[2]
    every = torch.arange(n, device=query.device)
    for tile in range(tiles):
        if ends is not None:
            groups = [(rows, None) for rows in every.tensor_split(ends[1:-1].cpu())]
        elif mask is not None:
            allowed = allowed_keys(mask, every.expand(tiles, -1), n, n, causal=False)
            groups = _groups(allowed[tile])
        else:
            groups = [(every, torch.ones(n, n, dtype=torch.bool, device=query.device).tril() if causal else None)]
        for rows, seen in groups:
            whole = len(rows) == n
            parts = [x[tile] if whole else x[tile][:, rows] for x in (query, calls[0].key)]
            found.append(Picture(*parts, calls[0].scaling, first + tile, rows - offset, seen))
    return found, (tiles, n - offset)


def _groups(allowed: Tensor) -> list[tuple[Tensor, Tensor | None]]:
    """The patches (m,) of each picture in a tile, and which see which where not all do. allowed: (n, n) bool."""
    # a patch that may not see itself is padding
    real = allowed.diagonal().nonzero().flatten()
    allowed = allowed[real][:, real]
    begins = allowed.int().argmax(1)
    groups = [(begins == begin).nonzero().flatten() for begin in begins.unique().tolist()]
    inside = [allowed[rows][:, rows] for rows in groups]
    if sum(int(seen.sum()) for seen in inside) < int(allowed.sum()):
        groups, inside = [torch.arange(len(real), device=real.device)], [allowed]
    return [(real[rows], None if seen.all() else seen) for rows, seen in zip(groups, inside, strict=True)]
