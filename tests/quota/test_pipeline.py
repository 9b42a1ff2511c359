"""The pipeline, against its steps done one by one."""

from functools import cache

import pytest
import torch
import transformers as hf

import vtprune
from tests import tiny
from vtprune.embedded import example, load_image
from vtprune.embedded.scenes import make_scene
from vtprune.quota import GivenScores, ScoreCache, YesNoScorer, answer
from vtprune.quota.pipeline import video_inputs


@cache
def embedded():
    return load_image()


@cache
def frames():
    picture, _, _ = example()
    return [picture, *(make_scene(seed, "test").image for seed in (1000, 1001))]


def asks(question, objects):
    return f"Is there a {objects[0]}?" if objects else question


def test_one_frame_with_all_its_tokens_is_answered_rightly():
    """Oracle: the answer that the bundled picture has."""
    model, processor = embedded()
    picture, question, expected = example()
    got = answer(model, processor, [picture], question, scorer=GivenScores([1]), objects=[], keep_ratio=1.0)
    assert got.text == expected and got.tokens == (144, 144) and got.objects == []
    assert not hasattr(model, "_vtprune"), "wrapped for the call only"


def by_hand(question, scores, n_keep):
    """The answer of three pictures in one prompt, pruned by the policy."""
    model, processor = embedded()
    inputs = processor(images=frames(), text=f"<bos><image><image><image>{question}<answer>", return_tensors="pt")
    with vtprune.pruned(model, "quota", n_keep=n_keep, frame_scores=scores, budget="prompt") as report:
        out = model.generate(**inputs, do_sample=False, max_new_tokens=16)
        kept = [len(image.rows) for image in report.kept()]
    return processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True), kept


def test_frames_of_a_model_without_videos_are_images_that_share_one_budget():
    """Oracle: the steps by hand; squares .64, .16, .04 of .84 of 150 tokens are 114, 28, 7: 11 x 10, 5 x 5, 3 x 2."""
    model, processor = embedded()
    _, question, _ = example()
    scores = [0.8, 0.4, 0.2]
    expected, kept = by_hand(question, scores, 150)
    got = answer(model, processor, frames(), question, scorer=GivenScores(scores), objects=[], n_keep=150)
    assert got.text == expected.strip() and got.scores.tolist() == pytest.approx(scores)
    assert kept == [110, 25, 6] and got.tokens == (3 * 144, 141)


def test_objects_are_passed_on_and_scores_remembered():
    """Oracle: the scorer called directly."""
    model, processor = embedded()
    scorer, cache, question = (
        YesNoScorer(model, processor, answer="yes", prompt=asks),
        ScoreCache(),
        "Which digit is red?",
    )
    more = {"scorer": scorer, "cache": cache, "objects": ["cyan 5"], "n_keep": 100}
    first = answer(model, processor, frames(), question, **more)
    torch.testing.assert_close(first.scores.float(), scorer(frames(), question, ["cyan 5"]))
    assert float(first.scores[0]) > 0.5, "the bundled picture has a cyan 5"
    assert first.objects == ["cyan 5"]
    scorer.token = None  # asked again it would fail
    again = answer(model, processor, frames(), question, **more)
    assert again.text == first.text and torch.equal(again.scores, first.scores)


def test_the_model_is_asked_for_objects_unless_they_are_given(monkeypatch):
    model, processor = embedded()
    asked = []

    def decouple(*arguments):
        asked.append(arguments)
        return ["cat"]

    monkeypatch.setattr("vtprune.quota.pipeline.decouple", decouple)
    got = answer(model, processor, frames()[:1], "Which digit is red?", scorer=GivenScores([1]))
    assert got.objects == ["cat"] and asked == [(model, processor, "Which digit is red?")]
    answer(model, processor, frames()[:1], "Which digit is red?", scorer=GivenScores([1]), objects=[])
    assert len(asked) == 1


def test_a_wrapped_model_stays_wrapped_with_its_own_budget():
    model, processor = embedded()
    _, question, _ = example()
    expected, _ = by_hand(question, [1, 1, 0], 90)
    vtprune.wrap(model, "quota", n_keep=90)
    try:
        got = answer(model, processor, frames(), question, scorer=GivenScores([1, 1, 0]), objects=[])
        assert got.text == expected.strip()
        assert got.tokens[1] <= 90 and hasattr(model, "_vtprune")
    finally:
        vtprune.unwrap(model)


def test_a_model_wrapped_with_something_else_is_refused():
    model, processor = embedded()
    vtprune.wrap(model, "random")
    try:
        with pytest.raises(ValueError, match="frame_scores"):
            answer(model, processor, frames(), "Which digit is red?", scorer=GivenScores([1, 1, 1]), objects=[])
    finally:
        vtprune.unwrap(model)


class VideoProcessor:
    """What the pipeline needs of the processor of a video model: tiny inputs, and words for tokens."""

    video_processor = object()
    chat_template = "a template"
    bos_token = "<s>"

    def __init__(self, inputs):
        self.inputs, self.asked = inputs, None

    def apply_chat_template(self, chat, add_generation_prompt, tokenize):
        assert add_generation_prompt and not tokenize
        [turn] = chat
        return "<s>" + " ".join(part.get("text") or f"<{part['type']}>" for part in turn["content"])

    def __call__(self, text, videos=None, **options):
        self.asked = (text, videos, options)
        return hf.BatchFeature(dict(self.inputs))

    def decode(self, ids, skip_special_tokens):
        return " ".join(map(str, ids.tolist()))


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_a_video_model_gets_one_video(family):
    """Oracle: generate on the same inputs with the policy wrapped by hand."""
    model, inputs = tiny.build(family), tiny.video(family, "one")
    processor, clip, scores = VideoProcessor(inputs), ["f0", "f1", "f2", "f3"], [0.9, 0.2, 0.6, 0.4]
    with vtprune.pruned(model, "quota", keep_ratio=0.5, frame_scores=scores) as report:
        expected = model.generate(**inputs, do_sample=False, max_new_tokens=5)
        tokens = report.tokens[0]
    got = answer(
        model,
        processor,
        clip,
        "Who?",
        scorer=GivenScores(scores),
        objects=[],
        times=[0, 1, 2, 3.5],
        max_new_tokens=5,
        keep_ratio=0.5,
    )
    assert got.text == " ".join(map(str, expected[0, inputs["input_ids"].shape[1] :].tolist()))
    assert got.tokens == tokens
    [text], videos, options = processor.asked
    assert text.startswith("<s><video> ") and text.endswith("\nWho?") and "0.00, 1.00, 2.00, 3.50" in text
    assert videos == [clip]
    assert options["do_sample_frames"] is False and options["add_special_tokens"] is False
    given = answer(
        model,
        processor,
        clip,
        "Who?",
        scorer=GivenScores(scores),
        objects=[],
        inputs=inputs,
        max_new_tokens=5,
        keep_ratio=0.5,
    )
    assert given.text == got.text


def test_times_belong_to_frames():
    with pytest.raises(ValueError, match="2 times for 3 frames"):
        answer(*embedded(), frames(), "Who?", scorer=GivenScores([1, 1, 1]), objects=[], times=[0, 1])


def test_inputs_are_those_of_the_processor():
    """Oracle: the processor called with the prompt written out."""
    model, processor = embedded()
    got = video_inputs(model, processor, frames(), "Which digit is red?")
    text = "<bos><image><image><image>Which digit is red?<answer>"
    expected = processor(images=frames(), text=text, return_tensors="pt")
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value)
