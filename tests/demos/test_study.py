"""Answers, and selecting again from what was cached: the same tokens as the model itself would keep, but at once."""

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

import vtprune
from vtprune.cli.error import UserError
from vtprune.demo.controls import read_policy
from vtprune.demo.pictures import by_site, cell_of, check_cell, pictures, story, summary
from vtprune.demo.shown import example_picture
from vtprune.demo.study import Answered, Stage, answering, read_study, reselect
from vtprune.demo.trace import passages, token_at
from vtprune.demo.watch import Watched
from vtprune.draw import heat_map, token_map
from vtprune.policies.base import POLICIES

ONE_SITE = ("fastv", "idpruner", "vtc_cls", "random", "uniform", "pool", "quota")
SEVERAL = ("transprune", "framefusion", "pyramiddrop", "aim")


def vision_calls(engine):
    """A list that grows whenever the vision tower runs, and the handle to stop it."""
    with engine.use("image") as loaded:
        tower, calls = loaded.model.base_model.vision_tower, []
    return calls, tower.register_forward_hook(lambda *ignored: calls.append(1))


@pytest.mark.parametrize("name", ONE_SITE + SEVERAL)
def test_selecting_again_keeps_what_the_model_would(engine, asked, name):
    """Oracle: the model, asked with the other ratio. The vision tower does not run, and merges are the same."""
    found = asked(name, 0.25)
    calls, handle = vision_calls(engine)
    try:
        again = reselect(engine, found, 0.6)
    finally:
        handle.remove()
    assert not calls
    wanted = asked(name, 0.6).trace
    assert [stop.site for stop in again.stops] == [stop.site for stop in wanted.stops]
    for stop, other in zip(again.stops, wanted.stops, strict=True):
        assert torch.equal(stop.rows, other.rows)
    for one, other in zip(again.kept(), wanted.kept(), strict=True):
        assert torch.equal(one.target, other.target)
    # one token may be left at the end whatever the ratio, as AIM's publication has it
    assert sum(len(stop.rows) for stop in again.stops) > sum(len(stop.rows) for stop in found.trace.stops)


def test_answers_come_in_steps_and_whoever_stops_asking_stops_the_work(engine, asked):
    """Oracle: the answer that is not given in steps; and the model, which nobody asks any more."""
    wanted = asked("fastv", 0.25)
    policy, held = read_policy("fastv", 0.25, "layer=3"), []

    @contextmanager
    def use():
        with engine.use("image") as loaded:
            held.append(True)
            yield loaded
        held.pop()

    steps = answering(use, wanted.study, "fastv", policy, rounds=2)
    found = []
    for step in steps:
        # somebody else may have the model in between
        assert not held
        found += [] if isinstance(step, Stage) else [step.values]
    assert [(one["unpruned"] is None, one["runs"]) for one in found] == [(True, 0), (False, 0), (False, 2)]
    assert found[1] == wanted.values and found[2]["pruned"]["prefill_ms"] > 0
    assert {**found[0], "unpruned": found[1]["unpruned"], "comparison": found[1]["comparison"]} == wanted.values

    calls = []
    with engine.use("image") as loaded:
        handle = loaded.model.register_forward_pre_hook(lambda *ignored: calls.append(1))
    stopped = answering(use, wanted.study, "fastv", policy)
    until = next(one for one in stopped if isinstance(one, Answered))
    before = len(calls)
    stopped.close()
    handle.remove()
    assert until.values["unpruned"] is None and len(calls) == before > 0


def test_moving_the_ratio_takes_less_than_200_ms_with_its_drawing(engine, asked):
    """Processor time, of which a busy machine gives others no share; the median of five."""
    for name in ("fastv", "transprune"):
        found, taken = asked(name, 0.25), []
        for ratio in (0.1, 0.3, 0.5, 0.7, 0.9):
            start = time.thread_time()
            trace = reselect(engine, found, ratio)
            token_map(found.study.seen, trace.kept()[0])
            taken.append(time.thread_time() - start)
        assert sorted(taken)[2] < 0.2, f"{name}: {taken}"


