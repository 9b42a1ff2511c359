"""Policies one after another. Oracle: the stages done by hand, one model call after the other, or as one policy."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import vtprune
from tests import oracle, tiny
from vtprune import BEFORE_LLM, POLICIES, AtFlops, Selection, Then

FastV, Uniform, Random, TransPrune = (POLICIES[name] for name in ("fastv", "uniform", "random", "transprune"))


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl"])
def case(request):
    return tiny.build(request.param, "sdpa", torch.float64), tiny.batch(request.param, "ragged")


@dataclass
class Fixed:
    """Keeps rows that are given, by site."""

    kept: dict
    needs: ClassVar[frozenset] = frozenset()

    @property
    def sites(self):
        return tuple(self.kept)

    def select(self, tokens):
        rows = self.kept[tokens.site].pop(0)
        return Selection((tokens.rows[:, None] == rows).any(1).nonzero().flatten())


def test_two_stages_are_one_policy_that_does_both(case):
    """Oracle: a policy that keeps, at both sites, the very rows that the stages kept."""
    model, inputs = case
    stages = Then(Uniform(keep_ratio=0.6), FastV(keep_ratio=0.5, layer=2))
    with vtprune.pruned(model, stages) as report:
        logits = oracle.text_logits(model, inputs)
        kept = {record.site: [rows.clone() for rows in record.kept] for record in report.sites}
        counts = report.tokens
    assert list(kept) == [BEFORE_LLM, 2]
    for before, after in counts:
        assert after < 0.6 * before
    with vtprune.pruned(model, Fixed(kept)):
        again = oracle.text_logits(model, inputs)
    for one, other in zip(logits, again, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_each_stage_sees_what_the_one_before_it_left(case):
    """Oracle: the first stage alone keeps the same; the second keeps half of that."""
    model, inputs = case
    with vtprune.pruned(model, Uniform(keep_ratio=0.6)) as report:
        oracle.text_logits(model, inputs)
        first = report.sites[0].after
    with vtprune.pruned(model, Then(Uniform(keep_ratio=0.6), Random(keep_ratio=0.5, layer=1))) as report:
        oracle.text_logits(model, inputs)
        assert report.sites[0].after == first == report.sites[1].before
        assert all(after < before for before, after in zip(first, report.sites[1].after, strict=True))


def test_by_name_the_split_is_by_flops_even_or_given(case):
    """Oracle: the same as objects; tests/test_at_flops.py has what each stage saves."""
    model, inputs = case
    same = {
        "flops": AtFlops(Then(Uniform(), FastV()), keep_ratio=0.25),
        "even": Then(Uniform(keep_ratio=0.5), FastV(keep_ratio=0.5)),
        (0.8, 0.5): Then(Uniform(keep_ratio=0.8), FastV(keep_ratio=0.5)),
    }
    for split, policy in same.items():
        more = {"split": split} | ({"keep_ratio": 0.25} if isinstance(split, str) else {})
        kept = []
        for stages, options in (("uniform >> fastv", more), (policy, {})):
            with vtprune.pruned(model, stages, **options) as one:
                logits = oracle.text_logits(model, inputs)
                kept.append([record.kept for record in one.sites] + [logits])
        torch.testing.assert_close(*kept, rtol=0, atol=0)
    with vtprune.pruned(model, "uniform >> fastv", keep_ratio=0.25) as report:
        assert report.policy == same["flops"]


def test_a_stage_that_is_done_does_not_end_the_others(case):
    @dataclass
    class Once:
        needs: ClassVar[frozenset] = frozenset()
        sites: ClassVar[tuple] = (BEFORE_LLM, 0)

        def select(self, tokens):
            assert tokens.site == BEFORE_LLM and not tokens.memory, "it said that it was done"
            tokens.memory["mine"] = 1
            return Selection(torch.arange(len(tokens) - 1), last=True)

    @dataclass
    class After:
        needs: ClassVar[frozenset] = frozenset()
        sites: ClassVar[tuple] = (2,)

        def select(self, tokens):
            assert not tokens.memory, "another stage's memory"
            return Selection(torch.arange(len(tokens) - 1))

    model, inputs = case
    with vtprune.pruned(model, Then(Once(), After())) as report:
        oracle.text_logits(model, inputs)
        assert all(before - after == 2 for before, after in report.tokens)


def test_what_stages_have_in_common():
    both = Then(POLICIES["vtc_cls"](keep_ratio=0.5), TransPrune(keep_ratio=0.5))
    assert both.positions == "compact" and not both.newlines and not both.stages[1].newlines
    assert TransPrune().newlines, "as it is alone"
    assert Then(Uniform(), FastV()).positions == "original"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Then(FastV()), "two policies or more"),
        (lambda: Then("fastv", FastV()), "takes policy objects"),
        (lambda: vtprune.api.named_policy("uniform >> fastvv", {}), "unknown policy 'fastvv'"),
        (lambda: vtprune.api.named_policy("uniform >> fastv", {"layer": 3}), "keep_ratio or split"),
        (lambda: vtprune.api.named_policy("uniform >> fastv", {"split": (0.5,)}), "a ratio for each"),
        (lambda: vtprune.api.named_policy("uniform >> fastv", {"split": "equal"}), "split is 'flops', 'even' or"),
        (lambda: vtprune.api.named_policy("uniform >> fastv", {"split": 3}), "a ratio for each"),
        (lambda: vtprune.api.named_policy("uniform >> fastv", {"split": "even", "keep_flops": 0.5}), "give one"),
        (lambda: vtprune.api.named_policy("uniform >> fastv", {"keep_ratio": 75}), "KEPT"),
    ],
)
def test_mistakes_are_told(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_stages_whose_sites_cross_are_refused_with_the_model_unchanged(case):
    model, _ = case
    with pytest.raises(ValueError, match="FastV acts layer 2|Uniform acts before the LLM"):
        vtprune.wrap(model, Then(FastV(layer=2), Uniform()))
    assert not vtprune.is_wrapped(model)
