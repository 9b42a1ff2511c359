"""The oracle for decoders with states: their layers run by hand on physically shortened rows, none through vtprune.

A hidden token still shifts the window of a convolution and still lets a state decay, so no mask is an oracle there.
Here each sample runs alone and unpadded through the stock layers with a stock cache; at a site its dropped rows are
taken out, the others keep the rotary tables of their original places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from tests import oracle, tiny

LINEAR = ("linear_attention", "conv")

Kept = Mapping[float, Tensor]
"""Site -> (B, L) bool: which columns of the padded batch are still there from that site on; k + 0.5: inside layer k."""


@dataclass
class Run:
    """n copies of one sample in the middle of their conversation.

    cache:  a stock cache. keys: of each attention layer the logical places of what it was given.
    length: tokens that were there, dropped ones included.
    left:   of them those that were there at the end.
    logits: (n, K, V) of the last forward's rows, and rows: (K,) their logical places.
    """

    cache: Cache
    keys: dict[int, Tensor]
    length: int = 0
    left: int = 0
    logits: Tensor | None = None
    rows: Tensor | None = None

    @property
    def last(self) -> Tensor:
        """(n, V) of the newest token."""
        return self.logits[:, -1]


class Shortened:
    """What the unwrapped model hands to its decoder for a batch, to be run sample by sample.

    For a later turn give its inputs and, as ``past_key_values``, a stock cache that has seen as many tokens.
    compact: the only site, from which on what is left is numbered without gaps; None leaves tokens their places.
    """

    def __init__(self, model: nn.Module, inputs: tiny.Batch, compact: float | None = None, **more: Any):
        self.model, self.text, self.compact = model, tiny.text_model(model), compact
        self.config = self.text.config
        caught: list[dict] = []
        hook = self.text.register_forward_pre_hook(lambda m, args, kwargs: caught.append(kwargs), with_kwargs=True)
        try:
            # generate's positions count tokens, those of a plain forward count padding too
            tiny.greedy(model, inputs, 1, **more)
        finally:
            hook.remove()
        self.embeds, ids = caught[0]["inputs_embeds"], caught[0]["position_ids"]
        self.real = inputs["attention_mask"].bool()[:, -self.embeds.shape[1] :]
        # the first of four rows counts text for the mask, the others are for the rotary tables
        self.ids = ids[1:] if ids.dim() == 3 and len(ids) == 4 else ids
        self.deltas = getattr(model.model, "rope_deltas", None)

    @torch.no_grad()
    def prompt(self, b: int, kept: Kept, copies: int = 1, run: Run | None = None) -> Run:
        """Sample ``b`` up to the end of its prompt; ``run`` is its earlier turns."""
        real = self.real[b]
        ids = self.ids.expand(*self.ids.shape[:-2], len(self.real), -1)[..., b, real]
        hidden = self.embeds[b, real].expand(copies, -1, -1)
        run = run or Run(DynamicCache(config=self.config), {})
        return self._forward(run, hidden, ids, {site: mask[b, real] for site, mask in kept.items()})

    @torch.no_grad()
    def step(self, run: Run, tokens: Tensor, b: int) -> Run:
        """One more token (n,) for each copy."""
        place = torch.tensor([run.length + (0 if self.deltas is None else int(self.deltas[b]))])
        place = place.expand(*self.ids.shape[:-2], 1)
        return self._forward(run, self.text.get_input_embeddings()(tokens[:, None]), place, {})

    def _forward(self, run: Run, hidden: Tensor, ids: Tensor, kept: Mapping[float, Tensor]) -> Run:
        rows, stays, kinds = torch.arange(hidden.shape[1]) + run.length, dict(kept), self.config.layer_types
        length = run.length + hidden.shape[1]
        tables = {kind: self._rotary(hidden, ids[..., None, :], kind) for kind in set(kinds)}
        renumbered = False

        def shorten(site: float) -> None:
            nonlocal hidden, rows, tables
            stay = stays.pop(site)[rows - run.length]
            hidden, rows = hidden[:, stay], rows[stay]
            tables = {k: v and tuple(table[:, stay] for table in v) for k, v in tables.items()}

        for i, layer in enumerate(self.text.layers):
            for site in sorted(site for site in stays if max(site, 0) == i):
                shorten(site)
            if self.compact is not None and i == max(self.compact, 0):
                places, renumbered = torch.arange(len(rows))[None] + run.left, True
                tables = {kind: self._rotary(hidden, places, kind) for kind in set(kinds)}
            mask = None if kinds[i] in LINEAR else self._mask(run, i, places[0] if renumbered else rows, hidden)
            given = {"attention_mask": mask, "position_embeddings": tables[kinds[i]]}
            if i + 0.5 in stays:
                hidden = hidden + _mixed(layer, layer.input_layernorm(hidden), given, run.cache)
                shorten(i + 0.5)
                hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
                continue
            out = layer(hidden, past_key_values=run.cache, use_cache=True, **given)
            hidden = out[0] if isinstance(out, tuple) else out
        norm = self.text.norm if hasattr(self.text, "norm") else self.text.embedding_norm
        run.length, run.left = length, run.left + len(rows)
        run.logits, run.rows = self.model.lm_head(norm(hidden)), rows
        return run

    def _rotary(self, hidden: Tensor, ids: Tensor, kind: str):
        """Cosines and sines, each (1, L, d); None for a kind that has none."""
        if hasattr(self.text.rotary_emb, "layer_types"):
            known = kind in self.text.rotary_emb.layer_types
            return self.text.rotary_emb(hidden, position_ids=ids, layer_type=kind) if known else None
        if ids.dim() == 2 and "mrope_section" in self.config.rope_parameters:
            ids = ids.expand(3, -1, -1)
        return self.text.rotary_emb(hidden, ids)

    def _mask(self, run: Run, index: int, rows: Tensor, hidden: Tensor) -> Tensor:
        """(1, 1, q, K): no key after its query, in a window none that is too far away by their ``rows``."""
        keys = run.keys[index] = torch.cat([run.keys.get(index, rows[:0]), rows])
        away = rows[:, None] - keys[None]
        seen = away >= 0
        if self.config.layer_types[index] == "sliding_attention":
            seen &= away < self.config.sliding_window
            # the stock cache keeps a window of what was left: all that a later query may see, and perhaps more
            held = run.cache.layers[index]
            length = held.keys.shape[-2] if held.is_initialized else 0
            seen = seen[:, len(keys) - length - len(rows) :]
        if self.config._attn_implementation != "eager":
            return seen[None, None]
        return torch.zeros(seen.shape, dtype=hidden.dtype).masked_fill(~seen, torch.finfo(hidden.dtype).min)[None, None]

    def _allowed(self, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, [*self.model.generation_config.suppress_tokens, tiny.EOS]] = -torch.inf
        return scores

    def greedy(self, b: int, kept: Kept, n: int, run: Run | None = None) -> tuple[Tensor, Tensor, Run]:
        """n tokens, their (n, V) logits, and where it ended; ``generate`` does not feed the last token either."""
        run, tokens, logits = self.prompt(b, kept, run=run), [], []
        for step in range(n):
            logits.append(run.last[0])
            tokens.append(self._allowed(run.last)[0].argmax())
            if step < n - 1:
                run = self.step(run, tokens[-1][None], b)
        return torch.stack(tokens), torch.stack(logits), run

    def beams(self, b: int, kept: Kept, n: int, k: int) -> tuple[Tensor, Tensor]:
        """(k, n) tokens of a beam search without ends, best first, and their (k,) mean log-probabilities."""
        run, tokens = self.prompt(b, kept, k), torch.zeros(k, 0, dtype=torch.long)
        # all copies are alike at first: only one of them may go on
        scores = torch.tensor([0.0] + [-1e9] * (k - 1))
        for step in range(n):
            each = self._allowed(run.last.float().log_softmax(-1))
            scores, best = (scores[:, None] + each).flatten().topk(k)
            beam, token = best // each.shape[1], best % each.shape[1]
            tokens = torch.cat([tokens[beam], token[:, None]], 1)
            run.cache.reorder_cache(beam)
            if step < n - 1:
                run = self.step(run, token, b)
        return tokens, scores / n


def _mixed(layer: nn.Module, x: Tensor, given: dict, cache: Cache) -> Tensor:
    """What attention, or what stands for it, makes of a layer's normed rows."""
    if hasattr(layer, "self_attn"):
        return layer.self_attn(x, past_key_values=cache, **given)[0]
    return layer.linear_attn(x, cache_params=cache, attention_mask=given["attention_mask"])


