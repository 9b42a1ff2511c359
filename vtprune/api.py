"""The public functions: wrap, unwrap, is_wrapped, pruned, options, report."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from vtprune.policies.base import POLICIES, Policy
from vtprune.report import Report
from vtprune.then import ARROW, Then, split_evenly

_ATTRIBUTE = "_vtprune"


def wrap(
    model: nn.Module,
    policy: str | Policy,
    *,
    positions: str | None = None,
    ragged: str = "auto",
    equalize: bool = False,
    strict: bool = True,
    **options,
) -> nn.Module:
    """Prunes visual tokens in every later ``model.generate()`` or forward. Changes the model in place and returns it.

    policy:    a registered name with its options (``"fastv", keep_ratio=0.25``), or a policy object.
    positions: "original" or "compact", instead of what the policy's method does.
    ragged:    how samples of unequal length attend in a prefill of a model on "sdpa": "padded" and masked; "packed",
               without their padding; or "auto", packed where that was measured to be faster, on a CPU.
    equalize:  where a later turn goes on from the states of linear layers, samples must keep equally many tokens: True
               lets shorter ones keep more, at even steps among what the policy dropped; False raises an error.
    strict:    False tries to detect the parts of a model whose family is unknown, warns, and tests itself.
    Raises:    ValueError (unknown policy, wrong or impossible option, already wrapped), TypeError (not a policy,
               options beside an object), NotImplementedError (a family or decoder that cannot be pruned). If it raises,
               nothing has changed.
    """
    from vtprune.families.base import FAMILIES, family_of
    from vtprune.families.detect import detect_family
    from vtprune.plan import Plan, check_injections, check_sites, facts_of
    from vtprune.pruner import Pruner
    from vtprune.ragged import check_ragged
    from vtprune.refuse import check_model, check_proportional
    from vtprune.refused import check_known
    from vtprune.selftest import self_test
    from vtprune.signals import check_needs

    if hasattr(model, _ATTRIBUTE):
        raise ValueError(
            f"this model is already wrapped with {_pruner(model).plan.policy}; call vtprune.unwrap(model) first"
        )
    check_ragged(ragged)
    policy = _make(policy, options)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    check_known(inner)
    family = family_of(inner) if strict else detect_family(inner)
    check_model(inner, family)
    if inner.config.model_type not in FAMILIES:
        self_test(inner, family)
    if hasattr(policy, "fitted"):
        policy = policy.fitted(facts_of(inner, family))
    check_sites(policy, len(family.decoder(inner).layers))
    check_injections(policy, family, inner)
    check_needs(policy, family, inner)
    check_proportional(policy, inner, family)
    plan = Plan(inner, family, policy, positions)
    vars(model)[_ATTRIBUTE] = Pruner(inner, family, plan, ragged, equalize)
    return model


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
    _check_names(type(policy).__name__, changes, known)
    if "keep_ratio" in changes and "n_keep" in known:
        changes.setdefault("n_keep", None)
    elif "n_keep" in changes and "keep_ratio" in known:
        changes.setdefault("keep_ratio", None)
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


def _make(policy: str | Policy, options: dict) -> Policy:
    if isinstance(policy, str):
        return named_policy(policy, options)
    if options:
        raise TypeError(
            f"options {sorted(options)} go with a policy name; got a {type(policy).__name__} object, which has its own"
        )
    missing = [name for name in ("needs", "sites", "select") if not hasattr(policy, name)]
    if isinstance(policy, type):
        raise TypeError(f"a policy is a name or an object; got the class {policy.__name__}; pass an instance")
    if missing:
        raise TypeError(
            "a policy is a registered name or an object with needs, sites and select(tokens); "
            f"got {type(policy).__name__} without {', '.join(missing)}"
        )
    return policy


def named_policy(name: str, options: dict) -> Policy:
    """The registered policy ``name`` with ``options``. Raises ValueError that suggests the name or option meant.

    Names with ">>" between them are stages: of ``keep_ratio`` each keeps an equal share of what it sees, or what
    ``split``, a ratio for each, says.
    """
    if ARROW in name:
        return _named_stages(name, options)
    if name not in POLICIES:
        close = difflib.get_close_matches(name, POLICIES, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown policy {name!r}; {hint}known: {', '.join(sorted(POLICIES))}")
    cls = POLICIES[name]
    _check_names(name, options, {field.name for field in dataclasses.fields(cls) if field.init})
    return cls(**options)


def _named_stages(text: str, options: dict) -> Then:
    names = [name.strip() for name in text.split(ARROW)]
    unknown = sorted(set(options) - {"keep_ratio", "split"})
    if unknown:
        raise ValueError(
            f"policies in a row take keep_ratio or split; got {unknown[0]!r}. An option of one of them goes into its "
            "object: vtprune.Then(POLICIES['fastv'](layer=3), ...)"
        )
    split = options.get("split")
    if split is None:
        split = [split_evenly(options.get("keep_ratio", 0.5), len(names))] * len(names)
    elif "keep_ratio" in options or len(split) != len(names):
        raise ValueError(f"split is a ratio for each of {', '.join(names)}, instead of keep_ratio; got {options}")
    return Then(*(named_policy(name, {"keep_ratio": share}) for name, share in zip(names, split, strict=True)))


def _check_names(name: str, options: dict, known: set[str]) -> None:
    for option in options:
        if option in known:
            continue
        close = difflib.get_close_matches(option, known, 1)
        owners = [n for n, c in sorted(POLICIES.items()) if option in {f.name for f in dataclasses.fields(c)}]
        hint = f"did you mean {close[0]!r}? " if close else ""
        if owners and not close:
            hint = f"it is an option of {', '.join(owners)}. "
        raise ValueError(
            f"policy {name!r} has no option {option!r}; {hint}its options: {', '.join(sorted(known)) or 'none'}"
        )
