"""Scorers, against models asked directly, one frame at a time."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
import transformers as hf

from vtprune.embedded import load_image
from vtprune.embedded.scenes import make_scene
from vtprune.quota.score import FrameScorer, GivenScores, SimilarityScorer, YesNoScorer, model_name, yes_no_question


@cache
def embedded():
    return load_image()


@cache
def frames():
    return [make_scene(seed, "test").image for seed in (1000, 1001, 1002)]


def asks(question, objects):
    return f"Is there a {objects[0]}?" if objects else question


@cache
def scorer():
    return YesNoScorer(*embedded(), batch_size=2, answer="yes", prompt=asks)


def directly(question, answer="yes"):
    """The probability of the reply for each frame, by a plain forward of one prompt."""
    model, processor = embedded()
    scores = []
    for frame in frames():
        inputs = processor(images=frame, text=f"<bos><image>{question}<answer>", return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1].double()
        scores.append(logits.softmax(-1)[processor.tokenizer.convert_tokens_to_ids(answer)])
    return torch.stack(scores)


# -------------------------------------------------------------------------------------------------------- yes or no


def test_scores_are_the_probability_of_yes_one_frame_at_a_time():
    """Oracle: plain forwards, softmax over the whole vocabulary, no renormalisation."""
    for question, objects in (("Is there a red circle?", ()), ("", ("blue square",))):
        scores = scorer()(frames(), question, objects)
        assert scores.dtype == torch.float32 and scores.shape == (3,)
        expected = directly(asks(question, objects))
        torch.testing.assert_close(scores.double(), expected, atol=1e-5, rtol=1e-4)


def test_scores_tell_what_is_in_the_picture():
    """Oracle: the scenes' own questions, half of them with the answer yes."""
    right = total = 0
    for seed in (1000, 1001, 1002):
        scene = make_scene(seed, "test")
        for question in scene.questions:
            if question.kind == "exists":
                [score] = scorer()([scene.image], question.text)
                right += (float(score) > 0.5) == (question.answer == "yes")
                total += 1
    assert total >= 10 and right == total


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_batches_change_nothing(batch_size):
    some = YesNoScorer(*embedded(), batch_size=batch_size, answer="yes", prompt=asks)
    got = some(frames(), "Is there a red circle?")
    torch.testing.assert_close(got, scorer()(frames(), "Is there a red circle?"), atol=1e-5, rtol=1e-4)


def test_frames_may_be_arrays():
    import numpy as np

    arrays = np.stack([np.asarray(frame) for frame in frames()])
    got = scorer()(arrays, "Is there a red circle?")
    torch.testing.assert_close(got, scorer()(frames(), "Is there a red circle?"), atol=1e-6, rtol=0)


def test_the_reply_must_be_one_token():
    with pytest.raises(ValueError, match=r"'yes no' is 2 tokens"):
        YesNoScorer(*embedded(), answer="yes no")


@pytest.mark.parametrize("size", [0, -1, 2.0, True, None])
def test_a_wrong_batch_size_is_refused(size):
    with pytest.raises(ValueError, match=f"batch_size .*{size!r}"):
        YesNoScorer(*embedded(), answer="yes", batch_size=size)


def test_no_frame_is_no_clip():
    with pytest.raises(ValueError, match="no frame"):
        scorer()([], "What?")


def test_the_default_question_has_two_letters_to_choose_from():
    asked, unnamed = yes_no_question("Who?", ["a cat", "a van"]), yes_no_question("Who?", [])
    assert "a cat, a van" in asked and "Who?" not in asked
    assert "Who?" in unnamed and "sufficient information" in unnamed
    for text in (asked, unnamed):
        assert text.index("A. yes") < text.index("B. no")


# ------------------------------------------------------------------------------------------------------ similarity


