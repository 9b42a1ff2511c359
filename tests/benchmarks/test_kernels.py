"""The kernels' benchmark on tiny shapes: that its forms agree and its rows are right, never how long anything takes."""

import json
from importlib.util import find_spec

import pytest
import torch

from benchmarks import kernels, kernels_rows, kernels_time
from benchmarks.kernels import parse, result_file, text_of
from benchmarks.kernels_cases import frames_of
from benchmarks.kernels_limits import Limits, measured
from benchmarks.kernels_rows import OPERATIONS, Bench
from benchmarks.kernels_selection import HEADS, heads_of
from benchmarks.kernels_table import summary, tables
from benchmarks.kernels_time import Teller
from benchmarks.policies_literal import TooLarge

LIMITS = Limits(bandwidth=1e9, rate=1e12)


def bench(**options) -> Bench:
    return Bench("cpu", torch.float32, LIMITS, 1, {}, **options)


def numbers(answer) -> list[torch.Tensor]:
    return list(answer) if isinstance(answer, tuple) else [answer]


@pytest.mark.parametrize("n", [4, 17, 40])
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_forms_of_an_operation_say_the_same(name, n):
    """Oracle: plain torch in float64; then the literal form beside plain torch."""
    case = OPERATIONS[name](n, 8, torch.float32, "cpu")
    precise = [t.double() if torch.is_tensor(t) and t.is_floating_point() else t for t in case.inputs]
    expected = numbers(case.plain(*precise))
    forms = [case.ours, case.reference, case.plain, *([case.literal] if case.literal else [])]
    for form in forms:
        found = numbers(form(*case.inputs))
        assert len(found) == len(expected)
        for a, b in zip(found, expected):
            if case.exact:
                assert torch.equal(a.double(), b.double())
            else:
                torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)
    assert case.moved > 0 and bool(case.about) == bool(case.literal)


def test_the_least_work_is_what_it_is_by_hand():
    """Oracle: by hand. 80 of 128 rows of 8 numbers read and written in bf16; two tensors read, one number a row."""
    gather = OPERATIONS["gather_tokens"](64, 8, torch.bfloat16, "cpu")
    assert gather.moved == 2 * 80 * 8 * 2 + 80 * 8
    assert OPERATIONS["transition"](64, 8, torch.bfloat16, "cpu").moved == 2 * 64 * 8 * 2 + 64 * 4
    rows = OPERATIONS["attention_rows"](64, 896, torch.bfloat16, "cpu")
    assert rows.flops == 2 * 14 * 32 * 64 * 64 and rows.moved == 2 * (14 * 32 + 2 * 64) * 64 + 4 * 32 * 64
    columns = OPERATIONS["attention_columns"](4, 8, torch.bfloat16, "cpu")
    assert columns.flops == 2 * (2 * 2 * 4) * (1 + 2 + 3 + 4)


def test_the_limit_is_the_slower_of_bytes_and_flops():
    limits = Limits(bandwidth=100.0, rate=1000.0)
    assert limits.seconds(200, 1000) == (2.0, "bytes")
    assert limits.seconds(200, 3000) == (3.0, "FLOPs")


def test_limits_are_work_over_seconds():
    """Oracle: by hand, a clock on which every copy or product takes two seconds."""
    now = iter(range(0, 10**6, 2))
    rows, limits = measured("cpu", torch.float32, 3, {"clock": lambda: float(next(now))}, tiny=True)
    copy, product = rows
    assert copy["bytes_per_second"] == limits.bandwidth == 2 * (1 << 20) / 2
    assert product["flops_per_second"] == limits.rate == 2 * 64**3 / 2


def test_a_row_has_what_was_promised():
    row = bench().row("frame_similarity", 40, 8)
    spread = lambda name: {name, f"{name}_min", f"{name}_max"}  # noqa: E731
    fields = {"what", "op", "n", "d", "dtype", "shapes", "kernel", "moved_bytes", "flops", "literal", "runs"}
    fields |= {"limit_seconds", "limited_by", "of_limit", "difference"}
    for form in ("ours", "plain", "literal"):
        fields |= spread(f"{form}_seconds")
    fields |= spread("over_plain") | spread("over_literal")
    assert {*row} == fields
    assert row["kernel"] is False and row["difference"] < 1e-6
    assert row["of_limit"] == row["limit_seconds"] / row["ours_seconds"]
    json.dumps(row)


def test_ratios_say_how_many_times_as_fast_ours_is(monkeypatch):
    """Oracle: by hand; ours takes two seconds, plain torch six, so ours is three times as fast."""
    made = {"ours": [2.0, 2.0], "plain": [6.0, 8.0]}
    monkeypatch.setattr(kernels_rows, "timed", lambda calls, *more: {form: made[form] for form in calls})
    row = bench().row("transition", 16, 8)
    assert (row["over_plain"], row["over_plain_min"], row["over_plain_max"], row["runs"]) == (3.5, 3.0, 4.0, 2)


