"""Llama 4: an image is a thumbnail and square tiles, each a segment of its own; layers with chunks or without rotation.

Layers without rotation scale their queries by the row number that they find, from ``floor_scale`` tokens on: longer
prompts are refused.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from vtprune.families.base import Family, register


@register
class Llama4(Family):
    model_types = ("llama4",)

    def decoder(self, model: nn.Module) -> nn.Module:
        return self.base(model).language_model.model

    def features(self, output: object) -> Tensor | None:
        return getattr(output, "last_hidden_state", None)  # not projected yet

    def has_class_token(self, model: nn.Module, kind: str = "image") -> bool:
        return False  # it stands behind the patches, where nothing looks for it

    def has_token_projector(self, model: nn.Module) -> bool:
        return False  # it is called outside the encoder

    def spread(
        self, model: nn.Module, kind: str, arguments: Mapping, scores: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        return super().spread(model, kind, arguments, scores[..., :-1], lengths)

    def check_prompt(self, decoder: nn.Module, tokens: int) -> None:
        config = decoder.config
        if config.attn_temperature_tuning and tokens >= config.floor_scale:
            raise NotImplementedError(
                f"this prompt of {tokens} tokens reaches the {config.floor_scale} from which layers of "
                f"{type(decoder).__name__} scale queries by row numbers, and a pruned prompt has other rows. Shorten "
                "the prompt, show fewer tiles, or call vtprune.unwrap(model) first"
            )
