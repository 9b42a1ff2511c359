"""Prompts for a model's processor: a chat of one turn each, with images or a video, as model inputs."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn


def chat_text(processor: Any, question: str, visuals: Sequence[str] = ()) -> str:
    """One user turn in the model's own chat template, ready for the answer; the bare question where it has none.

    visuals: "image" or "video" for each that comes before the question.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if getattr(processor, "chat_template", None) is None and getattr(tokenizer, "chat_template", None) is None:
        return question
    content: Any = [*({"type": kind} for kind in visuals), {"type": "text", "text": question}]
    if tokenizer is processor and not visuals:
        content = question  # templates of text models take a string
    chat = [{"role": "user", "content": content}]
    return processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)


def encode(processor: Any, texts: Sequence[str], device: Any, **more: Any) -> Mapping[str, Tensor]:
    """Model inputs of several prompts, padded on the left. more: ``images``, ``videos``, options of the processor."""
    tokenizer = getattr(processor, "tokenizer", processor)
    bos = getattr(tokenizer, "bos_token", None)
    # a template that writes the first token itself must not get a second one
    fresh = not (bos and all(text.startswith(bos) for text in texts))
    options = {"padding": True, "padding_side": "left", "add_special_tokens": fresh, "return_tensors": "pt"}
    return processor(text=list(texts), **options, **more).to(device)


def device_of(model: nn.Module) -> Any:
    """Where a model takes its inputs."""
    return model.get_input_embeddings().weight.device


def floats_as(inputs: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Pixels in the dtype of the model. Other numbers, such as seconds between frames, would lose by it."""
    return {
        name: value.to(model.dtype) if name.startswith("pixel_values") and value.is_floating_point() else value
        for name, value in inputs.items()
    }
