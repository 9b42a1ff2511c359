"""How clips go into a processor: against the processor called with everything written out."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.video.processors import internvl, qwen2_5_vl
from vtprune.embedded import load_image, load_video
from vtprune.video.frames import Frames
from vtprune.video.inputs import places, processor_arguments, seconds_of, takes_videos, video_inputs


@pytest.fixture(scope="module")
def clip() -> Frames:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    return Frames(pixels, np.array([0.0, 0.5, 1.0, 4.5]), np.array([0, 1, 2, 9]), 10, 2.0, 5.0, "av")


@pytest.mark.parametrize("form", [lambda c: c, lambda c: c.pixels, lambda c: [Image.fromarray(f) for f in c.pixels]])
def test_a_clip_in_every_form_is_one_video(clip, form):
    model, processor = load_video()
    got = video_inputs(model, processor, form(clip), "Which shape is red?")
    expected = processor("<bos><video>Which shape is red?<answer>", [clip.pixels])
    assert got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in expected)


def test_frames_are_images_where_no_videos_are_taken(clip):
    model, processor = load_image()
    got = video_inputs(model, processor, clip, "Which digit is red?")
    text = f"<bos>{'<image>' * 4}Which digit is red?<answer>"
    expected = processor(images=[Image.fromarray(f) for f in clip.pixels], text=text, return_tensors="pt")
    assert got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in expected)
    assert not takes_videos(processor) and places(processor, clip) == ["image"] * 4


def test_what_processors_are_told(clip):
    """Oracle: their documented arguments; times are known of ``Frames`` only."""
    processor, picture = qwen2_5_vl(), Image.new("RGB", (8, 8))
    assert (places(processor, clip), places(processor, picture)) == (["video"], ["image"])
    found = processor_arguments(processor, [clip, picture, clip])
    assert found["images"] == [[picture]] and [len(video) for video in found["videos"]] == [4, 4]
    assert found["do_sample_frames"] is False
    assert [one["frames_indices"] for one in found["video_metadata"]] == [[0, 1, 2, 9]] * 2
    assert "video_metadata" not in processor_arguments(processor, [clip, clip.pixels])
    assert processor_arguments(processor, [picture]) == {"images": [[picture]]}


def test_times_are_told_where_it_is_clear_whose_they_are(clip):
    """Oracle: written out, for the inputs that real processors make."""
    picture, question = Image.new("RGB", (56, 56)), "w3 "
    for processor, token in ((qwen2_5_vl(), "<|video_pad|>"), (internvl(), "<video>")):
        inputs = processor(text=[question + token], **processor_arguments(processor, [clip]), return_tensors="pt")
        [seconds] = seconds_of([clip], inputs)
        assert seconds.tolist() == [0.0, 0.5, 1.0, 4.5]
    images = {"pixel_values": torch.zeros(6, 3, 56, 56)}
    first, middle, last = seconds_of([picture, clip, picture], images)
    assert np.isnan([*first, *last]).all() and len(first) == len(last) == 1 and middle.tolist() == clip.seconds.tolist()
    assert seconds_of([picture, clip], images) is None, "six images of five pictures are tiles"
    assert seconds_of([clip], {"pixel_values": torch.zeros(1, 8, 3, 56, 56)}) is None
    assert seconds_of([picture], {"pixel_values": torch.zeros(1, 3, 56, 56)}) is None, "no clip, no times"
