"""Scores of the patches of a picture by who looks at whom in a layer of the vision tower: what hubs see, and votes."""

import torch
from torch import Tensor

from vtprune.blocks.attention_rank import HELD, head_shares
from vtprune.patches import Picture
from vtprune_kernels.attention_columns import Visible, attention_columns


def hub_context(picture: Picture, t: float) -> Tensor:
    """(n,) float32: what each patch gets from the hubs, mean over heads and hubs.

    Hubs are patches that get more than ``t`` times the mean from all patches; where there are none, all are.
    """
    query, key = picture.query[None], picture.key[None]
    got = attention_columns(query, key, scale=picture.scale, visible=picture.visible)[0]
    hubs = (got > t * got.mean()).nonzero().flatten()
    if not len(hubs):
        return got
    seen = Visible() if picture.allowed is None else Visible(allowed=picture.allowed[None, hubs])
    return attention_columns(query[:, :, hubs], key, scale=picture.scale, visible=seen)[0]


def voted(picture: Picture, there: Tensor, rounds: int, v_min: float, v_max: float, emphasis: bool = False) -> Tensor:
    """(n,) float32: weighted PageRank of the patches, the root mean square over the heads that are taken.

    Every patch has a vote and hands it on along its attention, ``rounds`` times; scores have mean 1. A head is taken
    where the variance of its scores lies in [v_min, v_max]; all are where none does.

    there:    (n,) bool: the patches that vote and are voted for; the others get 0.
    emphasis: whether a class token starts with as many votes as the root of the number of patches, instead of one.
    """
    start = there.float()
    if emphasis:
        start = torch.where(picture.places < 0, there.sum().sqrt(), start)
    shares = _shares(picture, there, start, rounds)
    n = there.sum()
    scores = shares * (n / shares.sum(1, keepdim=True))
    variance = ((scores - 1) * there).square().sum(1) / n
    taken = (variance >= v_min) & (variance <= v_max)
    taken = (taken | ~taken.any())[:, None]
    return ((scores.square() * taken).sum(0) / taken.sum()).sqrt()


def _shares(picture: Picture, there: Tensor, start: Tensor, rounds: int) -> Tensor:
    """(H, n) float32: what each patch has of all votes after some rounds, head by head; 0 where it is not there."""
    rows, (heads, n, _) = there.nonzero().flatten(), picture.query.shape
    if len(rows) * n > HELD:
        each = {"scale": picture.scale, "visible": picture.visible, "start": start[None], "steps": rounds}
        return torch.cat(list(head_shares(picture.query[None], picture.key[None], **each)))
    found, share = torch.zeros(heads, n, device=start.device), heads // len(picture.key)
    groups = max(1, HELD // (share * len(rows) * n))
    for first in range(0, len(picture.key), groups):
        some = slice(first * share, min(first + groups, len(picture.key)) * share)
        query = picture.query[some][:, rows].float() * picture.scale
        key = picture.key[first : first + groups].float().repeat_interleave(share, 0)
        maps = query @ key.transpose(1, 2)
        if picture.allowed is not None:
            maps.masked_fill_(~picture.allowed[rows], -torch.inf)
        maps = torch.softmax(maps, -1, out=maps)
        # a patch that is gone takes what it would have got with it
        maps, votes = maps if len(rows) == n else maps[..., rows], start[rows].expand(len(query), 1, -1)
        for _ in range(rounds):
            votes = votes @ maps
            votes = votes / votes.sum(-1, keepdim=True)
        found[some, rows] = votes[:, 0]
    return found
