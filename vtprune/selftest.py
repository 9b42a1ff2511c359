"""Does pruning work in this model at all? Six tokens and one more, two of them dropped, against the same two masked."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.families.detect import Detected
from vtprune.plan import Plan
from vtprune.tokens import BEFORE_LLM, Selection, VisualTokens


class _DropTwo:
    """Drops the second and third of four visual tokens."""

    needs = frozenset()

    def __init__(self, site: float):
        self.sites = (site,)

    def select(self, tokens: VisualTokens) -> Selection:
        return Selection(torch.tensor([0, 3], device=tokens.hidden.device))


def self_test(model: nn.Module, family: Detected) -> None:
    """Raises NotImplementedError unless dropping tokens equals masking them, before the LLM and in its middle.

    Warns when it does, and tells what was not tested. The oracle is the model's own decoder with masks that hide the
    dropped columns; nothing is left hooked.
    """
    name = f"{type(model).__name__} (model_type {model.config.model_type!r})"
    if family.linear_layers(model):
        raise NotImplementedError(
            f"{name} has layers that keep a state, in which a hidden token is not a dropped one, so vtprune cannot "
            "test itself on it. Write a family: see vtprune/families/base.py"
        )
    decoder, depth = family.decoder(model), len(family.decoder(model).layers)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for site in (BEFORE_LLM, depth // 2):
                _compare(model, family, decoder, site, name)
    finally:
        model.train(was_training)
    warnings.warn(
        f"vtprune detected the parts of {name}, and its self-test passed: dropping tokens equals masking them in a "
        f"prefill and a decode step. The rest is unverified: {'; '.join(family.notes(model))}. A file in "
        "vtprune/families/ makes it exact",
        stacklevel=3,
    )


def _compare(model: nn.Module, family: Detected, decoder: nn.Module, site: float, name: str) -> None:
    from vtprune.pruner import Pruner

    placeholder = next(iter(family.placeholders(model).values()))
    device, base = model.get_input_embeddings().weight.device, family.base(model)
    ids = torch.tensor([[1, placeholder, placeholder, placeholder, placeholder, 2, 3]], device=device)
    pruner = Pruner(model, family, Plan(model, family, _DropTwo(site), "original"))
    try:
        got = _prefill_and_step(base, ids)
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        raise NotImplementedError(
            f"the self-test of {name} failed: {error}. Write a family: see vtprune/families/base.py"
        ) from error
    finally:
        pruner.close()
    if not pruner.report.prefills:
        raise NotImplementedError(f"the self-test of {name} never reached its decoder layers; nothing would be pruned")
    hooks = [layer.register_forward_pre_hook(_hide, with_kwargs=True) for layer in decoder.layers[max(0, int(site)) :]]
    try:
        expected = _prefill_and_step(base, ids)
    finally:
        for hook in hooks:
            hook.remove()
    # routers of experts compute in float32, whatever the model's dtype
    eps = max(torch.finfo(got.dtype).eps, torch.finfo(torch.float32).eps)
    tolerance = 100 * eps * float(expected.abs().max())
    off = float((got - expected).abs().max())
    if not off <= tolerance:
        raise NotImplementedError(
            f"the self-test of {name} failed: dropped tokens are off masked ones by {off:.2g}, allowed is "
            f"{tolerance:.2g}. Its layers depend on something that vtprune does not prune. "
            "Write a family: see vtprune/families/base.py"
        )


def _prefill_and_step(base: nn.Module, ids: Tensor) -> Tensor:
    """(1, n - 2, D) the last hidden states of a prefill of all ids but the last and of that one on the cache.

    Without those of the two tokens that are dropped.
    """
    places = torch.arange(ids.shape[1], device=ids.device)[None]
    places = {"position_ids": places} if "position_ids" in inspect.signature(base.forward).parameters else {}

    def call(part: slice, cache: object = None) -> Any:
        told = {name: value[:, part] for name, value in {"input_ids": ids, **places}.items()}
        return base(**told, past_key_values=cache, use_cache=True)

    first = call(slice(0, -1))
    last = call(slice(-1, None), first.past_key_values)
    return torch.cat([first.last_hidden_state[:, [0, 1, 4, 5]], last.last_hidden_state], 1)


def _hide(module: nn.Module, args: tuple, kwargs: dict) -> tuple:
    """Takes columns 2 and 3 out of the mask of a layer; a hidden row sees itself, so that no row is empty."""
    hidden = args[0] if args else kwargs["hidden_states"]
    n, mask = hidden.shape[1], kwargs.get("attention_mask")
    if mask is None:
        width = 7 if n == 1 else n
        mask = torch.ones(1, 1, n, width, dtype=torch.bool, device=hidden.device)
        # PaliGemma's prompts see both ways
        mask = mask.tril(width - n) if getattr(module.self_attn, "is_causal", True) else mask
    shown = torch.ones_like(mask, dtype=torch.bool)
    shown[..., 2:4] = False
    own = torch.zeros_like(shown)
    if n > 1:
        own[..., [2, 3], [2, 3]] = True
    if mask.dtype == torch.bool:
        return args, {**kwargs, "attention_mask": (mask & shown) | own}
    low = torch.finfo(mask.dtype).min
    return args, {**kwargs, "attention_mask": mask.masked_fill(~shown, low).masked_fill(own, 0)}
