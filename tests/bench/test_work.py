"""A worker's rows. Oracles: the model called by hand, wrapped by hand, and one question at a time."""

import dataclasses
import json

import pytest
import torch
from PIL import Image

import vtprune
from tests.bench.conftest import FULL
from tests.bench.scenes_task import some_questions
from vtprune import compat
from vtprune.bench.condition import Condition
from vtprune.bench.plan import Plan, Unit
from vtprune.bench.question import Visual
from vtprune.bench.work import Worker
from vtprune.cli.measure import total_variation as change
from vtprune.embedded.asking import replies

FASTV = Condition("policy", "fastv", (), 0.25)
RANDOM = Condition("random", "random", (), 0.25, seed=1)
NAMES = {"task", "question", "condition", "row", "cluster", "labels", "options", "answer", "raw", "parsed", "score"}
NAMES |= {
    "correct",
    "error",
    "prompt",
    "visuals",
    "frames",
    "before",
    "after",
    "layers",
    "flops",
    "kept",
    "kv",
    "batch",
    "first",
}
NAMES |= {"change", "new_tokens", "seconds", "notes", "seed", "commit", "versions", "date"}


def by(rows, condition):
    return [row for row in rows if row["condition"] == condition.name]


def by_hand(bench, pairs, policy=None, **options):
    """Answers of the plain or wrapped model to (picture, question) pairs."""
    model, processor = bench.worker.loaded.model, bench.worker.loaded.processor
    if policy is None:
        return list(replies(model, processor, pairs, "image", len(pairs)))
    with vtprune.pruned(model, policy, **options):
        return list(replies(model, processor, pairs, "image", len(pairs)))


def test_rows_are_what_the_model_says_by_hand(bench):
    questions = some_questions(6)
    rows = bench.rows(questions, [FULL, FASTV, RANDOM])
    pairs = [(question.visuals[0].load(), question.text) for question in questions]
    assert len(rows) == 18
    assert [row["raw"] for row in by(rows, FULL)] == by_hand(bench, pairs)
    assert [row["raw"] for row in by(rows, FASTV)] == by_hand(bench, pairs, "fastv", keep_ratio=0.25)
    assert [row["raw"] for row in by(rows, RANDOM)] == by_hand(bench, pairs, "random", keep_ratio=0.25, seed=1)
    for row in rows:
        assert set(row) == NAMES and json.loads(json.dumps(row)) == row
        assert row["score"] == float(row["raw"] == row["answer"]) and row["error"] is None


def test_counts_bytes_and_changes(bench):
    """Oracle: 144 visual tokens in 6 layers, of which FastV prunes from the third on; the cache counts by hand."""
    questions = some_questions(3)
    rows = bench.rows(questions, [FULL, FASTV])
    loaded = bench.worker.loaded
    config = loaded.model.config.text_config
    lengths = [len(loaded.processor.tokenizer(question.text)["input_ids"]) for question in questions]
    assert len(set(lengths)) > 1, "the texts should be padded, or nothing is shown"
    for row in by(rows, FASTV):
        assert row["kept"] == {"layer 2": [144, 36]} and (row["before"], row["after"]) == (144, 36)
        assert row["layers"] == (2 * 144 + (config.num_hidden_layers - 2) * 36) / config.num_hidden_layers
        measured, predicted, unpruned = row["kv"]
        per_token = 2 * config.num_key_value_heads * config.head_dim * 4
        assert measured == predicted
        assert unpruned - measured == 3 * (config.num_hidden_layers - 2) * (144 - 36) * per_token
        assert row["change"] > 1e-4 and row["batch"] == 3
    for row in by(rows, FULL):
        assert row["kv"][0] == row["kv"][1] == row["kv"][2] and row["change"] is None


def test_a_batch_is_its_questions_one_by_one(bench):
    questions = some_questions(4)
    together = bench.rows(questions, [FULL, FASTV, RANDOM])
    apart = [row for question in questions for row in bench.rows(questions, [FULL, FASTV, RANDOM], (question.id,))]
    keys = ("question", "condition", "raw", "kept", "prompt", "score", "new_tokens", "layers")

    def told(rows):
        return sorted(tuple(json.dumps(row[key]) for key in keys) for row in rows)

    assert told(together) == told(apart)


def test_ragged_batches_hold_what_is_predicted(bench):
    """One question shows two pictures, so samples keep 36 and 72 tokens."""
    first, second, *_ = some_questions(2)
    both = dataclasses.replace(second, visuals=first.visuals + second.visuals)
    rows = by(bench.rows([first, both], [FULL, FASTV]), FASTV)
    assert [row["kept"]["layer 2"] for row in rows] == [[144, 36], [288, 72]]
    assert all(row["kv"][0] == row["kv"][1] < row["kv"][2] for row in rows)


