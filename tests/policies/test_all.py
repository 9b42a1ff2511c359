"""What every registered policy promises. A new policy is tested here by being in the folder.

The oracle is the contract of ``vtprune.policies.base`` and ``vtprune.tokens``, checked on made-up samples.
"""

import inspect
import re
import sys
from dataclasses import fields, is_dataclass
from itertools import product

import pytest
import torch

import vtprune.policies  # noqa: F401  registers them
from tests.policies.fabricate import LAYOUTS, Sample, serve, tensors
from vtprune.policies.base import POLICIES, Policy, ScorePolicy, pruning_policies
from vtprune.tokens import BEFORE_LLM

RATIOS = (0.05, 0.1, 0.25, 0.5, 0.77)
COUNTS = ({"keep_ratio": 0.25}, {"keep_ratio": 0.01}, {"n_keep": 1}, {"n_keep": 7}, {"n_keep": 10**6})
WRONG = {
    "keep_ratio": (0, -0.5, 1.5, 75, float("nan"), float("inf"), 10**400, True, "half", [0.5]),
    "n_keep": (0, -3, 2.5, True, "many"),
    "budget": ("video", None, 3),
}


def option_names(name: str) -> list[str]:
    cls = POLICIES[name]
    return [field.name for field in fields(cls) if field.init] if is_dataclass(cls) else []


def scores_only(name: str) -> bool:
    """Whether it ranks tokens once and does nothing else."""
    cls = POLICIES[name]
    return issubclass(cls, ScorePolicy) and cls.select is ScorePolicy.select and len(cls().sites) == 1


def counts_exactly(name: str) -> bool:
    """``exact_count = False`` opts out, and so does acting at several sites."""
    policy = POLICIES[name]()
    return hasattr(policy, "count") and getattr(policy, "exact_count", True) and len(policy.sites) == 1


def names(condition=lambda name: True):
    return pytest.mark.parametrize("name", [name for name in pruning_policies() if condition(name)])


every_policy = names()
every_layout = pytest.mark.parametrize("layout", sorted(LAYOUTS))


def build(name: str, **options):
    """The policy with those of the options that it has; None if it refuses one of them and says which."""
    options = {option: value for option, value in options.items() if option in option_names(name)}
    try:
        return POLICIES[name](**options)
    except ValueError as error:
        assert options, f"{name} refuses its own defaults: {error}"
        assert any(repr(value) in str(error) for value in options.values()), f"{error} does not name the refused value"
        return None


def some(name: str):
    """The policy keeping 0.3 where it can, so that counts round, else by its defaults."""
    return build(name, keep_ratio=0.3) or POLICIES[name]()


def kept(policy, sample: Sample) -> list[list[int]]:
    """The rows kept at each site."""
    return [selection.keep.tolist() for _, selection in serve(policy, sample)]


def check_keep(tokens, selection) -> None:
    keep = selection.keep
    assert keep.dtype == torch.int64 and keep.dim() == 1
    assert keep.device == tokens.hidden.device
    rows = keep.tolist()
    assert rows, "nothing is kept"
    assert rows == sorted(set(rows)), "rows must be ascending and unique"
    assert 0 <= rows[0] and rows[-1] < len(tokens)


