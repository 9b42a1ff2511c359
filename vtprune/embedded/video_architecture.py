"""The embedded video model: a stock Qwen3-VL of few million parameters, and its tokenizer of few words."""

from pathlib import Path

from vtprune.embedded.clip_questions import PARTS
from vtprune.embedded.clips import SIDE, SLICE, STEPS
from vtprune.embedded.drawing import COLORS, SHAPES

PATCH, MERGE = 8, 2
GRID = SIDE // PATCH // MERGE  # visual tokens per side of a slice
TOKENS = GRID * GRID  # and in a slice
TOWER_HIDDEN, HIDDEN = 128, 128
TOWER_DEPTH, DEEPSTACK = 4, (1,)  # blocks, counted from 0, whose output the decoder is given once more
MEAN, STD = [0.35, 0.35, 0.35], [0.3, 0.3, 0.3]
SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>", "<image>", "<video>", "<vision_start>", "<vision_end>", "<answer>")
WORDS = (
    *(
        "what",
        "which",
        "where",
        "when",
        "how",
        "many",
        "is",
        "are",
        "does",
        "the",
        "a",
        "an",
        "in",
        "of",
        "?",
        ".",
        ",",
    ),
    *("color", "colour", "shape", "shapes", "digit", "digits", "different", "there", "yes", "no"),
    *("appear", "appears", "first", "last", "after", "before", "part", "clip", *PARTS, "way", "move", *STEPS),
    *(str(digit) for digit in range(10)),
    *SHAPES,
    *COLORS,
)
VOCABULARY = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
SPECIAL_IDS = {f"{name}_token_id": VOCABULARY[f"<{name}>"] for name in ("pad", "bos", "eos")}
VISION_IDS = {f"{name}_token_id": VOCABULARY[f"<{name}>"] for name in ("image", "video", "vision_start", "vision_end")}
CHAT_TEMPLATE = (
    "{{ '<bos>' }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<answer> ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] in ('image', 'video') %}{{ '<' + part['type'] + '>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<eos>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<answer>' }}{% endif %}"
)


def build_video_model():
    """An untrained ``Qwen3VLForConditionalGeneration``; seed torch first."""
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    vision = {
        "depth": TOWER_DEPTH,
        "hidden_size": TOWER_HIDDEN,
        "intermediate_size": 2 * TOWER_HIDDEN,
        "num_heads": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": SLICE,
        "out_hidden_size": HIDDEN,
        "num_position_embeddings": (SIDE // PATCH) ** 2,
        "deepstack_visual_indexes": list(DEEPSTACK),
    }
    text = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": HIDDEN,
        "intermediate_size": 3 * HIDDEN,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": True,
        **SPECIAL_IDS,
    }
    config = Qwen3VLConfig(
        vision_config=vision, text_config=text, tie_word_embeddings=True, **SPECIAL_IDS, **VISION_IDS
    )
    model = Qwen3VLForConditionalGeneration(config)
    # words of length one: visual tokens shall be sums of a few of them
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=HIDDEN**-0.5)
    return model


def build_tokenizer():
    """One token per word; unknown words are ``<unk>``."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[^a-z0-9]|[0-9]"), "isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=[*SPECIAL[4:]],
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def save_video(model, folder: Path) -> None:
    """Writes weights (bfloat16), configuration and tokenizer to ``folder``, so that the Auto classes load it."""
    import torch
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(max_new_tokens=2, do_sample=False, **SPECIAL_IDS)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    build_tokenizer().save_pretrained(folder)
