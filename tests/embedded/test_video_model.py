"""The shipped video model: it loads from the package with no network, and it looks at all of the clip, in order."""

import pytest
import torch

import vtprune
from vtprune.embedded import evaluate_video, load_video, video_path
from vtprune.embedded.clips import FRAMES, LONG, make_clip

WEIGHTS_LIMIT, FOLDER_LIMIT = 8e6, 8e6  # bytes
N_CLIPS = 14


@pytest.fixture(scope="module")
def loaded(no_network):
    return load_video()


@pytest.fixture(scope="module")
def asked():
    return evaluate_video.held_out_clips(N_CLIPS)


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def share(loaded, asked, condition):
    pairs = [(evaluate_video.show_clip(a, condition), a.question.text) for a in asked]
    said = evaluate_video.answer_clips(*loaded, pairs)
    return sum(text == a.question.answer for text, a in zip(said, asked, strict=True)) / len(asked)


def test_the_model_class_is_transformers_own(loaded):
    model, _ = loaded
    assert type(model).__module__ == "transformers.models.qwen3_vl.modeling_qwen3_vl"
    assert {p.dtype for p in model.parameters()} == {torch.float32} and not model.training
    vision = model.config.vision_config
    assert (vision.spatial_merge_size, vision.temporal_patch_size, len(vision.deepstack_visual_indexes)) == (2, 2, 1)
    assert model.config.text_config.num_hidden_layers >= 6


def test_weights_take_the_dtype_asked_for():
    model, _ = load_video(torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_it_is_small():
    assert (video_path() / "model.safetensors").stat().st_size <= WEIGHTS_LIMIT
    assert sum(path.stat().st_size for path in video_path().iterdir()) <= FOLDER_LIMIT


def test_it_answers_held_out_questions_and_needs_the_right_clip_in_the_right_order(loaded, asked):
    """Oracle: the clips' own answers, which test_clips.py recomputes; else those of another, a still or a mixed one."""
    assert 100 <= len(asked) <= 130
    right = {c: share(loaded, asked, c) for c in ("clip", "wrong clip", "middle frame")}
    assert right["clip"] >= 0.85 and right["wrong clip"] < 0.6 and right["middle frame"] < 0.75, right
    timely = [a for a in asked if a.question.kind in ("order", "move", "part", "before")]
    assert len(timely) >= 20
    assert share(loaded, timely, "shuffled frames") < share(loaded, timely, "clip") - 0.15


def test_it_answers_about_long_clips(loaded):
    asked = evaluate_video.held_out_clips(4, LONG)
    assert len(asked[0].frames) == LONG and share(loaded, asked, "clip") >= 0.7


def test_a_batch_answers_like_its_samples_alone(loaded, asked):
    pairs = [(a.frames, a.question.text) for a in asked[:12]]
    assert len({len(text.split()) for _, text in pairs}) > 1  # so that something is padded
    assert list(evaluate_video.answer_clips(*loaded, pairs)) == list(
        evaluate_video.answer_clips(*loaded, pairs, batch=1)
    )


def test_it_can_be_pruned(loaded, asked):
    """Oracle: the report's counts; half of the tokens, chosen at random, still answer most questions, a few do not."""
    model, processor = loaded
    pairs = [(a.frames, a.question.text) for a in asked[:48]]
    before, right = list(evaluate_video.answer_clips(model, processor, pairs)), {}
    for keep_ratio in (0.5, 0.03):
        with vtprune.pruned(model, "random", keep_ratio=keep_ratio) as report:
            said = list(evaluate_video.answer_clips(model, processor, pairs))
        assert "128" in str(report) and str(round(128 * keep_ratio)) in str(report)
        right[keep_ratio] = sum(text == a.question.answer for text, a in zip(said, asked[:48], strict=True)) / 48
    assert right[0.03] < 0.8 < right[0.5]
    assert list(evaluate_video.answer_clips(model, processor, pairs)) == before


def test_seen_frame_by_frame_or_all_at_once(asked):
    """Oracle: what each condition is called."""
    one = asked[0]
    assert len(one.frames) == FRAMES
    assert (evaluate_video.show_clip(one, "middle frame") == one.frames[FRAMES // 2]).all()
    mixed = evaluate_video.show_clip(one, "shuffled frames")
    assert sorted(f.tobytes() for f in mixed) == sorted(f.tobytes() for f in one.frames) and (mixed != one.frames).any()
    assert evaluate_video.show_clip(one, "grey clip").std(axis=(0, 1, 2)).max() == 0
    assert evaluate_video.show_clip(one, "no clip") is None
    long = evaluate_video.held_out_clips(1, LONG)[0]
    few = evaluate_video.show_clip(long, evaluate_video.FEW)
    assert len(few) == FRAMES and (few[1] == long.frames[LONG // FRAMES]).all()
    few = evaluate_video.show_clip(long, evaluate_video.FEW_SLICES)
    assert len(few) == FRAMES and (few[:4] == long.frames[[0, 1, 8, 9]]).all()


def test_held_out_clips_are_of_the_test_split(asked):
    clip = make_clip(evaluate_video.FIRST_SEED, "test")
    assert (asked[0].frames == clip.frames).all() and asked[0].question in clip.questions


def test_the_card_states_what_was_asked_for():
    """The card is written by evaluate_video.py; what is checked is that the measured rows clear the bar."""
    lines = (video_path() / "README.md").read_text().splitlines()
    heads, sums = ([cells(line) for line in lines if line.startswith(f"| {name} |")] for name in ("question", "all"))
    ordinary, long, longest, stills = (dict(zip(head, row, strict=True)) for head, row in zip(heads, sums, strict=True))
    assert int(ordinary["n"]) >= 600 and float(ordinary["clip"]) >= 90
    assert all(float(ordinary[name]) < 60 for name in ("wrong", "grey", "middle", "none", "constant"))
    assert float(ordinary["shuffled"]) < float(ordinary["clip"]) - 15
    assert int(long["n"]) >= 180 and float(long["clip"]) >= 90
    assert float(long["framefusion"]) > max(float(long[name]) for name in ("few frames", "few slices"))
    assert int(longest["n"]) >= 120 and float(longest["clip"]) >= 90
    assert float(longest["framefusion"]) > float(longest["few frames"]) + 10
    assert int(stills["n"]) >= 1000 and float(stills["clip"]) >= 90 and float(stills["none"]) < 65
