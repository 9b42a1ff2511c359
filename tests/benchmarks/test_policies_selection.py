"""Selecting alone, timed on tiny prompts: every registered policy is there, its signals are a model's in shape."""

import json

import pytest
import torch

from benchmarks import policies_selection as alone
from benchmarks.policies import Run, parse
from benchmarks.policies_given import Prompt, reached, select
from benchmarks.policies_rows import make
from benchmarks.policies_scene import Scene, State, Stop, record, signals
from benchmarks.policies_shapes import QUICK, Product, prefill_flops
from benchmarks.policies_table import SIZES, by_policy, summary, tables
from vtprune.patches import Patches
from vtprune.policies.base import POLICIES, pruning_policies
from vtprune.signals import needed
from vtprune.transition import Transitions
from vtprune.unprojected import Unprojected


@pytest.fixture(scope="module")
def rows():
    """Those of a quick run, but for the machine's rates."""
    return [row for row in Run(parse(["--quick", "--parts", "selection"])).rows() if row["what"] == "selection"]


@pytest.fixture(scope="module")
def prompts():
    return {name: Prompt(shape, torch.float32) for name, shape in QUICK.items()}


@pytest.fixture(scope="module")
def scenes():
    return {name: Scene(shape, torch.float32) for name, shape in QUICK.items()}


def product(seconds=0.0, clock=None):
    def call():
        if clock is not None:
            clock.now += seconds

    return Product(call, "float32", 50, 100, 100)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


# ---------------------------------------------------------------------------------------------------------- rows


def test_every_registered_policy_is_timed_where_it_has_something_to_do(rows):
    """A new policy fails here until its signals are made up and, if it leaves pictures whole, it is named in VIDEO."""
    assert [row for row in rows if "error" in row] == []
    assert {row["policy"] for row in rows} == {*pruning_policies()}
    assert {*alone.VIDEO} <= {*POLICIES} and {*alone.WHY} <= {*POLICIES}
    whole = {row["policy"] for row in rows if row["kept"][-1] == row["visual"]}
    assert whole == {"none"}
    for row in rows:
        assert row["kind"] == ("video" if row["policy"] in alone.VIDEO else "image")
        sizes = {shape.visual for kind, shape in alone.shapes(quick=True) if kind == row["kind"]}
        assert row["visual"] in sizes
    assert {(row["policy"], row["visual"]) for row in rows} == {
        (name, shape.visual)
        for name in pruning_policies()
        for kind, shape in alone.shapes(quick=True)
        if kind == alone.kind_of(name)
    }
    json.dumps(rows)


def test_sizes_are_those_that_are_promised():
    for kind in ("image", "video"):
        visual = [shape.visual for of, shape in alone.shapes() if of == kind]
        assert visual[:2] == [576, 2880] and 16000 < visual[2] < 16500
        assert all(shape.text == 64 for _, shape in alone.shapes())


def test_settings_are_the_ratios_that_a_policy_takes_and_its_own_counts():
    """Oracle: by hand. DyCoke keeps a quarter at least; PACT's cutoff counts where nothing is asked for."""
    ratios = [0.25, 0.1]
    assert list(alone.settings("dycoke", ratios)) == [("keep 25 %", {"keep_ratio": 0.25})]
    assert list(alone.settings("dycoke", [0.1])) == [("keep 47.5 %", {})]
    assert [name for name, _ in alone.settings("divprune", ratios)] == ["keep 25 %", "keep 10 %"]
    assert [name for name, _ in alone.settings("pact", [0.1])] == ["keep 10 %", "as published"]
    assert list(alone.settings("none", ratios)) == [("as published", {})]


