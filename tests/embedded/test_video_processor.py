"""The processor of the video model: patches as the class expects them, one placeholder per visual token."""

import numpy as np
import pytest
import torch
from PIL import Image

from vtprune.embedded.clips import SIDE, SLICE, make_clip
from vtprune.embedded.slices import patches_of, see
from vtprune.embedded.video_architecture import MEAN, MERGE, PATCH, STD, TOKENS, VOCABULARY, build_video_model
from vtprune.embedded.video_processor import ClipProcessor

QUESTION = "Which shape appears first?"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_video_model().eval()


@pytest.fixture(scope="module")
def processor():
    return ClipProcessor()


@pytest.fixture(scope="module")
def frames():
    return make_clip(3).frames


def normalised(frames):
    """(T, 3, H, W) float64."""
    return ((frames / 255 - np.array(MEAN)) / np.array(STD)).transpose(0, 3, 1, 2)


def test_patches_of_a_still_are_those_of_transformers_image_processor(frames):
    """Oracle: Qwen2-VL's image processor, which Qwen3-VL uses; it repeats a picture to fill a slice."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    stock = Qwen2VLImageProcessorPil(
        patch_size=PATCH, temporal_patch_size=SLICE, merge_size=MERGE, image_mean=MEAN, image_std=STD, do_resize=False
    )
    expected = stock(images=Image.fromarray(frames[4]), return_tensors="pt")
    patches, grid = patches_of(frames[[4, 4]])
    assert list(grid) == expected["image_grid_thw"][0].tolist()
    torch.testing.assert_close(patches, expected["pixel_values"].float(), atol=1e-6, rtol=1e-6)


def test_the_towers_convolution_sees_each_patch_of_both_frames(frames, model):
    """Oracle: the same weights as a strided 3-D convolution over the whole clip."""
    embed = model.model.visual.patch_embed
    patches, (t, h, w) = patches_of(frames)
    volume = torch.from_numpy(normalised(frames)).float().transpose(0, 1)[None]
    with torch.no_grad():
        made, expected = embed(patches), embed.proj(volume)[0]  # (D, t, h, w)
    row = 0
    for frame in range(t):
        for top in range(0, h, MERGE):
            for left in range(0, w, MERGE):
                for y in range(top, top + MERGE):
                    for x in range(left, left + MERGE):
                        torch.testing.assert_close(made[row], expected[:, frame, y, x], atol=1e-5, rtol=1e-5)
                        row += 1
    assert row == len(patches)


def test_all_slices_at_once_are_what_the_tower_makes_of_them(frames, model):
    """Oracle: the stock tower."""
    patches, (t, h, w) = patches_of(frames)
    with torch.no_grad():
        expected = model.model.visual(patches, grid_thw=torch.tensor([[t, h, w]]))
        features, deep = see(model.model.visual, patches.view(t, h * w, -1))
    torch.testing.assert_close(features.flatten(0, 1), expected.pooler_output, atol=1e-5, rtol=1e-5)
    assert len(deep) == len(expected.deepstack_features) == 1
    torch.testing.assert_close(deep[0].flatten(0, 1), expected.deepstack_features[0], atol=1e-5, rtol=1e-5)


def test_an_odd_last_frame_is_repeated(frames):
    odd, grid = patches_of(frames[:5])
    even, _ = patches_of(frames[[0, 1, 2, 3, 4, 4]])
    assert grid[0] == 3 and torch.equal(odd, even)


def test_there_is_one_placeholder_per_visual_token(frames, model, processor):
    inputs = processor(f"<bos><video>{QUESTION}<answer>", frames)
    features = model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"]).pooler_output
    ids = inputs["input_ids"][0]
    assert (ids == model.config.video_token_id).sum() == len(features[0]) == len(frames) // SLICE * TOKENS
    assert torch.equal(inputs["mm_token_type_ids"][0] == 2, ids == model.config.video_token_id)
    words = processor.tokenizer.convert_ids_to_tokens(ids)
    one = ["<vision_start>", *["<video>"] * TOKENS, "<vision_end>"]
    assert words == ["<bos>", *one * (len(frames) // SLICE), *"which shape appears first ? <answer>".split()]


def test_positions_go_on_after_each_slice(frames, model, processor):
    """Oracle: Qwen3-VL's scheme by hand: a slice takes as many positions as it has rows, its marks one each."""
    inputs = processor(f"<bos><video>{QUESTION}<answer>", frames[:4])
    position, _ = model.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], video_grid_thw=inputs["video_grid_thw"]
    )
    side, expected, now = SIDE // PATCH // MERGE, [[0] * 3], 1
    for _ in range(2):
        expected.append([now] * 3)
        expected += [[now + 1, now + 1 + y, now + 1 + x] for y in range(side) for x in range(side)]
        expected.append([now + 1 + side] * 3)
        now += side + 2
    expected += [[now + i] * 3 for i in range(6)]
    assert position[:, 0].T.tolist() == expected


