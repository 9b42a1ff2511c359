"""What the vision tower attends to: taps on its attention modules, and the way from its patches to visual tokens.

A tap computes its scores from the input of an attention module just before that runs, and only while somebody collects.
"""

import inspect
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.attention import Call, allowed_keys, attention_inputs
from vtprune.compat import attention_kind
from vtprune.families.base import Family, Source
from vtprune.patches import Patches, patches_of, pictures_of
from vtprune.pixels import pixels_of
from vtprune.signals import CLASS_ROWS, GRAPH, PIXELS, PROJECTED, UNPROJECTED, Need, parse
from vtprune.unprojected import unprojected_of
from vtprune_kernels.attention_columns import EVERYTHING, Visible, attention_columns

Collected = dict[str, dict[int, list[Tensor]]]
"""Scores by need, by tower layer, one (tiles, heads or 1, patches) for each call of the tower."""

COLLECTED: ContextVar[Collected | None] = ContextVar("vtprune_vision_scores", default=None)
"""An empty dict is filled by the taps, in this thread; None: nobody wants scores, and then they cost nothing."""


class VisionTap:
    """A forward pre-hook, registered with keyword arguments, for the attention module of one layer of a tower.

    layer: its index, 0 or more. needs: what is wanted of this layer. class_token: whether the first patch is none.
    """

    def __init__(self, layer: int, needs: Sequence[Need], class_token: bool):
        self.layer, self.needs, self.class_token = layer, tuple(needs), class_token

    def __call__(self, module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
        collected = COLLECTED.get()
        if collected is None:
            return
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        inputs = {**dict(zip(names, args)), **kwargs}
        inputs.pop("output_attentions", None)
        calls = attention_inputs(module, **inputs)
        for need in self.needs:
            # Phi-4's tower is causal where no mask says otherwise, but not in eager attention (5.23)
            causal = calls[0].causal and attention_kind(module.config) != "eager"
            if need.name == GRAPH:
                seen = collected.setdefault(need.text, {}).setdefault(self.layer, [])
                seen.append(pictures_of(calls, inputs, causal, self.class_token, sum(shape[0] for _, shape in seen)))
                continue
            if need.name == "head_weighted_cls":
                score = head_weighted_rows(calls)
            elif need.name in CLASS_ROWS:
                score = class_rows(calls, logits=need.name == "cls_logits")
            elif need.name == "cls_attention_joint":
                score = joint_class_row(calls)
            elif need.name == "vision_keys":
                score = torch.cat([call.key for call in calls], -2).transpose(-1, -2)
            else:
                score = column_means(calls, inputs, causal)[:, None]
            score = score[..., 1:] if self.class_token else score
            collected.setdefault(need.text, {}).setdefault(self.layer, []).append(score)


def vision_taps(family: Family, model: nn.Module, needs: Sequence[Need | str]) -> list[tuple[nn.Module, VisionTap]]:
    """The attention modules to watch and the pre-hook for each; empty if no need looks into the tower."""
    needs = [parse(need) if isinstance(need, str) else need for need in needs]
    needs = [need for need in needs if need.kind == "tower" and need.where]
    wanted: dict[int, tuple[nn.Module, int, bool, list[Need]]] = {}
    for kind in family.towers(model) if needs else ():
        layers, class_token = family.vision_layers(model, kind), family.has_class_token(model, kind)
        for need in needs:
            for layer in need.where:
                # one tower may serve images and videos
                module = layers[layer]
                entry = wanted.setdefault(id(module), (module, layer % len(layers), class_token, []))
                if need not in entry[3]:
                    entry[3].append(need)
    return [(module, VisionTap(layer, some, class_token)) for module, layer, class_token, some in wanted.values()]


class FeatureTap:
    """A forward hook for the projector: keeps what it gave, (tiles, patches, D) for each call."""

    def __call__(self, module: nn.Module, args: tuple, kwargs: Mapping[str, Any], output: Tensor) -> None:
        collected = COLLECTED.get()
        if collected is not None:
            collected.setdefault(PROJECTED, {}).setdefault(0, []).append(output)


@torch.no_grad()
def class_rows(calls: Sequence[Call], logits: bool = False) -> Tensor:
    """(tiles, heads, K): the softmax row of the first query of each tile or its ``logits``, in the queries' dtype.

    Rounded like eager attention in half precision: scores in the tower's dtype, the softmax in float32.
    """
    rows = []
    for call in calls:
        key = call.key.repeat_interleave(call.query.shape[1] // call.key.shape[1], 1)
        scores = (call.query[:, :, :1] @ key.transpose(-1, -2)) * call.scaling
        row = scores if logits else scores.softmax(-1, dtype=torch.float32).to(call.query.dtype)
        rows.append(row[:, :, 0])
    return torch.cat(rows)


@torch.no_grad()
def head_weighted_rows(calls: Sequence[Call]) -> Tensor:
    """(tiles, heads, K) float32: softmax rows of the first queries, ``weighted_heads`` by what the heads put out."""
    rows = []
    for call in calls:
        share = call.query.shape[1] // call.key.shape[1]
        query, key, value = (x.float() for x in (call.query, call.key, call.value))
        key, value = (x.repeat_interleave(share, 1) for x in (key, value))
        row = (query[:, :, :1] @ key.transpose(-1, -2) * call.scaling).softmax(-1)[:, :, 0]
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=call.scaling)
        rows.append(weighted_heads(row, out))
    return torch.cat(rows)


def weighted_heads(row: Tensor, out: Tensor) -> Tensor:
    """(B, H, N): ``row`` (B, H, N) times H times each head's share of the length of what the heads put out.

    out: (B, H, N, d) of each query, before the output projection.
    """
    length = out.norm(dim=-1)
    return row * (length / (length.sum(1, keepdim=True) + 1e-8)) * row.shape[1]


@torch.no_grad()
def joint_class_row(calls: Sequence[Call]) -> Tensor:
    """(tiles, 1, K): the softmax row of the first query of each tile, of one head as wide as all heads together.

    In the queries' dtype, the softmax in float32; the factor is one over the root of the width.
    """
    rows = []
    for call in calls:
        key = call.key.repeat_interleave(call.query.shape[1] // call.key.shape[1], 1).transpose(1, 2).flatten(2)
        query = call.query[:, :, 0].flatten(1)[:, None]
        scores = (query @ key.transpose(-1, -2)) * key.shape[-1] ** -0.5
        rows.append(scores.softmax(-1, dtype=torch.float32).to(query.dtype))
    return torch.cat(rows)


@torch.no_grad()
def column_means(calls: Sequence[Call], inputs: Mapping[str, Any], causal: bool = False) -> Tensor:
    """(tiles, K) float32: what each patch gets from the patches of its own image, mean over heads and those patches.

    inputs: of the attention module; how a packed sequence is divided is read from its ``cu_seq_lens_q`` or mask.
    causal: whether patches see no later ones where neither says anything.
    """
    mask, ends = inputs.get("attention_mask"), inputs.get("cu_seq_lens_q")
    visible, weights = EVERYTHING, None
    if len(calls) == 1 and (ends is not None or mask is not None):
        tiles, queries, keys = len(calls[0].query), calls[0].query.shape[2], calls[0].key.shape[2]
        rows = torch.arange(queries, device=calls[0].query.device)
        if ends is not None:
            # the bounds of each patch's own image, without asking the device how long images are
            image = torch.bucketize(rows, ends[1:].to(rows), right=True)
            first, last = (bound.to(rows)[image].expand(tiles, -1) for bound in (ends[:-1], ends[1:] - 1))
            visible = Visible(first=first, last=last)
        else:
            allowed = allowed_keys(mask, rows.expand(tiles, -1), queries, keys, causal=False)
            # a patch that may not see itself is padding
            visible, weights = Visible(allowed=allowed), allowed.diagonal(dim1=1, dim2=2).float()
    elif causal:
        rows = torch.arange(calls[0].query.shape[2], device=calls[0].query.device)
        visible = Visible(last=rows.expand(len(calls[0].query), -1))
    options = {"visible": visible, "weights": weights, "over": "seeing"}
    return torch.cat([attention_columns(c.query, c.key, scale=c.scaling, **options) for c in calls], -1)


def spread_signals(
    family: Family,
    model: nn.Module,
    kind: str,
    arguments: Mapping,
    collected: Collected,
    sources: Sequence[Source],
) -> list[dict[str, Tensor]]:
    """The collected scores of one encoder call, need by need and source by source, as ``SIGNALS`` describes them.

    kind, arguments: of the encoder call, see ``Family.sources``. sources: what it delivered, n visual tokens each.
    Returns for each source: need -> (layers, heads, n), (n,), of keys (heads, d, n), of projected features (frames,
    patches, D), or what there is unprojected.
    """
    out: list[dict[str, Tensor]] = [{} for _ in sources]
    count = len(family.vision_layers(model, kind)) if set(collected) - {PROJECTED, UNPROJECTED, PIXELS} else 0
    for text, layers in collected.items():
        need, lengths = parse(text), [len(source) for source in sources]
        if need.name == PROJECTED:
            features = family.projected(model, kind, arguments, torch.cat(layers[0]), lengths)
            for signals, feature in zip(out, features, strict=True):
                signals[text] = feature
            continue
        if need.name == PIXELS:
            for signals, part in zip(out, pixels_of(family, model, kind, arguments, layers[0], lengths), strict=True):
                signals[text] = part
            continue
        if need.name == UNPROJECTED:
            parts = unprojected_of(family, model, kind, arguments, layers, sources)
            for signals, part in zip(out, parts, strict=True):
                signals[text] = part
            continue
        missing = [layer for layer in need.where if layer % count not in layers]
        if missing:
            raise NotImplementedError(
                f"{text!r} asks for layer {missing[0]} of the vision tower, which did not run. Ask for an earlier layer"
            )
        if need.name == GRAPH:
            for signals, graph in zip(out, _patches(family, model, kind, arguments, layers, lengths), strict=True):
                signals[text] = graph
            continue
        scores = torch.stack([torch.cat(layers[layer % count]) for layer in need.where], 1)
        # the arrangement may interpolate, which half precision would blur
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32)).flatten(1, -2)
        spread = family.spread(model, kind, arguments, wide, lengths)
        for signals, score in zip(out, spread, strict=True):
            score = score.to(scores.dtype).unflatten(0, scores.shape[1:-1])
            signals[text] = score if need.name in CLASS_ROWS else score[0] if score.dim() > 3 else score[0, 0]
    return out


def _patches(
    family: Family, model: nn.Module, kind: str, arguments: Mapping, layers: Mapping[int, list], lengths: Sequence[int]
) -> list[Patches]:
    """The graph of each source, of what a tap saw in the one layer."""
    [seen] = layers.values()
    pictures = [picture for some, _ in seen for picture in some]
    shape = (sum(tiles for _, (tiles, _) in seen), seen[0][1][1])
    return patches_of(pictures, shape, partial(family.spread, model, kind, arguments, lengths=lengths), lengths)
