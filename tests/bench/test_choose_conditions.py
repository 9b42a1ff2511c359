"""Conditions from a command line: the controls are there, nothing is there twice, mistakes are told at once."""

from dataclasses import dataclass

import pytest
import torch

from vtprune.at_flops import AtFlops
from vtprune.bench import choose_conditions as choosing
from vtprune.bench.choose_conditions import CONTROLS, read_controls, read_policy, read_ratios
from vtprune.bench.condition import Condition
from vtprune.bench.frame_scores import scored, wants_scores
from vtprune.cli.error import UserError
from vtprune.policies.base import POLICIES
from vtprune.then import Then


def choose_conditions(*arguments, **more) -> list[Condition]:
    """Without a policy that refuses a ratio."""
    found, refused = choosing.choose_conditions(*arguments, **more)
    assert not refused
    return found


def names(*arguments, **more) -> list[str]:
    found = [condition.name for condition in choose_conditions(*arguments, **more)]
    assert len(set(found)) == len(found)
    return found


AT_HALF = ["random@0.5#0", "random@0.5#1", "random@0.5#2", "uniform@0.5", "pool@0.5", "downsampled@0.5"]


def test_all_controls_are_there_unless_they_are_switched_off():
    """Written by hand."""
    always = ["full", "blind", "other visual"]
    twins = ["random@0.5 as fastv:layer=3@0.5#0", "random@0.5 as fastv:layer=3@0.5#1"]
    judged = ["fastv:layer=3@0.5", *twins, "same time@0.5 as fastv:layer=3@0.5"]
    assert names(["fastv:layer=3"], [0.5], clips=False) == [*always, *AT_HALF, *judged]
    assert names(["fastv:layer=3"], [0.5]) == [*always, *AT_HALF, "fewer frames@0.5", *judged]
    assert len(names(["fastv"], [0.5, 0.25])) == 3 + 2 * 11
    assert names(["fastv"], [0.5], ()) == ["full", "fastv@0.5"]
    assert names(["fastv"], [0.5], read_controls("fewer-frames,blind")) == [
        "full",
        "blind",
        "fewer frames@0.5",
        "fastv@0.5",
    ]
    assert {condition.kind for condition in choose_conditions(["fastv"], [0.5])} == {*CONTROLS, "full", "policy"}


def test_ratio_one_is_the_unpruned_model_whatever_the_policy():
    assert names(["fastv", "idpruner"], [1.0, 0.5], ()) == ["full", "fastv@0.5", "idpruner@0.5"]
    assert names(["fastv"], [1.0]) == ["full", "blind", "other visual"]
    assert names(["none"], [0.5], ()) == ["full"]


def test_a_control_that_is_named_as_a_policy_is_that_control():
    conditions = choose_conditions(["random", "pool", "fastv"], [0.5], clips=False)
    assert [one.name for one in conditions if one.kind not in ("same time", "twin")][3:] == [*AT_HALF, "fastv@0.5"]
    assert [one.beside for one in conditions if one.kind == "same time"] == ["fastv@0.5"]
    assert names(["random"], [0.5], ()) == ["full", *AT_HALF[:3]]


@pytest.mark.parametrize(
    ("policy", "twins"),
    [("vtc_cls:positions=original", 0), ("vtc_cls", 2), ("idpruner", 0), ("framefusion", 2), ("random:layer=2", 0)],
)
def test_what_random_tokens_before_the_llm_are_no_control_of_has_twins(policy, twins):
    """VTC-CLS renumbers positions unless told not to; FrameFusion acts inside the LLM."""
    found = [one for one in choose_conditions([policy], [0.5], ("twin",)) if one.kind == "twin"]
    assert [one.beside for one in found] == twins * [f"{policy}@0.5"]
    assert {one.row for one in found} == {f"random@0.5 as {policy}@0.5"} or not twins
    assert {one.positions for one in found} <= {None}


def test_random_tokens_elsewhere_are_judged_and_have_their_own_draws():
    _, *conditions = choose_conditions(["random:layer=2"], [0.5], ("same time",), seed=7)
    assert conditions == [
        *(Condition("policy", "random", ("layer=2",), 0.5, seed) for seed in (7, 8, 9)),
        Condition("same time", keep_ratio=0.5, beside="random:layer=2@0.5#7"),
    ]
    assert names(["random:seed=4"], [0.5], ()) == ["full", "random:seed=4@0.5"]


def test_options_and_positions():
    _, found = choose_conditions(["fastv:layer=3:positions=compact"], [0.5], ())
    assert found == Condition("policy", "fastv", ("layer=3",), 0.5, None, "compact")
    assert found.name == "fastv:layer=3:positions=compact@0.5"
    assert len(choose_conditions(["fastv", "fastv:positions=compact", "fastv:layer=3"], [0.5], ())) == 1 + 3
    assert read_policy("a:b=c:d:e=f").options == ("b=c:d", "e=f")