def test_a_batch_is_padded_on_the_left_and_keeps_the_order_of_clips(frames, processor):
    long, short = f"<bos><video>{QUESTION}<answer>", "<bos><video>What color is the ring?<answer>"
    both = processor([long, short], [frames, frames[:6]])
    alone = processor(short, frames[:6])
    n = alone["input_ids"].shape[1]
    assert both["attention_mask"][1].tolist() == [0] * (both["input_ids"].shape[1] - n) + [1] * n
    assert torch.equal(both["input_ids"][1, -n:], alone["input_ids"][0])
    assert both["video_grid_thw"].tolist() == [[8, 8, 8], [3, 8, 8]]
    torch.testing.assert_close(
        both["pixel_values_videos"][-len(alone["pixel_values_videos"]) :], alone["pixel_values_videos"]
    )


def test_clips_come_in_many_forms(frames, processor):
    text = f"<bos><video>{QUESTION}<answer>"
    expected = processor(text, frames)["pixel_values_videos"]
    pictures = [Image.fromarray(frame) for frame in frames]
    for form in ([frames], list(frames), pictures, [pictures], tuple(pictures)):
        assert torch.equal(processor(text, form)["pixel_values_videos"], expected)


def test_frames_of_another_size_are_resized(frames, processor):
    """Oracle: a picture whose pixels are doubled looks the same afterwards, but for edges."""
    large = frames[:2].repeat(2, axis=1).repeat(2, axis=2)
    one, other = (processor("<video>", clip)["pixel_values_videos"] for clip in (frames[:2], large))
    assert one.shape == other.shape and (one - other).abs().mean() < 0.1


def test_text_alone_needs_no_clip(processor):
    inputs = processor(f"<bos>{QUESTION}<answer>")
    assert sorted(inputs) == ["attention_mask", "input_ids", "mm_token_type_ids"]
    assert not inputs["mm_token_type_ids"].any() and VOCABULARY["<unk>"] not in inputs["input_ids"]


def test_clips_and_placeholders_must_match(frames, processor):
    with pytest.raises(ValueError, match="the text has 1 <video> but 2 clips were given"):
        processor("<video>", [frames, frames])
    with pytest.raises(ValueError, match="the text has 1 <video> but 0 clips were given"):
        processor("<video>")


def test_frames_must_be_bytes(frames, processor):
    with pytest.raises(ValueError, match=r"a frame is \(H, W, 3\) uint8 or a picture; got \(64, 64, 3\) float64"):
        processor("<video>", frames / 255.0)


def test_a_chat_goes_round_through_the_template(processor):
    question = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "ring"}]}
    more = {"role": "user", "content": "Which shape appears last?"}
    prompt = processor.apply_chat_template([question, answer, more], add_generation_prompt=True)
    assert prompt == f"<bos><video>{QUESTION}<answer> ring<eos>Which shape appears last?<answer>"
    ids = processor(prompt, make_clip(0, frames=8).frames)["input_ids"][0]
    assert (
        processor.decode(ids, skip_special_tokens=True) == "which shape appears first ? ring which shape appears last ?"
    )
    assert processor.batch_decode(ids[None, -8:]) == ["ring <eos> which shape appears last ? <answer>"]
