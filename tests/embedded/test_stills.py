"""Single frames and what is asked about them, and the model as a scorer of frames."""

import numpy as np
import pytest
import torch
from PIL import Image

from vtprune.embedded import load_video
from vtprune.embedded.clips import FRAMES, SLICE, make_clip
from vtprune.embedded.drawing import COLORS, SHAPES
from vtprune.embedded.scorer import clip_scorer, objects_in
from vtprune.embedded.stills import make_still
from vtprune.embedded.video_architecture import TOKENS, VOCABULARY
from vtprune.quota import YesNoScorer


@pytest.fixture(scope="module")
def stills():
    return [make_still(seed, "test") for seed in range(60)]


@pytest.fixture(scope="module")
def loaded():
    return load_video()


def seen_in(still, thing):
    """Whether a thing is in the still, by its words: each has to fit the same event."""
    words = thing.split()
    return any({event.name, event.color, event.kind}.issuperset(words) for event in still.events)


def test_answers_follow_from_what_is_in_the_frame(stills):
    for still in stills:
        assert still.frames.shape[0] == SLICE and (still.frames[0] == still.frames[1]).all()
        for question in still.questions:
            thing = question.text.removeprefix("Does a ").removesuffix(" appear?")
            assert question.answer == ("yes" if seen_in(still, thing) else "no"), (question, still.events)
            assert {*thing.split()} <= {*VOCABULARY}


def test_a_still_is_a_frame_of_its_clip(stills):
    """Oracle: the clip of the same number."""
    for seed, still in enumerate(stills[:20]):
        clip = make_clip(seed, "test", FRAMES)
        (frame,) = [i for i in range(FRAMES) if (clip.frames[i] == still.frames[0]).all()]
        there = [e for e in clip.events if e.first <= frame < e.last]
        assert [(e.color, e.name) for e in there] == [(e.color, e.name) for e in still.events]
        assert [e.box(frame) for e in there] == [e.box(0) for e in still.events]


def test_no_balances_yes_and_things_are_called_in_every_way(stills):
    answers = [q.answer for still in stills if still.events for q in still.questions]
    assert abs(answers.count("yes") - answers.count("no")) <= 0.05 * len(answers)
    assert {q.answer for still in stills if not still.events for q in still.questions} == {"no"}
    assert {len(still.events) for still in stills} >= {0, 1, 2}
    words = {q.text.removesuffix(" appear?").split()[-1] for still in stills for q in still.questions}
    assert words >= {"shape", "digit", *SHAPES}


@pytest.mark.parametrize(
    ("question", "objects"),
    [
        ("What color is the circle?", ["circle"]),
        ("Which shape is red?", ["red shape"]),
        ("Which digit is cyan?", ["cyan digit"]),
        ("What color is the shape when the 7 appears?", ["7"]),
        ("Which shape appears after the ring?", ["ring", "shape"]),
        ("Which shape appears first?", ["shape"]),
        ("Does the circle appear before the ring?", ["circle", "ring"]),
        ("How many different digits appear?", ["digit"]),
        ("Does a red circle appear?", ["red circle"]),
        ("Why?", []),
    ],
)
def test_a_question_names_things(question, objects):
    assert objects_in(question) == objects


def test_scores_tell_frames_that_show_a_thing_from_others(loaded):
    """Oracle: the clip's events. How often a frame that shows the thing is rated above one that does not."""
    scorer, better, pairs = clip_scorer(*loaded), 0.0, 0
    for seed in range(1300, 1306):
        clip = make_clip(seed, "test", FRAMES)
        for event in clip.events:
            scores = scorer(list(clip.frames), f"What color is the {event.name}?")
            same = [e for e in clip.events if e.name == event.name]
            shown = torch.tensor([any(e.first <= f < e.last for e in same) for f in range(FRAMES)])
            inside, outside = scores[shown], scores[~shown]
            better += float((inside[:, None] > outside[None]).double().sum())
            pairs += len(inside) * len(outside)
    assert pairs > 300 and better / pairs > 0.9


def test_the_likeliest_of_several_questions_counts(loaded):
    """Oracle: one question at a time."""
    frames = list(make_clip(1300, "test").frames[:4])
    scorer = clip_scorer(*loaded)
    one, other = (scorer(frames, "", [thing]) for thing in ("circle", "7"))
    torch.testing.assert_close(scorer(frames, "", ["circle", "7"]), torch.maximum(one, other))
    kinds = torch.maximum(*(scorer(frames, "", [thing]) for thing in ("shape", "digit")))
    torch.testing.assert_close(scorer(frames, "Why?"), kinds)
    with pytest.raises(ValueError, match=r"nothing to ask about the frames for 'Why\?'"):
        YesNoScorer(*loaded, answer="yes", prompt=lambda question, objects: [])(frames, "Why?")


def test_a_picture_is_a_slice_of_a_clip(loaded):
    """Oracle: the same frame twice, as a clip: other placeholders, the same answer."""
    model, processor = loaded
    frame, text = make_still(3, "test").frames[0], "Does a shape appear?<answer>"
    picture = processor(f"<bos><image>{text}", images=Image.fromarray(frame))
    clip = processor(f"<bos><video>{text}", np.stack([frame, frame]))
    assert torch.equal(picture["pixel_values"], clip["pixel_values_videos"])
    assert torch.equal(picture["mm_token_type_ids"] * 2, clip["mm_token_type_ids"])
    with torch.no_grad():
        one, other = (model(**inputs).logits[:, -1] for inputs in (picture, clip))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_pictures_and_clips_mix_in_one_prompt(loaded):
    model, processor = loaded
    frames = make_clip(1300, "test").frames
    red = [name for name in COLORS if name == "red"][0]
    inputs = processor(
        [f"<bos><image><video>Is it {red}?<answer>", "<bos><video>?<answer>"],
        videos=[frames[:4], frames[:8]],
        images=[[frames[0]]],
        return_tensors="pt",
        padding=True,
        padding_side="left",
        video_metadata=None,
        do_sample_frames=False,
    )
    assert inputs["image_grid_thw"].tolist() == [[1, 8, 8]]
    assert inputs["video_grid_thw"].tolist() == [[2, 8, 8], [4, 8, 8]]
    kinds = inputs["mm_token_type_ids"]
    assert [int((kinds == k).sum()) for k in (1, 2)] == [TOKENS, 6 * TOKENS]
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()
    for wrong in ({"return_tensors": "np"}, {"padding_side": "right"}, {"do_sample_frames": True}):
        with pytest.raises(ValueError, match=f"{[*wrong][0]} is"):
            processor("?", **wrong)
    with pytest.raises(ValueError, match="the text has 0 <image> but 1 pictures were given"):
        processor("?", images=frames[0])
    with pytest.raises(ValueError, match="tokenize=True is not supported"):
        processor.apply_chat_template([], tokenize=True)
