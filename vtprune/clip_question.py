"""How relevant visual tokens are to a question by CLIP's text tower, as CDPruner has it; the user brings the tower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtprune.blocks.greedy_dpp import clip_relevance
from vtprune.tokens import Segment, VisualTokens

_PARTS = ("text_model", "text_projection", "vision_model", "visual_projection")
PICTURES = "relevance from pictures that CLIP saw by itself, put onto the model's grid; as published the towers are one"


class ClipQuestion:
    """Relevance for ``CDPruner``: minus the cosine of patches and question in CLIP's space.

    As published, patches are those of the model's own vision tower, so ``clip`` must be the CLIP that the tower is
    from: openai/clip-vit-large-patch14-336 for LLaVA-1.5 and LLaVA-NeXT::

        asked = vtprune.ClipQuestion("What is on the table?", folder)
        vtprune.wrap(model, "cdpruner", keep_ratio=0.25, relevance=asked)
        model.generate(**inputs)
        with vtprune.options(model, relevance=asked.about("How many cups are there?")):
            model.generate(**inputs)

    For models with another tower give the pictures too; CLIP looks at them squeezed into its square, and its map is put
    onto the model's grid by straight lines between cell centres. That is an extension::

        asked = vtprune.ClipQuestion("What is on the table?", folder, images=[picture])

    question:  the user's words, without the chat template. A policy does not see which row of a batch it serves, so it
               holds for all prompts of a call.
    clip:      a transformers CLIPModel, or the path of a folder that holds one. Nothing is downloaded.
    tokenizer: CLIP's tokenizer or processor; None takes it from the folder. ``images`` need the processor.
    images:    the pictures of the prompt in order, whatever the processor takes; every prompt of a call has the same.

    Words that do not fit the text tower make more parts: of the tokens of the whole question each 77, the last filled
    up with zeros that are masked, so that later parts have no start token. Reports do not count the FLOPs of CLIP.
    Raises ValueError or TypeError that says what is missing.
    """

    def __init__(
        self,
        question: str,
        clip: nn.Module | str | Path,
        tokenizer: Any = None,
        *,
        images: Sequence[Any] | None = None,
    ):
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"question is a text, the user's words; got {question!r}")
        if isinstance(clip, (str, Path)):
            clip, tokenizer = _loaded(Path(clip), tokenizer, images is not None)
        lacks = [part for part in _PARTS if not hasattr(clip, part)]
        if lacks:
            raise TypeError(
                f"clip is a transformers CLIPModel or the path of a folder that holds one; got {type(clip).__name__} "
                f"without {lacks[0]}"
            )
        if not callable(tokenizer):
            raise TypeError(f"tokenizer is CLIP's own, or its processor; got {tokenizer!r}")
        if images is not None and not hasattr(tokenizer, "image_processor"):
            raise TypeError(
                f"images need CLIP's processor, with its image_processor; got a {type(tokenizer).__name__}. Pass "
                "transformers.CLIPProcessor"
            )
        self.question, self.clip, self.tokenizer = question, clip, tokenizer
        self.images = None if images is None else list(images)

    @property
    def needs(self) -> frozenset[str]:
        """The signals that it reads."""
        return frozenset({"unprojected"} if self.images is None else ())

    @property
    def note(self) -> str:
        """What a report should say; nothing where relevance is the published one."""
        return "" if self.images is None else PICTURES

    def about(self, question: str, images: Sequence[Any] | None = None) -> ClipQuestion:
        """Another question to the same towers. images: other pictures; None: the same, or the model's own tower."""
        return ClipQuestion(question, self.clip, self.tokenizer, images=self.images if images is None else images)

    def __call__(self, tokens: VisualTokens) -> Tensor:
        """(N,) float32, higher is kept."""
        if self.images is not None:
            return self._from_pictures(tokens)
        seen = tokens.signals["unprojected"].features
        width = self.clip.visual_projection.in_features
        if seen.shape[-1] != width:
            raise ValueError(
                f"the model's vision tower gives {seen.shape[-1]} numbers for a patch and this CLIP's {width}, so the "
                "tower is not from this CLIP. Take the one that it is from, or pass the pictures: "
                "ClipQuestion(..., images=)"
            )
        return self._relevance(seen)

    @cached_property
    @torch.no_grad()
    def text_embeds(self) -> Tensor:
        """(M, C) of the question, one for each part that fits the text tower."""
        tokens = self.tokenizer(text=[self.question], return_tensors="pt")
        longest = self.clip.text_model.config.max_position_embeddings
        parts = {name: _parts(tokens[name], longest) for name in ("input_ids", "attention_mask")}
        device = self.clip.text_projection.weight.device
        out = self.clip.text_model(**{name: part.to(device) for name, part in parts.items()})
        return self.clip.text_projection(out.pooler_output).float()

    @torch.no_grad()
    def _relevance(self, patches: Tensor) -> Tensor:
        """(..., N) of patches (..., N, C'), hidden states of CLIP's last layer but one, in float32."""
        norm, projection = self.clip.vision_model.post_layernorm, self.clip.visual_projection
        x = patches.to(projection.weight.device, torch.float32)
        x = F.layer_norm(x, norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)
        return clip_relevance(F.linear(x, projection.weight.float()), self.text_embeds)

    @cached_property
    @torch.no_grad()
    def _maps(self) -> Tensor:
        """(pictures, side, side) relevance on CLIP's own grid."""
        config, weight = self.clip.vision_model.config, self.clip.visual_projection.weight
        side = config.image_size // config.patch_size
        square = {"height": config.image_size, "width": config.image_size}
        found = self.tokenizer.image_processor(self.images, size=square, do_center_crop=False, return_tensors="pt")
        pixels = found["pixel_values"].to(weight.device, weight.dtype)
        patches = self.clip.vision_model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        return self._relevance(patches).unflatten(1, (side, side))

    def _from_pictures(self, tokens: VisualTokens) -> Tensor:
        kinds = {segment.kind for segment in tokens.segments}
        if kinds - {"image"} or len(tokens.segments) != len(self.images):
            raise ValueError(
                f"images are the pictures of every prompt of a call, in order; got {len(self.images)} for a prompt of "
                f"{len(tokens.segments)} segments ({', '.join(sorted(kinds)) or 'none'}). Generate prompts with other "
                "pictures apart, and give videos a relevance of their own"
            )
        parts = [_sampled(one, s, tokens) for one, s in zip(self._maps, tokens.segments, strict=True)]
        return torch.cat(parts).to(tokens.hidden.device)


