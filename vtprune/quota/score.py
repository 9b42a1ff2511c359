"""Scorers: how relevant each frame of a video is to a question, from any vision-language or image-text model."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vtprune.blocks.frame_grid import checked_scores
from vtprune.chat import chat_text, device_of, encode, floats_as


@runtime_checkable
class FrameScorer(Protocol):
    """Rates frames: ``scorer(frames, question, objects)`` -> (T,) float, 0 or more, higher is more relevant.

    name: the same for scorers that give the same scores, so that those can be cached; "" is never cached.
    """

    name: str

    def __call__(self, frames: Sequence[Any], question: str, objects: Sequence[str] = ()) -> Tensor: ...


def yes_no_question(question: str, objects: Sequence[str]) -> str:
    """Whether the picture shows any of the objects, or where there are none helps with the question: A is yes."""
    if objects:
        ask = f"Look at the picture. Is any of the following in it: {', '.join(objects)}?"
    else:
        ask = f"Question: {question}\nDoes this picture alone give sufficient information to answer the question?"
    return f"{ask}\nA. yes\nB. no\nReply with the letter of the right option only."


@dataclass
class YesNoScorer:
    """The probability with which a vision-language model begins its reply by "A", asked of one frame at a time.

    model, processor: any transformers image-text-to-text model that is NOT wrapped, and its processor.
    batch_size:       frames in one forward.
    answer:           the reply whose probability counts; one token.
    prompt:           (question, objects) -> what is asked; yes_no_question by default. Of several texts each is asked,
                      and the likeliest yes counts.
    options:          of the processor, such as {"max_pixels": 1280 * 28 * 28}.
    The softmax is over the full vocabulary, not over the two letters, as QuoTA has it.
    """

    model: nn.Module
    processor: Any
    batch_size: int = 64
    answer: str = "A"
    prompt: Callable[[str, Sequence[str]], str | Sequence[str]] = yes_no_question
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        _check_batch_size(self.batch_size)
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        ids = tokenizer.encode(self.answer, add_special_tokens=False)
        if len(ids) != 1:
            raise ValueError(
                f"answer is a reply of one token; {self.answer!r} is {len(ids)} tokens of this model. Choose another "
                "letter or word, and a prompt that asks for it"
            )
        self.token = ids[0]

    @cached_property
    def name(self) -> str:
        asked = [self.prompt("{question}", ["{object}"]), self.prompt("{question}", [])]
        return digest("yes_no", model_name(self.model), self.answer, asked, sorted(self.options.items()))

    @torch.no_grad()
    def __call__(self, frames: Sequence[Any], question: str, objects: Sequence[str] = ()) -> Tensor:
        """(T,) float32 on the CPU, in [0, 1]."""
        asked = self.prompt(question, list(objects))
        texts = [asked] if isinstance(asked, str) else list(asked)
        if not texts:
            raise ValueError(f"prompt gave nothing to ask about the frames for {question!r} and {list(objects)}")
        return torch.stack([self._ask(frames, text) for text in texts]).amax(0)

    def _ask(self, frames: Sequence[Any], question: str) -> Tensor:
        text = chat_text(self.processor, question, ["image"])
        scores = []
        for batch in batches(frames, self.batch_size):
            images = [[frame] for frame in batch]
            inputs = encode(self.processor, [text] * len(batch), device_of(self.model), images=images, **self.options)
            out = self.model.generate(
                **floats_as(inputs, self.model),
                max_new_tokens=1,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
            scores.append(out.logits[0].float().softmax(-1)[:, self.token].cpu())
        return torch.cat(scores)


@dataclass
class SimilarityScorer:
    """(1 + cosine) / 2 of frames and texts in a CLIP or SigLIP model: the best of the objects, or of the question.

    model, processor: a transformers model with ``get_image_features`` and ``get_text_features``, and its processor.
    batch_size:       frames in one forward.
    template:         what an object's name is put into.
    Where the cosines of frames differ little, their shares do too: a larger exponent of the policy sets them apart. An
    extension, QuoTA has none.
    """

    model: nn.Module
    processor: Any
    batch_size: int = 64
    template: str = "a photo of {}"

    def __post_init__(self):
        _check_batch_size(self.batch_size)
        if "{}" not in self.template:
            raise ValueError(f"template holds '{{}}' where the name of the object goes; got {self.template!r}")

    @cached_property
    def name(self) -> str:
        return digest("similarity", model_name(self.model), self.template)

    @torch.no_grad()
    def __call__(self, frames: Sequence[Any], question: str, objects: Sequence[str] = ()) -> Tensor:
        """(T,) float32 on the CPU, in [0, 1]."""
        texts = [self.template.format(name) for name in objects] or [question]
        # SigLIP was trained on texts padded to full length
        padding = "max_length" if self.model.config.model_type.startswith("siglip") else True
        tokens = self.processor(text=texts, padding=padding, truncation=True, return_tensors="pt")
        text = _unit(self.model.get_text_features(**tokens.to(self.model.device)))
        scores = []
        for batch in batches(frames, self.batch_size):
            pixels = self.processor(images=batch, return_tensors="pt").to(self.model.device)
            image = _unit(self.model.get_image_features(**floats_as(pixels, self.model)))
            scores.append(((1 + image @ text.T) / 2).clamp(0, 1).amax(1).cpu())
        return torch.cat(scores)


@dataclass
class GivenScores:
    """Scores that are known already: one for each frame, 0 or more. Never cached."""

    scores: Any
    name: str = ""

    def __call__(self, frames: Sequence[Any], question: str, objects: Sequence[str] = ()) -> Tensor:
        """(T,) float64."""
        scores = checked_scores(self.scores)
        if len(scores) != len(frames):
            raise ValueError(f"there are {len(scores)} scores for {len(frames)} frames; give one for each")
        return scores


def _unit(features: Any) -> Tensor:
    """(B, C) float32 of length 1; transformers 5 gives an output object, earlier versions the tensor itself."""
    return nn.functional.normalize(getattr(features, "pooler_output", features).float(), dim=-1)


def batches(frames: Sequence[Any], size: int) -> list[list[Any]]:
    """Runs of at most ``size`` frames. Raises ValueError where there is none."""
    if not len(frames):
        raise ValueError("there is no frame to score; give at least one")
    return [list(frames[at : at + size]) for at in range(0, len(frames), size)]


def _check_batch_size(size: object) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"batch_size is the number of frames in one forward, 1 or more; got {size!r}")


def model_name(model: nn.Module) -> str:
    """A name that models with other weights do not have: type, path, and a digest of a few numbers of every weight."""
    few = [p.detach().flatten()[:8].double().cpu().numpy().tobytes() for p in model.parameters()]
    path = getattr(model.config, "_name_or_path", "")
    return digest(type(model).__name__, path, model.dtype, b"".join(few))


def digest(*parts: object) -> str:
    """A short name for some values, the same in every process."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        value = part if isinstance(part, bytes) else repr(part).encode()
        found.update(len(value).to_bytes(8, "little") + value)
    return found.hexdigest()
