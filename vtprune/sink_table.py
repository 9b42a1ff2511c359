"""The sink dimensions that were published, and the models that they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CODE, PAPER = "from the authors' code", "second-hand, from the paper"


@dataclass(frozen=True)
class PublishedSinks:
    """Sink dimensions of a model, which is told by its sizes: what was trained further from it has them too.

    model_type: of the model's config. text_type: how that of its decoder begins. width, depth, mlp: of the decoder.
    status:     how sure they are: ``CODE`` or ``PAPER``.
    """

    name: str
    model_type: str
    text_type: str
    width: int
    depth: int
    mlp: int
    dims: tuple[int, ...]
    status: str


PUBLISHED = (
    PublishedSinks("LLaVA-1.5-7B", "llava", "llama", 4096, 32, 11008, (1415, 2533), CODE),
    PublishedSinks("LLaVA-1.5-13B", "llava", "llama", 5120, 40, 13824, (2100, 4743), CODE),
    PublishedSinks("Qwen2-VL-7B", "qwen2_vl", "qwen2_vl", 3584, 28, 18944, (458, 2570), PAPER),
    # converted for transformers its InternLM2 is a LLaMA
    PublishedSinks("InternVL2-8B", "internvl", "llama", 4096, 32, 14336, (3584,), PAPER),
)


def published_for(model_type: str, text: Any) -> PublishedSinks | None:
    """The entry of a model by its type and its decoder's config; None if there is none."""
    sizes = (text.hidden_size, text.num_hidden_layers, getattr(text, "intermediate_size", None))
    for known in PUBLISHED:
        same = (known.width, known.depth, known.mlp) == sizes and text.model_type.startswith(known.text_type)
        if model_type == known.model_type and same:
            return known
    return None