def test_a_share_is_seconds_over_the_seconds_of_the_prefill(prompts, monkeypatch):
    """Oracle: by hand. A product of 1e6 FLOPs takes 3 s, so does each 1e6 of the prefill; the policy 0.25."""
    clock = Clock()

    def takes(*args):
        clock.now += 0.25
        return select(*args)

    monkeypatch.setattr(alone, "select", takes)
    how = {"prompt": prompts["llava-1.5"], "product": product(3.0, clock), "clock": {"clock": clock}}
    row = alone.selection_row("random", "keep 25 %", {"keep_ratio": 0.25}, **how)
    prefill = 3.0 * prefill_flops(QUICK["llava-1.5"]) / 1e6
    assert row["seconds"] == 0.25 and row["runs"] == alone.ENOUGH / 0.25 and row["kept"] == [9]
    assert row["prefill_seconds"] == pytest.approx(prefill) and row["share"] == pytest.approx(0.25 / prefill)
    assert row["verdict"] == ("met" if 0.25 / prefill <= 0.02 else "missed")
    assert row["peak_bytes"] is None or row["peak_bytes"] >= 0


@pytest.mark.parametrize(("seconds", "note"), [(1e-9, "a sentence"), (1e6, None)])
def test_the_reason_stands_beside_what_is_above_the_bound(seconds, note, prompts, monkeypatch):
    """Oracle: by hand; the prefill takes less than the policy, or hardly any time beside it."""
    monkeypatch.setitem(alone.WHY, "random", "a sentence")
    clock = Clock()
    monkeypatch.setattr(alone, "select", lambda *args: setattr(clock, "now", clock.now + 1e-3) or select(*args))
    how = {"prompt": prompts["llava-1.5"], "product": product(seconds, clock), "clock": {"clock": clock}}
    row = alone.selection_row("random", "", {"keep_ratio": 0.25}, **how, memory=False)
    assert row.get("note") == note and row["verdict"] == ("missed" if note else "met")
    assert ("a sentence" in summary([row])) == (note is not None)


def test_what_would_take_too_long_is_not_run(prompts):
    """Oracle: by hand. Twice the tokens take four times as long; what was skipped is skipped on longer prompts too."""
    patience, how = next(iter(alone.PATIENCE.values())), {"prompt": prompts["llava-1.5"], "product": product()}
    row = alone.selection_row(
        "random", "", {}, **how, clock={}, before={"visual": 18, "seconds": patience / 4 + 1}, memory=False
    )
    assert f"about {patience + 4:.0f} s" in row["skipped"] and row["policy"] == "random"
    longer = alone.selection_row("random", "", {}, **how, clock={}, before=row)
    assert "took too long" in longer["skipped"]
    ran = alone.selection_row(
        "random", "", {}, **how, clock={}, before={"visual": 18, "seconds": patience / 4 - 1}, memory=False
    )
    assert ran["kept"] == [18]
    assert "1 selections" in summary([row]) and "skipped" in summary([row])


def test_a_policy_is_one_line_with_all_of_its_sizes():
    """Oracle: by hand."""
    head = {"what": "selection", "policy": "a", "kind": "image", "setting": "keep 25 %"}
    ran = {"seconds": 0.5, "share": 0.03, "peak_bytes": 3 << 20, "kept": [720, 360], "verdict": "missed", "bound": "b"}
    some = [
        {**head, "visual": 576, **ran},
        {**head, "visual": 2880, **ran, "note": "because"},
        {**head, "visual": 16128, "skipped": "too long"},
        {**head, "policy": "b", "visual": 576, "error": "ValueError: no"},
    ]
    first, second = by_policy(some)
    assert list(first["sizes"]) == list(SIZES) and first["note"] == "because" and list(second["sizes"]) == ["576"]
    lines = tables(some).splitlines()
    assert lines[2].split() == ["a", "image", "keep", "25", "%", "360", *["500.0"] * 2, "-", *["3.000"] * 2, "-"] + [
        *["3"] * 2,
        *["-", "because"],
    ]
    assert "failed" in lines[3] and len(lines) == 4


# ------------------------------------------------------------------------------------------------------- signals


def described(signal):
    if isinstance(signal, Unprojected):
        return [
            signal.features.shape,
            signal.features.dtype,
            signal.project(signal.features).shape,
            len(signal.classes),
        ]
    if isinstance(signal, Patches):
        [part] = signal.parts
        pictures = [
            (p.query.shape, p.key.shape, p.query.dtype, p.tile, p.places.tolist()) for p in part.encoded.pictures
        ]
        return [pictures, part.encoded.shape, part.rows.tolist(), signal.scores(lambda p, there: there, None).shape]
    return [signal.shape, signal.dtype]


