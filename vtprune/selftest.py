"""Does pruning work in this model at all? A run of six tokens, two of them dropped, against the same two masked."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from vtprune.families.base import Family
from vtprune.plan import Plan
from vtprune.tokens import BEFORE_LLM, Selection, VisualTokens


class _DropTwo:
    """Drops the second and third of four visual tokens."""

    needs = frozenset()

    def __init__(self, site: float):
        self.sites = (site,)

    def select(self, tokens: VisualTokens) -> Selection:
        return Selection(torch.tensor([0, 3], device=tokens.hidden.device))


def self_test(model: nn.Module, family: Family) -> None:
    """Raises NotImplementedError unless dropping tokens equals masking them, before the LLM and in its middle.

    Warns that the family is unverified when it does. The oracle is the model's own decoder with a mask that hides the
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
        f"vtprune detected the parts of {name} and its self-test passed, but the family is unverified: places in grids "
        "may be unknown. A file in vtprune/families/ makes it exact",
        stacklevel=3,
    )


def _compare(model: nn.Module, family: Family, decoder: nn.Module, site: float, name: str) -> None:
    from vtprune.pruner import Pruner

    placeholder = next(iter(family.placeholders(model).values()))
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([[1, placeholder, placeholder, placeholder, placeholder, 2]], device=device)
    pruner = Pruner(model, family, Plan(model, family, _DropTwo(site), "original"))
    try:
        got = family.base(model)(input_ids=ids, use_cache=False).last_hidden_state[:, [0, 1, 4, 5]]
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        raise NotImplementedError(
            f"the self-test of {name} failed: {error}. Write a family: see vtprune/families/base.py"
        ) from error
    finally:
        pruner.close()
    if not pruner.report.prefills:
        raise NotImplementedError(f"the self-test of {name} never reached its decoder layers; nothing would be pruned")
    expected = _masked(family, model, decoder, ids, max(0, int(site)))[:, [0, 1, 4, 5]]
    tolerance = 100 * torch.finfo(got.dtype).eps * float(expected.abs().max())
    off = float((got - expected).abs().max())
    if not off <= tolerance:
        raise NotImplementedError(
            f"the self-test of {name} failed: dropped tokens are off masked ones by {off:.2g}, allowed is "
            f"{tolerance:.2g}. Its layers depend on something that vtprune does not prune. "
            "Write a family: see vtprune/families/base.py"
        )


def _masked(family: Family, model: nn.Module, decoder: nn.Module, ids: Tensor, site: int) -> Tensor:
    """The unwrapped base model, columns 2 and 3 hidden from layer ``site`` on."""

    def hide(module: nn.Module, args: tuple, kwargs: dict) -> tuple:
        hidden = args[0] if args else kwargs["hidden_states"]
        n, low = hidden.shape[1], torch.finfo(hidden.dtype).min
        mask = torch.full((n, n), low, dtype=hidden.dtype, device=hidden.device).triu(1)
        mask[:, 2:4] = low
        mask.fill_diagonal_(0)
        return args, {**kwargs, "attention_mask": mask[None, None]}

    hooks = [layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in decoder.layers[site:]]
    try:
        return family.base(model)(input_ids=ids, use_cache=False).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
