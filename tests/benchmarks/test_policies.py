"""The policies' benchmark on tiny prompts: what its rows say and that both forms of a method agree, never how long."""

import json
from datetime import timedelta

import pytest
import torch

from benchmarks import policies, policies_literal
from benchmarks.policies import NAMES, Job, Progress, Run, parse, result_file
from benchmarks.policies_literal import TooLarge, best, full_map
from benchmarks.policies_mmr import agreement as order_agreement
from benchmarks.policies_mmr import features_of, literal_mmr, mmr_row
from benchmarks.policies_rows import LITERAL, PATIENCE, PUBLISHED, Case, agreement, literal_row, settings, share_row
from benchmarks.policies_scene import Scene, State
from benchmarks.policies_shapes import QUICK, SHAPES, Product, prefill_flops, prefill_row
from benchmarks.policies_table import summary, tables
from benchmarks.policies_time import BRIEF, BUDGET, LONG, turns
from vtprune.attention import Call
from vtprune.policies.base import POLICIES
from vtprune.tokens import Selection

HERE = [name for name in NAMES if name in POLICIES]
"""Those of the benchmark's policies that are registered."""


class Clock:
    """Stands still, except inside the calls that move it."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def __call__(self) -> float:
        return self.now

    def takes(self, name: str, seconds: float):
        def call():
            self.order.append(name)
            self.now += seconds

        return call


@pytest.fixture(scope="module")
def scenes():
    return {name: Scene(shape, torch.float32) for name, shape in QUICK.items()}


@pytest.fixture(scope="module")
def rows():
    """Those of a quick run; selecting alone has a file of its own."""
    return Run(parse(["--quick", "--parts", "share", "mmr"])).rows()


# ----------------------------------------------------------------------------------------------------- the prefill


def test_the_derived_prefill_is_the_sum_by_hand():
    """Oracle: LLaVA-1.5's decoder by hand, 640 tokens; 4 d^2 + 3 d m weights a layer, pairs of the causal mask."""
    weights = 4 * 4096**2 + 3 * 4096 * 11008
    pairs = 640 * 641 // 2
    by_hand = 32 * (2 * weights * 640 + 4 * 4096 * pairs) + 2 * 4096 * 32000
    assert prefill_flops(SHAPES["llava-1.5"]) == by_hand == 8_397_090_979_840
    product = Product(lambda: None, "bfloat16", 512, 4096, 11008, rate=2e11)
    row = prefill_row(SHAPES["llava-1.5"], product)
    assert row["flops"] == by_hand and row["derived_seconds"] == pytest.approx(by_hand / 2e11)
    assert "bfloat16" in row["derived_from"]


