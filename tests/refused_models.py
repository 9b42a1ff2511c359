"""Models that ``wrap`` refuses, in part or whole: real classes, tiny, or on meta if only their parts count."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers as hf
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES

from tests.tiny_models import _randomise
from tests.tiny_parts import EOS, IMAGE, LLAVA_IDS, PAD, PINPOINTS, text_sizes, vision_sizes


def granite4_vision() -> nn.Module:
    """Six decoder layers; the vision tower adds to visual tokens before layers 0, 1 and 2. In float64."""
    config = hf.Granite4VisionConfig(
        vision_config=hf.SiglipVisionConfig(**{**vision_sizes(), "hidden_size": 64}),
        text_config={**text_sizes(6), "embedding_multiplier": 2.0, "model_type": "granite4_vision_text"},
        qformer_config={"model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 64},
        image_grid_pinpoints=PINPOINTS,
        vision_feature_select_strategy="full",
        downsample_rate="2/4",
        deepstack_layer_map=[[-2, 0], [-1, 1]],
        spatial_target_layers=[2, 2, 2, 2],
        image_token_index=IMAGE,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.Granite4VisionForConditionalGeneration(config)
    _randomise(model)
    settings = model.generation_config
    settings.pad_token_id, settings.eos_token_id, settings.suppress_tokens = PAD, EOS, [IMAGE]
    return model.to(torch.float64).eval()


def named(model_type: str, **text: object) -> nn.Module:
    """A model of a type, with the sizes of its config's defaults but for its text side, on the meta device."""
    config = CONFIG_MAPPING[model_type](**({"text_config": text} if text else {}))
    return _on_meta(lambda: getattr(hf, CLASSES[model_type])(config))


def llava_with(text_config: hf.PreTrainedConfig) -> nn.Module:
    """LLaVA around another text model, on the meta device."""
    config = hf.LlavaConfig(vision_config=hf.CLIPVisionConfig(**vision_sizes()), text_config=text_config, **LLAVA_IDS)
    return _on_meta(lambda: hf.LlavaForConditionalGeneration(config))


def _on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make().eval()