def test_the_unpruned_logits_are_made_where_a_unit_lacks_them(bench):
    questions = some_questions(3)
    with_full = by(bench.rows(questions, [FULL, FASTV]), FASTV)
    without = bench.rows(questions, [FASTV])
    assert [row["change"] for row in with_full] == pytest.approx([row["change"] for row in without], abs=1e-9)


def test_what_changes_nothing_is_seen(bench):
    """FrameFusion cannot reach 5 % on six layers and keeps everything."""
    rows = bench.rows(some_questions(2), [FULL, Condition("policy", "framefusion", (), 0.05)])
    idle = [row for row in rows if row["row"] == "framefusion@0.05"]
    assert [row["change"] for row in idle] == [0.0, 0.0] and all(row["notes"] for row in idle)
    assert idle[0]["first"] == by(rows, FULL)[0]["first"]


def test_blind_and_another_picture(bench):
    """Oracles: the question without a picture, and with the picture of the next question about another scene."""
    questions = some_questions(4)
    rows = bench.rows(questions, [Condition("blind"), Condition("other")])
    texts = [question.text for question in questions]
    assert [row["raw"] for row in rows[:4]] == by_hand(bench, [(None, text) for text in texts])
    others = [questions[(i + 1) % 4].visuals[0].load() for i in range(4)]
    assert questions[0].cluster != questions[1].cluster
    assert [row["raw"] for row in rows[4:]] == by_hand(bench, list(zip(others, texts, strict=True)))
    assert {row["before"] for row in rows[:4]} == {0} and {row["before"] for row in rows[4:]} == {144}
    assert len({row["prompt"] for row in rows}) == 8, "prompts with and without a picture are not the same prompt"
    assert {tuple(row["visuals"]) for row in rows[:4]} == {()}
    assert [row["visuals"] for row in rows[4:]] == [[questions[(i + 1) % 4].visuals[0].name] for i in range(4)]
    smaller = Condition("downsampled", keep_ratio=0.25)
    shown = bench.rows(questions, [FULL, FASTV, Condition("other"), smaller])
    prompts = {name: [row["prompt"] for row in shown if row["row"] == name] for name in {row["row"] for row in shown}}
    assert prompts["full"] == prompts[FASTV.row], "a policy changes nothing of what is asked"
    assert not {*prompts["full"]} & {*prompts["other visual"]} and not {*prompts["full"]} & {*prompts[smaller.row]}


def test_a_smaller_picture(bench):
    [question] = some_questions(1)
    [row] = bench.rows([question], [Condition("downsampled", keep_ratio=0.25)])
    picture = question.visuals[0].load()
    small = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BICUBIC)
    assert [row["raw"]] == by_hand(bench, [(small, question.text)])


def test_what_fails_is_a_row_and_hurts_nobody_else(bench, tmp_path):
    """A broken picture, a missing one, and a policy that refuses; the other questions are answered as ever."""
    good, one, other, also = some_questions(4)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    broken = dataclasses.replace(one, visuals=(Visual("image", tmp_path / "broken.png", "broken.png"),))
    missing = dataclasses.replace(other, visuals=(Visual("image", tmp_path / "none.png", "none.png"),))
    refuses = Condition("policy", "fastv", ("layer=99",), 0.25)
    rows = bench.rows([good, broken, missing, also], [FULL, FASTV, refuses])
    assert len(rows) == 12
    failed = {(row["question"], row["condition"]): row["error"] for row in rows if row["error"]}
    assert all("broken.png" in failed[broken.id, one.name] for one in (FULL, FASTV, refuses))
    assert all("none.png" in failed[missing.id, one.name] for one in (FULL, FASTV, refuses))
    assert "99" in failed[good.id, refuses.name] and "99" in failed[also.id, refuses.name]
    assert len(failed) == 8
    answered = [row["raw"] for row in by(rows, FULL) if not row["error"]]
    assert answered == by_hand(bench, [(one.visuals[0].load(), one.text) for one in (good, also)])
    assert all(set(row) == NAMES and not row["correct"] and row["raw"] is None for row in rows if row["error"])


def test_a_prompt_that_cannot_be_encoded_is_left_out_of_its_batch(bench):
    """A text that holds a placeholder more than there are pictures; the processor refuses the batch it is in."""
    good, bad, *_ = some_questions(2)
    rows = bench.rows([good, dataclasses.replace(bad, text="<image> what is this?")], [FULL])
    assert [bool(row["error"]) for row in sorted(rows, key=lambda row: row["question"])] == [False, True]