def check_merge(policy, tokens, selection) -> None:
    """The merged rows by a plain loop over what ``Selection`` says."""
    merge, weight, n = selection.merge, selection.weight, len(tokens)
    if merge is None:
        assert weight is None, "weight without merge has no meaning"
        return
    assert merge.device == tokens.hidden.device
    if merge.layout == torch.sparse_coo:
        assert tuple(merge.shape) == (len(selection.keep), n)
        torch.testing.assert_close(
            merge.to_dense().double().sum(1), torch.ones(len(selection.keep)).double(), rtol=0, atol=1e-5
        )
        return
    assert merge.dtype == torch.int64 and tuple(merge.shape) == (n,)
    weight = torch.ones(n) if weight is None else weight.cpu()
    assert tuple(weight.shape) == (n,) and bool((weight > 0).all())
    keep, merge, hidden, weight = selection.keep.tolist(), merge.tolist(), tokens.hidden.double().cpu(), weight.double()
    assert set(merge) <= set(range(-1, len(keep)))
    segment_of = [i for i, segment in enumerate(tokens.segments) for _ in range(len(segment))]
    total = torch.zeros(hidden.shape[1], dtype=torch.float64)
    for j, row in enumerate(keep):
        members = [i for i in range(n) if merge[i] == j]
        assert row in members, f"kept row {row} is averaged into another row"
        if getattr(policy, "budget", None) == "segment":
            assert {segment_of[i] for i in members} == {segment_of[row]}, "an average mixes images"
        mass = sum(weight[i] for i in members)
        total += mass * (sum(weight[i] * hidden[i] for i in members) / mass)
    expected = sum(weight[i] * hidden[i] for i in range(n) if merge[i] != -1)
    torch.testing.assert_close(total, expected)


# ------------------------------------------------------------------------------------------------- the answer


def check_answers(policy, sample: Sample) -> None:
    served = serve(policy, sample)
    assert len(served) == len(policy.sites)
    for tokens, selection in served:
        check_keep(tokens, selection)
        check_merge(policy, tokens, selection)


@every_policy
@every_layout
def test_answers_are_valid(name, layout):
    check_answers(POLICIES[name](), Sample(layout))
    for keep_ratio in RATIOS:
        if policy := build(name, keep_ratio=keep_ratio):
            check_answers(policy, Sample(layout))


@every_policy
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_answers_are_valid_in_other_dtypes(name, dtype):
    for budget in ("segment", "prompt"):
        if policy := build(name, budget=budget):
            check_answers(policy, Sample("mixed", dtype=dtype))


@pytest.mark.gpu
@every_policy
@every_layout
def test_answers_are_valid_on_a_gpu(name, layout):
    check_answers(some(name), Sample(layout, device="cuda"))


@names(counts_exactly)
@every_layout
def test_counts_are_exact(name, layout):
    """Oracle: the count of every pool, by the one rule of rounding, spelt out."""
    for how_many, budget in product(COUNTS, ("segment", "prompt")):
        policy = build(name, budget=budget, **how_many)
        if policy is None:
            continue
        [(tokens, selection)] = serve(policy, Sample(layout))
        pools = [(s.span.start, s.span.stop) for s in tokens.segments] if budget == "segment" else [(0, len(tokens))]
        for start, stop in pools:
            n = stop - start
            wanted = how_many["n_keep"] if "n_keep" in how_many else round(how_many["keep_ratio"] * n)
            here = sum(start <= row < stop for row in selection.keep.tolist())
            assert here == min(n, max(1, wanted)), (how_many, budget)


@names(lambda name: "keep_ratio" in option_names(name))
@every_layout
def test_keep_ratio_one_keeps_everything(name, layout):
    for tokens, selection in serve(POLICIES[name](keep_ratio=1.0), Sample(layout)):
        assert selection.keep.tolist() == list(range(len(tokens)))
        check_merge(None, tokens, selection)


@names(scores_only)
@every_layout
def test_larger_keep_ratios_keep_what_smaller_ones_kept(name, layout):
    previous: set[int] = set()
    for policy in filter(None, (build(name, keep_ratio=keep_ratio) for keep_ratio in (*RATIOS, 1.0))):
        [rows] = kept(policy, Sample(layout))
        assert previous <= set(rows)
        previous = set(rows)


# --------------------------------------------------------------------------- what an answer may depend on


@every_policy
@every_layout
def test_asking_again_changes_neither_the_answer_nor_the_random_state(name, layout):
    policy, answers = some(name), []
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        answers.append(kept(policy, Sample(layout)))
        assert torch.equal(torch.get_rng_state(), state), "a policy must not draw from the global generator"
    assert answers[0] == answers[1] == answers[2]


