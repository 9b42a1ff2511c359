"""The engine's benchmark on a tiny model: what its rows say, never how long anything took."""

import itertools
import json
import math

import pytest
import torch

import vtprune
from benchmarks import engine, engine_select
from benchmarks.engine_hooks import CASES, hook_rows
from benchmarks.engine_memory import TOLERANCE, judged, settings
from benchmarks.engine_model import SHAPES, Steps, build, cache_bytes, prefill, prompt, short_prompt, twin
from benchmarks.engine_peer import Masked
from benchmarks.engine_ragged import SHARES, ragged_rows
from benchmarks.engine_select import GRIDS, Video, exponent, select_rows
from benchmarks.engine_speed import Bench, decode_rows, kv_rows, noise_row, prefill_rows
from benchmarks.engine_table import TABLES, tables, verdicts
from benchmarks.engine_time import (
    Bound,
    HookTimes,
    clock_of,
    hook_times,
    in_turns,
    median_interval,
    ratios,
    scatter,
    spread,
)
from vtprune import ragged
from vtprune.policies.base import pruning_policies
from vtprune.tokens import Selection

TEXT, SIDE = 8, 4


class Clock:
    """Stands still, except inside the calls that move it."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def __call__(self) -> float:
        return self.now

    def takes(self, name: str, *seconds: float):
        left = iter(seconds)

        def call(*args):
            self.order.append(name)
            self.now += next(left)

        return call


@pytest.fixture(scope="module")
def model():
    return build(SHAPES["tiny"], torch.float64, side=SIDE)


@pytest.fixture(scope="module")
def bench(model):
    """Two images of 16 visual tokens, run once."""
    made = Bench(model, 2, TEXT, [0.25], ("random", "uniform"))
    made.start(lambda line: None)
    for runner in made.runners.values():
        runner.prefill()
    return made


def test_turns_go_forth_and_back():
    """Oracle: the order and the seconds by hand; an odd one out is timed alone."""
    clock = Clock()
    calls = {"a": clock.takes("a", 1, 2), "b": clock.takes("b", 3, 4), "c": clock.takes("c", 5, 6)}
    rounds = []
    seconds = in_turns(calls, 2, {"clock": clock}, rounds.append)
    assert seconds == {"a": [1, 2], "b": [3, 4], "c": [5, 6]}
    assert clock.order == ["a", "b", "c", "c", "b", "a"]
    assert rounds == [1, 2]


@pytest.mark.parametrize(
    ("n", "ranks"), [(1, (1, 1)), (3, (1, 3)), (6, (1, 6)), (9, (2, 8)), (15, (4, 12)), (20, (6, 15))]
)
def test_the_interval_of_the_median_is_the_sign_tests(n, ranks):
    """Oracle: the ranks of the tables for the sign test at 5 %."""
    assert median_interval(list(range(n, 0, -1))) == ranks


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([1.0, 1.01, 1.015], "met"),
        ([1.03, 1.05, 1.04], "missed"),
        ([1.0, 1.01, 1.04], "met, but the noise exceeds the bound"),
        ([1.0, 1.03, 1.04], "missed, but the noise exceeds the bound"),
    ],
)
def test_a_bound_says_when_the_noise_hides_it(values, verdict):
    assert Bound("<=", 1.02).verdict(values) == verdict
    # the other way round it is the same story
    assert Bound(">=", -1.02).verdict([-value for value in values]) == verdict


def test_few_values_are_trusted_no_further_than_the_noise():
    """Oracle: by hand. Two ratios of times that scatter by 1 %: two standard errors of their median are 2.5 %."""
    assert median_interval([1.0, 1.0], 0.01) == pytest.approx((0.975, 1.025))
    assert Bound("<=", 1.02).verdict([1.0, 1.0], 0.01) == "met, but the noise exceeds the bound"
    assert Bound("<=", 1.02).verdict([1.0] * 20, 0.01) == "met"


def test_scatter_is_pooled_over_what_was_timed():
    """Oracle: by hand. Logarithms +-0.1 about their means: 4 squares of 0.01 over 2 degrees of freedom."""
    times = {"a": [math.exp(1.1), math.exp(0.9)], "b": [math.exp(-2.9), math.exp(-3.1)]}
    assert scatter(times) == pytest.approx(math.sqrt(0.02))
    assert scatter({"a": [3.0]}) == 0


def test_a_judged_field_tells_all():
    row = Bound(">=", 0.97).judged("speed", [0.9, 1.0, 0.99])
    assert row == {
        **{"speed": 0.99, "speed_min": 0.9, "speed_max": 1.0, "speed_low": 0.9, "speed_high": 1.0},
        **{"bound": "speed >= 0.97", "verdict": "met, but the noise exceeds the bound"},
    }


def test_only_one_thread_of_a_cpu_is_timed_by_its_own_time():
    assert clock_of("cpu", 1)[1] and not clock_of("cpu", 2)[1] and not clock_of("cuda", 1)[1]


def test_hooks_are_timed_apart_from_what_they_are_on_and_left_as_they_were(model):
    """Oracle: a clock that only the hooks and the layer move; 3 and 4 seconds are the hooks', 100 are not."""
    clock, wrapped = Clock(), twin(model)
    layer, base = wrapped.model.language_model.layers[1], wrapped.model
    layer.register_forward_pre_hook(clock.takes("before", 3.0, 3.0))
    layer.register_forward_hook(lambda *args: clock.takes("inside", 100.0)() or None, prepend=True)
    base.register_forward_hook(clock.takes("after", 4.0, 4.0))
    tables = [dict(layer._forward_pre_hooks), dict(layer._forward_hooks), dict(base._forward_hooks)]
    inputs = prompt(wrapped, [1], TEXT)
    with hook_times(wrapped, clock) as times:
        prefill(wrapped, inputs)
    assert times.layer == pytest.approx([3e6, 100e6]) and times.other == pytest.approx([4e6])
    assert times.seconds == pytest.approx(107)
    assert [dict(layer._forward_pre_hooks), dict(layer._forward_hooks), dict(base._forward_hooks)] == tables