def floor(model: nn.Module, inputs: tiny.Batch) -> float:
    """How far the unwrapped model's own logits of a padded batch are from those of its samples alone."""
    together, far = oracle.text_logits(model, inputs), 0.0
    for b, rows in enumerate(together):
        (alone,) = oracle.text_logits(model, tiny.row(inputs, b))
        far = max(far, float((rows - alone).abs().max()))
    return far


def assert_same_states(cache: Cache, b: int, run: Run, atol: float) -> None:
    """Row ``b`` of a batch's cache holds the states of a sample that ran alone, and its keys and values.

    Slots that unequal counts or a prompt's padding left empty stand on the left.
    """
    for mine, theirs in zip(cache.layers, run.cache.layers, strict=True):
        if hasattr(theirs, "conv_states"):
            for name in ("conv_states", "recurrent_states"):
                for index, state in getattr(theirs, name).items():
                    got = getattr(mine, name)[index]
                    assert (got is None) == (state is None)
                    if state is not None:
                        torch.testing.assert_close(got[b], state[0].to(got.dtype), atol=atol, rtol=0)
            continue
        for name in ("keys", "values"):
            held = getattr(theirs, name)[0]
            torch.testing.assert_close(getattr(mine, name)[b, :, -held.shape[1] :], held, atol=atol, rtol=0)
