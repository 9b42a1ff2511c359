"""Prompts as model inputs: templates, padding and first tokens."""

import pytest
import torch

from vtprune.chat import chat_text, encode, floats_as
from vtprune.embedded import example, load_image


class Tokenizer:
    """Words as they are; remembers the options."""

    def __init__(self, template=None, bos="<s>"):
        self.chat_template, self.bos_token = template, bos

    def apply_chat_template(self, chat, add_generation_prompt, tokenize):
        assert add_generation_prompt and not tokenize
        return repr(chat)

    def __call__(self, text, **options):
        self.text, self.options = text, options
        return self

    def to(self, device):
        return {"device": device}


class Processor(Tokenizer):
    def __init__(self, template=None):
        super().__init__(template)
        self.tokenizer = Tokenizer()


def test_models_without_a_template_are_asked_the_bare_question():
    assert chat_text(Tokenizer(), "Who?") == chat_text(Processor(), "Who?") == "Who?"


def test_a_tokenizer_gets_a_string_and_a_processor_a_list_of_parts():
    text = {"type": "text", "text": "Who?"}
    assert chat_text(Tokenizer("x"), "Who?") == repr([{"role": "user", "content": "Who?"}])
    assert chat_text(Processor("x"), "Who?") == repr([{"role": "user", "content": [text]}])
    parts = [{"type": "image"}, {"type": "image"}, text]
    assert chat_text(Processor("x"), "Who?", ["image"] * 2) == repr([{"role": "user", "content": parts}])


@pytest.mark.parametrize(
    ("bos", "texts", "added"),
    [("<s>", ["<s>a", "<s>b"], False), ("<s>", ["a", "b"], True), (None, ["a"], True), ("", ["a"], True)],
)
def test_the_first_token_is_written_once(bos, texts, added):
    tokenizer = Tokenizer(bos=bos)
    assert encode(tokenizer, texts, "cpu", more=1) == {"device": "cpu"}
    assert tokenizer.text == texts
    assert tokenizer.options["add_special_tokens"] is added and tokenizer.options["more"] == 1


def test_prompts_of_unequal_length_are_padded_on_the_left_whatever_the_tokenizer_does():
    """Oracle: each prompt alone, and the next token that the model gives it."""
    model, processor = load_image()
    processor.tokenizer.padding_side = "right"
    picture, _, _ = example()
    texts = [f"<bos><image>{words}<answer>" for words in ("Which digit is cyan?", "Is there a red circle?")]
    together = encode(processor, texts, "cpu", images=[[picture], [picture]])
    assert processor.tokenizer.padding_side == "right"
    assert together["attention_mask"].sum(1).diff() != 0, "the prompts differ in length"
    with torch.no_grad():
        logits = model(**together).logits[:, -1]
        for text, row, ids, mask in zip(texts, logits, together["input_ids"], together["attention_mask"]):
            alone = encode(processor, [text], "cpu", images=[[picture]])
            assert ids[mask.bool()].tolist() == alone["input_ids"][0].tolist()
            torch.testing.assert_close(row, model(**alone).logits[0, -1], atol=1e-4, rtol=1e-4)


def test_only_pixels_take_the_models_dtype():
    """Oracle: which numbers a model computes with, and which it counts by; seconds would lose by bfloat16."""
    model, seconds = torch.nn.Module(), torch.tensor([0.123456789])
    model.dtype = torch.bfloat16
    inputs = {"input_ids": torch.ones(1, dtype=torch.int64), "names": ["a"], "second_per_grid_ts": seconds}
    got = floats_as({**inputs, "pixel_values": torch.ones(1), "pixel_values_videos": torch.ones(1)}, model)
    assert {name: got[name] for name in inputs} == inputs
    assert got["pixel_values"].dtype == got["pixel_values_videos"].dtype == torch.bfloat16
