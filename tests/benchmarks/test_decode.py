"""The benchmark of decoding: equal bytes by hand, answers as the stock path gives them, differences by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import DynamicCache

import vtprune
from benchmarks import decode, decode_memory
from benchmarks.decode_answers import judged
from benchmarks.decode_asking import FIRST_TURN, Asked, subject
from benchmarks.decode_conditions import Condition, equal_ratio, grid
from benchmarks.decode_memory import memory_row
from benchmarks.decode_model import runner, shape_of, weight_bytes
from benchmarks.decode_reading import divergence, greedy, read
from benchmarks.decode_table import text_of
from benchmarks.decode_time import group_rows
from benchmarks.engine_model import build, cache_bytes, prompt
from vtprune.embedded import load_image, load_video
from vtprune.tokens import BEFORE_LLM

SEED = 5000
LAYERS, TEXT, VISUAL, BATCH = 4, 12, 64, 2
TOKEN = 2 * 16 * 4
"""Bytes of one token's key and value in a layer of the tiny shape: one key head of 16, float32."""


@pytest.fixture(scope="module")
def tiny():
    """A model of the tiny shape whose pictures have 64 visual tokens, and two prompts."""
    model = build(shape_of("tiny", {}), torch.float32, side=8)
    return model, prompt(model, [1] * BATCH, TEXT)


@pytest.fixture(scope="module")
def embedded():
    return {"image": load_image(), "video": load_video()}


# ------------------------------------------------------------------------------------------------ bytes and steps


@pytest.mark.parametrize(
    "policy, ratio", [("snapkv", 0.25), ("prefixkv", 0.25), ("uniform", 0.25), ("fastv:layer=1", 0.5), ("fastv", 0.75)]
)
def test_conditions_of_one_ratio_hold_as_many_bytes(tiny, policy, ratio):
    """Oracle: the formula, text and that share of the visual tokens.

    FastV rounds by half a token in a layer; PrefixKV's layers are as long as the longer of two samples there.
    """
    model, inputs = tiny
    one = runner(model, inputs, Condition(policy, ratio))
    one.first_token()
    expected = BATCH * TOKEN * LAYERS * (TEXT + ratio * VISUAL)
    about = policy not in ("snapkv", "uniform")
    assert abs(cache_bytes(one.cache) - expected) <= BATCH * TOKEN * LAYERS / 2 * about
    assert one.report.kv_bytes == cache_bytes(one.cache)


def test_ratios_by_hand():
    """28 layers, FastV in layer 2: a fifth of the cache leaves (5.6 - 2) / 26 in the layers behind it."""
    assert equal_ratio("fastv", (2,), 28, 0.2) == pytest.approx(3.6 / 26)
    assert equal_ratio("uniform", (BEFORE_LLM,), 28, 0.2) == 0.2 and equal_ratio("fastv", (2,), 28, 1.0) == 1
    with pytest.raises(ValueError, match="2 of 6 layers hold all"):
        equal_ratio("fastv", (2,), 6, 0.3)
    with pytest.raises(ValueError, match="3 sites"):
        Condition("pyramiddrop", 0.5).build(32)
    assert [one.kind for one in grid(["none", "laq", "uniform"], [1.0])] == ["none", "cache", "prefill"]


def test_a_jump_is_as_many_steps(tiny):
    """Oracle: the steps one by one, of the unpruned model and of one whose cache was cut down."""
    model, inputs = tiny
    for one in (runner(model, inputs, Condition()), runner(model, inputs, Condition("snapkv", 0.25))):
        one.first_token()
        jumping = one.decoding()
        jumping.jump(5)
        one.first_token()
        stepping = one.decoding()
        for _ in range(5):
            stepping()
        assert cache_bytes(jumping.cache) == cache_bytes(stepping.cache)
        torch.testing.assert_close(jumping(), stepping(), atol=1e-5, rtol=1e-5)


