"""Tiny models with planted sinks: some visual tokens are massive in one dimension, as they are in trained models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tests import tiny

DIM, SIZE, TAU = 7, 60.0, 5.0
"""Of a width of 64 a token that is massive in one dimension alone has the strength 8."""


@torch.no_grad()
def plant(model: nn.Module, inputs: tiny.Batch, ordinals: Sequence[int]) -> nn.Module:
    """Edits the last weights of a LLaVA's projector so that these tokens of every image become sinks, and no others."""
    projector, seen = model.model.multi_modal_projector.linear_2, []
    hook = projector.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        model(**inputs)
    finally:
        hook.remove()
    features = torch.cat(seen).flatten(0, -2)
    wanted = torch.zeros(seen[0].shape[-2], dtype=features.dtype)
    wanted[list(ordinals)] = SIZE
    wanted = wanted.repeat(len(features) // len(wanted))
    projector.weight[DIM] = torch.linalg.lstsq(features, wanted[:, None]).solution[:, 0]
    projector.bias[DIM] = 0
    return model


@contextmanager
def planted(model: nn.Module, ordinals: Sequence[int]) -> Iterator[None]:
    """Meanwhile these visual tokens of every sample, of any family, are sinks from the first layer's input on."""
    visual: list[Tensor] = []

    def see(module: nn.Module, args: tuple, kwargs: dict) -> None:
        visual[:] = [tiny.visual({"input_ids": kwargs.get("input_ids", args[0] if args else None)})]

    def enlarge(module: nn.Module, args: tuple, kwargs: dict):
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        if hidden.shape[1] != visual[0].shape[1]:
            return None  # a decode step
        for b, columns in enumerate(visual[0]):
            places = columns.nonzero().flatten()
            hidden[b, places[[i for i in ordinals if i < len(places)]], DIM] += SIZE
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    handles = [
        tiny.base_model(model).register_forward_pre_hook(see, with_kwargs=True),
        tiny.text_model(model).layers[0].register_forward_pre_hook(enlarge, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