def test_what_would_take_too_long_is_not_run():
    """Oracle: by hand. At twice the size rows take twice the 3 s, and attention four times as long."""
    made = bench(patience=5.0)
    made.seen["transition", 8, "plain"] = (16, 3.0)
    row = made.row("transition", 32, 8)
    assert "about 6 s" in row["not_run"]["plain"] and "plain_seconds" not in row and "ours_seconds" in row
    made.seen["attention_columns", 8, "ours"] = (16, 3.0)
    assert "about 12 s" in made.row("attention_columns", 32, 8)["error"]
    assert made.seen["transition", 8, "ours"][0] == 32


def test_an_operation_that_is_not_there_or_fails_is_a_row(monkeypatch):
    def missing(*arguments):
        raise ImportError("no such thing")

    def large(*arguments):
        raise TooLarge("9 GiB")

    def broken(*arguments):
        raise RuntimeError("out of memory")

    for name, make in (("pack", missing), ("unpack", large), ("transition", broken)):
        monkeypatch.setitem(OPERATIONS, name, make)
    rows = [bench().row(name, 16, 8) for name in ("pack", "unpack", "transition")]
    assert [row["error"] for row in rows] == [
        "not there: no such thing",
        "TooLarge: 9 GiB",
        "RuntimeError: out of memory",
    ]
    assert "3 failed" in summary(rows) and "9 GiB" in tables(rows)


def test_answers_that_differ_are_told(monkeypatch):
    case = OPERATIONS["gather_tokens"](16, 8, torch.float32, "cpu")
    wrong = lambda *arguments: type(case)(**{**vars(case), "ours": lambda x, columns: x[:, :1]})  # noqa: E731
    monkeypatch.setitem(OPERATIONS, "gather_tokens", wrong)
    row = bench().row("gather_tokens", 16, 8)
    assert row["same"] is False and "not the same as plain torch" in summary([row]) and "NOT THE SAME" in tables([row])


def test_a_spent_budget_skips_the_rest():
    rows = kernels.all_rows(parse(["--tiny", "--budget", "0"]), {})
    skipped = [row for row in rows if "skipped" in row]
    assert len(skipped) == 2 * len(OPERATIONS) and "0 s" in skipped[0]["skipped"]
    assert Teller(None).spent is False


def test_a_run_leaves_numbers_a_table_and_a_plot(tmp_path, capsys):
    """Oracle: the file, drawn again from what is in it."""
    out = tmp_path / "k.json"
    kernels.main(["--tiny", "--only", "gather_tokens", "greedy_select mmr", "--sizes", "16", "--rounds", "1",
                  "--dtype", "float32", "--out", str(out)])  # fmt: skip
    result = json.loads(out.read_text())
    assert [row["op"] for row in result["rows"] if row["what"] == "kernel"] == ["gather_tokens", "greedy_select mmr"]
    assert {"device", "commit", "versions", "clock", "date"} <= {*result}
    assert out.with_suffix(".txt").read_text().strip() == text_of(result) and "100.0 % of picks" in text_of(result)
    if find_spec("matplotlib"):
        assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    else:
        assert not out.with_suffix(".png").exists()
    printed = capsys.readouterr().out
    again = tmp_path / "again.json"
    kernels.main(["--from", str(out), "--out", str(again)])
    assert json.loads(again.read_text()) == result and capsys.readouterr().out == printed


def test_events_go_forth_and_back(monkeypatch):
    """Oracle: by hand; a device on which every call takes 2 ms, or 0.4 s and 3 s, which are called less often."""
    order, now = [], [0.0]

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = now[0]

        def elapsed_time(self, end):
            return 1000 * (end.at - self.at)

    def takes(name, seconds):
        def call():
            order.append(name)
            now[0] += seconds

        return call

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(kernels_time, "_flush", lambda: torch.empty(1))
    for seconds, rounds in ((0.002, 6), (0.4, 2), (3.0, 1)):
        order.clear()
        found = kernels_time.timed({"a": takes("a", seconds), "b": takes("b", seconds)}, 2, "cuda", {})
        assert found == {name: [pytest.approx(seconds)] * rounds for name in "ab"}
        assert "".join(order) == ("abba" * rounds)[: 2 * rounds]


def test_calls_back_to_back_are_divided_by_their_number(monkeypatch):
    calls = []
    monkeypatch.setattr(
        kernels_time, "in_turns", lambda made, rounds: {n: [c() or 4.0] * rounds for n, c in made.items()}
    )
    assert kernels_time.back_to_back({"a": lambda: calls.append(1)}, 3) == {"a": [0.2] * 3} and len(calls) == 20


def test_frames_and_heads_are_those_of_models():
    assert [frames_of(n) for n in (576, 2880, 16384, 65536, 17)] == [
        (4, 144),
        (20, 144),
        (64, 256),
        (256, 256),
        (17, 1),
    ]
    assert all(heads * size == width and heads % keys == 0 for width, (heads, keys, size) in HEADS.items())
    assert heads_of(8) == (2, 1, 4)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--only", "nothing"], "beginnings of gather_tokens"),
        (["--sizes", "0"], "1 or more"),
        (["--device", "cuda"], "needs a GPU"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(argv, says, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        parse(argv)
    assert says in capsys.readouterr().err


def test_only_a_whole_run_leaves_a_file_of_its_own_accord():
    assert result_file(parse([])).name == "kernels-cpu.json"
    assert [result_file(parse(argv)) for argv in (["--tiny"], ["--only", "pack"], ["--sizes", "576"])] == [None] * 3
