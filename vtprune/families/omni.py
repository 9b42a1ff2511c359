"""Qwen2.5-Omni and Qwen3-Omni: their thinkers, which see and hear; sound is text to vtprune and never pruned.

``vtprune.wrap(model.thinker, ...)`` prunes what ``model.generate(..., generation_mode="text")`` writes. Speech is
refused: the talker reads the thinker's hidden states of the whole prompt, and dropped tokens have none.
"""

from typing import ClassVar

from vtprune.families.base import register
from vtprune.families.qwen_vl import QwenVL


@register
class Qwen25Thinker(QwenVL):
    model_types = ("qwen2_5_omni_thinker",)
    step_argument = "video_second_per_grid"
    refused: ClassVar[dict[str, str]] = {
        "output_hidden_states": "hidden states of a pruned prompt have gaps, and speech is made of states without: ask "
        'for text, model.generate(..., generation_mode="text"), or call vtprune.unwrap(model.thinker) first'
    }


@register
class Qwen3Thinker(Qwen25Thinker):
    model_types = ("qwen3_omni_moe_thinker",)
    between_layers = ("_deepstack_process",)
