"""A question and its pictures as model inputs: the chat template of the processor, pictures where the prompt says."""

from __future__ import annotations

import re
from collections.abc import Sequence

from PIL import Image

from vtprune.cli.error import UserError, one_line
from vtprune.models import Loaded

PLACE = "<image>"
"""Where a picture goes in a prompt, for every model."""


def split_prompt(prompt: str, image_token: str, n_images: int) -> list[str | None]:
    """The prompt's parts in order: text, and None for each picture. Without places the pictures come first.

    Raises UserError where the number of places is not that of the pictures.
    """
    pieces = re.split("|".join(map(re.escape, sorted({PLACE, image_token}, key=len, reverse=True))), prompt)
    places = len(pieces) - 1
    if places == 0:
        return [*[None] * n_images, prompt]
    if places != n_images:
        raise UserError(
            f"the prompt has {places} places {PLACE} and there are {n_images} pictures; write one {PLACE} for each "
            "picture, or none (the pictures then come first)"
        )
    parts: list[str | None] = []
    for i, piece in enumerate(pieces):
        parts += [None] * (i > 0) + [piece.strip()] * bool(piece.strip())
    return parts


def prompt_text(loaded: Loaded, parts: Sequence[str | None]) -> str:
    """The text that goes into the processor, by its chat template if it has one. Raises UserError."""
    from jinja2 import TemplateError

    processor = loaded.processor
    template = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
    if not template:
        token = getattr(processor, "image_token", PLACE)
        return "\n".join(token if part is None else part for part in parts)
    content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
    try:
        return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    except TemplateError as error:
        raise UserError(f"the chat template of {loaded.name} refuses this prompt: {one_line(error)}") from error


def make_inputs(loaded: Loaded, images: Sequence[Image.Image], prompt: str):
    """The processor's output for one sample, on the CPU. Raises UserError where it cannot read prompt and pictures."""
    token = getattr(loaded.processor, "image_token", PLACE)
    text = prompt_text(loaded, split_prompt(prompt, token, len(images)))
    try:
        return loaded.processor(images=list(images), text=text, return_tensors="pt")
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        what = f"{one_line(error)} ({type(error).__name__} in {type(loaded.processor).__name__})"
        raise UserError(
            f"the processor of {loaded.name} cannot read {len(images)} pictures and this prompt: {what}; check the "
            "prompt and the processor's files"
        ) from error


def unknown_words(loaded: Loaded, prompt: str) -> list[str]:
    """The words that the tokenizer can only read as "unknown"."""
    tokenizer = loaded.processor.tokenizer
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None:
        return []
    words = dict.fromkeys(prompt.replace(PLACE, " ").split())
    return [word for word in words if unknown in tokenizer(word, add_special_tokens=False)["input_ids"]]