@pytest.mark.parametrize("model", QUICK)
@pytest.mark.parametrize("name", pruning_policies())
def test_signals_that_are_given_look_like_those_of_a_layer(name, model, prompts, scenes):
    """Oracle: the library's own code for each signal, over layers of the same size; of some rows alone, too."""
    policy, prompt, scene = make(name, QUICK[model], {}), prompts[model], scenes[model]
    needs, site = needed(policy), policy.sites[-1]
    for rows in (torch.arange(len(prompt.hidden)), torch.arange(0, len(prompt.hidden), 3)):
        watched = sorted({layer for need in needs if need.kind == "transition" for layer in need.where if layer < site})
        stop = Stop(site, State(scene, rows, scene.hidden[rows]), tuple(watched))
        transitions = Transitions()
        real = signals(stop, needs, transitions, scene.remembered)
        for need in needs:
            given = prompt.signal(need, site, rows, prompt.hidden[rows])
            assert described(given) == described(real[need.text]), need.text


@pytest.mark.parametrize("name", pruning_policies())
def test_every_policy_can_be_asked_with_the_signals_of_real_layers(name, scenes):
    """As ``--only`` asks it: one that is not in the table of shares by itself."""
    shape = QUICK["qwen2.5-vl" if name in alone.VIDEO else "llava-next"]
    policy = make(name, shape, {"keep_ratio": 0.5})
    stops = record(policy, scenes["qwen2.5-vl" if name in alone.VIDEO else "llava-next"])
    assert stops and stops[-1].state.n <= shape.visual


def test_signals_may_be_timed_too():
    """One row for each prompt that is not too long, in the table of shares."""
    rows = Run(parse(["--quick", "--parts", "signals", "--only", "aim", "dart"])).rows()
    found = [row for row in rows if row["what"] == "share"]
    assert [(row["policy"], row["visual"]) for row in found] == [("dart", 36), ("dart", 80), ("aim", 128)]
    assert all(row["seconds"] > 0 and row["setting"] == "keep 25 %" and row["signals"] for row in found)


def test_signals_are_given_and_not_made_in_timed_calls(prompts, monkeypatch):
    """Oracle: counts; the first call makes all that it reads, at every site."""
    made, whole = [], Prompt.signal
    monkeypatch.setattr(Prompt, "signal", lambda self, need, *args: made.append(need.text) or whole(self, need, *args))
    policy = make("pyramiddrop", QUICK["llava-1.5"], {})
    seen = reached(policy, prompts["llava-1.5"])
    assert made == ["last_query_attention:peek"] * 3
    answers = select(policy, seen)
    assert len(made) == 3 and [len(answer.keep) for answer in answers] == [18, 9, 4]
    assert [len(tokens) for tokens in seen] == [36, 18, 9]


def test_what_is_made_up_does_not_depend_on_what_was_made_before():
    """Oracle: the same prompt asked in another order."""
    one, other = (Prompt(QUICK["qwen2.5-vl"], torch.float32) for _ in range(2))
    names = ["keys:peek", "unprojected", "other"]
    made = {name: one.features(name, 8) for name in names}
    for name in reversed(names):
        assert torch.equal(other.features(name, 8), made[name])
    assert not torch.equal(made["keys:peek"], made["other"])


def test_clips_change_from_time_to_time_and_pictures_are_smooth(prompts):
    """Oracle: cosines: most places are in the next frame what they were; neighbours are more alike than others."""
    unit = torch.nn.functional.normalize(prompts["qwen2.5-vl"].hidden, dim=-1).unflatten(0, (8, 16))
    still = ((unit[1:] * unit[:-1]).sum(-1) > 0.9).float().mean()
    assert 0.4 < still < 0.9
    big = Prompt(alone.PICTURES[0], torch.float32)
    unit = torch.nn.functional.normalize(big.hidden, dim=-1).view(24, 24, -1)
    beside, far = (unit[:, 1:] * unit[:, :-1]).sum(-1).mean(), (unit[:12] * unit[12:]).sum(-1).mean()
    assert beside > far + 0.2