def test_the_prefill_of_grouped_keys_is_the_sum_by_hand():
    """Oracle: Qwen2.5-VL-7B's decoder by hand; four key heads of 128, 16,448 tokens."""
    weights = 2 * 3584 * (28 * 128 + 4 * 128) + 3 * 3584 * 18944
    by_hand = 28 * (2 * weights * 16448 + 4 * 3584 * (16448 * 16449 // 2)) + 2 * 3584 * 152064
    assert prefill_flops(SHAPES["qwen2.5-vl"]) == by_hand


def test_shapes_are_those_of_the_models():
    assert [shape.visual for shape in SHAPES.values()] == [576, 2880, 16384]
    for shape in (*SHAPES.values(), *QUICK.values()):
        if shape.tower == "clip":
            assert shape.tiles * shape.side**2 == shape.visual
        assert shape.facts.class_token == (shape.tower == "clip") and shape.facts.depth == shape.layers


def test_a_share_is_seconds_over_the_seconds_of_the_prefill(scenes):
    """Oracle: by hand. A product of 1e6 FLOPs takes 3 s, so does each 1e6 of the prefill; the policy 5."""
    clock = Clock()
    case = Case("random", "keep 25 %", {"keep_ratio": 0.25}, scenes["llava-1.5"])
    ask, spend = case.ours, clock.takes("policy", 5.0)
    case.ours = lambda: spend() or ask()
    product = Product(clock.takes("product", 3.0), "float32", 50, 100, 100)
    row = share_row(case, product, 2, {"clock": clock})
    prefill = 3.0 * prefill_flops(QUICK["llava-1.5"]) / 1e6
    assert row["seconds"] == 5 and row["prefill_seconds"] == pytest.approx(prefill)
    assert row["share"] == row["share_min"] == pytest.approx(5 / prefill) and row["runs"] == 2
    assert row["bound"] == "share <= 0.02" and row["verdict"] == ("met" if 5 / prefill <= 0.02 else "missed")


# ---------------------------------------------------------------------------------------------------------- rows


def test_rows_have_what_was_promised(rows):
    spread = lambda name: {name, f"{name}_min", f"{name}_max"}  # noqa: E731
    judged = {"runs", "bound", "verdict"}
    who = {"policy", "model", "visual", "setting", "options"}
    fields = {
        "rate": {"model", "dtype", "rows", "inner", "outer", "runs"} | spread("flops_per_second"),
        "prefill": {"model", "visual", "text", "flops", "derived_seconds", "flops_per_second", "derived_from"},
        "share": {"sites", "acts", "kept", "signals"}
        | who | judged | spread("seconds") | spread("prefill_seconds") | spread("share"),
        "literal": {"literal", "same", "runs"}
        | who | spread("seconds") | spread("literal_seconds") | spread("speedup"),
        "mmr": {"features", "visual", "width", "keep_ratio", "same"}
        | judged | spread("seconds") | spread("literal_seconds") | spread("speedup"),
    }  # fmt: skip
    run = [row for row in rows if "error" not in row]
    assert {row["what"] for row in run} == {*fields}
    for row in run:
        assert fields[row["what"]] <= {*row}, row
    json.dumps(rows)
    # a row for each policy, model and setting
    expected = {
        (name, shape.title, setting)
        for name in HERE
        for shape in QUICK.values()
        for setting, _ in settings(name, [0.25, 0.1], shape)
    }
    for what in ("share", "literal"):
        assert {(r["policy"], r["model"], r["setting"]) for r in run if r["what"] == what} == expected
    failed = {row["policy"] for row in rows if "error" in row}
    assert failed == {*NAMES} - {*HERE}


def test_scoring_for_quota_is_said_to_be_left_out(rows):
    notes = {row["note"] for row in rows if row["what"] == "share" and row.get("policy") == "quota"}
    assert notes == {"resizing only: the scorer is left out"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("model", QUICK)
@pytest.mark.parametrize("name", HERE)
def test_literal_and_ours_say_the_same(name, model, dtype, scenes):
    """Oracle: the literal form. Everything in float32, then in float64 with other numbers."""
    scene = scenes[model] if dtype == "float32" else Scene(QUICK[model], torch.float64)
    for setting, options in settings(name, [0.25, 0.1, 0.6], scene.shape):
        case = Case(name, setting, options, scene)
        row = literal_row(case, 1, {}, None)
        assert row.get("same"), row


def test_every_method_has_a_literal_form_and_published_settings_are_its_own():
    assert {*LITERAL} == {*HERE}
    assert {*PUBLISHED} <= {*NAMES}
    assert [setting for setting, _ in settings("fastv", [0.25], QUICK["llava-1.5"])] == ["keep 25 %", "as published"]
    assert [setting for setting, _ in settings("vtc_cls", [0.25], QUICK["qwen2.5-vl"])] == ["keep 25 %"]


def test_a_video_is_merged_and_an_image_is_not(scenes):
    """FrameFusion has something to do in a video, so that agreeing on it means something."""
    kept = {}
    for model, scene in scenes.items():
        case = Case("framefusion", "", {"keep_ratio": 0.25}, scene)
        kept[model] = case.ours()[0]
    assert kept["llava-1.5"].merge is None and len(kept["llava-1.5"].keep) == 36
    assert kept["qwen2.5-vl"].merge is not None and 64 < len(kept["qwen2.5-vl"].keep) < 96


def test_differences_are_seen():
    """Oracle: made-up answers. One row more, another group, vectors that differ by more than rounding."""
    a, b = Selection(torch.tensor([0, 2])), Selection(torch.tensor([0, 3]))
    assert agreement([a], [a]) == {"same": True}
    assert agreement([a], [b]) == {"same": False, "differing": 2}
    merged = [Selection(torch.tensor([0, 2]), torch.tensor(groups)) for groups in ([0, 0, 1], [0, 1, 1])]
    assert agreement(merged[:1], merged[:1])["same"]
    assert not agreement(merged[:1], merged[1:])["same"] and not agreement([a], merged[:1])["same"]
    x = torch.ones(2, 3)
    assert agreement([x], [x + 1e-7])["same"] and not agreement([x], [x + 1e-4])["same"]
    assert not agreement([x], [x[:1]])["same"]


# ---------------------------------------------------------------------------------------------- what is not run


def test_maps_that_are_too_large_are_not_made(scenes, monkeypatch):
    monkeypatch.setattr(policies_literal, "LARGEST", 1000)
    case = Case("fastv", "keep 25 %", {"keep_ratio": 0.25}, scenes["llava-1.5"])
    row = literal_row(case, 1, {}, None)
    assert "4 heads by 44 by 44" in row["skipped"] and "same" not in row and row["policy"] == "fastv"
    assert "skipped" in summary([row]) and "1 literal forms were not run" in summary([row])


def test_what_would_take_too_long_is_not_run(scenes):
    """Oracle: by hand. Twice the tokens take four times as long."""
    case = Case("fastv", "keep 25 %", {"keep_ratio": 0.25}, scenes["llava-1.5"])
    row = literal_row(case, 1, {}, {"visual": 18, "literal_seconds": PATIENCE / 4 + 1})
    assert f"about {PATIENCE + 4:.0f} s" in row["skipped"]
    assert "same" in literal_row(case, 1, {}, {"visual": 18, "literal_seconds": PATIENCE / 4 - 1})
    assert "same" in literal_row(case, 1, {}, {"visual": 18, "skipped": "too large"})


def test_a_policy_without_a_literal_form_says_so(scenes):
    row = literal_row(Case("pool", "keep 25 %", {"keep_ratio": 0.25}, scenes["llava-1.5"]), 1, {}, None)
    assert row["skipped"] == "no literal form of this policy is written"


def test_what_fails_is_a_row(monkeypatch, capsys):
    run = Run(parse(["--quick", "--only", "random"]))

    def fails():
        raise ValueError("no such thing")

    jobs = [Job("one", 1, {"what": "share", "policy": "random"}, fails), Job("two", 1, {}, lambda: [{"what": "mmr"}])]
    monkeypatch.setattr(run, "jobs", lambda: jobs)
    assert run.rows() == [{"what": "share", "policy": "random", "error": "ValueError: no such thing"}, {"what": "mmr"}]
    assert "one" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ literal forms


def test_a_full_map_is_eager_attention(scenes):
    """Oracle: torch's own attention, with values that are the columns themselves."""
    call = State(scenes["llava-next"], torch.arange(80), scenes["llava-next"].hidden).call
    share = call.query.shape[1] // call.key.shape[1]
    key = call.key.repeat_interleave(share, 1)
    values = torch.eye(key.shape[2]).expand(*key.shape[:2], -1, -1)
    for causal in (True, False):
        expected = torch.nn.functional.scaled_dot_product_attention(
            call.query, key, values, is_causal=causal, scale=call.scaling
        )
        torch.testing.assert_close(full_map(call, causal=causal), expected[0], rtol=1e-5, atol=1e-6)


def test_a_map_beyond_the_limit_is_refused_before_it_is_made():
    many = 1 << 16
    call = Call(torch.zeros(1, 1, 1, 1).expand(1, 32, many, 1), torch.zeros(1, 1, 1, 1).expand(1, 32, many, 1), 1.0)
    with pytest.raises(TooLarge, match="1024.0 GiB"):
        full_map(call)


def test_the_lowest_row_wins_a_tie():
    assert best(torch.tensor([1.0, 3.0, 3.0, 0.0, 3.0]), 2).tolist() == [1, 2]


@pytest.mark.parametrize(("parallel_k", "order"), [(1, [0, 3, 1]), (2, [0, 1, 3])])
def test_literal_mmr_on_four_vectors(parallel_k, order):
    """Oracle: by hand, lambda 0.5; two at a time, the first two are the most important."""
    x = torch.tensor([[1.0, 0.0], [0.96, 0.28], [0.0, 1.0], [-0.6, 0.8]])
    importance = torch.tensor([0.4, 0.3, 0.2, 0.1])
    assert literal_mmr(x, importance, 3, parallel_k=parallel_k).tolist() == order


def test_where_picks_part_is_told():
    """Oracle: by hand. After token 0, token 2 (orthogonal) and token 3 (opposite) score 0 and 0.5."""
    x, importance = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [-1.0, 0.0]]), torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert order_agreement([0, 3], [0, 3], x, importance) == {"same": True}
    found = order_agreement([0, 3], [0, 2], x, importance)
    assert found == {"same": False, "differing": 1, "part_at": 1, "gap": pytest.approx(0.5)}
    assert order_agreement([0, 3], [3, 0], x, importance)["gap"] == pytest.approx(1, abs=1e-5)


def test_clustered_features_are_near_duplicates():
    """Oracle: cosines of a token and the seven that share its direction, and of others."""
    x, importance = features_of("clustered", 80, 512)
    unit = torch.nn.functional.normalize(x, dim=-1)
    alike = (unit @ unit.T)[0] > 0.9
    assert alike.nonzero().flatten().tolist() == list(range(0, 80, 10))
    assert importance.shape == (80,) and importance.sum() == pytest.approx(1)


@pytest.mark.parametrize(("n", "keep", "bound"), [(60, 0.5, "speedup >= 1"), (2880, 0.1, "speedup >= 3")])
def test_mmr_is_held_to_its_bound(n, keep, bound):
    row = mmr_row("gaussian", n, 8, keep, 1, {})
    assert row["bound"] == bound and row["same"]


# --------------------------------------------------------------------------------------------------------- turns


@pytest.mark.parametrize(
    ("seconds", "rounds", "timed", "calls"),
    [
        (BRIEF / 4, 2, 6, 7),  # brief: a warm-up, then three times as many
        (LONG / 4, 2, 2, 3),  # a warm-up
        (LONG, 3, 3, 3),  # the first counts
        (BUDGET / 4, 3, 2, 2),  # what fits into the budget
        (BUDGET, 3, 1, 1),  # once will do
    ],
)
def test_long_calls_are_timed_less_often(seconds, rounds, timed, calls):
    """Oracle: by hand; two calls of ``seconds`` each."""
    clock = Clock()
    found = turns({name: clock.takes(name, seconds) for name in "ab"}, rounds, {"clock": clock})
    assert {name: len(values) for name, values in found.items()} == {"a": timed, "b": timed}
    assert list(found) == ["a", "b"] and found["a"] == pytest.approx([seconds] * timed)
    assert clock.order.count("a") == clock.order.count("b") == calls


# ------------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--only", "fastvv"], ["--only", "fastv", "got fastvv"]),
        (["--models", "llava"], ["--models", "llava-1.5", "got llava"]),
        (["--keep", "25"], ["fractions of visual tokens KEPT", "(0, 1]", "25"]),
        (["--rounds", "0"], ["1 or more", "got 0"]),
        (["--device", "tpu"], ["tpu", "cpu", "cuda"]),
        (["--parts", "selections"], ["selections", "selection", "signals", "share", "mmr"]),
    ],
)
def test_wrong_arguments_teach(argv, told, capsys):
    with pytest.raises(SystemExit):
        parse(argv)
    said = capsys.readouterr().err
    assert all(part in said for part in told), said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_told(capsys):
    with pytest.raises(SystemExit):
        parse(["--device", "cuda"])
    assert "use --device cpu" in capsys.readouterr().err