@every_policy
def test_a_sample_gets_the_same_answer_whatever_its_neighbours(name):
    policy = some(name)
    alone = {layout: kept(some(name), Sample(layout)) for layout in LAYOUTS}
    for neighbours in (1, 2):
        for layout in LAYOUTS:
            for seed in range(neighbours):
                kept(policy, Sample(layout, seed=9 + seed))
            assert kept(policy, Sample(layout)) == alone[layout]


@every_policy
def test_sites_of_two_samples_may_be_served_in_turn(name):
    """As a batch does: site by site, sample by sample."""
    policy, samples = some(name), [Sample("mixed", seed=s) for s in range(3)]
    rows = [torch.arange(len(sample)) for sample in samples]
    memory, answers = [{} for _ in samples], [[] for _ in samples]
    for site in policy.sites:
        for i, sample in enumerate(samples):
            keep = policy.select(sample.at(site, policy.needs, rows[i], memory[i])).keep
            rows[i] = rows[i][keep]
            answers[i].append(keep.tolist())
    assert answers == [kept(some(name), sample) for sample in samples]


@every_policy
@every_layout
def test_inputs_are_left_alone(name, layout):
    policy, sample = some(name), Sample(layout)
    for (tokens, _), site in zip(serve(policy, sample), policy.sites, strict=True):
        before = sample.at(site, policy.needs, tokens.rows)
        for what in ("hidden", "text", "rows", "coords", "position"):
            assert torch.equal(getattr(tokens, what), getattr(before, what)), f"{name} changed {what}"
        assert tokens.segments == before.segments
        assert tokens.signals.keys() == before.signals.keys()
        for signal, value in before.signals.items():
            now, then = tensors(tokens.signals[signal]), tensors(value)
            assert len(now) == len(then) and all(map(torch.equal, now, then)), f"{name} changed the signal {signal}"


# ------------------------------------------------------------------------------------------- the description


@every_policy
def test_it_says_what_it_needs_and_where_it_acts(name):
    policy = POLICIES[name]()
    assert isinstance(policy, Policy)
    assert isinstance(policy.needs, frozenset) and all(isinstance(need, str) for need in policy.needs)
    sites = policy.sites
    assert isinstance(sites, tuple) and sites
    assert list(sites) == sorted(set(sites))
    assert all(site == BEFORE_LLM or (site >= 0 and site % 0.5 == 0) for site in sites)
    assert getattr(policy, "positions", "original") in ("original", "compact", "compact-vision")
    if BEFORE_LLM in sites:
        early = {"last_query_attention", "text_attention", "text_attention_max"}
        assert not {need.partition(":")[0] for need in policy.needs} & early or len(sites) > 1, "no layer has run yet"


@every_policy
def test_every_option_is_documented(name):
    cls = POLICIES[name]
    assert sys.modules[cls.__module__].__doc__
    assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("), (
        "a dataclass without docstring gets a signature"
    )
    docs = "\n".join(
        inspect.getdoc(base) or "" for base in cls.__mro__ if base is not object and vars(base).get("__doc__")
    )
    for option in option_names(name):
        assert re.search(rf"^\s*{option}:\s+\S", docs, re.MULTILINE), f"{name} does not document {option}"


@pytest.mark.parametrize("option", sorted(WRONG))
@every_policy
def test_a_wrong_option_is_refused_by_value(name, option):
    if option not in option_names(name):
        with pytest.raises(TypeError):
            POLICIES[name](**{option: WRONG[option][0]})
        return
    for value in WRONG[option]:
        if value is None and POLICIES[name].__dataclass_fields__[option].default is None:
            continue
        with pytest.raises(ValueError) as error:
            POLICIES[name](**{option: value})
        assert repr(value) in str(error.value) and option in str(error.value)


@names(lambda name: {"keep_ratio", "n_keep"} <= set(option_names(name)))
def test_two_ways_to_say_how_many_are_one_too_many(name):
    with pytest.raises(ValueError, match=r"0\.125.*37"):
        POLICIES[name](keep_ratio=0.125, n_keep=37)
