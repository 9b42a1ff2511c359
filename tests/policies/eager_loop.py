"""A decoder by hand with eager attention, whose prompt gets shorter where a function says so: one sample at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tests import oracle, tiny


@dataclass(frozen=True)
class Run:
    """logits: (V,) of the last token. alive: layer -> (n,) columns that it saw."""

    logits: Tensor
    alive: dict[int, list[int]]


@torch.no_grad()
def run(family: str, sample: tiny.Sample, choose: Callable[[int, Tensor, Tensor, Callable[[], Tensor]], Tensor]) -> Run:
    """One unpadded sample of a Llama-like model.

    choose: (layer, (n,) bool which of the living tokens are visual, (H, n, n) attention of the layer before or None,
            gives that of this layer were nothing dropped) -> (n,) bool which live on.
    """
    model, inputs = tiny.build(family, "eager"), tiny.collate(family, [sample])
    text = tiny.text_model(model)
    x, rotary, added = oracle._first_layer_inputs(model, inputs)
    assert not added
    rows, visual, before, alive = torch.arange(x.shape[1]), tiny.visual(inputs)[0], None, {}
    for i, layer in enumerate(text.layers):

        def attend(x=x, rotary=rotary, layer=layer):
            mask = torch.full((x.shape[1], x.shape[1]), torch.finfo(x.dtype).min, dtype=x.dtype).triu(1)[None, None]
            return layer.self_attn(layer.input_layernorm(x), position_embeddings=rotary, attention_mask=mask)

        stays = choose(i, visual[rows], before, lambda attend=attend: attend()[1][0])
        x, rotary, rows = x[:, stays], tuple(part[:, stays] for part in rotary), rows[stays]
        alive[i] = rows.tolist()
        out, maps = attend(x, rotary)
        x = x + out
        x, before = x + layer.mlp(layer.post_attention_layernorm(x)), maps[0]
    return Run(model.lm_head(text.norm(x))[0, -1], alive)


def best(score: Tensor, among: Tensor, k: int) -> Tensor:
    """(n,) bool: the k best of those ``among``, and all others."""
    order = sorted(among.nonzero().flatten().tolist(), key=lambda row: (-float(score[row]), row))
    stays = ~among
    stays[order[:k]] = True
    return stays