def test_only_a_whole_run_leaves_a_file_of_its_own_accord(tmp_path):
    assert result_file(parse([])).name == "policies-cpu.json"
    for part in (["--quick"], ["--only", "fastv"], ["--models", "llava-1.5"], ["--parts", "selection"]):
        assert result_file(parse(part)) is None
        assert result_file(parse([*part, "--out", str(tmp_path / "x.json")])) == tmp_path / "x.json"


def test_a_run_writes_its_rows_and_its_tables(tmp_path, capsys):
    threads = torch.get_num_threads()
    path = tmp_path / "found.json"
    argv = ["--quick", "--only", "fastv", "mmr", "--models", "llava-1.5", "--keep", "0.5", "--out", str(path)]
    try:
        policies.main(argv)
    finally:
        torch.set_num_threads(threads)
    found, said = json.loads(path.read_text()), capsys.readouterr()
    assert {"device", "threads", "commit", "command", "versions", "date", "clock", "rows"} == {*found}
    assert {row["what"] for row in found["rows"]} == {"rate", "prefill", "selection", "share", "literal", "mmr"}
    assert path.with_suffix(".txt").read_text() == said.out
    assert "derived (not run)" in said.out and "bounds met" in said.out
    assert "left] mmr on 60 x 16" in said.err and "fastv on tiny, image" in said.err


