"""The tiny models: every family runs, every image counts, and a batch is the sum of its samples."""

from functools import cache

import pytest
import torch
from torch import nn

from tests import tiny
from tests.oracle import assert_batch_equals_rows, text_logits

# two images in one prompt are tiled differently from one alone, so a second image changes what the first one is
RETILED = ("llava_onevision",)


@cache
def model_of(family: str) -> nn.Module:
    return tiny.build(family)


def close(a, b, atol=1e-9):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_build_is_repeatable(family):
    again = tiny.build(family).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in model_of(family).state_dict().items())
    assert len(tiny.text_model(tiny.build(family, layers=2)).layers) == 2


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_kind_runs_and_tokens_vary(family):
    model = model_of(family)
    for kind in tiny.KINDS:
        inputs = tiny.batch(family, kind)
        tokens = tiny.greedy(model, inputs, 6).sequences[:, inputs["input_ids"].shape[1] :]
        assert len(tokens.unique()) >= 2, (kind, tokens)
        assert not torch.isin(tokens, torch.tensor([tiny.IMAGE, tiny.VIDEO])).any()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_kinds_are_what_they_say(family):
    counts = {k: tiny.visual(tiny.batch(family, k)).sum(1).tolist() for k in tiny.KINDS}
    padded = {k: not tiny.batch(family, k)["attention_mask"].all() for k in tiny.KINDS}
    lengths = {k: len(counts[k]) for k in tiny.KINDS}
    assert lengths == dict(one=1, padded=2, ragged=2, ragged_unpadded=2, text_row=2, two_images=1)
    assert counts["padded"][0] == counts["padded"][1] and padded["padded"]
    assert counts["ragged"][0] != counts["ragged"][1]
    assert counts["ragged_unpadded"][0] != counts["ragged_unpadded"][1] and not padded["ragged_unpadded"]
    assert counts["text_row"][0] > 0 and counts["text_row"][1] == 0
    runs = tiny.batch(family, "two_images")["input_ids"][0].tolist().count(tiny.START)
    assert runs == 2 and not padded["two_images"] and not padded["one"]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_no_two_images_are_alike(family):
    parts = [sample.pixels for kind in ("padded", "two_images") for sample in tiny.samples(family, kind)]
    if family in tiny.MROPE_FAMILIES:
        images = [x for p in parts for x in p["pixel_values"].split(p["image_grid_thw"].prod(1).tolist())]
    else:
        images = [x for p in parts for x in p["pixel_values"].flatten(0, p["pixel_values"].dim() - 4)]
    firsts = {float(image.flatten()[0]) for image in images}
    assert len(firsts - {0.0}) == len([i for i in images if i.any()]) >= 4  # zeros: tiles that pad an anyres image


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_image_matters(family):
    """Other pixels in one image change the logits after it, and those of no other sample."""
    model, inputs = model_of(family), tiny.batch(family, "ragged")
    before = text_logits(model, inputs)
    one, two = inputs.samples
    first, last = two.pixels["pixel_values"].clone(), two.pixels["pixel_values"].clone()
    if family in ("idefics3", "smolvlm"):
        first[:, 0] += 1
        last[:, -1] += 1
    else:
        first[0] += 1
        last[-1] += 1
    for pixels in (first, last):
        changed = tiny.Sample(two.ids, {**two.pixels, "pixel_values": pixels})
        after = text_logits(model, tiny.collate(family, [one, changed]))
        close(after[0], before[0])
        assert (after[1] - before[1])[-1].abs().max() > 1e-3


@pytest.mark.parametrize("family", tiny.VIDEO_FAMILIES)
def test_every_frame_matters(family):
    model, inputs = model_of(family), tiny.video(family, "padded")
    before = text_logits(model, inputs)
    one, two = inputs.samples
    key = "pixel_values" if family == "internvl" else "pixel_values_videos"
    pixels = two.pixels[key].clone()
    (pixels[0] if pixels.dim() == 5 else pixels)[-1] += 1  # the last frame, or the last patch of it
    after = text_logits(model, tiny.collate(family, [one, tiny.Sample(two.ids, {**two.pixels, key: pixels})]))
    close(after[0], before[0])
    assert (after[1] - before[1])[-1].abs().max() > 1e-4


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_row_is_the_sample_alone(family):
    """A batch of two is two of one in the unwrapped model: every kind, prefill and what is generated."""
    model = model_of(family)
    for kind in ("padded", "ragged", "ragged_unpadded", "text_row"):
        assert_batch_equals_rows(lambda x: text_logits(model, x), family, tiny.samples(family, kind))
    inputs = tiny.batch(family, "ragged")
    together = tiny.greedy(model, inputs, 3)
    for i in range(2):
        alone = tiny.row(inputs, i)
        assert bool(alone["attention_mask"].all())
        assert alone["input_ids"][0].tolist() == list(inputs.samples[i].ids)
        answer = tiny.greedy(model, alone, 3)
        assert torch.equal(answer.sequences[0, -3:], together.sequences[i, -3:])
        close(torch.cat(answer.logits), torch.stack(together.logits)[:, i])


def test_assert_batch_equals_rows_can_fail():
    model, (one, two) = model_of("llava"), tiny.samples("llava", "ragged")

    def run(inputs):  # one text position too far to the left in a batch of two
        return [logits[:-1] if len(inputs["input_ids"]) == 2 else logits[1:] for logits in text_logits(model, inputs)]

    with pytest.raises(AssertionError, match="sample 0"):
        assert_batch_equals_rows(run, "llava", [one, two])


@pytest.mark.parametrize("family", tiny.VIDEO_FAMILIES)
def test_video_row_is_the_sample_alone(family):
    for kind in ("padded", "ragged", "with_image"):
        samples = tiny.video_samples(family, kind)
        assert_batch_equals_rows(lambda x: text_logits(model_of(family), x), family, samples)


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_second_turn_equals_the_whole_conversation_at_once(family, image):
    """A second turn on the cache against a fresh prefill of everything said so far."""
    if family == "paligemma":
        pytest.skip("its prefix is two-way: the first turn's tokens would see the second in a fresh prefill")
    model, inputs = model_of(family), tiny.batch(family, "ragged")
    if family in RETILED and image:
        inputs = tiny.collate(family, tiny.samples(family, "text_row")[1:])
    first = tiny.greedy(model, inputs, 4)
    turn = tiny.new_turn(family, model, inputs, first.sequences, image)
    second = tiny.greedy(model, turn, 4, past_key_values=first.past_key_values)
    whole = tiny.collate(family, turn.samples)
    assert torch.equal(whole["input_ids"], turn["input_ids"]) and second.past_key_values is first.past_key_values
    expected = tiny.greedy(model, whole, 4)
    assert torch.equal(second.sequences, expected.sequences)
    close(torch.stack(second.logits), torch.stack(expected.logits), atol=1e-5)  # rotary tables are float32
