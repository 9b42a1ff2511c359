"""The public functions: wrap, unwrap, is_wrapped, pruned, options, report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

from vtprune.at_flops import AtFlops
from vtprune.cached import evicts
from vtprune.named import HOW_MANY, check_names, named_policy
from vtprune.policies.base import Policy
from vtprune.report import Report
from vtprune.sinks import SinkDetector

if TYPE_CHECKING:
    from vtprune.families.base import Family

_ATTRIBUTE = "_vtprune"


def wrap(
    model: nn.Module,
    policy: str | Policy,
    *,
    keep_flops: float | None = None,
    positions: str | None = None,
    ragged: str = "auto",
    equalize: bool = False,
    strict: bool = True,
    sinks: str = "ignore",
    sink_detector: SinkDetector | None = None,
    **options,
) -> nn.Module:
    """Prunes visual tokens in every later ``model.generate()`` or forward. Changes the model in place and returns it.

    policy:    a registered name with its options (``"fastv", keep_ratio=0.25``), or a policy object. With
               ``budget="flops"`` keep_ratio stands for as many FLOPs as that fraction of the visual tokens costs in
               all layers, whatever the policy itself counts, so that policies can be compared.
    keep_flops: instead of keep_ratio and n_keep, the fraction of the unpruned prompt's FLOPs in the decoder's layers
               that is KEPT, in (0, 1]; see ``vtprune.AtFlops``.
    positions: "original" or "compact" (or "compact-vision"), instead of what the policy's method does. With "compact"
               what is left is numbered without gaps, and windows of layers count what is left.
    ragged:    how samples of unequal length attend in a prefill of a model on "sdpa": "padded" and masked; "packed",
               without their padding; or "auto", packed where that was measured to be faster, on a CPU.
    equalize:  where a later turn goes on from the states of linear layers, samples must keep equally many tokens: True
               lets shorter ones keep more, at even steps among what the policy dropped; False raises an error.
    strict:    False tries to detect the parts of a model whose family is unknown, warns, and tests itself.
    sinks:     what becomes of visual attention sinks where a policy ranks by attention inside the LLM or in its cache:
               "ignore", "exclude" (attention to them counts nothing), "drop" or "keep"; as many tokens are kept in any
               case.
    sink_detector: finds them; by default with the dimensions that were published for this model.
    Raises:    ValueError (unknown policy, wrong or impossible option, already wrapped), TypeError (not a policy,
               options beside an object), NotImplementedError (a family or decoder that cannot be pruned). If it raises,
               nothing has changed.
    """
    from vtprune.plan import Plan, facts_of
    from vtprune.pruner import Pruner
    from vtprune.ragged import check_ragged
    from vtprune.sink_rule import rule_for

    if hasattr(model, _ATTRIBUTE):
        raise ValueError(
            f"this model is already wrapped with {_pruner(model).plan.policy}; call vtprune.unwrap(model) first"
        )
    check_ragged(ragged)
    policy = _make(policy, options if keep_flops is None else {**options, "keep_flops": keep_flops})
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    family = _family(inner, strict)
    if hasattr(policy, "fitted"):
        policy = policy.fitted(facts_of(inner, family))
    _check_fits(policy, inner, family)
    plan = Plan(inner, family, policy, positions, rule_for(inner, family, policy, sinks, sink_detector))
    vars(model)[_ATTRIBUTE] = Pruner(inner, family, plan, ragged, equalize)
    return model


def _family(model: nn.Module, strict: bool) -> Family:
    """The family of a model that can be pruned; one that was detected has passed the self-test."""
    from vtprune.families.base import FAMILIES, family_of
    from vtprune.families.detect import detect_family
    from vtprune.refuse import check_model
    from vtprune.refused import check_known
    from vtprune.selftest import self_test

    check_known(model)
    family = family_of(model) if strict else detect_family(model)
    check_model(model, family)
    if model.config.model_type not in FAMILIES:
        self_test(model, family)
    return family


def unwrap(model: nn.Module) -> nn.Module:
    """Undoes ``wrap``: no hook and no attribute is left. Unwrapping an unwrapped model is not an error."""
    pruner = vars(model).pop(_ATTRIBUTE, None)
    if pruner is not None:
        pruner.close()
    return model


def is_wrapped(model: nn.Module) -> bool:
    """Whether ``wrap`` changed this model and ``unwrap`` did not undo it."""
    return _ATTRIBUTE in vars(model)


def report(model: nn.Module) -> Report:
    """What the wrapped model kept in its last prefill. Raises ValueError for a model that is not wrapped."""
    return _pruner(model).report


@contextmanager
def pruned(model: nn.Module, policy: str | Policy, **options) -> Iterator[Report]:
    """``with pruned(model, "fastv") as report: model.generate(...)``; unwraps on the way out, also after an error."""
    wrap(model, policy, **options)
    try:
        yield report(model)
    finally:
        unwrap(model)


@contextmanager
def options(model: nn.Module, **changes) -> Iterator[Report]:
    """``with options(model, keep_ratio=0.1): model.generate(...)``: other policy options for the calls inside.

    They hold in this thread (context) only, so one loaded model serves different budgets at once. What a policy keeps
    can change, not where it acts. Raises ValueError for a wrong option, TypeError for a policy that is no dataclass.
    """
    from vtprune.plan import OVERRIDES

    plan = _pruner(model).plan
    policy = plan.active()
    if not dataclasses.is_dataclass(policy):
        raise TypeError(f"options() changes dataclass policies; {type(policy).__name__} is none: wrap the model again")
    known = {field.name for field in dataclasses.fields(policy) if field.init}
    check_names(type(policy).__name__, changes, known)
    for option in HOW_MANY if known.intersection(changes).intersection(HOW_MANY) else ():
        # one of them stands instead of the others
        if option in known:
            changes.setdefault(option, None)
    changed = dataclasses.replace(policy, **changes)
    plan.check_override(changed)
    token = OVERRIDES.set({**(OVERRIDES.get() or {}), id(plan): changed})
    try:
        yield report(model)
    finally:
        OVERRIDES.reset(token)


def _pruner(model: nn.Module):
    if not hasattr(model, _ATTRIBUTE):
        raise ValueError("this model is not wrapped; call vtprune.wrap(model, policy) first")
    return vars(model)[_ATTRIBUTE]


def _check_fits(policy: Policy, model: nn.Module, family) -> None:
    """Raises what ``wrap`` says it raises where a policy cannot do its work in this model."""
    from vtprune.evict import check_evicts
    from vtprune.plan import check_sites
    from vtprune.refuse import check_proportional
    from vtprune.signals import check_needs

    check_sites(policy, len(family.decoder(model).layers))
    check_needs(policy, family, model)
    check_proportional(policy, model, family)
    check_evicts(policy, family.decoder(model), family, family.linear_layers(model))


def _make(policy: str | Policy, options: dict) -> Policy:
    if isinstance(policy, str):
        return named_policy(policy, options)
    if set(options) == {"keep_flops"}:
        return AtFlops(_make(policy, {}), keep_flops=options["keep_flops"])
    if options:
        raise TypeError(
            f"options {sorted(options)} go with a policy name; got a {type(policy).__name__} object, which has its own"
        )
    wanted = ("needs", "sites") if evicts(policy) else ("needs", "sites", "select")
    missing = [name for name in wanted if not hasattr(policy, name)]
    if isinstance(policy, type):
        raise TypeError(f"a policy is a name or an object; got the class {policy.__name__}; pass an instance")
    if missing:
        raise TypeError(
            "a policy is a registered name or an object with needs, sites and select(tokens), or evict(prompt); "
            f"got {type(policy).__name__} without {', '.join(missing)}"
        )
    return policy
