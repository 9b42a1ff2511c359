"""The quality benchmark: intervals by scene, random twins, honest rows."""

import json
import math

import pytest
import torch

import vtprune
from benchmarks import quality
from benchmarks.quality_table import judged, mean_interval, table, verdict
from vtprune.embedded import load_image
from vtprune.policies.random import Random


@pytest.fixture(scope="module")
def embedded():
    return load_image()


@pytest.fixture(scope="module")
def asked():
    return quality.held_out(30)


def test_independent_values_have_the_textbook_interval():
    """Oracle: the standard error of a mean."""
    values = [0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    mean, half = mean_interval(values, range(6))
    assert mean == pytest.approx(4 / 6)
    assert half == pytest.approx(1.96 * torch.tensor(values).std().item() / math.sqrt(6))


def test_repeating_a_scene_s_questions_does_not_narrow_the_interval():
    """Oracle: the same scenes with one question each; copies add no knowledge."""
    values = [0.2, 1.0, 0.6, 0.0]
    once = mean_interval(values, range(4))
    copied = mean_interval([v for v in values for _ in range(5)], [s for s in range(4) for _ in range(5)])
    assert copied == pytest.approx(once)
    assert math.isnan(mean_interval([1.0, 0.0], [3, 3])[1])


def test_differences_are_paired():
    """Oracle: two policies with the same hits differ by nothing at all, however wide their own intervals are."""
    chance, same, better = [1, 0, 1, 0], [1, 0, 1, 0], [1, 1, 1, 1]
    plain = {
        "keep_ratio": 0.5,
        "kept": 1,
        "of": 2,
        "sites": [-1],
        "layer_share": 0.5,
        "flops_share": 0.5,
        "positions": "original",
    }
    rows = [
        {"policy": "random", **plain, "right": chance},
        {"policy": "same", **plain, "right": same},
        {"policy": "better", **plain, "right": better},
        {"policy": "inside", **plain | {"sites": [2]}, "right": better, "twin_right": better},
        {"policy": "idle", **plain | {"kept": 2}, "right": better},
        {"policy": "refused", "keep_ratio": 0.5, "error": "cannot"},
    ]
    found = {row["policy"]: row for row in judged(rows, range(4), ["color", "color", "where", "where"])}
    assert "over_random" not in found["random"] and "right" not in found["random"]
    assert found["same"]["over_random"] == found["same"]["over_random_interval"] == 0
    assert verdict(found["same"]).endswith("not told apart")
    assert found["better"]["over_random"] == pytest.approx(0.5)
    assert found["inside"]["over_random"] == 0, "compared with its own twin"
    assert found["better"]["kinds"] == {"color": 1, "where": 1} and found["same"]["kinds"] == {
        "color": 0.5,
        "where": 0.5,
    }
    text = table(list(found.values()), 4, 4)
    assert text.count("nothing was pruned") == 1
    assert "refused: cannot" in text and text.index("`better`") < text.index("`same`")


def test_a_policy_is_read_as_on_the_command_line():
    assert quality.parse_policy("fastv:layer=3") == ("fastv", ["layer=3"], None)
    assert quality.parse_policy("vtc_cls:positions=original") == ("vtc_cls", [], "original")
    assert [policy.seed for policy in quality.runs_of("random", 0.25)] == list(quality.SEEDS)
    [policy] = quality.runs_of("fastv:layer=3", 0.25)
    assert (policy.layer, policy.keep_ratio) == (3, 0.25)


def test_a_twin_keeps_as_many_at_each_site(embedded, asked):
    """Oracle: the report of the policy; and at one site before the LLM, the policy ``random`` itself."""
    model, processor = embedded
    with vtprune.pruned(model, "transprune", keep_ratio=0.2) as report:
        quality.right(model, processor, asked)
        counts = [(record.site, record.after) for record in report.sites]
        twin = quality.Twin.of(report, 0)
    with vtprune.pruned(model, twin) as report:
        quality.right(model, processor, asked)
        assert [(record.site, record.after) for record in report.sites] == counts
    with vtprune.pruned(model, Random(keep_ratio=0.2, seed=1)) as report:
        expected = quality.right(model, processor, asked)
        twin = quality.Twin.of(report, 1)
    with vtprune.pruned(model, twin):
        assert quality.right(model, processor, asked) == expected


def test_a_share_of_layers_is_a_mean_over_layers(embedded, asked):
    """Oracle: by hand, 6 layers of which the last 3 see a quarter."""
    model, processor = embedded
    with vtprune.pruned(model, "fastv", layer=3, keep_ratio=0.25) as report:
        quality.right(model, processor, asked)
        assert quality.layer_share(report) == pytest.approx((3 + 3 * 0.25) / 6)


def test_whole_scenes_are_asked(asked):
    assert len(asked) >= 30
    again = quality.held_out(len(asked) - 1)
    assert [one.question for one in again] == [one.question for one in asked]
    assert {one.scene for one in asked} == set(range(asked[-1].scene + 1))


def test_a_run_writes_rows_and_table(tmp_path, capsys):
    """Oracle: every row that was asked for is there; a policy that refuses is a row too."""
    quality.main(
        ["--questions", "20", "--policy", "random", "fastv:layer=2", "fastv:layer=9", "--keep-ratio", "0.25"]
        + ["--out", str(tmp_path)]
    )
    found = json.loads((tmp_path / "quality-embedded-image.json").read_text())
    names = [row["policy"] for row in found["rows"]]
    assert names == ["none", *quality.BLIND, "random", "fastv:layer=2", "fastv:layer=9"]
    assert "layers 0 to 5" in found["rows"][-1]["error"]
    assert found["rows"][0]["accuracy"] > max(row["accuracy"] for row in found["rows"][1:4])
    assert found["questions"] >= 20 and found["commit"]
    assert capsys.readouterr().out == (tmp_path / "quality-embedded-image.txt").read_text()


def test_the_plot_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks.quality_plot import plot

    rows = [
        {"policy": "none", "accuracy": 0.98},
        {"policy": "grey picture", "accuracy": 0.2},
        *(
            {"policy": name, "keep_ratio": share, "kept": 1, "of": 2, "sites": [-1]}
            | {"layer_share": share, "accuracy": share, "interval": 0.01}
            for name in ("random", "fastv")
            for share in (0.1, 0.5)
        ),
    ]
    plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