def test_at_equal_flops_controls_are_as_they_are():
    """Written by hand: uniform tokens before the LLM are the ratio in every layer."""
    found = names(["fastv:layer=3", "uniform", "quota >> divprune"], [0.5], ("pool", "same time"), by_flops=True)
    spent = ["fastv:layer=3:budget=flops@0.5", "quota >> divprune:budget=flops@0.5"]
    assert found == ["full", "uniform@0.5", "pool@0.5", *spent, *(f"same time@0.5 as {name}" for name in spent)]
    policy = read_policy("fastv:layer=3:budget=flops").make(0.5)
    assert policy == AtFlops(POLICIES["fastv"](layer=3), keep_ratio=0.5)
    with pytest.raises(UserError, match="one of 'segment', 'prompt'; got 'watts'"):
        choose_conditions(["fastv:budget=watts"], [0.5])


def test_policies_inside_others_get_frame_scores():
    """Oracle: the fields, by hand."""
    scores = [torch.tensor([1.0, 2.0])]
    for name in ("quota", "quota >> divprune", "quota:budget=flops", "vidcom2 >> divprune"):
        one = read_policy(name)
        policy = scored(one.make(0.5), scores)
        inner = policy.policy if isinstance(policy, AtFlops) else policy
        first = inner.stages[0] if isinstance(inner, Then) else inner
        wants = "quota" in name
        assert wants_scores(Condition("policy", one.name, one.options, 0.5)) == wants
        assert getattr(first, "frame_scores", None) is None or first.frame_scores.tolist() == [1.0, 2.0]
        assert (getattr(first, "frame_scores", None) is not None) == wants


def test_lists_of_ratios_and_controls():
    assert read_ratios("1, 0.5,.25") == (1.0, 0.5, 0.25)
    assert read_controls("all") == CONTROLS and read_controls("none") == ()
    assert read_controls("same-time,random") == ("random", "same time")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.5,75", r"KEPT, in \(0, 1\].*got '75'"),
        ("0", "got '0'"),
        ("nan", "got 'nan'"),
        ("half", "got 'half'"),
        ("", "got ''"),
        ("0.5,0.50", "has 0.5 twice"),
        ("0.12345671,0.12345672", "has 0.123457 twice"),
    ],
)
def test_ratios_that_are_none(text, said):
    with pytest.raises(UserError, match=said):
        read_ratios(text)


def test_an_unknown_control_is_told_which_there_are():
    with pytest.raises(UserError, match="unknown control 'randon'; did you mean 'random'.*fewer-frames, same-time"):
        read_controls("blind,randon")


@pytest.mark.parametrize(
    ("policies", "said"),
    [
        (["fastvv"], "--policy fastvv: unknown policy 'fastvv'; did you mean 'fastv'"),
        (["fastv:laier=3"], "has no option 'laier'; did you mean 'layer'"),
        (["fastv:layer=two"], "layer is an integer; got 'two'"),
        (["fastv:layer=-1"], "--policy fastv:layer=-1: "),
        (["fastv:keep_ratio=0.5"], "at the ratios of --keep-ratio.*take 'keep_ratio=0.5' out"),
        (["fastv:n-keep=5"], "take 'n-keep=5' out"),
        (["fastv:positions=far"], "positions is original or compact, once; got 'fastv:positions=far'"),
        (["fastv:positions=compact:positions=original"], "once"),
        (["fastv:3"], "name=value, such as fastv:layer=3; got 'fastv:3'"),
        (["fastv", "pool", "fastv"], "--policy fastv is there twice"),
        (["fastv", "fastv:layer=2"], "--policy fastv:layer=2 and --policy fastv are the same"),
        (["fastv", "fastv:positions=original"], "are the same"),
        ([""], "unknown policy ''"),
    ],
)
def test_policies_that_cannot_be(policies, said):
    with pytest.raises(UserError, match=said):
        choose_conditions(policies, [0.5])


def test_a_ratio_that_a_policy_refuses_is_told_before_anything_is_loaded(monkeypatch):
    """As ToMe does, which pairs tokens and keeps at least half."""

    @dataclass
    class Pairs:
        keep_ratio: float = 0.5

        def __post_init__(self):
            if self.keep_ratio < 0.5:
                raise ValueError(f"it keeps at least half; got keep_ratio={self.keep_ratio}")

    monkeypatch.setitem(POLICIES, "pairs", Pairs)
    assert names(["pairs"], [0.5], ()) == ["full", "pairs@0.5"]
    found, refused = choosing.choose_conditions(["pairs", "fastv"], [0.5, 0.1], ("same time",))
    assert refused == ["pairs is not asked at 0.1: it keeps at least half; got keep_ratio=0.1"]
    own = {condition.name for condition in found if condition.kind == "policy"}
    assert own == {"pairs@0.5", "fastv@0.5", "fastv@0.1"}
    assert {condition.beside for condition in found if condition.kind == "same time"} == own
    with pytest.raises(UserError, match="--policy pairs: it keeps at least half; got keep_ratio=0.1"):
        choose_conditions(["pairs"], [0.1, 0.05])