def test_a_twin_shares_weights_and_nothing_else(model):
    """Oracle: storage addresses; and the model itself computes as before when its twin is pruned."""
    inputs = prompt(model, [2], TEXT)
    before = prefill(model, inputs).layers[-1].keys
    wrapped = vtprune.wrap(twin(model), "random", keep_ratio=0.25)
    assert [p.data_ptr() for p in wrapped.parameters()] == [p.data_ptr() for p in model.parameters()]
    assert prefill(wrapped, prompt(wrapped, [2], TEXT)).layers[-1].keys.shape[2] == 8 + TEXT
    assert torch.equal(prefill(model, inputs).layers[-1].keys, before)


def test_prompts_are_padded_on_the_left(model):
    """Oracle: by hand, samples of 16 and 32 visual tokens between 2 and 6 text tokens."""
    image = model.config.image_token_id
    for inputs in (prompt(model, [1, 2], TEXT), short_prompt(model, [16, 32], TEXT)):
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        assert ids.shape == (2, 32 + TEXT) and mask.sum(1).tolist() == [16 + TEXT, 32 + TEXT]
        assert (ids[0] == image).nonzero().flatten().tolist() == list(range(16 + 2, 16 + 2 + 16))
        assert inputs["position_ids"][0].tolist() == [0] * 16 + list(range(24))
        assert sum(len(f) for f in inputs["mm_encoder_outputs"]["image"].pooler_output) == 48
    assert short_prompt(model, [3], TEXT, 20)["attention_mask"].tolist() == [[0] * 9 + [1] * 11]


def test_steps_continue_a_prefill_like_generate(model):
    """Oracle: ``generate`` from the same prompt, made to say the same token."""
    inputs = prompt(model, [1, 2], TEXT)
    step = Steps(model, inputs, prefill(model, inputs))
    found = [step()[:, -1] for _ in range(3)]
    told = model.generate(
        **prompt(model, [1, 2], TEXT),
        max_new_tokens=4,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        prefix_allowed_tokens_fn=lambda batch, ids: [7],
    )
    for mine, theirs in zip(found, told.logits[1:], strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=1e-6, atol=1e-6)