class Processor:
    """Letters as tokens, pixels as they are; remembers how texts were padded."""

    def __init__(self):
        self.padding = None

    def __call__(self, text=None, images=None, padding=None, truncation=None, return_tensors="pt"):
        if images is not None:
            return hf.BatchFeature({"pixel_values": torch.stack([torch.as_tensor(image) for image in images])})
        self.padding = padding
        rows = [[ord(letter) % 40 + 2 for letter in one][:15] + [1] for one in text]
        longest = 16 if padding == "max_length" else max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return hf.BatchFeature({"input_ids": ids, "attention_mask": mask})


@cache
def dual(kind):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 12, "patch_size": 4}
    text = {**sizes, "vocab_size": 50, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(0)
    if kind == "clip":
        config = hf.CLIPConfig(text_config={**text, "projection_dim": 8}, vision_config=vision, projection_dim=8)
        return hf.CLIPModel(config).eval()
    text["projection_size"] = 16
    return hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=vision)).eval()


def pixels(n=5):
    return [torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(i)) for i in range(n)]


def cosine(kind, image, text):
    """By the model's own forward of one picture and one text, or for SigLIP from its normalised embeddings."""
    model = dual(kind)
    words = Processor()(text=[text], padding="max_length" if kind == "siglip" else True)
    with torch.no_grad():
        out = model(**words, pixel_values=image[None])
    return F.cosine_similarity(out.image_embeds, out.text_embeds)[0]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("batch_size", [2, 64])
def test_similarity_is_the_cosine_moved_to_0_to_1(kind, batch_size):
    """Oracle: the model's forward of every pair; the best of the objects, or the question where there are none."""
    processor = Processor()
    some = SimilarityScorer(dual(kind), processor, batch_size=batch_size)
    frames = pixels()
    expected = torch.stack([(1 + cosine(kind, image, "who is it")) / 2 for image in frames])
    torch.testing.assert_close(some(frames, "who is it"), expected, atol=1e-5, rtol=0)
    objects = ["cat", "a van"]
    each = [[cosine(kind, image, f"a photo of {name}") for name in objects] for image in frames]
    expected = torch.tensor([(1 + max(one)) / 2 for one in each])
    got = some(frames, "who is it", objects)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert bool(((got >= 0) & (got <= 1)).all())
    assert processor.padding == ("max_length" if kind == "siglip" else True)


def test_a_template_without_a_place_is_refused():
    with pytest.raises(ValueError, match="a photo"):
        SimilarityScorer(dual("clip"), Processor(), template="a photo")


# ----------------------------------------------------------------------------------------------------------- others


def test_given_scores_are_given_back():
    given = GivenScores([0.1, 0.9])
    assert given([None, None], "What?").tolist() == pytest.approx([0.1, 0.9])
    with pytest.raises(ValueError, match="2 scores for 3 frames"):
        given([None] * 3, "What?")


def test_all_are_scorers():
    for some in (scorer(), SimilarityScorer(dual("clip"), Processor()), GivenScores([1])):
        assert isinstance(some, FrameScorer)


def test_names_differ_where_scores_do_and_not_otherwise():
    model, processor = embedded()
    name = YesNoScorer(model, processor, answer="yes", prompt=asks).name
    assert name == YesNoScorer(model, processor, answer="yes", prompt=asks, batch_size=3).name
    others = [
        YesNoScorer(model, processor, answer="no", prompt=asks).name,
        YesNoScorer(model, processor, answer="yes").name,
        YesNoScorer(model, processor, answer="yes", prompt=asks, options={"max_pixels": 9}).name,
        SimilarityScorer(dual("clip"), Processor()).name,
        SimilarityScorer(dual("clip"), Processor(), template="{}").name,
        SimilarityScorer(dual("siglip"), Processor()).name,
    ]
    assert len({name, *others}) == 7


def test_other_weights_are_another_model():
    model = dual("clip")
    before = model_name(model)
    assert before == model_name(model)
    with torch.no_grad():
        weight = model.visual_projection.weight
        weight[0, 0] += 1
        assert model_name(model) != before
        weight[0, 0] -= 1
