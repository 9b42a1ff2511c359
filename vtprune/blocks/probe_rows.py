"""Probe rows: the few tokens of a prompt whose attention is looked at in place of everyone's."""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor

from vtprune.blocks.stages import is_index


class Probes(NamedTuple):
    """The last ``recent`` tokens and ``random`` others, drawn by ``seed``. Without any of them: every token."""

    recent: int = 64
    random: int = 64
    seed: int = 0

    def __str__(self) -> str:
        return "all" if self == ALL else ",".join(map(str, self))

    @staticmethod
    def read(text: str) -> Probes:
        """What ``str`` wrote. Raises ValueError for anything else."""
        if text == "all":
            return ALL
        recent, random, seed = map(int, text.split(","))
        if min(recent, random) < 0 or recent + random < 1:
            raise ValueError(f"probe rows are some of the last tokens and some others; got {text!r}")
        return Probes(recent, random, seed)

    def check(self) -> None:
        """Raises ValueError unless these are rows."""
        numbers = is_index(self.recent, 0) and is_index(self.random, 0) and self.recent + self.random > 0
        if not numbers or isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(
                "recent and random are how many of the last and of the other tokens are probed, integers of which one "
                f"is above 0, and seed is an integer; got recent={self.recent!r}, random={self.random!r} and "
                f"seed={self.seed!r}"
            )


ALL = Probes(0, 0, 0)


def probe_rows(n: int, probes: Probes, *salt: object) -> Tensor:
    """(R,) int64, ascending, on the CPU: which of ``n`` tokens of a sample are probed; all where there are no more.

    The draw depends on the seed and on ``salt`` alone, and the global random state stays as it is.
    """
    first = n - probes.recent
    if probes == ALL or first <= probes.random:
        return torch.arange(n)
    digest = blake2b(" ".join(map(str, (probes.seed, *salt))).encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    drawn = torch.randperm(first, generator=generator)[: probes.random].sort().values
    return torch.cat([drawn, torch.arange(first, n)])