def test_the_peer_hides_what_the_pruner_drops(model):
    """Oracle: the pruner. Masked columns and dropped rows give the last token the same logits, then and in a step."""
    wrapped = vtprune.wrap(twin(model), "random", keep_ratio=0.25, layer=2)
    inputs = prompt(wrapped, [2], TEXT)
    cache = prefill(wrapped, inputs)
    last = vtprune.report(wrapped).last
    row = last.layout.rows[0]
    kept = row.columns[last.offered[0]][last.sites[-1].kept[0]]
    masked = twin(model)
    Masked(masked, 2, torch.cat([row.text, kept]), last.layout.length)
    other = prefill(masked, inputs)
    assert torch.equal(other.layers[3].keys[:, :, kept], cache.layers[3].keys[:, :, 2 : 2 + len(kept)])
    mine, theirs = Steps(wrapped, inputs, cache), Steps(masked, inputs, other)
    for _ in range(2):
        torch.testing.assert_close(mine(), theirs(), rtol=1e-6, atol=1e-6)


def test_prefill_rows_divide_what_they_say(bench):
    """Oracle: seconds made up for every runner, ratios by hand, FLOPs of the library's own formula."""
    seconds = {name: [2.0, 2.0, 4.0] for name in bench.runners}
    seconds["unpruned"] = [8.0, 9.0, 16.0]
    seconds["none"] = [8.0, 9.09, 16.48]
    seconds["short 0.25"] = [1.9, 1.8, 4.4]
    hooks = {name: HookTimes() for name, runner in bench.runners.items() if runner.wrapped}
    hooks["none"].layer += [3e4, 6e4]
    groups = [["unpruned", "none", "layer 2 0.25", "masked"], ["short 0.25", "random 0.25", "uniform 0.25"]]
    assert bench.groups() == groups
    rows = {row["runner"]: row for row in prefill_rows(bench, seconds, hooks)}
    assert rows["none"]["overhead"] == pytest.approx(1.01) and rows["none"]["overhead_max"] == pytest.approx(1.03)
    assert rows["none"]["hook_seconds"] == pytest.approx(0.03)
    assert rows["random 0.25"]["speed"] == pytest.approx(0.95) and rows["random 0.25"]["verdict"].startswith("missed")
    assert rows["random 0.25"]["speedup"] == 4.5 and rows["random 0.25"]["speedup_min"] == 2.25
    report = bench.runners["layer 2 0.25"].report
    share = report.flops.total_causal / report.flops_unpruned.total_causal
    assert rows["layer 2 0.25"]["speed"] == pytest.approx(4 * share)
    assert rows["layer 2 0.25"]["over_masked"] == 1
    assert set(rows) == set(bench.runners) and all(row["runs"] == 3 for row in rows.values())
    assert noise_row(bench, seconds)["ratio_max"] == pytest.approx(16 / 9)


def test_cache_bytes_are_exact_or_missed(bench, monkeypatch):
    """Oracle: by hand, 2 x layers x key heads x head size x 8 bytes, of 8 of 32 visual tokens and 8 text tokens."""
    rows = {row["runner"]: row for row in kv_rows(bench)}
    a_token = 2 * 1 * 16 * 8
    assert rows["none"]["bytes"] == 4 * a_token * 40 and rows["none"]["share"] == 1
    assert rows["random 0.25"]["bytes"] == rows["random 0.25"]["short_prompt"] == 4 * a_token * 16
    assert rows["layer 2 0.25"]["bytes"] == a_token * (2 * 40 + 2 * 16)
    assert all(row["verdict"] == "met" for row in rows.values())
    monkeypatch.setitem(bench.runners["random 0.25"].about, "kept", 9)
    assert {row["runner"] for row in kv_rows(bench) if row["verdict"] == "missed"} == {"random 0.25"}


def test_decode_rows_compare_with_the_short_prompt(bench):
    held = cache_bytes(bench.runners["none"].cache)
    rows = decode_rows(bench, 3, {}, lambda line: None, warmup=1)
    assert {row["runner"] for row in rows if "verdict" in row} == {"random 0.25", "uniform 0.25"}
    assert {row["runner"] for row in rows if "hook_us" in row} == {
        name for name, runner in bench.runners.items() if runner.wrapped
    }
    # four tokens more in four layers: the steps were made
    assert cache_bytes(bench.runners["none"].cache) == held + 4 * 4 * 2 * 16 * 8