def test_a_watched_policy_changes_nothing(engine, asked):
    """Oracle: the tokens and logits of the model under the policy itself."""
    with engine.use("image") as loaded:
        inputs = dict(asked("transprune", 0.3).study.raw)
        with vtprune.pruned(loaded.model, "transprune", keep_ratio=0.3) as report:
            wanted = loaded.model(**inputs).logits
            rows = [record.kept[0] for record in report.sites]
        watched = Watched(vtprune.POLICIES["transprune"](keep_ratio=0.3))
        with vtprune.pruned(loaded.model, watched) as report:
            for _ in range(2):
                assert torch.equal(loaded.model(**inputs).logits, wanted)
        assert all(map(torch.equal, rows, (record.kept[0] for record in report.sites)))
    assert [offer.site for offer in watched.offers] == list(report.policy.sites)


def test_answers_are_those_of_the_command_line(engine, asked, tmp_path, capsys):
    """Oracle: ``vtprune run --json`` on the same picture and question."""
    import json

    from vtprune.cli import main

    line = "run --policy fastv --keep-ratio 0.25 --option layer=3 --runs 0 --compare --json - --device cpu"
    assert main(line.split()) == 0
    wanted, found = json.loads(capsys.readouterr().out), asked("fastv", 0.25).values
    for part in ("unpruned", "pruned"):
        assert found[part] == wanted[part]
    assert found["comparison"] == wanted["comparison"] and found["right_answer"] == wanted["right_answer"] == "5"


def test_a_token_tells_its_score_its_rank_and_its_fate(asked):
    """Oracle: FastV's rule: the 36 of highest score live, the others are dropped at its only site."""
    trace = asked("fastv", 0.25).trace
    told = [passages(trace, token) for token in range(144)]
    assert all(len(one) == 1 and one[0].of == 144 for one in told)
    assert sorted(one[0].rank for one in told) == list(range(1, 145))
    for (one,) in told:
        assert one.fate == ("kept" if one.rank <= 36 else "dropped")
        assert one.rank - 1 == sum(other.score > one.score for (other,) in told)
    number, score, _ = trace.scored
    assert number == 0 and np.allclose(trace.heat().ravel(), score)
    assert token_at(trace, 2, 3) == 2 * 12 + 3 and token_at(trace, 12, 0) is None
    assert "visual token 28 of 144" in story(trace, 2, 3)[0] and "rank" in story(trace, 2, 3)[1]


def test_a_token_is_dropped_where_it_was_dropped(asked):
    """Oracle: the counts of each site: so many tokens end there, and no token has a passage after its end."""
    trace = asked("transprune", 0.25).trace
    told = [passages(trace, token) for token in range(144)]
    before = 144
    for number, stop in enumerate(trace.stops):
        assert sum(len(one) == number + 1 and one[-1].fate == "dropped" for one in told) == before - len(stop.rows)
        before = len(stop.rows)
    assert sum(one[-1].fate == "kept" for one in told) == trace.left
    # scores are those of the last site: what was dropped before it has none
    unknown = np.isnan(trace.heat()).ravel()
    assert unknown.tolist() == [len(one) == 1 for one in told] and 0 < unknown.sum() < 20
    assert len(by_site(asked("transprune", 0.25), trace)) == len(trace.stops) == 2
    assert summary(trace).startswith(f"Kept {trace.left} of 144")


def test_a_merged_token_names_the_one_it_became(asked):
    """Oracle: of pooling to 36 tokens on 12 x 12, cells of 2 x 2: a merged token is at most one cell from its own."""
    trace = asked("pool", 0.25).trace
    merged = 0
    for row in range(12):
        for column in range(12):
            (one,) = passages(trace, token_at(trace, row, column))
            if one.fate != "kept":
                words = one.fate.replace(",", "").split()
                to = int(words[words.index("row") + 1]) - 1, int(words[words.index("column") + 1]) - 1
                assert to[0] // 2 == row // 2 and to[1] // 2 == column // 2
                merged += 1
    assert merged == 144 - 36
    assert trace.scored is None and pictures(asked("pool", 0.25), trace).why