def _parts(values: Tensor, length: int) -> Tensor:
    """(1, n) -> (parts, length), zeros behind the last."""
    return F.pad(values, (0, -values.shape[1] % length)).reshape(-1, length)


def _sampled(relevance: Tensor, segment: Segment, tokens: VisualTokens) -> Tensor:
    """(n,) values of a map (side, side) at the centres of an image's tokens."""
    coords = None if tokens.coords is None else tokens.coords[segment.span].to(relevance.device)
    if coords is None or not segment.grids or bool((coords < 0).any()):
        raise ValueError(
            "this model's family does not know where its visual tokens are in the picture, so CLIP's map cannot be put "
            "onto them. Leave out images= if its tower is a CLIP, or pass relevance by hand"
        )
    sizes = torch.tensor(segment.grids, device=coords.device)[coords[:, 0]][:, 1:]
    where = (2 * coords[:, 2:] + 1) / sizes - 1
    points = where.flip(1)[None, None].to(relevance.dtype)
    return F.grid_sample(relevance[None, None], points, padding_mode="border", align_corners=False)[0, 0, 0]


def _loaded(folder: Path, tokenizer: Any, pictures: bool) -> tuple[nn.Module, Any]:
    """CLIP and its tokenizer, or processor, from a folder."""
    from transformers import AutoProcessor, AutoTokenizer, CLIPModel

    if not folder.is_dir():
        raise ValueError(f"clip is a CLIPModel or the path of a folder that holds one; {str(folder)!r} is no folder")
    offline: Mapping[str, bool] = {"local_files_only": True}
    clip = CLIPModel.from_pretrained(folder, use_safetensors=True, **offline).eval()
    if tokenizer is None:
        tokenizer = (AutoProcessor if pictures else AutoTokenizer).from_pretrained(folder, **offline)
    return clip, tokenizer
