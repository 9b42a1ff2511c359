"""Controls of a policy's options: made of its fields, with the ranges that the policy itself has."""

import dataclasses
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from vtprune.cli.options import make_policy
from vtprune.demo.controls import DEFAULT, WITHHELD, controls_of, options_text, read_options, read_policy
from vtprune.policies.base import POLICIES


def literals(kind) -> tuple:
    """The values of the Literal in a type, if there is one."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return next((literals(part) for part in get_args(kind) if get_origin(part) is Literal), ())


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_controls_are_the_fields_with_their_defaults_choices_and_help(name):
    """Oracle: the dataclass, read here once more."""
    cls = POLICIES[name]
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    controls = controls_of(name)
    assert [c.name for c in controls] == [field for field in fields if field in {c.name for c in controls}]
    assert not {c.name for c in controls} & WITHHELD
    hints = get_type_hints(cls)
    for control in controls:
        field = fields[control.name]
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        assert control.default == default
        assert control.help, f"{name}.{control.name} has no line of help"
        if literals(hints[control.name]):
            assert control.choices[-len(literals(hints[control.name])) :] == literals(hints[control.name])
        elif hints[control.name] in (int, float, bool):
            assert control.kind == {int: "whole", float: "number", bool: "switch"}[hints[control.name]]


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_bound_is_where_the_policy_begins_to_refuse(name):
    for control in controls_of(name):
        for bound, beyond in ((control.minimum, -1), (control.maximum, 1)):
            if bound is not None:
                POLICIES[name](**{control.name: bound})
                with pytest.raises(ValueError):
                    POLICIES[name](**{control.name: bound + beyond})


def test_published_ranges():
    """Oracle: what the docstrings say of these."""
    found = {(name, c.name): (c.minimum, c.maximum) for name in POLICIES for c in controls_of(name)}
    assert found["framefusion", "similarity"] == (-1.0, 1.0) and found["framefusion", "stop_below"] == (0.0, 1.0)
    assert found["idpruner", "trade_off"] == (0.0, 1.0) and found["fastv", "layer"] == (1, None)
    assert found["quota", "exponent"] == (0.0, None) and found["random", "seed"] == (None, None)


def test_what_was_moved_becomes_text_and_that_becomes_the_policy():
    names = [control.name for control in controls_of("idpruner")]
    values = {c.name: c.default for c in controls_of("idpruner")} | {"trade_off": 0.75, "importance": "norm"}
    text = options_text("idpruner", [values[name] for name in names])
    assert text.splitlines() == ["trade_off=0.75", "importance=norm"]
    wanted = make_policy("idpruner", ["trade_off=0.75", "importance=norm"], keep_ratio="0.3")
    assert read_policy("idpruner", 0.3, text) == wanted
    untouched = [c.default if c.default is not None else DEFAULT for c in controls_of("quota")]
    assert options_text("quota", untouched) == ""
    # what a browser sends for a tuple is text, for a whole number a float
    transprune = {c.name: c.default for c in controls_of("transprune")} | {"layers": "7,9,12", "of": 28.0}
    assert options_text("transprune", list(transprune.values())) == "of=28"


@pytest.mark.parametrize(
    ("name", "ratio", "options", "message"),
    [
        ("fastvv", 0.5, "", "unknown policy 'fastvv'; did you mean 'fastv'"),
        ("fastv", 0, "", r"KEPT, in \(0, 1\]; got 0"),
        ("fastv", float("nan"), "", r"KEPT, in \(0, 1\]"),
        ("fastv", "0.5", "", r"KEPT, in \(0, 1\]; got '0.5'"),
        ("fastv", True, "", r"KEPT, in \(0, 1\]; got True"),
        ("fastv", 0.5, "layer=x", "layer is an integer; got 'x'"),
        ("fastv", 0.5, "layer", "name=value"),
        ("fastv", 0.5, "stage=3", "has no option 'stage'"),
        ("fastv", 0.5, "keep_ratio=0.1", "move the slider"),
        ("idpruner", 0.5, "scorer=/etc/passwd", "scorer has no place"),
        ("quota", 0.5, "frame_scores=1,2", "frame_scores has no place"),
        ("fastv", 0.5, "a" * 3000, "at most 2,000 letters"),
    ],
)
def test_wrong_options_are_refused_in_words(name, ratio, options, message):
    with pytest.raises(ValueError, match=message):
        read_policy(name, ratio, options)


def test_a_policy_without_a_ratio_needs_none():
    assert read_policy("none", None, "") == make_policy("none")
    assert read_options("fastv", "\n layer=3 \n\n") == ["layer=3"]
