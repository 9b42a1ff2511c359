"""What a window of frames becomes: its static places are averaged over the frames first and clustered then."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vtprune.blocks.assign import Sums, blends, means
from vtprune.blocks.peak_clusters import peak_clusters


def clustered(rows: Tensor, x: Tensor, k: int, neighbours: int, beta: float | None = None) -> Sums:
    """k clusters of places, each the mean over all frames, at the row of its centre in the first frame.

    rows: (W, m) of the sample, the same m places in W frames. x: (W, m, C). k: 0 to m; 0 drops all of them.
    beta: the weight of a centre beside the mean of its other members, 0.5 to 1; None averages all alike.
    """
    if k == 0:
        return Sums(rows[0, :0], rows[0, :0], torch.ones(0, device=rows.device))
    frames = len(rows)
    centres, owner = peak_clusters(x.detach().float().mean(0), k, neighbours)
    places = torch.arange(rows.shape[1], device=rows.device)
    if beta is None:
        found = means(centres, places, owner)
    else:
        others = torch.ones_like(places, dtype=torch.bool).index_fill(0, centres, False)
        found = blends(centres, places[others], owner[others], beta)
    place = rows[0, found.place].expand(frames, -1)
    return Sums(place.flatten(), rows[:, found.source].flatten(), found.weight.div(frames).repeat(frames))


def in_order(parts: Sequence[Sums], order: Literal["original", "static-first"]) -> list[Sums]:
    """The sums, "original": at their own places; "static-first": in the order of the parts on the places of all.

    parts: no two of them have a place in common; inside a part the order is that of the places.
    """
    if order == "original":
        return list(parts)
    places = [part.place.unique() for part in parts]
    slots = torch.cat(places).sort().values.split([len(some) for some in places])
    return [
        Sums(slot[torch.searchsorted(some, part.place.contiguous())], part.source, part.weight)
        for slot, some, part in zip(slots, places, parts, strict=True)
    ]
