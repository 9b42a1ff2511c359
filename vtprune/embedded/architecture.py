"""The shape of the embedded image model and its words: a stock LLaVA of few million parameters and its processor."""

from pathlib import Path

from vtprune.embedded.drawing import COLORS, SHAPES, SIZE

PATCH = 8
GRID = SIZE // PATCH  # visual tokens per side
TOWER_HIDDEN, HIDDEN = 128, 128
MEAN, STD = [0.35, 0.35, 0.35], [0.3, 0.3, 0.3]
SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>", "<image>", "<answer>")
WORDS = (
    *("what", "which", "where", "how", "many", "is", "are", "there", "the", "a", "an", "?", ".", ","),
    *("color", "colour", "shape", "shapes", "digit", "digits", "object", "objects", "yes", "no"),
    *("top", "bottom", "left", "right"),
    *(str(digit) for digit in range(10)),
    *SHAPES,
    *COLORS,
)
VOCABULARY = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
SPECIAL_IDS = {f"{name}_token_id": VOCABULARY[f"<{name}>"] for name in ("pad", "bos", "eos")}
CHAT_TEMPLATE = (
    "{{ '<bos>' }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<answer> ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<eos>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<answer>' }}{% endif %}"
)


def build_model():
    """An untrained ``LlavaForConditionalGeneration``; seed torch first."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, Qwen3Config

    vision = CLIPVisionConfig(
        hidden_size=TOWER_HIDDEN,
        intermediate_size=3 * TOWER_HIDDEN,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=64,
    )
    text = Qwen3Config(
        vocab_size=len(VOCABULARY),
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        **SPECIAL_IDS,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=VOCABULARY["<image>"],
        image_seq_length=GRID * GRID,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        **SPECIAL_IDS,
    )
    return LlavaForConditionalGeneration(config)


def build_processor():
    """The stock ``LlavaProcessor``: pictures through PIL, one token per word, unknown words are ``<unk>``."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[^a-z0-9]|[0-9]"), "isolated")]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<image>", "<answer>"],
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    side = {"height": SIZE, "width": SIZE}
    pictures = CLIPImageProcessorPil(size=side, crop_size=side, image_mean=MEAN, image_std=STD)
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=fast,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def save(model, folder: Path) -> None:
    """Writes weights (bfloat16), configuration and processor to ``folder``, so that the Auto classes load it."""
    import torch
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(max_new_tokens=4, do_sample=False, **SPECIAL_IDS)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    build_processor().save_pretrained(folder)
