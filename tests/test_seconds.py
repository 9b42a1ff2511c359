"""When tokens are shown: from the processor, from the user, at every site, and what is refused."""

import math
import threading
from functools import cache

import numpy as np
import pytest
import torch
from transformers import DynamicCache

import vtprune
from tests import oracle, tiny
from tests.probe import ByNorm
from vtprune import BEFORE_LLM
from vtprune.seconds import step_seconds


@cache
def model_of(family: str):
    return tiny.build(family, dtype=torch.float32)


def prompts(family: str, *orders: str):
    return tiny.collate(family, tiny.mixed_samples(family, orders), torch.float32)


class Watch(ByNorm):
    """Halves by norm and remembers the seconds, places and sources that it was shown, by site and prompt."""

    def select(self, tokens):
        sources = [s.source for s in tokens.segments for _ in range(len(s))]
        self.shown = getattr(self, "shown", {})
        self.shown[tokens.site, tokens.seed] = (tokens.seconds, tokens.coords, sources)
        return super().select(tokens)


def times_of(report, sample: int = 0) -> list[list[float] | None]:
    return [None if one.seconds is None else one.seconds.tolist() for one in report.kept(sample)]


# ------------------------------------------------------------------------------------------- from the processor


@pytest.mark.parametrize("form", [torch.tensor, list])
@pytest.mark.parametrize("beams", [1, 3])
def test_seconds_of_qwen2_5_are_those_of_its_positions(beams, form):
    """Oracle: the model's own time positions, so many a second; videos of different spacing and length, an image."""
    model, inputs = model_of("qwen2_5_vl"), prompts("qwen2_5_vl", "vwi", "iv")
    spacing = [0.5, 2.0, 1.5]
    seen = []
    hook = tiny.text_model(model).register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(kwargs["position_ids"][-3]), with_kwargs=True
    )
    with vtprune.pruned(model, ByNorm((BEFORE_LLM,))) as report:
        tiny.beams(model, inputs, 1, num_beams=beams, second_per_grid_ts=form(spacing))
    hook.remove()
    rate = model.config.vision_config.tokens_per_second
    for b, order in enumerate(["vwi"] * beams + ["iv"] * beams):
        row, kept = report.last.layout.rows[b], report.kept(b)
        for one in kept:
            time = seen[0][b, row.columns[row.source == one.source]]
            if one.kind == "image":
                assert one.seconds is None
            else:
                assert one.seconds[one.places[:, 1]].tolist() == ((time - time.min()) / rate).tolist()
        assert len(kept) == len(order)


def test_a_second_turn_tells_the_new_video_s_times():
    """Oracle: by hand; the processor's numbers are those of the whole conversation."""
    model, inputs = model_of("qwen2_5_vl"), prompts("qwen2_5_vl", "v")
    turns = DynamicCache(config=model.config.get_text_config())
    with vtprune.pruned(model, ByNorm((BEFORE_LLM,))) as report:
        first = tiny.greedy(model, inputs, 2, past_key_values=turns, second_per_grid_ts=[0.5])
        assert times_of(report) == [[0.0, 0.5]]
        turn = tiny.new_turn("qwen2_5_vl", model, inputs, first.sequences, image=True, clip=True)
        tiny.greedy(model, turn, 1, past_key_values=turns, second_per_grid_ts=[0.5, 4.0])
        assert times_of(report) == [None, [0.0, 4.0]]


# ------------------------------------------------------------------------------------------------ from the user


