"""The compare and batch tabs and the video tab, without a page: what is counted, against counting by other means."""

import json

import numpy as np
import pytest
import torch

import vtprune
from vtprune.cli.error import UserError
from vtprune.demo.batch import check_count, interval, questions, series, tallies
from vtprune.demo.clip_study import ClipAnswered, Stage, answer_clip
from vtprune.demo.controls import read_policy
from vtprune.demo.grid import caption_of, compare, draw_grid, plain_cells, plan
from vtprune.demo.shown import example_clip, example_picture
from vtprune.embedded.asking import replies


def test_the_grid_is_sorted_by_agreement_and_keeps_its_errors(engine):
    """Oracle: total variation distance of the first token, computed here from the model's own logits."""
    shown = example_picture("bundled")
    question = shown.questions[0][0]
    *_, (cells, n) = compare(engine, shown, question, ["random", "none", "transprune"], [0.1, 1.0])
    assert n == len(cells) == 5
    known = [cell.agreement for cell in cells]
    assert known == sorted(known, reverse=True) and cells[0].agreement == pytest.approx(1)
    pruned = next(cell for cell in cells if cell.name == "random 0.1")
    with engine.use("image") as loaded:
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        text = loaded.processor.apply_chat_template(chat, add_generation_prompt=True)
        inputs = loaded.processor(text=text, images=shown.visual, return_tensors="pt")
        p = loaded.model(**inputs).logits[0, -1].double().softmax(-1)
        with vtprune.pruned(loaded.model, "random", keep_ratio=0.1):
            q = loaded.model(**inputs).logits[0, -1].double().softmax(-1)
    assert pruned.agreement == pytest.approx(float(torch.minimum(p, q).sum()), abs=1e-5)
    assert "14 of 144 tokens" in caption_of(pruned)
    assert len(json.loads(json.dumps(plain_cells(cells), allow_nan=False))) == 5
    grid = draw_grid(cells, question)
    assert grid.width == 4 * 336 + 3 * 16 and len(np.unique(np.asarray(grid))) > 50


def test_a_policy_that_cannot_is_a_cell_that_says_why(engine, monkeypatch):
    from vtprune.policies.fastv import FastV

    def refuse(self, tokens):
        raise ValueError("not today")

    monkeypatch.setattr(FastV, "select", refuse)
    *_, (cells, _) = compare(
        engine, example_picture("scene 1"), "How many objects are there?", ["fastv", "none"], [0.5]
    )
    assert [cell.error for cell in cells] == ["", "not today"] and "not today" in caption_of(cells[1])
    draw_grid(cells, "?")


@pytest.mark.parametrize(
    ("policies", "ratios", "message"),
    [
        ([], [0.5], "1 to 36 cells; got 0 policies"),
        (["fastv"], [], "and 0 ratios"),
        (["fastv"] * 37, [0.5], "which make 37"),
        (["fastv"], [0], r"KEPT, in \(0, 1\]; got 0"),
        (["fastv"], ["0.5"], "got '0.5'"),
        (["nope"], [0.5], "unknown policy 'nope'"),
    ],
)
def test_a_comparison_that_makes_no_sense(policies, ratios, message):
    with pytest.raises(UserError, match=message):
        plan(policies, ratios)


def test_the_batch_counts_what_is_right(engine):
    """Oracle: the answers of the evaluation of the embedded model, compared here."""
    counts = []
    for counts in tallies(engine, 20, ["random"], [0.25]):
        assert counts[0].asked in (16, 20)
    asked = questions(20)
    pairs = [(picture, text) for picture, text, _ in asked]
    with engine.use("image") as loaded:
        whole = list(replies(loaded.model, loaded.processor, pairs, "image", 10))
        with vtprune.pruned(loaded.model, "random", keep_ratio=0.25):
            less = list(replies(loaded.model, loaded.processor, pairs, "image", 10))
    right = [answer for *_, answer in asked]
    assert [tally.right for tally in counts] == [sum(map(str.__eq__, said, right)) for said in (whole, less)]
    assert [tally.tokens / tally.asked for tally in counts] == [144, 36]
    points, unpruned = series(counts)
    assert points["random"][0].tokens == 36 and unpruned.share == counts[0].right / 20


def test_wilsons_interval():
    """Oracle: roots of |p - x| = 1.96 sqrt(x (1 - x) / n), which is its definition."""
    for right, n in ((0, 10), (3, 10), (10, 10), (57, 60)):
        p = right / n
        low, high = interval(right, n)
        for x in (low, high):
            assert abs(abs(p - x) - 1.96 * np.sqrt(x * (1 - x) / n)) < 1e-9
        assert low <= p <= high


@pytest.mark.parametrize("n", [3, 401, 8.5, "8", None, float("nan")])
def test_a_number_of_questions_that_is_none(n):
    with pytest.raises(UserError, match="from 4 to 400"):
        check_count(n)


def test_a_clip_is_answered_in_stages_and_counted_by_step(engine):
    """Oracle: the report of the same prompt; steps add up to its totals. Whoever stops asking stops the work."""
    shown = example_clip("bundled", 16)
    question = shown.questions[0][0]
    policy = read_policy("framefusion", 0.25, "")
    *stages, found = answer_clip(engine, shown, question, "framefusion", policy, rounds=0)
    assert all(isinstance(stage, Stage) for stage in stages) and isinstance(found, ClipAnswered)
    assert [stage.share for stage in stages] == sorted(stage.share for stage in stages)
    steps, pruned = found.values["steps"], found.values["pruned"]
    assert len(steps) == 8 and sum(step["kept"] for step in steps) == pruned["visual_tokens"]
    assert sum(step["of"] for step in steps) == pruned["visual_tokens_before"] == 128
    rows = {row["name"]: row for row in found.values["same_budget"]["rows"]}
    assert rows["more frames, pruned"]["frames"] > 16 > rows["fewer frames, unpruned"]["frames"]
    assert found.drawn.sheet.width > 600 and len(found.drawn.panels) == 8
    json.dumps(found.values, allow_nan=False)

    work = answer_clip(engine, shown, question, "framefusion", policy)
    next(work)
    work.close()
    with engine.use("video") as loaded:
        assert not vtprune.is_wrapped(loaded.model)


def test_quota_spends_its_budget_by_what_frames_are_worth(engine):
    """Oracle: the event: the frames in which the thing that is asked about is seen get more than an even share."""
    from vtprune.embedded.clips import make_clip

    shown = example_clip("bundled", 64)
    event = next(event for event in make_clip(1000, "test", 64).events if event.name == "8")
    policy = read_policy("quota", 0.25, "")
    *_, found = answer_clip(engine, shown, "What color is the 8?", "quota", policy, more_frames=False, rounds=0)
    kept = [step["kept"] for step in found.values["steps"]]
    inside = kept[event.first // 2 : event.last // 2]
    assert np.mean(inside) > 2 * np.mean(kept)
