"""GLM-4.1V, GLM-4.5V, GLM-4.6V and GLM-OCR: mRoPE, dynamic resolution, each token made of a block of patches.

The frames of a video stand at the placeholders of images, each after its time stamp; the models take images or videos
in one prompt, not both.
"""

from vtprune.families.base import register
from vtprune.families.qwen_vl import QwenVL


@register
class Glm4v(QwenVL):
    model_types = ("glm4v", "glm46v", "glmga", "glm4v_moe", "glm_ocr")
    step_argument = ""
    videos_at_images = True