def test_hook_rows_are_given_by_hooked_layer():
    (row,) = hook_rows(6, [case for case in CASES if case.name == "ragged batch"])
    assert row["layers"] == SHAPES["narrow"].layers and row["kept"] == [16, 32]
    assert row["layer_us_min"] <= row["layer_us"] <= row["layer_us_max"] and row["bound"] == "layer_us <= 5"


def test_ragged_rows_compare_the_packed_prefill_with_the_padded_one(monkeypatch):
    """Oracle: the lengths that attention was asked for, 16 visual tokens in shares by hand and the text; a clock that
    moves by a second when it is read and by one for each layer that is packed."""
    lengths, readings = [], itertools.count()

    def counted(query, key, value, mask, scale):
        lengths.append(mask.lengths)
        return ragged.one_by_one(query, key, value, mask, scale)

    monkeypatch.setattr(ragged, "back_end", lambda *args: counted)
    clock = {"clock": lambda: next(readings) + len(lengths)}
    padded, packed = ragged_rows("tiny", torch.float64, "cpu", [1], TEXT, [3], clock, lambda line: None, SIDE)
    assert SHARES == (0.1, 0.25, 0.4, 0.7) and padded["kept"] == [2, 4, 6, 11]
    # a warm-up and three rounds in one layer
    assert lengths == [tuple(TEXT + kept for kept in padded["kept"])] * 4
    assert (padded["runner"], packed["runner"], packed["way"]) == ("padded", "packed", "one by one")
    assert padded["seconds"] == 1 and packed["seconds"] == 2 and packed["runs"] == 3
    assert packed["speed"] == 0.5 == packed["speed_max"]
    assert packed["verdict"].startswith("missed") and "kept" in tables([padded, packed])


def test_memory_is_compared_with_the_first_setting():
    """Oracle: by hand. More than the tolerance above is missed; a process that failed is a row with its error."""
    wanted = settings([0.25], 2)
    assert [s["policy"] for s in wanted] == [None, "none", "random", "random"]
    found = [{"peak_bytes": 10 * TOLERANCE}, {"peak_bytes": 11 * TOLERANCE}, {"peak_bytes": 11 * TOLERANCE + 1}]
    rows = judged(wanted, [*found, {"error": "MemoryError"}])
    assert [row.get("verdict") for row in rows] == [None, "met", "missed", None]
    assert rows[1]["share"] == pytest.approx(1.1) and rows[3]["error"] == "MemoryError"
    assert [row.get("site") for row in rows] == [None, None, "before the LLM", "layer 2"]


def test_made_up_videos_are_whole():
    """Oracle: the shapes that the policies' contract promises."""
    for n, (frames, rows, columns) in GRIDS.items():
        assert frames * rows * columns == n
    video = Video.make(576, width=8, n_text=5)
    for text, shape in (
        *[("last_query_attention", (576,)), ("text_attention", (5, 576)), ("vision_attention", (576,))],
        *[("cls_attention:-3,-2", (2, 16, 576)), ("cls_logits", (1, 16, 576)), ("cls_attention_joint", (576,))],
        ("head_weighted_cls", (1, 16, 576)),
        *[("vision_keys", (16, 64, 576)), ("keys", (2, 576, 64)), ("text_keys", (2, 5, 64))],
        *[("unrotated_queries:peek", (14, 576, 64)), ("unrotated_keys:peek", (2, 576, 64))],
        *[("final_norm", (576, 8)), ("text_final_norm", (5, 8)), ("attention_rank", (576,))],
        ("transition:0,1", (2, 576)),
    ):
        need = vtprune.signals.parse(text)
        signal, half = video.signal(need, torch.arange(576), 2), video.signal(need, torch.arange(0, 576, 2), 2)
        assert signal.shape == shape and bool(signal.isfinite().all())
        assert half.shape == torch.Size(288 if size == 576 else size for size in shape)
        if "attention" in text:
            assert float(signal.min()) >= 0
    seen = video.signal(vtprune.signals.parse("unprojected"), torch.arange(576), 2)
    assert seen.features.shape == (576, 16 * 64) and seen.project(seen.features).shape == (576, 8)


def test_every_registered_policy_is_served():
    """A policy whose signals are not made up fails here; all but the control that keeps everything drop something."""
    video = Video.make(576, width=32)
    for name in pruning_policies():
        answers = engine_select.serve(engine_select.make(name), video)
        assert (len(answers[-1].keep) < 576) == (name != "none"), name


