"""Look-ahead attention: a model writes a few tokens of its answer, and what those look at in the prompt is recorded.

The model is not wrapped. While it generates, pre-hooks on its attention modules see the input of every decoding step;
the rows are computed again from it and the cache, so every attention back end will do.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.attention import allowed_keys, attention_inputs, without_state
from vtprune.blocks.lookahead import step_importance
from vtprune.chat import device_of, floats_as
from vtprune.compat import attention_window, compared_keys, takes_encoded
from vtprune.families.base import Family, Source, family_of
from vtprune.prompt import Prompt

_STEPS: ContextVar[_Steps | None] = ContextVar("vtprune_lookahead", default=None)
_PIXELS = "pixel_values"


@torch.no_grad()
def lookahead_importance(model: nn.Module, prompt: Prompt, steps: int, kernel: int | None) -> Tensor:
    """(B, L) float32: how much the model's next ``steps`` tokens look at each column of a prompt; 0 for padding.

    model:  of a known family, not wrapped; it generates greedily, and does not end before that.
    kernel: over how many neighbours attention is averaged, see ``vtprune.blocks.lookahead``.
    Of every step the most that any head of any layer pays, mean over the steps. The softmax is over the prompt alone.
    Layers without keys of their own are passed over.
    Raises ValueError for a model that makes other visual tokens of these inputs than the one that the prompt is for.
    """
    check_unwrapped(model)
    family, inputs = family_of(model), _taken(model, prompt.inputs)
    if takes_encoded(model):
        inputs = _encoded(model, family, inputs, prompt.sources)
    decoder = family.decoder(model)
    without = {*family.linear_layers(model), *family.kv_source(decoder)}
    found = _Steps(inputs["input_ids"].shape[1], kernel)
    with ExitStack() as stack:
        for index, layer in enumerate(decoder.layers):
            if index not in without:
                hook = layer.self_attn.register_forward_pre_hook(partial(_watch, index), with_kwargs=True)
                stack.callback(hook.remove)
        stack.callback(_STEPS.reset, _STEPS.set(found))
        # the last one is chosen, but nothing looks from it
        model.generate(**inputs, max_new_tokens=steps + 1, min_new_tokens=steps + 1, do_sample=False, num_beams=1)
    return torch.stack([found.best[step] for step in range(steps)]).mean(0)


def check_unwrapped(model: nn.Module) -> None:
    """Raises ValueError for a model that is pruned itself."""
    if "_vtprune" in vars(model):
        raise ValueError(
            f"the {type(model).__name__} that looks ahead is wrapped itself, so it would not see the whole prompt: "
            "call vtprune.unwrap on it, or load it a second time"
        )


class _Steps:
    """What the tokens of an answer pay to the prompt.

    length: L, columns of the prompt. best: step -> (B, L), of the layers seen so far.
    """

    def __init__(self, length: int, kernel: int | None):
        self.length, self.kernel = length, kernel
        self.best: dict[int, Tensor] = {}

    def see(self, index: int, attn: nn.Module, inputs: Mapping[str, Any]) -> None:
        """One layer in one step, before it runs."""
        layer = inputs["past_key_values"].layers[index]
        # the cache has not taken in this step's own token yet
        total = int(layer.get_seq_length())
        step, key = total - self.length, compared_keys(attn, layer.keys, layer.values)
        (call,) = attention_inputs(attn, without=("k_proj", "v_proj"), **without_state(inputs))
        query, stored = call.query, key.shape[2]
        window, causal = attention_window(attn), getattr(attn, "is_causal", True)
        here = torch.zeros(len(query), 1, dtype=torch.int64, device=query.device)
        seen = allowed_keys(inputs.get("attention_mask"), here, 1, stored + 1, causal=causal, window=window)
        # caches of layers with a window hold the last columns alone
        first = total - stored
        columns = slice(0, max(0, self.length - first))
        rows = attention_to(query, key[:, :, columns], call.scaling, seen[:, 0, columns])
        rows = nn.functional.pad(rows, (first, 0))[..., : self.length]
        most = step_importance(rows, self.kernel)
        before = self.best.get(step)
        self.best[step] = most if before is None else torch.maximum(before, most.to(before.device))


def attention_to(query: Tensor, key: Tensor, scaling: float, seen: Tensor) -> Tensor:
    """(B, H, K) in at least float32: what one query pays to each of the keys that it sees, and 0 to others.

    query: (B, H, 1, d). key: (B, H_kv, K, d). seen: (B, K) bool.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    groups = query.to(wide).unflatten(1, (key.shape[1], -1))[..., 0, :]
    scores = (groups @ key.to(wide).transpose(2, 3) * scaling).flatten(1, 2)
    scores = scores.masked_fill(~seen[:, None], torch.finfo(wide).min)
    return scores.softmax(-1).masked_fill(~seen[:, None], 0) if key.shape[2] else scores


def _watch(index: int, attn: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
    steps = _STEPS.get()
    inputs = {**kwargs, "hidden_states": args[0]} if args else kwargs
    if steps is not None and inputs["hidden_states"].shape[1] == 1:
        steps.see(index, attn, inputs)


def _taken(model: nn.Module, given: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that the model knows, where it takes them."""
    device = device_of(model)
    known = inspect.signature(model.forward).parameters
    inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in given.items() if k in known}
    largest, rows = int(inputs["input_ids"].max()), model.get_input_embeddings().weight.shape[0]
    if largest >= rows:
        raise ValueError(
            f"the prompt has token {largest}, and the {type(model).__name__} that looks ahead knows {rows} tokens: the "
            "two models have to share tokenizer and processor"
        )
    return {**inputs, **floats_as({k: v for k, v in inputs.items() if isinstance(v, Tensor)}, model)}


def _encoded(
    model: nn.Module, family: Family, inputs: Mapping[str, Any], sources: Mapping[str, Sequence[Source]]
) -> dict[str, Any]:
    """The inputs with pictures encoded. Raises ValueError unless they become the tokens that the prompt has."""
    base, encoded = family.base(model), {}
    for kind, token in family.placeholders(model).items():
        encode = getattr(base, f"get_{kind}_features", None)
        names = set() if encode is None else set(inspect.signature(encode).parameters)
        arguments = {name: value for name, value in inputs.items() if name in names}
        if not any(name.startswith(_PIXELS) for name in arguments):
            continue
        encoded[kind] = encode(**arguments, return_dict=True)
        made = family.sources(model, kind, arguments, family.features(encoded[kind]))
        _check_same(model, kind, made, sources.get(kind, ()), int((inputs["input_ids"] == token).sum()))
    # positions are made of the grids, which stay
    return {**{k: v for k, v in inputs.items() if not k.startswith(_PIXELS)}, "mm_encoder_outputs": encoded}


def _check_same(model: nn.Module, kind: str, made: Sequence[Source], wanted: Sequence[Source], places: int) -> None:
    """Raises ValueError unless pictures become as many tokens, in the same grids, as the prompt has places for."""
    n, told, asked = sum(map(len, made)), *([(len(s), s.grids) for s in some] for some in (made, wanted))
    if n != places or (wanted and told != asked):
        raise ValueError(
            f"the {type(model).__name__} that looks ahead makes {n} visual tokens of the {kind}s of this prompt, by "
            f"(tokens, grids) {told}, and finds places for {places} of them, {asked}: the two models have to share "
            "tokenizer and processor (patch size, merging, resolution)"
        )
