"""Models that are known and refused, each kind with its reason: the data behind ``wrap``'s errors and the listings."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Refusal:
    """Why no model of these types is pruned.

    models:  ``config.model_type`` values.
    why:     a clause about the model, "it" or "its".
    instead: what to do, a whole sentence without its full stop.
    """

    models: tuple[str, ...]
    why: str
    instead: str


_OTHERS = "Choose a model that `vtprune families` lists"

REFUSALS = (
    Refusal(
        ("dots3_note", "glm5_next", "minimax_m3_vl", "mistral_large4", "qwen4_exp"),
        "an indexer chooses which earlier tokens its attention reads, with keys in a cache of their own and blocks "
        "that are counted in unpruned tokens",
        _OTHERS,
    ),
    Refusal(
        ("inkling2", "inkling_mm_model"),
        "attention and a recurrent part, a short convolution or Mamba, share its decoder layers and their entries in "
        "the cache, of which pruning shortens one and not the other",
        _OTHERS,
    ),
    Refusal(
        ("nemotron_h_omni",),
        "each block of its decoder is attention, Mamba or an MLP alone, without the parts of a layer that vtprune "
        "looks for, and it may drop tokens of videos itself",
        f"{_OTHERS}, or let it drop them: config.video_pruning_rate",
    ),
    Refusal(
        ("blip", "git", "idefics", "mllama"),
        "its decoder reads pictures by cross-attention or in front of the prompt; the prompt holds no visual tokens "
        "that could be pruned",
        _OTHERS,
    ),
    Refusal(
        ("florence2", "pix2struct", "pp_formulanet", "t5gemma2", "udop", "vision-encoder-decoder"),
        "an encoder reads the picture and its decoder reads the encoder by cross-attention; there is no prompt of "
        "visual and text tokens whose keys and values could be pruned",
        _OTHERS,
    ),
    Refusal(
        ("diffusion_gemma",),
        "it writes blocks of tokens by diffusion, with a decoder that reads the cache of another model, its encoder",
        _OTHERS,
    ),
)
"""Every kind of model that is refused by name; what is refused by its parts alone is in ``vtprune/refuse.py``."""

REFUSED = {model: refusal for refusal in REFUSALS for model in refusal.models}
"""Refusals by ``config.model_type``."""


def check_known(model: nn.Module) -> None:
    """Raises NotImplementedError that names the model, the reason and what to do, if its type is refused."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    refusal = REFUSED.get(model_type)
    if refusal is not None:
        raise NotImplementedError(
            f"vtprune cannot prune {type(model).__name__} (model_type {model_type!r}): {refusal.why}. {refusal.instead}"
        )


def check_layers(decoder: nn.Module) -> None:
    """Raises NotImplementedError for a decoder whose layers have parts that no family here can prune."""
    for index, layer in enumerate(decoder.layers):
        names = {type(module).__name__ for module in layer.modules()}
        indexer = next((name for name in sorted(names) if "Indexer" in name), None)
        if indexer is not None:
            raise NotImplementedError(
                f"layer {index} of {type(decoder).__name__} has a {indexer}: {REFUSED['qwen4_exp'].why}. {_OTHERS}"
            )
        parts = {name.rpartition(".")[2] for name, _ in layer.named_modules()}
        states = [name for word in ("mamba", "linear_attn", "conv") for name in sorted(parts) if word in name]
        if states and "self_attn" in parts:
            raise NotImplementedError(
                f"layer {index} of {type(decoder).__name__} has self_attn and {states[0]}: "
                f"{REFUSED['inkling2'].why}. {_OTHERS}"
            )
