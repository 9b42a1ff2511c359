"""Phi-4 multimodal: one module merges pictures and is the decoder."""

from __future__ import annotations

import torch
import transformers as hf
from torch import nn

from tests.newer.base import NEWER, Newer
from tests.tiny_parts import IMAGE, Sample, noise, text_sizes, vision_sizes


def _phi4(layers: int) -> nn.Module:
    sound = {"hidden_size": 32, "intermediate_size": 64, "num_blocks": 1, "num_attention_heads": 2, "input_size": 16}
    sound |= {"ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32, "nemo_conv_channels": 32}
    vision = {**vision_sizes(), "crop_size": 28, "image_token_id": IMAGE, "feature_layer": -2}
    audio = {**sound, "audio_token_id": 104}
    config = hf.Phi4MultimodalConfig(**text_sizes(layers), vision_config=vision, audio_config=audio)
    return hf.Phi4MultimodalForCausalLM(config)


def image(size: str, seed: int) -> Sample:
    """Two crops side by side, of the second of which half is padding: 2 x 3 tokens, then those of the thumbnail.

    ``generate`` repeats the images of a batch for beams one by one, so that beams of a prompt with several images get
    different ones. So the images of a prompt are alike; those of different prompts are not.
    """
    mask = torch.ones(1, 3, 4, 4, dtype=torch.int64)
    mask[:, 2, :, 2:] = 0
    pixels = {"image_pixel_values": noise(seed // 100, 1, 3, 3, 28, 28), "image_sizes": torch.tensor([[28, 56]])}
    return Sample((IMAGE,) * (2 * 4 + 1 + 2 * 3), {**pixels, "image_attention_mask": mask})


# the decoder encodes pictures itself
NEWER["phi4_multimodal"] = Newer(_phi4, image, undetectable="lacks get_image_features on the base model")