def test_time_left_follows_what_was_done(capsys):
    """Oracle: by hand. Half of the work is done, so as much time is left as was spent."""
    tell = Progress(20.0)
    tell("first", 10.0)
    tell.start -= timedelta(seconds=8)
    tell("second", 10.0)
    first, second = capsys.readouterr().err.splitlines()
    assert "unknown] first" in first and "about 8 s left] second" in second


def test_tables_show_every_row_and_what_is_not_as_it_should_be(rows):
    text = tables(rows)
    for row in rows:
        assert row["what"] in ("rate", "prefill", "mmr") or row["policy"] in text
    said = summary([{"what": "mmr", "features": "gaussian", "same": False, "differing": 3, "part_at": 5, "gap": 1e-7}])
    assert "0 of 1 literal forms gave the same" in said and "3 tokens pick 5, by 1e-07" in said


def test_signals_are_computed_in_every_timed_call(scenes, monkeypatch):
    """Oracle: counts. What was remembered while recording must not make the timed calls cheaper."""
    scene, calls = scenes["llava-1.5"], []
    case = Case("vtc_cls", "keep 25 %", {"keep_ratio": 0.25}, scene)
    whole = scene.from_tower
    monkeypatch.setattr(scene, "from_tower", lambda need: calls.append(need.text) or whole(need))
    case.ours(), case.ours()
    assert calls == ["cls_attention:-4,-3,-2"] * 2
    rows = []
    monkeypatch.setattr(State, "decoder_rows", lambda self, need: rows.append(need.text) or torch.rand(self.n))
    case = Case("fastv", "keep 25 %", {"keep_ratio": 0.25}, scene)
    case.ours(), case.ours()
    assert rows == ["last_query_attention"] * 3