def test_pictures_are_read_once_for_conditions_that_show_the_same(bench):
    [question] = some_questions(1)
    loads = []
    picture = question.visuals[0].load()
    counted = dataclasses.replace(question, visuals=(Visual("image", lambda: loads.append(1) or picture, "counted"),))
    bench.rows([counted], [FULL, Condition("downsampled", keep_ratio=0.25), FASTV, RANDOM])
    assert len(loads) == 2


def test_change_is_the_total_variation_distance():
    one, other = torch.tensor([0.3, 0.7]).log(), torch.tensor([0.5, 0.5]).log()
    assert change(one, other) == pytest.approx(0.2) and change(one, one) == 0.0


@pytest.mark.parametrize("policy", ["fastv", "framefusion", "random"])
def test_what_is_shown_again_is_not_encoded_again(bench, policy, monkeypatch):
    """Oracle: the same rows, bit by bit, of a worker whose tower runs each time."""
    questions = some_questions(3)
    conditions = [FULL, Condition("policy", policy, (), 0.5), Condition("uniform", "uniform", (), 0.25)]
    bench.open(questions, conditions)
    calls = []
    hook = bench.worker.loaded.model.model.vision_tower.register_forward_pre_hook(lambda *_: calls.append(1))
    rows = bench.rows(questions, conditions)
    assert len(calls) == 1
    monkeypatch.setattr("vtprune.compat.takes_encoded", lambda model: False)
    again = bench.rows(questions, conditions)
    assert len(calls) == 1 + len(conditions)
    hook.remove()
    untimed = [
        [{k: v for k, v in row.items() if k not in ("seconds", "date")} for row in some] for some in (rows, again)
    ]
    assert untimed[0] == untimed[1]
    assert all(row["seconds"]["vision"] > 0 for row in rows)


def test_clips_are_not_encoded_again_either(monkeypatch):
    """The embedded video model, whose tower also gives features to layers. Oracle: a worker whose tower runs anew."""
    conditions = (FULL, Condition("policy", "framefusion", (), 0.25), Condition("uniform", "uniform", (), 0.25))
    worker = Worker(Plan("embedded-video", ("embedded-video:n=1",), conditions, frames=None))
    ids = tuple(question.id for question in worker.open("embedded-video:n=1").questions[:3])
    found = []
    for takes in (compat.takes_encoded, lambda model: False):
        monkeypatch.setattr(compat, "takes_encoded", takes)
        rows = worker.do(Unit("embedded-video:n=1", ids, tuple(condition.name for condition in conditions)))
        found.append([{k: v for k, v in row.items() if k not in ("seconds", "date")} for row in rows])
    assert found[0] == found[1] and all(row["error"] is None for row in found[0])


def test_a_policy_that_looks_into_the_tower_has_it_run(bench):
    """Oracle: a unit of its own, in which nothing was encoded before."""
    questions = some_questions(2)
    looks = Condition("policy", "vtc_cls", (), 0.25)
    together = by(bench.rows(questions, [FULL, looks]), looks)
    assert [row["first"] for row in together] == [row["first"] for row in bench.rows(questions, [looks])]


def test_policies_in_a_row(bench):
    """Oracle: wrapped by hand."""
    questions = some_questions(2)
    both = Condition("policy", "uniform >> fastv", ("split=even",), 0.25)
    rows = bench.rows(questions, [FULL, both])
    pairs = [(question.visuals[0].load(), question.text) for question in questions]
    mine = by(rows, both)
    assert [row["raw"] for row in mine] == by_hand(bench, pairs, "uniform >> fastv", keep_ratio=0.25, split="even")
    assert mine[0]["kept"] == {"before the LLM": [144, 72], "layer 2": [72, 36]}


def test_as_many_flops_as_a_share_of_the_tokens(bench):
    """Oracle: uniform tokens before the LLM, which are that share in every layer."""
    questions, even = some_questions(2), Condition("uniform", "uniform", (), 0.6)
    inside = [Condition("policy", name, ("budget=flops",), 0.6) for name in ("fastv", "uniform >> fastv")]
    rows = bench.rows(questions, [FULL, even, *inside])
    for one in inside:
        for row, whole, other in zip(by(rows, one), by(rows, FULL), by(rows, even), strict=True):
            token = (whole["flops"] - other["flops"]) / (144 - 86)
            assert other["after"] == 86 > row["after"] and 0 <= other["flops"] - row["flops"] < 2 * token
