"""Chat messages as lmms-eval's tasks write them, as prompts: pictures and clips are read here, by vtprune alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vtprune.bench.ask import Prompt, write_prompt
from vtprune.cli.error import UserError, one_line
from vtprune.cli.prompt import Part
from vtprune.images import read_image, to_rgb
from vtprune.models import Loaded
from vtprune.video import read_frames
from vtprune.video.frames import Frames
from vtprune.video.inputs import places

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Reading:
    """How clips are read: so many frames, evenly spread; or ``fps`` of each second, ``frames`` at most.

    folder_fps: the rate of clips that are folders of pictures; None where only whole folders are read.
    """

    frames: int = 32
    fps: float | None = None
    folder_fps: float | None = None

    def clip(self, path: str, start: float | None, end: float | None) -> Frames:
        """The frames between two seconds of a clip; None for its beginning and its end."""
        wish: dict[str, Any] = {"n": self.frames} if self.fps is None else {"fps": self.fps, "n_max": self.frames}
        return read_frames(path, **wish, start=start, end=end, folder_fps=self.folder_fps)


@dataclass(frozen=True)
class Turn:
    """What one side says, in order."""

    role: str
    parts: tuple[Part, ...]


def read_messages(messages: Sequence[Mapping], reading: Reading) -> list[Turn]:
    """Turns of the messages of one question: texts, pictures in RGB, frames of clips.

    A picture is a PIL image or a file, a clip a file or a folder of frames.
    Raises ValueError or OSError for what cannot be read, NotImplementedError for what is neither, such as sound.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError(f"a question is a list of messages; got {type(messages).__name__} {str(messages)[:60]!r}")
    return [_turn(message, reading) for message in messages]


def _turn(message: Mapping, reading: Reading) -> Turn:
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise ValueError(f"a message is of {', '.join(ROLES)}; got {role!r}")
    if isinstance(content, str):
        return Turn(role, (content,))
    return Turn(role, tuple(_part(one, reading) for one in content))


def _part(content: Mapping, reading: Reading) -> Part:
    kind = content["type"]
    if kind == "text":
        return content["text"]
    if kind == "image":
        return _picture(content["url"])
    if kind == "video":
        return _clip(content, reading)
    raise NotImplementedError(f"vtprune prunes pictures and clips; this task shows {kind!r}: choose another task")


def _picture(source: Any) -> Image.Image:
    if isinstance(source, Image.Image):
        return to_rgb(source)
    if isinstance(source, (str, Path)):
        return read_image(source)
    raise ValueError(f"a picture is a PIL image or the path of a file; got {type(source).__name__}")


def _clip(content: Mapping, reading: Reading) -> Frames:
    source, start, end = content["url"], content.get("start_time"), content.get("end_time")
    if isinstance(source, Mapping):
        # tasks without messages of their own say so which part of a clip they mean
        start, end = source.get("video_start"), source.get("video_end")
        source = source.get("url") or source.get("path") or source.get("video")
    if not isinstance(source, (str, Path)):
        raise ValueError(f"a clip is the path of a file or of a folder of frames; got {type(source).__name__}")
    return reading.clip(str(source), start, end)


def write_chat(loaded: Loaded, turns: Sequence[Turn]) -> Prompt:
    """The prompt of a question in the model's own chat template; ``vtprune bench`` writes it alike.

    Raises ValueError where the template refuses it or there is none.
    """
    shown = tuple(part for turn in turns for part in turn.parts if not isinstance(part, str))
    if [turn.role for turn in turns] == ["user"]:
        (turn,) = turns
        if turn.parts and isinstance(turn.parts[-1], str) and len(turn.parts) == len(shown) + 1:
            return write_prompt(loaded, turn.parts[-1], shown)
    return Prompt(_chat_text(loaded, turns), shown)


def _chat_text(loaded: Loaded, turns: Sequence[Turn]) -> str:
    from jinja2 import TemplateError

    processor = loaded.processor
    if not (getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)):
        raise UserError(
            f"{loaded.name} has no chat template, so it takes one user turn, pictures first; got "
            f"{', '.join(turn.role for turn in turns)}. Leave out the system prompt, or choose another task"
        )
    chat = [{"role": turn.role, "content": _content(processor, turn.parts)} for turn in turns]
    try:
        return processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise UserError(f"the chat template of {loaded.name} refuses this chat: {one_line(error)}") from error


def _content(processor: Any, parts: Sequence[Part]) -> list[dict]:
    content: list[dict] = []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        else:
            content += [{"type": kind} for kind in places(processor, part)]
    return content