def test_rows_of_steps_say_what_bytes_allow(tiny):
    """Oracle: bytes by hand, at every length; a policy that is not possible has a row that says so."""
    model, inputs = tiny
    asked = [Condition("snapkv", 0.25), Condition("fastv", 0.25)]
    rows = group_rows(model, inputs, asked, [8, 20], rounds=1, steps=3, clock={})
    first = {row["policy"]: row for row in rows if row["what"] == "first token"}
    assert "2 of 4 layers" in first["fastv"]["skipped"] and first["snapkv"]["reported"] == first["snapkv"]["kv_bytes"]
    assert first["snapkv"]["kv_share"] == (TEXT + VISUAL / 4) / (TEXT + VISUAL)
    steps = [row for row in rows if row["what"] == "decode step"]
    assert [(row["policy"], row["generated"]) for row in steps] == [
        *(("none", 8), ("snapkv", 8), ("none", 20), ("snapkv", 20))
    ]
    weights = weight_bytes(model)
    # no weights but layers, norm and head: not the table of words, nor the tower
    others = [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()]
    others.append(model.get_input_embeddings().weight)
    assert weights == sum(p.nbytes for p in model.parameters()) - sum(p.nbytes for p in others)
    for row in steps:
        share = 0.25 if row["policy"] == "snapkv" else 1
        held, whole = (BATCH * TOKEN * LAYERS * (TEXT + s * VISUAL + row["generated"]) for s in (share, 1))
        assert row["kv_bytes"] == held and row["limit"] == pytest.approx((weights + whole) / (weights + held))
        assert row["runs"] == 3 and ("speedup" in row) == (share < 1)


def test_memory_counts_what_the_cache_holds(tiny, monkeypatch):
    """Oracle: a stopwatch of memory that says 7; bytes by hand before the last steps."""
    monkeypatch.setattr(decode_memory, "peak_bytes", lambda call: (call(), 7)[1])
    monkeypatch.setattr(decode_memory, "STEPS", 2)
    model, inputs = tiny
    row = memory_row(model, inputs, Condition("uniform", 0.25), [4, 9])

    def held(generated):
        return BATCH * TOKEN * LAYERS * (TEXT + VISUAL / 4 + generated)

    assert row["kv_bytes"] == held(0) and row["decode_bytes"] == {"4": held(2) + 7, "9": held(7) + 7}


# ------------------------------------------------------------------------------------------------------- answers


def stock(processor, one, turn, question, history=()):
    """A whole conversation in the model's template, as the inputs of one prompt."""
    content = [{"type": one.kind}]
    chat = [{"role": "user", "content": content}]
    if turn == "other":
        content.append({"type": "text", "text": one.other.text})
        chat.append({"role": "assistant", "content": processor.tokenizer.decode(history, skip_special_tokens=True)})
        chat.append({"role": "user", "content": question.text})
    else:
        content.append({"type": "text", "text": question.text})
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    return processor(text=[text], return_tensors="pt", **{f"{one.kind}s": [one.visual]})


