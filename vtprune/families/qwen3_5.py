"""Qwen3.5, dense or with experts: gated delta nets with full attention among them; each step of a video is a run."""

from vtprune.families.base import register
from vtprune.families.qwen_vl import QwenVL


@register
class Qwen3_5(QwenVL):
    model_types = ("qwen3_5", "qwen3_5_moe")