def test_a_policy_that_fails_or_is_too_slow_is_a_row(monkeypatch):
    """Oracle: policies made for it; 10 seconds at 576 tokens would be 250 at 2880."""

    class Failing:
        needs, sites = frozenset(), (-1,)

        def select(self, tokens):
            raise ValueError("no")

    class Halving(Failing):
        def select(self, tokens):
            return Selection(torch.arange(0, len(tokens), 2))

    monkeypatch.setitem(vtprune.POLICIES, "failing", Failing)
    monkeypatch.setitem(vtprune.POLICIES, "halving", Halving)
    rows = select_rows(["failing", "halving"], [576, 2880], "cpu", {}, lambda line: None)
    assert rows[0]["error"] == "ValueError: no" and "576 tokens failed" in rows[1]["error"]
    assert [row["runs"] for row in rows[2:]] == [5, 5] and "exponent" in rows[3]
    monkeypatch.setattr(engine_select, "measure", lambda fn, **more: {"seconds": 10.0, "peak_bytes": 0, "runs": 1})
    rows = select_rows(["halving"], [576, 2880], "cpu", {}, lambda line: None)
    assert rows[1]["error"] == "not run: as the square of the size it would take 250 s"


def test_the_exponent_of_a_square_is_two():
    assert exponent(576, 3.0, 2880, 75.0) == pytest.approx(2) and exponent(10, 1.0, 20, 2.0) == pytest.approx(1)


def test_ratios_and_spread_go_round_by_round():
    assert ratios([2, 9], [1, 3]) == [2, 3]
    assert spread("x", [4, 1, 2, 3]) == {"x": 2.5, "x_min": 1, "x_max": 4}


def test_a_run_writes_what_the_results_promise(tmp_path, capsys):
    """Oracle: the list of keys in benchmarks/results/README.md, and one table for each kind of row."""
    path = tmp_path / "engine.json"
    small = ["--shape", "tiny", "--images", "1", "--rounds", "2", "--steps", "2", "--keep", "0.25", "--sizes", "576"]
    engine.main([*small, "--parts", "speed,select", "--policies", "random,fastv", "--out", str(path)])
    result = json.loads(path.read_text())
    promised = ["device", "threads", "commit", "command", "versions", "date"]
    assert list(result)[:6] == promised and list(result)[-1] == "rows"
    kinds = {row["what"] for row in result["rows"]}
    assert kinds == {"noise", "prefill", "decode step", "kv bytes", "selection"} < set(TABLES)
    assert all(math.isfinite(v) for row in result["rows"] for v in row.values() if isinstance(v, float))
    printed = capsys.readouterr().out
    assert all(TABLES[kind][0] in printed for kind in kinds)
    assert "bounds met; 0 rows failed" in printed


def test_tables_leave_empty_columns_out_and_name_what_was_not_met():
    """Oracle: by hand."""
    rows = [
        {"what": "selection", "policy": "a", "visual": 576, "seconds": 0.5, "seconds_min": 0.4, "seconds_max": 0.625},
        {"what": "selection", "policy": "b", "visual": 576, "error": "ValueError: no"},
        {"what": "peak memory", "runner": "random 0.1", "visual": 576, "verdict": "missed", "bound": "small"},
    ]
    text = tables(rows)
    assert "500.0 (400.0-625.0)" in text and "N x N" not in text and "exponent" not in text
    assert verdicts(rows).splitlines() == [
        "0 of 1 bounds met; 1 rows failed",
        "  peak memory, 576, random 0.1: missed (small)",
        "  selection, 576, b: ValueError: no",
    ]


@pytest.mark.parametrize("wrong", [["--rounds", "5"], ["--parts", "speed,memroy"], ["--sizes", "577"]])
def test_wrong_options_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        engine.parse(wrong)
    assert wrong[1].split(",")[-1] in capsys.readouterr().err


def test_a_quick_run_leaves_no_file_of_its_own_accord():
    assert engine.result_file(engine.parse(["--quick"])) is None
    assert engine.result_file(engine.parse([])).name == "engine-cpu.json"
    assert engine.result_file(engine.parse(["--shape", "7b"])).name == "engine-7b-cpu.json"