def test_the_pictures_are_those_of_the_scores(asked):
    found = asked("fastv", 0.25)
    drawn = pictures(found, found.trace)
    assert drawn.original.size == drawn.heat.size == drawn.kept.size == (672, 672)
    wanted = heat_map(found.study.seen, found.trace.heat())
    assert np.array_equal(np.asarray(drawn.heat), np.asarray(wanted))
    assert (drawn.low, drawn.high) == (float(found.trace.heat().min()), float(found.trace.heat().max()))
    ringed = pictures(found, found.trace, (3, 4))
    changed = (np.asarray(ringed.heat) != np.asarray(drawn.heat)).any(-1)
    rows, columns = changed.nonzero()
    assert 3 * 56 - 10 < rows.min() and rows.max() < 4 * 56 + 10 and 4 * 56 - 10 < columns.min()


@pytest.mark.parametrize("place", [(0, 1), (1, 13), (1.5, 1), ("1", 1), (None, 1), (float("nan"), 1), (True, 1)])
def test_a_cell_that_is_not_there_is_refused(asked, place):
    with pytest.raises(UserError, match="rows 1 to 12 and columns 1 to 12"):
        check_cell(asked("fastv", 0.25).trace, *place)


def test_a_click_outside_is_refused(asked):
    trace = asked("fastv", 0.25).trace
    assert cell_of((672, 672), trace, 671, 0) == (0, 11)
    with pytest.raises(UserError, match="no visual token"):
        cell_of((672, 672), trace, 700, 0)


@pytest.mark.parametrize("question", ["", "  ", None, 3, "why " * 1000])
def test_a_question_is_in_words_and_not_endless(engine, question):
    with engine.use("image") as loaded, pytest.raises(UserError, match="question"):
        read_study(loaded, example_picture("bundled"), question)


def test_a_policy_of_ones_own_is_shown_too(engine, asked):
    """A policy that nothing is inherited from, with a ratio, a signal and one site."""

    @dataclass
    class Every:
        keep_ratio: float = 0.5
        needs: ClassVar[frozenset] = frozenset({"last_query_attention"})
        sites: ClassVar[tuple] = (2,)

        def select(self, tokens):
            tokens.signals["last_query_attention"]
            return vtprune.Selection(torch.arange(0, len(tokens), round(1 / self.keep_ratio)))

    from vtprune.demo.study import answer

    with engine.use("image") as loaded:
        found = answer(loaded, asked("fastv", 0.25).study, "every", Every(), rounds=0)
    assert found.trace.left == 72 and found.trace.scored[2] == "last_query_attention"
    assert reselect(engine, found, 0.25).left == 36
    assert "every" not in POLICIES


@pytest.mark.parametrize(("family", "grid"), [("llava_next", True), ("idefics3", False)])
def test_models_whose_pictures_have_several_views_or_tiles(tmp_path, family, grid):
    """Two views are drawn side by side; of tiles that are images of their own the numbers hold, without drawings."""
    from tests import model_folder
    from vtprune.demo.clip_study import answer_clip
    from vtprune.demo.controls import read_policy
    from vtprune.demo.engine import Engine
    from vtprune.demo.shown import example_clip
    from vtprune.demo.study import answer

    engine = Engine(str(model_folder.write_family(tmp_path / family, family)), device="cpu")
    with engine.use("image") as loaded:
        study = read_study(loaded, example_picture("bundled"), "w7 w8")
        found = answer(loaded, study, "fastv", read_policy("fastv", 0.3, ""), rounds=0)
    again, drawn = reselect(engine, found, 0.6), pictures(found, found.trace)
    assert again.left == 2 * found.trace.left == found.values["pruned"]["visual_tokens"] * 2
    assert (drawn.kept is not None) == (drawn.heat is not None) == grid and bool(drawn.why) != grid
    if grid:
        assert drawn.kept.width > drawn.heat.width == drawn.original.width
    else:
        with pytest.raises(UserError, match="places of the visual tokens are unknown"):
            check_cell(found.trace, 1, 1)
    clip = example_clip("clip 7", 4)
    policy = read_policy("framefusion", 0.3, "")
    *_, film = answer_clip(engine, clip, "w7", "framefusion", policy, more_frames=False, rounds=0)
    assert film.drawn is None and any("no drawing" in note for note in film.values["notes"])
    assert 0 < film.values["pruned"]["visual_tokens"] < film.values["pruned"]["visual_tokens_before"]
