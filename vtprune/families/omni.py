"""The thinkers of Qwen2.5-Omni and Qwen3-Omni, which see and hear; sound is text to vtprune and never pruned.

``vtprune.wrap(model.thinker, ...)`` prunes what ``model.generate`` writes. Where it also speaks, the talker is given
the thinker's last hidden states of the whole prompt, which are zeros where visual tokens were dropped.
"""

from vtprune.families.base import register
from vtprune.families.qwen_vl import QwenVL


@register
class Qwen25Thinker(QwenVL):
    model_types = ("qwen2_5_omni_thinker",)
    step_argument = "video_second_per_grid"


@register
class Qwen3Thinker(Qwen25Thinker):
    model_types = ("qwen3_omni_moe_thinker",)
    between_layers = ("_deepstack_process",)
