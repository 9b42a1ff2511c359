"""The attention of one decoder layer that has just run, read back by rows or in sums, for policies of the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vtprune import compat
from vtprune.blocks.probe_rows import ALL, Probes
from vtprune.blocks.probe_rows import probe_rows as probe_rows_of
from vtprune.cache_scores.probe import probe_rows, received
from vtprune.cached import HEADS
from vtprune.rows import inputs_of, padded_rows, read_rows
from vtprune.unrotated import unrotated
from vtprune_kernels.attention_columns import Visible

BLOCK_BYTES = 64 << 20
"""Flags of which key each query sees that are held at a time."""


class CacheSight:
    """One layer of one forward. Rows are given by a rule, so that all samples of a batch are read at once.

    attn:   the layer's attention module. inputs: its keyword arguments. keys, values: (B, H_kv, P, d) what its cache
            holds, of which the last are of this forward.
    real:   (B, R) bool: which rows of this forward are tokens. seen: (B, P) bool: which of the keys are.
    seeds:  of the samples. ahead: (sample, count) -> cosines and sines (count, d) of the places behind its prompt.
    """

    def __init__(
        self,
        attn: nn.Module,
        inputs: Mapping[str, Any],
        stored: tuple[Tensor, Tensor],
        real: Tensor,
        seen: Tensor,
        seeds: list[int],
        biased: bool,
        ahead: Callable[[int, int], tuple[Tensor, Tensor]],
    ):
        self.attn, self.inputs, self.biased = attn, inputs, biased
        self.kept, self.real, self.seeds, self.ahead = stored, real, seeds, ahead
        self.places = [row.nonzero().flatten() for row in seen]
        self.memo: dict = {}

    # ---- what the layer left in the cache

    def stored(self, b: int, what: str) -> Tensor:
        """(H_kv, S, d) of sample ``b``."""
        return self._compared()[("keys", "values").index(what)][b][:, self.places[b]]

    def _compared(self) -> tuple[Tensor, Tensor]:
        if "compared" not in self.memo:
            self.memo["compared"] = compat.compared(self.attn, *self.kept)
        return self.memo["compared"]

    # ---- rows by rule

    def _rows(self, probes: Probes) -> list[Tensor]:
        """Of each sample the physical rows that are looked from, ascending."""
        key = ("rows", probes)
        if key not in self.memo:
            self.memo[key] = [self._of_sample(b, probes) for b in range(len(self.real))]
        return self.memo[key]

    def _of_sample(self, b: int, probes: Probes) -> Tensor:
        rows = self.real[b].nonzero().flatten()
        # the same in every batch, for every beam and on every device
        return rows[probe_rows_of(len(rows), probes, self.seeds[b]).to(rows.device)]

    def probed(self, b: int, probes: Probes) -> Tensor:
        """(R,) which of sample ``b``'s tokens the rows belong to."""
        past = len(self.places[b]) - int(self.real[b].sum())
        order = self.real[b].cumsum(0) - 1
        return order[self._rows(probes)[b]] + past

    def attention(self, b: int, probes: Probes) -> Tensor:
        """(H, R, S)."""
        key = ("attention", probes)
        if key not in self.memo:
            query, keys, scale, allowed = self._read(padded_rows(self._rows(probes))[0])
            self.memo[key] = probe_rows(query, keys, scale=scale, visible=Visible(allowed=allowed))
        rows = len(self._rows(probes)[b])
        return self.memo[key][b][:, :rows, self.places[b]]

    def received(self, b: int, heads: str, probes: Probes) -> Tensor:
        """(G, S), without ever holding all rows."""
        if heads not in HEADS:
            raise ValueError(f"heads is one of {', '.join(map(repr, HEADS))}; got {heads!r}")
        key = ("received", heads, probes)
        if key not in self.memo:
            rows, real = padded_rows(self._rows(probes))
            step = max(16, BLOCK_BYTES // (len(rows) * self.kept[0].shape[2]))
            # what latent attention stores is for all heads
            over = "all" if heads == "all" or self.kept[0].shape[1] == 1 else "group"
            parts = []
            for block in range(0, rows.shape[1], step):
                query, keys, scale, allowed = self._read(rows[:, block : block + step])
                visible = Visible(allowed=allowed & real[:, block : block + step, None])
                parts.append(received(query, keys, scale=scale, visible=visible, heads=over))
            total = torch.stack(parts).sum(0)
            self.memo[key] = total if total.dim() == 3 else total[:, None]
        return self.memo[key][b][:, self.places[b]]

    def _read(self, rows: Tensor) -> tuple[Tensor, Tensor, float, Tensor]:
        """Queries of these rows (B, R), all keys, the factor on their products, and who sees whom."""
        mask = self.inputs.get("attention_mask")
        return read_rows(self.attn, self.inputs, rows, mask, self._compared()[0], biased=self.biased)

    # ---- queries of places to come

    def queries_ahead(self, b: int, count: int) -> Tensor:
        """(H, Q, d) of sample ``b``'s tokens in this forward, mean over rotations to the ``count`` places behind it."""
        key = ("ahead", count)
        if key not in self.memo:
            tables = zip(*(self.ahead(sample, count) for sample in range(len(self.real))), strict=True)
            tables = [torch.stack([table.float() for table in rows]) for rows in tables]
            self._check_linear(tables)
            # the module rotates, whichever entries of a head it takes for a pair
            means = tables[0].mean(1), tables[1].mean(1)
            self.memo[key] = unrotated(self.attn, self.inputs, "unrotated_queries", means)
        return self.memo[key][b][:, self.real[b]]

    def _check_linear(self, tables: list[Tensor]) -> None:
        """Raises NotImplementedError where a mean of rotations is not the rotation by means, as with norms after it.

        Asked of one token, and the first and the last of cosines and sines (B, count, r).
        """
        last = torch.stack([rows[-1:] for rows in self._rows(ALL)])
        few = inputs_of({name: x for name, x in self.inputs.items() if name != "attention_mask"}, last)
        ends = [tuple(table[:, place] for table in tables) for place in (0, -1)]
        middle = tuple((one + other) / 2 for one, other in zip(*ends, strict=True))
        first, last, mean = (unrotated(self.attn, few, "unrotated_queries", by).float() for by in (*ends, middle))
        # what bfloat16 leaves of a number is 1 % at most
        if ((first + last) / 2 - mean).norm() > 0.01 * mean.norm():
            raise NotImplementedError(
                f"{type(self.attn).__name__} does more to its queries than to rotate them to their places, so it "
                "cannot be told where later queries will look. Choose a policy that looks at queries of the prompt, "
                "such as prefixkv"
            )

    def shared(self) -> bool:
        """Whether keys and values of all heads are made of what is stored."""
        return compat.stores_latents(self.attn)

    def scale(self) -> float:
        """The factor on products of queries and keys."""
        if "scale" not in self.memo:
            self.memo["scale"] = self._read(self._rows(ALL)[0][-1:].expand(len(self.real), 1))[2]
        return self.memo["scale"]

    def output_weight(self) -> Tensor:
        """(D, H * d_v)."""
        return self.attn.o_proj.weight
