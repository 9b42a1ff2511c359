"""The shipped image model: it loads from the package with no network, and it looks at the picture."""

import re

import pytest
import torch

from vtprune.embedded import EXAMPLE_SEED, evaluate, example, image_path, load_image
from vtprune.embedded.scenes import make_scene

QUESTION = "What color is the circle?"
WEIGHTS_LIMIT, FOLDER_LIMIT = 8e6, 9e6  # bytes
N_SCENES = 7


@pytest.fixture(scope="module")
def loaded(no_network):
    return load_image()


@pytest.fixture(scope="module")
def asked():
    return evaluate.held_out(N_SCENES)


def chat(text, *, picture=True):
    return [{"role": "user", "content": [{"type": "image"}] * picture + [{"type": "text", "text": text}]}]


def test_the_classes_are_transformers_own(loaded):
    model, processor = loaded
    assert type(model).__module__ == "transformers.models.llava.modeling_llava"
    assert type(processor).__name__ == "LlavaProcessor" and type(processor).__module__.startswith("transformers.")
    assert {p.dtype for p in model.parameters()} == {torch.float32} and not model.training
    config = model.config
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
    assert config.text_config.num_hidden_layers >= 6 and config.image_seq_length >= 144


def test_weights_take_the_dtype_asked_for():
    model, _ = load_image(torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_it_is_small():
    elsewhere = {"__pycache__", "video"}  # the other model has a limit of its own
    files = [path for path in image_path().parent.rglob("*") if path.is_file() and not elsewhere & {*path.parts}]
    assert (image_path() / "model.safetensors").stat().st_size <= WEIGHTS_LIMIT
    assert sum(path.stat().st_size for path in files) <= FOLDER_LIMIT


def test_it_answers_held_out_questions_and_needs_the_right_picture(loaded, asked):
    """Oracle: the scenes' own answers, which test_scenes.py recomputes; for the second half, those of another scene."""
    assert 90 <= len(asked) <= 150
    right = {}
    for condition in ("picture", "wrong picture"):
        pairs = [(evaluate.show(a, condition), a.question.text) for a in asked]
        said = evaluate.answers(*loaded, pairs)
        right[condition] = sum(text == a.question.answer for text, a in zip(said, asked, strict=True)) / len(asked)
    assert right["picture"] >= 0.9 and right["wrong picture"] < 0.6, right


def test_a_batch_answers_like_its_samples_alone(loaded, asked):
    pairs = [(a.picture, a.question.text) for a in asked[:12]]
    assert len({len(text.split()) for _, text in pairs}) > 1  # so that something is padded
    assert list(evaluate.answers(*loaded, pairs)) == list(evaluate.answers(*loaded, pairs, batch=1))


def test_the_prompt_has_one_placeholder_per_visual_token(loaded):
    model, processor = loaded
    prompt = processor.apply_chat_template(chat(QUESTION), add_generation_prompt=True)
    assert prompt == f"<bos><image>{QUESTION}<answer>"
    inputs = processor(images=example()[0], text=prompt, return_tensors="pt")
    features = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output[0]
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == len(features) == 144
    words = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert [word for word in words if word != "<image>"] == "<bos> what color is the circle ? <answer>".split()


def test_a_chat_goes_round_through_the_template(loaded):
    _, processor = loaded
    talk = [
        *chat(QUESTION),
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        *chat("Where is the 7?", picture=False),
    ]
    tokenized = processor.tokenizer(processor.apply_chat_template(talk, add_generation_prompt=True)).input_ids
    text = processor.tokenizer.decode(tokenized)
    assert text == "<bos> <image> what color is the circle ? <answer> red <eos> where is the 7 ? <answer>"


def test_case_is_ignored_and_unknown_words_are_unk(loaded):
    tokenizer = loaded[1].tokenizer
    assert tokenizer("WHAT Color is ThE circle?").input_ids == tokenizer(QUESTION).input_ids
    assert tokenizer.tokenize("the zebra's 42") == ["the", "<unk>", "<unk>", "<unk>", "4", "2"]


def test_the_example_is_a_held_out_scene_and_answered(loaded):
    picture, question, answer = example()
    scene = make_scene(EXAMPLE_SEED, "test")
    assert picture.tobytes() == scene.image.tobytes()
    assert (question, answer) in [(q.text, q.answer) for q in scene.questions]
    assert list(evaluate.answers(*loaded, [(picture, question)])) == [answer]


def test_the_pipeline_loads_it():
    from transformers import pipeline

    picture, question, answer = example()
    pipe = pipeline("image-text-to-text", model=str(image_path()))
    talk = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]
    said = pipe(text=talk, return_full_text=False)[0]["generated_text"]
    assert said.strip() == answer


def test_the_card_states_what_was_asked_for():
    """The card is written by evaluate.py; what is checked is that the measured row clears the bar it was built for."""
    cells = re.search(r"^\| all \|(.*)\|$", (image_path() / "README.md").read_text(), re.MULTILINE)[1].split("|")
    n, right, _, wrong, *blind = (cell.strip() for cell in cells)
    assert int(n) >= 1500 and float(right) >= 95 and float(wrong) < 60
    assert max(map(float, blind)) <= 45
