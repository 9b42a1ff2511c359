"""The model that is timed: random weights in the shape of a real decoder, prompts for it, one prefill, one step."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import transformers as hf
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """A Qwen2 decoder behind a very small CLIP tower, which no measurement includes."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int = 32768

    @property
    def text(self) -> dict[str, int]:
        """The decoder's part of a config of transformers."""
        sizes = {"hidden_size": self.hidden, "intermediate_size": self.mlp, "num_hidden_layers": self.layers}
        heads = {"num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads}
        return {**sizes, **heads, "vocab_size": self.vocab, "max_position_embeddings": 65536}


# the vocabulary is smaller than the originals': it costs memory, and only the last position gets logits
SHAPES = {
    "0.5b": Shape(layers=24, hidden=896, heads=14, kv_heads=2, mlp=4864),
    "7b": Shape(layers=28, hidden=3584, heads=28, kv_heads=4, mlp=18944),
    # so narrow that a step is mostly Python: what hooks cost shows
    "narrow": Shape(layers=24, hidden=64, heads=4, kv_heads=2, mlp=128, vocab=512),
    "tiny": Shape(layers=4, hidden=32, heads=2, kv_heads=1, mlp=48, vocab=512),
}
PATCH = 14


def build(shape: Shape, dtype: torch.dtype, device: torch.device | str = "cpu", side: int = 24) -> nn.Module:
    """A LLaVA with random weights in eval mode. An image is ``side`` x ``side`` visual tokens, each with the last id.

    The weights repeat one random block: the time of a matrix product does not depend on what is in it.
    """
    text = hf.Qwen2Config(**shape.text, rope_theta=1e6)
    tower = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**tower, image_size=side * PATCH, patch_size=PATCH),
        text_config=text,
        image_token_index=shape.vocab - 1,
        image_seq_length=side * side,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = hf.LlavaForConditionalGeneration._from_config(config, dtype=dtype)
    model = model.to_empty(device=device).eval()
    _fill(model)
    # buffers that no checkpoint brings
    decoder = model.model.language_model
    decoder.rotary_emb = type(decoder.rotary_emb)(config=text).to(device)
    for module in model.model.vision_tower.modules():
        if hasattr(module, "position_ids"):
            module.position_ids = torch.arange(side * side + 1, device=device)[None]
    return model


@torch.no_grad()
def _fill(model: nn.Module) -> None:
    """Weights that keep activations near unit size; norms are ones and biases zero."""
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            parameter.fill_("norm" in name and name.endswith("weight"))
            continue
        flat, part = parameter.view(-1), (block / parameter[0].numel() ** 0.5).to(parameter)
        for start in range(0, len(flat), len(part)):
            some = flat[start : start + len(part)]
            some.copy_(part[: len(some)])


def twin(model: nn.Module) -> nn.Module:
    """Another module tree over the same weights, so that one can be wrapped beside one that is not."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


@torch.no_grad()
def prompt(model: nn.Module, images: Sequence[int], n_text: int, length: int = 0) -> dict:
    """Model inputs of a batch as ``generate`` passes them: encoded images, padding on the left, positions.

    images: of each sample how many it holds. n_text: text tokens of each sample, a quarter of them before the images.
    length: pads up to it, or to the longest sample.
    """
    side = model.config.vision_config.image_size
    pixels = torch.randn(sum(images), 3, side, side, generator=torch.Generator().manual_seed(1))
    pixels = pixels.to(model.device, model.dtype)
    encoded = model.get_image_features(pixel_values=pixels, return_dict=True)
    return _inputs(model, [n * model.config.image_seq_length for n in images], n_text, encoded, length)


@torch.no_grad()
def short_prompt(model: nn.Module, kept: Sequence[int], n_text: int, length: int = 0) -> dict:
    """Model inputs that hold only ``kept`` visual tokens from the start: what no pruner can be faster than."""
    width = model.config.text_config.hidden_size
    features = torch.randn(sum(kept), width, generator=torch.Generator().manual_seed(2)).to(model.device, model.dtype)
    encoded = hf.modeling_outputs.BaseModelOutputWithPooling(pooler_output=[features])
    return _inputs(model, kept, n_text, encoded, length)


def _inputs(model: nn.Module, visual: Sequence[int], n_text: int, encoded, length: int) -> dict:
    length = max(length, n_text + max(visual))
    image, before = model.config.image_token_id, n_text // 4
    words = torch.randint(1, image, (n_text,), generator=torch.Generator().manual_seed(3))
    ids, mask = torch.zeros(len(visual), length, dtype=torch.int64), torch.zeros(len(visual), length, dtype=torch.int64)
    for row, n in enumerate(visual):
        sample = torch.cat([words[:before], torch.full((n,), image), words[before:]])
        ids[row, length - len(sample) :], mask[row, length - len(sample) :] = sample, 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    tensors = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return {**{k: v.to(model.device) for k, v in tensors.items()}, "mm_encoder_outputs": {"image": encoded}}


@torch.no_grad()
def prefill(model: nn.Module, inputs: dict) -> hf.Cache:
    """The forward over a prompt, with logits of its last token, as ``generate`` runs it."""
    # a model takes the encoder's output out of the dict it is given
    inputs = {**inputs, "mm_encoder_outputs": dict(inputs["mm_encoder_outputs"])}
    return model(**inputs, use_cache=True, logits_to_keep=1).past_key_values


class Steps:
    """Decode steps after a prefill; every call is one more of them."""

    def __init__(self, model: nn.Module, inputs: dict, cache: hf.Cache, most: int = 4096):
        self.model, self.cache = model, cache
        mask = inputs["attention_mask"]
        self.done, self.length = 0, mask.shape[1]
        self.mask = torch.cat([mask, mask.new_ones(len(mask), most)], 1)
        self.positions = inputs["position_ids"][:, -1:]
        self.token = torch.full((len(mask), 1), 7, device=mask.device)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        self.done += 1
        out = self.model(
            input_ids=self.token,
            attention_mask=self.mask[:, : self.length + self.done],
            position_ids=self.positions + self.done,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits


def cache_bytes(cache: hf.Cache) -> int:
    """Bytes of all keys and values that a cache holds."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