@pytest.mark.parametrize("family", [f for f in tiny.VIDEO_FAMILIES if f != "internvl"])
def test_the_user_s_times_reach_every_token_at_every_site(family):
    """Oracle: by hand; two videos and an image, a batch of two orders, as arrays, tensors and lists."""
    model, inputs = model_of(family), prompts(family, "viv", "vvi")
    frames = [[0.0, 1.0, 4.0, 5.0], [10.0, 10.5, 12.0, 12.5], [0.0, 3.0, 6.0, 9.0]]
    pairs = family in tiny.MROPE_FAMILIES  # two frames make one step
    steps = [[0.5, 4.5], [10.25, 12.25], [1.5, 7.5]] if pairs else frames
    given = (np.array(frames[0]), torch.tensor(frames[1], dtype=torch.float32), frames[2], None)
    expected = [[steps[0], None, steps[1]], [steps[2], None, None]]
    policy = Watch((BEFORE_LLM, 2))
    with vtprune.pruned(model, policy) as report:
        with vtprune.frame_times(given):
            tiny.greedy(model, inputs, 1)
        assert [times_of(report, b) for b in range(2)] == expected
        seeds = [row.seed for row in report.last.layout.rows]
        tiny.greedy(model, inputs, 1)
        assert [times_of(report, b) for b in range(2)] == [[None] * 3] * 2, "the times outlived their block"
    # of the second call, which came last
    assert all(seconds is None for seconds, _, _ in policy.shown.values())
    with vtprune.pruned(model, policy), vtprune.frame_times(given):
        tiny.greedy(model, inputs, 1)
    for (_, seed), (seconds, coords, sources) in policy.shown.items():
        told = expected[seeds.index(seed)]
        wanted = [math.nan if told[s] is None else told[s][c[1]] for s, c in zip(sources, coords.tolist())]
        assert torch.equal(seconds.nan_to_num(-1), torch.tensor(wanted, dtype=torch.float64).nan_to_num(-1))
        assert len(seconds) == len(coords) and seconds.dtype == torch.float64
    assert len(policy.shown) == 4


def test_newlines_have_no_time():
    """Oracle: by hand; the newline that ends a video is no frame."""

    class WithNewlines(Watch):
        newlines = True

    model, policy = model_of("llava_onevision"), WithNewlines((BEFORE_LLM,))
    with vtprune.pruned(model, policy), vtprune.frame_times([[0, 1, 2, 3]]):
        tiny.greedy(model, prompts("llava_onevision", "v"), 1)
    [(seconds, _, _)] = policy.shown.values()
    assert seconds[:-1].tolist() == [0.0] * 4 + [1.0] * 4 + [2.0] * 4 + [3.0] * 4 and seconds[-1].isnan()


def test_images_are_frames_where_no_video_is_encoded():
    """Oracle: by hand; InternVL gets a video as images, here after a picture that is no frame."""
    model = model_of("internvl")
    with vtprune.pruned(model, ByNorm((BEFORE_LLM,))) as report:
        with vtprune.frame_times([[math.nan], [0.0, 0.5, 1.0, 7.0]]):
            tiny.greedy(model, prompts("internvl", "iv"), 1)
        assert times_of(report) == [None, [0.0], [0.5], [1.0], [7.0]]


