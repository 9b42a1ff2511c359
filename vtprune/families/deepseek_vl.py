"""DeepSeek-VL: one square grid for each image; of the hybrid's two vision towers signals come from the low-res one."""

from torch import nn

from vtprune.families.base import Family, register


@register
class DeepseekVL(Family):
    model_types = ("deepseek_vl", "deepseek_vl_hybrid")

    def projector(self, model: nn.Module) -> nn.Module:
        return self.base(model).aligner

    def has_token_projector(self, model: nn.Module) -> bool:
        # the hybrid's takes the rows of both towers
        return not hasattr(self.base(model), "high_res_vision_model")
