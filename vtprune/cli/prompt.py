"""A question with its pictures and clips as model inputs: by the chat template, each where the prompt says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from PIL import Image

from vtprune.chat import encode
from vtprune.cli.error import UserError, one_line
from vtprune.models import Loaded
from vtprune.video.frames import Frames
from vtprune.video.inputs import places, processor_arguments

PLACES = {"image": "<image>", "video": "<video>"}
"""Where a picture or a clip goes in a prompt, for every model."""

NOUNS = {"image": ("picture", "pictures"), "video": ("clip", "clips")}

Part = str | Image.Image | Frames


def split_prompt(
    prompt: str, pictures: Sequence[Image.Image], clips: Sequence[Frames] = (), processor: Any = None
) -> list[Part]:
    """The prompt's parts in order: texts, pictures, clips. What has no place comes first, pictures before clips.

    processor: whose own placeholders are places too.
    Raises UserError where the number of places is not that of the pictures or clips.
    """
    found = _pieces(prompt, processor)
    given = {"image": list(pictures), "video": list(clips)}
    parts: list[Part] = []
    for kind, visuals in given.items():
        n = sum(place == kind for place, _ in found)
        if n not in (0, len(visuals)):
            _, many = NOUNS[kind]
            place = PLACES[kind]
            raise UserError(
                f"the prompt has {n} places {place} and there are {len(visuals)} {many}; write one {place} for each "
                f"{NOUNS[kind][0]}, or none (the {many} then come first)"
            )
        parts += [] if n else visuals
    queues = {kind: iter(visuals) for kind, visuals in given.items()}
    return parts + [next(queues[kind]) if kind in queues else text for kind, text in found]


def check_places(prompt: str, n_pictures: int, n_clips: int) -> None:
    """Raises UserError where the number of places in a prompt is not that of the pictures or clips."""
    split_prompt(prompt, [Image.new("RGB", (1, 1))] * n_pictures, [None] * n_clips)


def _pieces(prompt: str, processor: Any) -> list[tuple[str, str]]:
    """("image", ""), ("video", "") and ("text", ...) in the order of the prompt; one text where there are no places."""
    spelt = {token: kind for kind, token in PLACES.items()}
    for kind in PLACES:
        token = getattr(processor, f"{kind}_token", None)
        if token:
            spelt.setdefault(token, kind)
    splitter = "|".join(map(re.escape, sorted(spelt, key=len, reverse=True)))
    pieces = re.split(f"({splitter})", prompt)
    if len(pieces) == 1:
        return [("text", prompt)]
    found = [(spelt[piece], "") if piece in spelt else ("text", piece.strip()) for piece in pieces]
    return [(kind, text) for kind, text in found if kind != "text" or text]


def prompt_text(loaded: Loaded, parts: Sequence[Part]) -> str:
    """The text that goes into the processor, by its chat template if it has one. Raises UserError."""
    from jinja2 import TemplateError

    processor, content = loaded.processor, []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        else:
            content += [{"type": kind} for kind in places(processor, part)]
    template = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
    if not template:
        return "\n".join(part.get("text") or _token(processor, part["type"]) for part in content)
    try:
        return processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
    except TemplateError as error:
        raise UserError(f"the chat template of {loaded.name} refuses this prompt: {one_line(error)}") from error


def _token(processor: Any, kind: str) -> str:
    return getattr(processor, f"{kind}_token", None) or PLACES[kind]


def make_inputs(loaded: Loaded, parts: Sequence[Part]):
    """The processor's output for one sample, on the CPU. Raises UserError where it cannot read what it is given."""
    visuals = [part for part in parts if not isinstance(part, str)]
    text = prompt_text(loaded, parts)
    try:
        return encode(loaded.processor, [text], "cpu", **processor_arguments(loaded.processor, visuals))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        what = f"{one_line(error)} ({type(error).__name__} in {type(loaded.processor).__name__})"
        n = sum(isinstance(visual, Image.Image) for visual in visuals)
        seen = [f"{n} pictures"] * (n > 0) + [f"{len(visuals) - n} clips"] * (n < len(visuals))
        raise UserError(
            f"the processor of {loaded.name} cannot read {', '.join(seen)} and this prompt: {what}; check the prompt "
            "and the processor's files"
        ) from error


def unknown_words(loaded: Loaded, prompt: str) -> list[str]:
    """The words that the tokenizer can only read as "unknown"."""
    tokenizer = loaded.processor.tokenizer
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None:
        return []
    words = dict.fromkeys(re.sub("|".join(PLACES.values()), " ", prompt).split())
    return [word for word in words if unknown in tokenizer(word, add_special_tokens=False)["input_ids"]]