def test_frames_of_two_videos_given_as_images_stay_apart():
    """Oracle: the same pictures twice, which merge into the first four where nobody says that they are two videos."""
    model, inputs = model_of("internvl"), prompts("internvl", "vv")
    frames = inputs["pixel_values"]
    inputs["pixel_values"] = torch.cat([frames[: len(frames) // 2]] * 2)
    n = len(frames) // 2
    with vtprune.pruned(model, "framefusion", similarity=0.5, stop_below=0.0, keep_ratio=0.3) as report:
        tiny.greedy(model, inputs, 1)
        merged = [int((one.target < 0).sum() + (one.into < 0).sum()) for one in report.kept(0, 0)]
        assert any(merged[n:])
        with vtprune.frame_times([range(n), range(n)]):
            tiny.greedy(model, inputs, 1)
        first = int(torch.cat([one.target for one in report.kept(0, 0)[:n]]).max())
        assert all(int(one.target[one.target >= 0].min()) > first for one in report.kept(0, 0)[n:])


def test_the_user_s_times_win_over_the_processor_s_and_blocks_nest():
    model, inputs = model_of("qwen2_5_vl"), prompts("qwen2_5_vl", "v")
    found = []
    with vtprune.pruned(model, ByNorm((BEFORE_LLM,))) as report:

        def ask():
            tiny.greedy(model, inputs, 1, second_per_grid_ts=[0.5])
            found.append(times_of(report)[0])

        ask()
        with vtprune.frame_times([[0, 1, 2, 3]]):
            ask()
            with vtprune.frame_times([[5, 6, 7, 8]]):
                ask()
            ask()
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()
    # another thread hears nothing of the block
    assert found == [[0.0, 0.5], [0.5, 2.5], [5.5, 7.5], [0.5, 2.5], [0.0, 0.5]]


def test_a_plain_forward_and_the_frames_of_read_frames_will_do():
    from vtprune.video import Frames

    seconds = np.array([0.0, 0.04, 0.08, 0.5])
    frames = Frames(np.zeros((4, 2, 2, 3), np.uint8), seconds, np.arange(4), 4, 25.0, 0.54, "pillow")
    model, inputs = model_of("llava_next_video"), prompts("llava_next_video", "v")
    with vtprune.pruned(model, ByNorm((BEFORE_LLM,))) as report, vtprune.frame_times([frames.seconds]):
        oracle.text_logits(model, inputs)
    assert times_of(report) == [seconds.tolist()]


@pytest.mark.parametrize(
    ("frames", "size", "steps"),
    [
        ([0.0, 1.0, 2.0], 1, [0.0, 1.0, 2.0]),
        ([0.0, 1.0, 2.0], 2, [0.5, 2.0]),
        ([0.0, 1.0, 5.0, 6.0], 3, [2.5, 6.0]),
        ([4.0], 2, [4.0]),
    ],
)
def test_a_step_is_shown_between_its_first_and_last_frame(frames, size, steps):
    """Oracle: by hand; the last frame fills up the last step."""
    assert step_seconds(torch.tensor(frames, dtype=torch.float64), size).tolist() == steps


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("times", "words"),
    [
        (3.0, "got float"),
        ("0 1 2", "got str"),
        ([0.0, 1.0], "got 0.0 for video 0"),
        ([["a"]], "got \\['a'\\] for video 0"),
        ([[0.0], []], "got \\[\\] for video 1"),
        ([[[0.0, 1.0]]], "for video 0"),
        ([[0.0, math.inf]], "not finite"),
    ],
)
def test_what_is_no_times_is_refused_at_once(times, words):
    with pytest.raises(ValueError, match=words) as error, vtprune.frame_times(times):
        pass
    assert "frame_times([frames.seconds])" in str(error.value)


@pytest.mark.parametrize(
    ("family", "order", "times", "words"),
    [
        ("qwen2_5_vl", "vw", [[0, 1, 2, 3]], "lists for 1 videos and this call encodes 2"),
        ("qwen2_5_vl", "v", [[0, 1]], "2 times for video 0, which has 2 steps, each of 2 frames"),
        ("llava_next_video", "v", [[0, 1, 2]], "3 times for video 0, which has 4 steps;"),
        ("internvl", "iv", [[0, 1, 2, 3]], "4 times and this call encodes 5 images"),
        ("internvl", "v", [None], "None says nothing of how many"),
        ("qwen2_5_vl", "i", [[0, 1]], "2 times and this call encodes 1 images"),
    ],
)
def test_times_that_do_not_fit_are_refused_and_the_model_stays_usable(family, order, times, words):
    model, inputs = model_of(family), prompts(family, order)
    with vtprune.pruned(model, ByNorm((BEFORE_LLM,))):
        with pytest.raises(ValueError, match=words), vtprune.frame_times(times):
            tiny.greedy(model, inputs, 1)
        tiny.greedy(model, inputs, 1)


def test_a_prompt_without_pictures_needs_no_times():
    model = model_of("llava_next_video")
    text = {"input_ids": torch.tensor([[1, 5, 6, 7]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    with vtprune.pruned(model, ByNorm((BEFORE_LLM,))), vtprune.frame_times([[0, 1]]):
        assert model.generate(**text, max_new_tokens=2, do_sample=False).shape[1] >= 5
