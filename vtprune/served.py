"""Where the sites of a policy are served in a decoder, and how many tokens each layer processes for that."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from vtprune.flops import Length


@dataclass(frozen=True)
class Served:
    """The sites of a policy in a decoder of ``depth`` layers.

    before: layer index -> sites served right before that layer. inside: layers with a site after their attention.
    moved:  sites of layers that cannot be pruned in their middle -> the layer before which they are served, None if no
            layer follows.
    """

    depth: int
    before: Mapping[int, Sequence[float]]
    inside: frozenset[int]
    moved: Mapping[float, int | None]

    @staticmethod
    def of(sites: Iterable[float], depth: int, halves: Collection[int]) -> Served:
        """halves: the layers that can be pruned in their middle."""
        before: dict[int, list[float]] = {}
        inside, moved = set(), {}
        for site in sorted(set(sites)):
            layer = max(0, int(site))
            if site == int(site):
                before.setdefault(layer, []).append(site)
            elif layer in halves:
                inside.add(layer)
            else:
                moved[site] = layer + 1 if layer + 1 < depth else None
                if layer + 1 < depth:
                    before.setdefault(layer + 1, []).append(site)
        return Served(depth, before, frozenset(inside), moved)

    def lengths(self, visual: int, others: int, left: Mapping[float, int]) -> list[Length]:
        """(depth,) tokens that each layer processes; a pair (attention, MLP) where a site lies inside it.

        visual: tokens that are there at first. others: tokens that no site is offered. left: how many of the visual
        ones live on behind a site; at sites that are not named all do.
        """
        lengths: list[Length] = []
        for index in range(self.depth):
            for site in self.before.get(index, ()):
                visual = left.get(site, visual)
            length = others + visual
            if index + 0.5 in left and index in self.inside:
                visual = left[index + 0.5]
                lengths.append((length, others + visual))
            else:
                lengths.append(length)
        return lengths
