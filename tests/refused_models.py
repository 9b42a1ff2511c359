"""Models that ``wrap`` refuses, in part or whole: real classes, tiny, or on meta if only their parts count."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers as hf
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES

from tests.tiny_parts import LLAVA_IDS, vision_sizes


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
