"""The attention of one decoder layer that has just run, read back by rows or in sums, for policies of the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vtprune import compat
from vtprune.cached import HEADS
from vtprune.rows import read_rows
from vtprune.unrotated import unrotated
from vtprune_kernels.attention_columns import Visible
from vtprune_kernels.attention_rows import attention_rows

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
        if "compared" not in self.memo:
            keys, values = self.kept
            if hasattr(self.attn, "expand_kv"):
                keys, values = self.attn.expand_kv(keys, values)
            self.memo["compared"] = {"keys": keys, "values": values}
        return self.memo["compared"][what][b][:, self.places[b]]

    # ---- rows by rule

    def _rows(self, recent: int | None, scattered: int) -> list[Tensor]:
        """Of each sample the physical rows that are looked from, ascending."""
        key = ("rows", recent, scattered)
        if key not in self.memo:
            self.memo[key] = [self._of_sample(b, recent, scattered) for b in range(len(self.real))]
        return self.memo[key]

    def _of_sample(self, b: int, recent: int | None, scattered: int) -> Tensor:
        rows = self.real[b].nonzero().flatten()
        if recent is None:
            return rows
        earlier, last = rows[: max(0, len(rows) - recent)], rows[max(0, len(rows) - recent) :]
        if scattered and len(earlier):
            # the same in every batch, for every beam and on every device
            order = torch.randperm(len(earlier), generator=torch.Generator().manual_seed(self.seeds[b]))
            earlier = earlier[order[:scattered].sort().values.to(rows.device)]
            return torch.cat([earlier, last])
        return last

    def probes(self, b: int, recent: int | None, scattered: int) -> Tensor:
        """(R,) which of sample ``b``'s tokens the rows belong to."""
        past = len(self.places[b]) - int(self.real[b].sum())
        order = self.real[b].cumsum(0) - 1
        return order[self._rows(recent, scattered)[b]] + past

    def attention(self, b: int, heads: str, recent: int | None, scattered: int) -> Tensor:
        """(G, R, S)."""
        key = ("attention", heads, recent, scattered)
        if key not in self.memo:
            rows = self._rows(recent, scattered)
            most = max(len(row) for row in rows)
            padded = torch.stack([torch.cat([row, row[-1:].expand(most - len(row))]) for row in rows])
            self.memo[key] = self._read(padded, heads)
        rows = len(self._rows(recent, scattered)[b])
        return self.memo[key][b][:, :rows, self.places[b]]

    def received(self, b: int, heads: str, recent: int | None, scattered: int) -> Tensor:
        """(G, S), without ever holding all rows."""
        key = ("received", heads, recent, scattered)
        if key not in self.memo:
            rows = self._rows(recent, scattered)
            most = max(len(row) for row in rows)
            padded = torch.stack([torch.cat([row, row[-1:].expand(most - len(row))]) for row in rows])
            weights = torch.stack([torch.arange(most, device=row.device) < len(row) for row in rows]).float()
            step = max(16, BLOCK_BYTES // (len(rows) * self._groups(heads) * self.kept[0].shape[2]))
            total = None
            for block in range(0, most, step):
                part, weight = padded[:, block : block + step], weights[:, block : block + step]
                seen = self._read(part, heads, weight) * weight.sum(1)[:, None, None]
                total = seen if total is None else total + seen
            self.memo[key] = total
        return self.memo[key][b][:, self.places[b]]

    def _groups(self, heads: str) -> int:
        """Into how many rows the heads are averaged. What latent attention stores is for all of them."""
        if heads not in HEADS:
            raise ValueError(f"heads is one of {', '.join(map(repr, HEADS))}; got {heads!r}")
        query = getattr(self.attn, "num_heads", None) or self.attn.config.num_attention_heads
        return {"all": 1, "kv": self.kept[0].shape[1], "query": query}[heads]

    def _read(self, rows: Tensor, heads: str, weights: Tensor | None = None) -> Tensor:
        """(B, G, R, P) of these rows (B, R); with weights (B, R) their mean by weight, (B, G, P)."""
        keys = compat.compared_keys(self.attn, *self.kept)
        mask = self.inputs.get("attention_mask")
        query, key, scaling, allowed = read_rows(self.attn, self.inputs, rows, mask, keys, biased=self.biased)
        batch, n_query, groups = len(rows), query.shape[1], self._groups(heads)
        if groups > 1:
            key = key if groups == key.shape[1] else key.repeat_interleave(groups // key.shape[1], 1)
            # a head, or those of one key head, as a sample of its own
            query = query.reshape(batch * groups, n_query // groups, *query.shape[2:])
            key = key.reshape(batch * groups, 1, *key.shape[2:])
            allowed = allowed.repeat_interleave(groups, 0)
            weights = None if weights is None else weights.repeat_interleave(groups, 0)
        # a block in which a shorter sample has no row left means nothing for it, and weighs nothing
        live = None if weights is None else torch.where(weights.sum(1, keepdim=True) > 0, weights, 1)
        reduce = "heads" if weights is None else "heads+rows"
        out = attention_rows(query, key, scale=scaling, visible=Visible(allowed=allowed), weights=live, reduce=reduce)
        return out.reshape(batch, groups, *out.shape[1:])

    # ---- queries before rotation, and rotations to come

    def unrotated_queries(self, b: int) -> Tensor:
        """(H, Q, d) of sample ``b``'s tokens in this forward."""
        if "unrotated" not in self.memo:
            self.memo["unrotated"] = unrotated(self.attn, self.inputs, "unrotated_queries")
        return self.memo["unrotated"][b][:, self.real[b]]

    def rotation(self, b: int, count: int) -> Tensor:
        """(d, d): the mean of the rotations at the ``count`` places behind sample ``b``'s prompt."""
        cos, sin = self.ahead(b, count)
        width = self.unrotated_queries(b).shape[-1]
        return rotation_matrix(cos.float().mean(0), sin.float().mean(0), width, self._in_pairs(b))

    def _in_pairs(self, b: int) -> bool:
        """Whether the module rotates neighbours, not halves; told by the last token's query, before and after."""
        if "pairs" not in self.memo:
            row = self._rows(None, 0)[0][-1:]
            query, *_ = read_rows(
                self.attn, self.inputs, row.expand(len(self.real), 1), self.inputs.get("attention_mask"), self.kept[0]
            )
            plain, rotated = self.unrotated_queries(0)[:, -1].float(), query[0, :, 0].float()
            tables = (table.reshape(-1, *table.shape[-2:])[0, row[0]] for table in self.inputs["position_embeddings"])
            cos, sin = (table.float() for table in tables)
            found = [
                in_pairs
                for in_pairs in (False, True)
                if torch.allclose(plain @ rotation_matrix(cos, sin, plain.shape[-1], in_pairs).T, rotated, rtol=0.02)
            ]
            if not found:
                raise NotImplementedError(
                    f"{type(self.attn).__name__} rotates its queries in a way that is not known, so it cannot be told "
                    "where later queries will look. Choose a policy that looks at queries of the prompt, such as "
                    "prefixkv"
                )
            self.memo["pairs"] = found[0]
        return self.memo["pairs"]

    def output_weight(self) -> Tensor:
        """(D, H * d_v)."""
        return self.attn.o_proj.weight


def rotation_matrix(cos: Tensor, sin: Tensor, width: int, in_pairs: bool) -> Tensor:
    """(width, width): the matrix R of a rotation, R @ x is the rotated x.

    cos, sin: (d,) as models hold them, the angles of one half twice; what of ``width`` lies beyond d stays as it is.
    in_pairs: neighbours 2i and 2i + 1 are rotated, not i and i + d / 2.
    """
    d = len(cos)
    half = torch.arange(d // 2, device=cos.device)
    first, second = (2 * half, 2 * half + 1) if in_pairs else (half, half + d // 2)
    matrix = torch.eye(width, device=cos.device)
    # with the angles of both halves, as they are the same but where scaled
    matrix[first, first], matrix[first, second] = cos[half], -sin[half]
    matrix[second, second], matrix[second, first] = cos[half + d // 2], sin[half + d // 2]
    return matrix