def new(inputs, output):
    return output[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("turn", ["alone", "other", FIRST_TURN])
@pytest.mark.parametrize("kind", ["image", "video"])
def test_unpruned_answers_are_those_of_the_stock_path(embedded, kind, turn):
    """Oracle: one forward of the whole conversation, and ``model.generate`` of it, with no cache or batch of ours."""
    model, processor = embedded[kind]
    one = subject(kind, SEED)
    asked = Asked(model, processor, one, turn)
    history = greedy(model, read(model, asked.inputs), [0], [[]], asked.end, asked.most)[0] if turn == "other" else []
    memory, answers, logits = asked.reference
    # the first questions differ in length, so that of one of them the prompt was padded
    assert (memory.mask is not None and not memory.mask[:3].all()) == (turn == FIRST_TURN)
    for question, answer, found in list(zip(one.questions, answers, logits, strict=True))[:3]:
        inputs = stock(processor, one, turn, question, history)
        assert new(inputs, model.generate(**inputs)) == answer
        more = {"input_ids": torch.tensor([answer[:-1]]), "attention_mask": torch.ones(1, len(answer) - 1).long()}
        if "mm_token_type_ids" in inputs:
            more["mm_token_type_ids"] = torch.zeros(1, len(answer) - 1, dtype=torch.int32)
        whole = {**inputs, **{name: torch.cat([inputs[name], value], 1) for name, value in more.items()}}
        with torch.no_grad():
            expected = model(**whole).logits[0, -len(answer) :]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    row = asked.unpruned()
    assert row["kl"] == [0.0] * len(one.questions) and set(row["same"]) == {"1"} and min(row["tokens"]) >= 2


@pytest.mark.parametrize("kind", ["image", "video"])
def test_answers_on_a_cut_cache_are_those_of_generate(embedded, kind):
    """Oracle: the prompt read by the wrapped model, then ``generate`` on that cache, question by question."""
    model, processor = embedded[kind]
    one, condition = subject(kind, SEED), Condition("snapkv", 0.1)
    asked = Asked(model, processor, one, "alone")
    row = asked.pruned(condition)
    right = []
    for question in one.questions:
        inputs = stock(processor, one, "alone", question)
        with vtprune.pruned(model, condition.build(6)) as report, torch.no_grad():
            cache = DynamicCache(config=model.config.get_text_config())
            model(**asked.inputs, past_key_values=cache, use_cache=True)
            held = report.kv_bytes
            more = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            said = new(inputs, model.generate(**more, past_key_values=cache))
        right.append(processor.tokenizer.decode(said, skip_special_tokens=True).strip() == question.answer)
    assert row["right"] == "".join(str(int(hit)) for hit in right) and row["kv_bytes"] == held
    # so little is kept that it shows
    assert "0" in row["same"] and max(row["kl"]) > 0.01


def test_in_the_first_turn_the_cache_decides_from_the_second_word_on(embedded):
    """Oracle: the pruned stock path; and a prompt that was read unpruned gives the unpruned first token."""
    model, processor = embedded["image"]
    one = subject("image", SEED)
    asked = Asked(model, processor, one, FIRST_TURN)
    found = {name: asked.pruned(Condition(name, 0.1)) for name in ("laq", "uniform")}
    for name, row in found.items():
        with vtprune.pruned(model, name, keep_ratio=0.1), torch.no_grad():
            output = model.generate(**asked.inputs)[:, asked.inputs["input_ids"].shape[1] :]
        said = [text.strip() for text in processor.tokenizer.batch_decode(output, skip_special_tokens=True)]
        assert row["right"] == "".join(str(int(a == q.answer)) for a, q in zip(said, one.questions, strict=True))
    with vtprune.pruned(model, "laq", keep_ratio=0.1):
        assert torch.equal(read(model, asked.inputs).logits, asked.reference[0].logits)


@pytest.mark.parametrize("turn", ["other", FIRST_TURN])
def test_keeping_everything_changes_nothing(embedded, turn):
    """Oracle: the unpruned row, to the last bit of the divergence."""
    model, processor = embedded["image"]
    asked = Asked(model, processor, subject("image", SEED), turn)
    whole = asked.unpruned()
    for policy in ("prefixkv", "elastic_cache", "uniform"):
        row = asked.pruned(Condition(policy, 1.0))
        assert row == {name: whole[name] for name in row}


def test_divergence_by_hand():
    """Oracle: of a fair coin from one that shows heads three times in four, and back."""
    fair, bent = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    assert divergence(fair, bent) == pytest.approx(0.5 * math.log(4 / 3))
    assert divergence(bent, fair) == pytest.approx(0.75 * math.log(1.5) - 0.25 * math.log(2))
    assert divergence(torch.cat([fair, fair]), torch.cat([bent, fair])) == pytest.approx(0.25 * math.log(4 / 3))
    assert divergence(bent, bent) == 0


def test_differences_are_paired_by_question_and_clustered_by_subject():
    """Oracle: by hand. snapkv minus uniform is -1, 0 | -1, 0: every sample of subjects has the same mean, -1/2."""

    def unit(right, kl=0.0, kv_bytes=100, **more):
        return {"right": right, "same": right, "kl": [kl] * len(right), "kv_bytes": kv_bytes, **more}

    asked = [Condition(), Condition("snapkv", 0.2), Condition("uniform", 0.2), Condition("fastv", 0.2)]
    found = {
        "none": [unit("11", tokens=[2, 3]), unit("11", tokens=[2, 2])],
        "snapkv 0.2": [unit("01", 0.5, 30), unit("01", 1.5, 20)],
        "uniform 0.2": [unit("11", 0.1, 30), unit("11", 0.1, 20)],
        "fastv 0.2": [{"skipped": "no"}, {"skipped": "no"}],
    }
    about = {"model": "image", "turn": "other"}
    none, snapkv, uniform, fastv = judged(about, found, [7, 9], asked)
    assert none["accuracy"] == 1 and none["tokens"] == 2.25 and none["kv_share"] == 1 and "over" not in none
    assert (snapkv["accuracy"], snapkv["same"], snapkv["kl"], snapkv["kv_share"]) == (0.5, 0.5, 1.0, 0.25)
    assert snapkv["kl_interval"] == (0.5, 1.5)
    pair = snapkv["over"]["uniform"]
    assert (pair["difference"], pair["interval"], pair["verdict"]) == (-0.5, (-0.5, -0.5), "worse")
    assert (pair["test"]["right_to_wrong"], pair["test"]["wrong_to_right"]) == (2, 0)
    assert snapkv["over_unpruned"]["difference"] == -0.5 and uniform["over"] == {} and fastv["skipped"] == "no"
    result = {"experiment": "second-turn", "rows": [none, snapkv, uniform, fastv], "device": "d", "threads": 1}
    text = text_of({**result, "date": "today", "commit": "c"})
    assert "`snapkv` (50.0), is worse than the best pruned prompt, `uniform` (100.0), by -50.0" in text
    assert "1 of 1 policies of the cache are worse than it" in text
    assert "| 20 % | `snapkv` | cache | 25.0 | 50.0" in text


# ---------------------------------------------------------------------------------------------------------- runs


def test_a_run_of_times_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    """Oracle: the rows of the first try, after which nothing may be timed again; every condition has its rows."""
    arguments = ["--experiment", "speed", "--shape", "tiny", "--layers", "2", "--images", "1", "--batch", "1"]
    arguments += ["--generated", "8", "--steps", "2", "--rounds", "1", "--keep", "0.1", "--out", str(tmp_path)]
    arguments += ["--policies", "snapkv", "uniform"]
    whole, made = group_rows, []

    def once(*args):
        if made:
            raise KeyboardInterrupt
        made.append(whole(*args))
        return made[0]

    monkeypatch.setattr(decode, "group_rows", once)
    with pytest.raises(KeyboardInterrupt):
        decode.main(arguments)
    monkeypatch.setattr(decode, "group_rows", lambda *args: made.append(whole(*args)) or made[-1])
    decode.main(arguments)
    assert len(made) == 2
    found = json.loads((tmp_path / "decode-speed-cpu.json").read_text())
    assert found["layers"] == 2 and found["clock"] == "CPU time of the one thread"
    keys = [(row["beside"], row["policy"], row["what"]) for row in found["rows"]]
    assert keys == [
        (beside, policy, what)
        for beside in ("snapkv", "uniform")
        for what in ("first token", "decode step")
        for policy in ("none", beside)
    ]
    assert found["rows"][:4] == [{**row, "batch": 1, "beside": "snapkv"} for row in json.loads(json.dumps(made[0]))]
    assert capsys.readouterr().out == (tmp_path / "decode-speed-cpu.md").read_text()
    assert not list(tmp_path.glob("*.part.jsonl"))


def test_a_run_of_answers_writes_rows_and_tables(tmp_path, capsys):
    """Oracle: a row for every condition, those without a ratio say so; the unpruned answers are the yardstick."""
    arguments = ["--experiment", "second-turn", "--models", "image", "--subjects", "2", "--keep", "0.2"]
    decode.main([*arguments, "--policies", "cache_random", "uniform", "fastv", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "decode-second-turn-cpu.json").read_text())
    assert [(row["turn"], row["policy"]) for row in found["rows"]] == [
        (turn, policy) for turn in ("alone", "other") for policy in ("none", "cache_random", "uniform", "fastv")
    ]
    none, lot, uniform, fastv = found["rows"][:4]
    assert none["kl"] == 0 and none["same"] == 1 and none["questions"] == 16 and "cannot keep" in fastv["skipped"]
    # <bos>, and a fifth of 144 tokens: of the prompt 29 in each layer, of the cache 173 in six layers
    assert (uniform["kv_share"], lot["kv_share"]) == (30 / 145, (6 + 173) / (6 * 145))
    assert lot["over"]["uniform"]["n"] == 16 and lot["kl"] > 0
    assert capsys.readouterr().out == (tmp_path / "decode-second-turn-cpu.md").read_text()


@pytest.mark.slow  # another process loads torch and builds the model
def test_memory_is_measured_in_a_process_of_its_own(tmp_path):
    """Oracle: bytes by hand; what is held is less than the peak."""
    arguments = ["--experiment", "memory", "--shape", "tiny", "--layers", "2", "--images", "1", "--batch", "1"]
    arguments += ["--generated", "16", "--keep", "0.25", "--policies", "snapkv", "fastv", "--out", str(tmp_path)]
    decode.main(arguments)
    none, snapkv, fastv = json.loads((tmp_path / "decode-memory-cpu.json").read_text())["rows"]
    assert none["kv_bytes"] == 2 * TOKEN * (64 + 576) and snapkv["kv_bytes"] == 2 * TOKEN * (64 + 144)
    assert "2 of 2 layers" in fastv["skipped"] or "cannot keep" in fastv["skipped"]
    assert all(row["decode_bytes"]["16"] >= row["kv_bytes"] for row in (none, snapkv))


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--keep", "20"], "fractions of visual keys and values KEPT"),
        (["--generated", "64", "8"], "--generated ascends"),
        (["--policies", "snapvk"], "snapkv"),
    ],
)
def test_a_wrong_argument_is_refused(arguments, said, capsys):
    with pytest.raises(SystemExit):
        decode.parse(arguments)
    assert said in capsys.readouterr().err
