"""Writes a tiny model folder: a stock LLaVA with random weights and its processor, as ``save_pretrained`` does."""

from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers

SIDE, PATCH, GRID = 56, 7, 8
LAYERS, HEADS, KEY_HEADS, HEAD_SIZE = 4, 4, 2, 8
MEAN, STD = [0.4, 0.45, 0.5], [0.25, 0.3, 0.35]
WORDS = (
    "user",
    "assistant",
    "what",
    "which",
    "color",
    "shape",
    "is",
    "this",
    "that",
    "and",
    "?",
    "red",
    "green",
    "blue",
)
SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>", "<image>")
VOCABULARY = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
TEMPLATE = (
    "{{ '<bos>' }}{% for message in messages %}{{ ' ' + message['role'] + ' ' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ ' ' + part['text'] + ' ' }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ ' assistant ' }}{% endif %}"
)
# <bos> user ... assistant, around the placeholders and words of a prompt
TEMPLATE_TOKENS = 3


def build_model(seed: int = 0) -> hf.LlavaForConditionalGeneration:
    """64 visual tokens for each picture and four decoder layers."""
    ids = {f"{name}_token_id": VOCABULARY[f"<{name}>"] for name in ("pad", "bos", "eos")}
    vision = hf.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
    )
    text = hf.LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=HEADS * HEAD_SIZE,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=1024,
        **ids,
    )
    config = hf.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=VOCABULARY["<image>"],
        image_seq_length=GRID * GRID,
        vision_feature_layer=-2,
        tie_word_embeddings=False,
        **ids,
    )
    torch.manual_seed(seed)
    model = hf.LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        # random weights of the usual size hardly look at their input; these do, so that pruning changes what is said
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    model.generation_config = hf.GenerationConfig(**ids)
    return model


def build_processor(template: str | None = TEMPLATE) -> hf.LlavaProcessor:
    """Resizes the shorter side to 56 pixels and crops the centre; one token per word."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("?", "isolated")]
    )
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "unk", "bos", "eos")}
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=["<image>"], padding_side="left", **names
    )
    pictures = hf.CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_mean=MEAN, image_std=STD
    )
    return hf.LlavaProcessor(
        image_processor=pictures,
        tokenizer=fast,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=template,
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def write(folder: Path, template: str | None = TEMPLATE) -> Path:
    """Writes model and processor to ``folder``, which is made, and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    build_model().save_pretrained(folder)
    build_processor(template).save_pretrained(folder)
    return folder


def write_family(folder: Path, family: str) -> Path:
    """Writes the tiny model of another family ("llava_next" or "idefics3") with a processor that cuts tiles."""
    from tests import tiny

    names = {"<pad>": tiny.PAD, "<bos>": tiny.BOS, "<unk>": 2, "<image>": tiny.IMAGE, "<eos>": tiny.EOS}
    colours = {"image_mean": MEAN, "image_std": STD}
    model = tiny.build(family).float()
    if family == "llava_next":
        pictures = hf.LlavaNextImageProcessorPil(
            size={"shortest_edge": 28},
            crop_size={"height": 28, "width": 28},
            image_grid_pinpoints=model.config.image_grid_pinpoints,
            **colours,
        )
        processor = hf.LlavaNextProcessor(
            image_processor=pictures,
            tokenizer=numbered_words(names),
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
    else:
        names |= {"<fake_token_around_image>": 103, "<end_of_utterance>": 104, "<global-img>": 105}
        pictures = hf.Idefics3ImageProcessorPil(
            size={"longest_edge": 112}, max_image_size={"longest_edge": 56}, **colours
        )
        processor = hf.Idefics3Processor(image_processor=pictures, tokenizer=numbered_words(names), image_seq_len=16)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def numbered_words(names: dict[str, int]) -> hf.PreTrainedTokenizerFast:
    """The words w0, w1, ... of a vocabulary of 128, of which some have other names."""
    words = {i: f"w{i}" for i in range(128)} | {i: name for name, i in names.items()}
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in words.items()}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    usual = {f"{name}_token": f"<{name}>" for name in ("pad", "unk", "bos", "eos")}
    special = [name for name in names if name not in usual.values()]
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=special, **usual)
