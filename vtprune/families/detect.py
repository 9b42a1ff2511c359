"""A family guessed from the shape that most transformers VLMs share, for models that no file here describes."""

from __future__ import annotations

from torch import nn

from vtprune.families.base import FAMILIES, Family, check_whole


class Detected(Family):
    """Takes the parts from the accessors that transformers gives every VLM; grids are square or unknown."""

    def base(self, model: nn.Module) -> nn.Module:
        return model.base_model

    def decoder(self, model: nn.Module) -> nn.Module:
        decoder = model.get_decoder()
        # some models hand out the text model with its head
        return decoder if hasattr(decoder, "layers") else decoder.get_decoder()

    def placeholders(self, model: nn.Module) -> dict[str, int]:
        ids = super().placeholders(model)
        older = {kind: getattr(model.config, f"{kind}_token_index", None) for kind in ("image", "video")}
        return ids or {kind: token for kind, token in older.items() if isinstance(token, int)}


def detect_family(model: nn.Module) -> Family:
    """The registered family if there is one, otherwise a guess.

    Raises NotImplementedError that says which part of the usual shape is missing.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    check_whole(model)
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    family, missing = Detected(), []
    if not hasattr(model, "get_decoder") or not hasattr(model, "base_model"):
        missing.append("get_decoder() and base_model")
    else:
        if not hasattr(family.base(model), "get_image_features"):
            missing.append("get_image_features on the base model")
        if model.get_decoder() is None or family.decoder(model) is model:
            missing.append("a decoder of its own")
        if hasattr(model, "config") and not family.placeholders(model):
            missing.append("image_token_id in the config")
    if missing:
        raise NotImplementedError(
            f"vtprune cannot detect the parts of {type(model).__name__} (model_type {model_type!r}): it lacks "
            f"{', '.join(missing)}. Write a family: see vtprune/families/base.py"
        )
    return family
