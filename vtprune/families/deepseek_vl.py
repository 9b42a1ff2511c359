"""DeepSeek-VL and Janus: one square grid for each image; the hybrid's signals come from its low-resolution tower."""

from torch import nn

from vtprune.families.base import Family, register


@register
class DeepseekVL(Family):
    model_types = ("deepseek_vl", "deepseek_vl_hybrid", "janus")

    def projector(self, model: nn.Module) -> nn.Module:
        return self.base(model).aligner

    def has_token_projector(self, model: nn.Module) -> bool:
        # the hybrid's takes the rows of both towers
        return not hasattr(self.base(model), "high_res_vision_model")
