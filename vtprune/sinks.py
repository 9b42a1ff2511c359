"""Visual attention sinks as a service: a detector, the dimensions it looks at, calibrated, published or from a file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.blocks.sinks import activations, is_sink, sink_strength
from vtprune.sink_table import published_for

MODES = {
    "ignore": "sinks are tokens like others",
    "exclude": "attention to a sink counts nothing; what else a policy ranks by still does",
    "drop": "sinks go first, whatever else is said for them",
    "keep": "sinks stay, and count among the tokens that are kept",
}
"""What ``sinks`` may be, and what it means."""

TAU = 20.0
FIRST_LAYER = 2
"""Sinks form in the layers before this one, so its input is the first in which they are looked for."""

_FORMAT, _VERSION, _LARGEST_FILE = "vtprune sinks", 1, 65536
_FIRST_SEEN, _UNSEEN_AT_END = 3, 1


@dataclass(frozen=True)
class SinkDetector:
    """Tells visual attention sinks by a massive activation: |x_d| in one of ``dims`` is above ``tau`` times x's RMS.

    dims:       dimensions of the hidden states in which the model's sinks are massive, one or more.
    tau:        the threshold, above 0; published with 20.
    model_type: of the model that the dimensions belong to, with its decoder's ``width`` and ``depth``; None: not known.
    source:     where the dimensions come from, for reports.
    """

    dims: tuple[int, ...]
    tau: float = TAU
    model_type: str | None = None
    width: int | None = None
    depth: int | None = None
    source: str = "given"

    def __post_init__(self):
        listed = isinstance(self.dims, Sequence) and not isinstance(self.dims, str) and len(self.dims) > 0
        if not listed or not all(_is_count(dim) for dim in self.dims) or len(set(self.dims)) < len(self.dims):
            raise ValueError(
                f"dims are different dimensions of hidden states, 0 or more, at least one; got {self.dims!r}"
            )
        object.__setattr__(self, "dims", tuple(self.dims))
        _check_tau(self.tau)
        for name in ("width", "depth"):
            value = getattr(self, name)
            if value is not None and not (_is_count(value) and value):
                raise ValueError(f"{name} is None or an integer of 1 or more; got {value!r}")
        for name, kinds in (("model_type", (str, type(None))), ("source", (str,))):
            if not isinstance(getattr(self, name), kinds):
                raise ValueError(f"{name} is text; got {getattr(self, name)!r}")
        if self.width is not None and max(self.dims) >= self.width:
            raise ValueError(
                f"dims lie in a width of {self.width}, so they are at most {self.width - 1}; got {self.dims}"
            )

    # ---- detection

    def strength(self, hidden: Tensor) -> Tensor:
        """(...) float32 of hidden states (..., D) at the input of a decoder layer: phi of the publication."""
        return sink_strength(hidden, self.dims)

    def find(self, hidden: Tensor) -> Tensor:
        """(...) bool: which of the hidden states (..., D) are sinks.

        hidden: at the input of a decoder layer, before its norm; of layer 2 or later, as sinks form before. Raises
        ValueError for hidden states that do not have the dimensions.
        """
        if hidden.shape[-1] <= max(self.dims):
            raise ValueError(
                f"these sinks show in dimensions {self.dims}; got hidden states of width {hidden.shape[-1]}"
            )
        return is_sink(hidden, self.dims, self.tau)

    # ---- where the dimensions come from

    @classmethod
    def published(cls, model: nn.Module) -> SinkDetector | None:
        """The detector with the dimensions published for this model, which its config tells; None if none were."""
        return cls.published_for(*_configs(model))

    @classmethod
    def published_for(cls, model_type: str, text: Any) -> SinkDetector | None:
        """The same of a model's type and its decoder's config."""
        known = published_for(model_type, text)
        if known is None:
            return None
        return cls(known.dims, TAU, model_type, known.width, known.depth, f"{known.name}, {known.status}")

    @classmethod
    @torch.no_grad()
    def calibrate(
        cls,
        model: nn.Module,
        prompts: Sequence[str | Sequence[int] | Tensor],
        *,
        tokenizer: Any = None,
        tau: float = TAU,
    ) -> SinkDetector:
        """The detector with the dimensions in which the first token of text prompts, always a sink, is massive.

        prompts:   a few, as texts, with the ``tokenizer``, or as token ids, (L,) each. Without pictures.
        tau:       the threshold: dimensions stay whose median over prompts and over the layers 3 to L - 2 is above.
        Raises ValueError where no dimension is, for a decoder of fewer than 5 layers and for prompts that are none.
        """
        _check_tau(tau)
        rows = torch.cat([_first_token(model, ids) for ids in _ids(model, prompts, tokenizer)])  # (prompts * layers, D)
        typical = rows.median(0).values
        order = typical.argsort(descending=True, stable=True)
        dims = tuple(int(dim) for dim in order if typical[dim] > tau)
        width = len(typical)
        if not dims:
            raise ValueError(
                f"no dimension of the first token is above tau={tau}: the largest is {int(order[0])} with "
                f"{float(typical[order[0]]):.3g}, and a width of {width} allows {width**0.5:.3g} at most. This model "
                "shows no sinks to that threshold; a smaller tau lowers it"
            )
        model_type, text = _configs(model)
        return cls(dims, tau, model_type, width, text.num_hidden_layers, f"calibrated on {len(prompts)} prompts")

    def check_model(self, model_type: str, text: Any) -> None:
        """Raises ValueError if the dimensions belong to another model than that of this type and decoder's config."""
        here = {"model_type": model_type, "width": text.hidden_size, "depth": text.num_hidden_layers}
        for name, value in here.items():
            if getattr(self, name) not in (None, value):
                raise ValueError(
                    f"these sink dimensions belong to a model with {name} {getattr(self, name)!r}, and this one has "
                    f"{value!r}; make its own with vtprune.SinkDetector.calibrate(model, prompts, tokenizer=tokenizer)"
                )
        if max(self.dims) >= text.hidden_size:
            raise ValueError(f"dims={self.dims} do not all lie in this decoder's width of {text.hidden_size}")

    # ---- files

    def save(self, path: str | Path) -> None:
        """Writes the detector to a small JSON file, which it replaces."""
        values = {"format": _FORMAT, "version": _VERSION, **asdict(self)}
        Path(path).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> SinkDetector:
        """The detector in a file of ``save``. Raises ValueError for one that is missing, damaged or something else."""
        values = _read(Path(path))
        fields = {name for name in cls.__dataclass_fields__}
        head = {"format": _FORMAT, "version": _VERSION}
        wrong = [name for name, value in head.items() if values.get(name) != value or isinstance(values[name], bool)]
        if wrong:
            raise ValueError(
                f"{str(path)!r} is no file of sink dimensions that this version reads: {wrong[0]} is "
                f"{values.get(wrong[0])!r}, not {head[wrong[0]]!r}; make one with vtprune sinks MODEL --out FILE"
            )
        found = set(values) - set(head)
        if found != fields:
            odd = sorted(found ^ fields)
            raise ValueError(f"{str(path)!r} has {', '.join(odd)} too many or too few; its names are {sorted(fields)}")
        try:
            return cls(**{name: values[name] for name in fields})
        except ValueError as error:
            raise ValueError(f"{str(path)!r} is damaged: {error}") from None


def _read(path: Path) -> dict[str, Any]:
    """The object in a small JSON file."""
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}; make one with vtprune sinks MODEL --out FILE")
    if path.stat().st_size > _LARGEST_FILE:
        raise ValueError(f"{str(path)!r} is larger than {_LARGEST_FILE} bytes; files of sink dimensions are small")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # bytes that are no text too
        raise ValueError(
            f"{str(path)!r} holds no JSON ({error}); make one with vtprune sinks MODEL --out FILE"
        ) from None
    if not isinstance(values, dict):
        raise ValueError(f"{str(path)!r} holds a JSON {type(values).__name__}, not the object that save writes")
    return values


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_tau(tau: object) -> None:
    number = isinstance(tau, (int, float)) and not isinstance(tau, bool)
    if not number or not 0 < tau < math.inf:  # nan compares false
        raise ValueError(f"tau is a finite number above 0, published with {TAU:g}; got {tau!r}")


def _inner(model: nn.Module) -> nn.Module:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _decoder(model: nn.Module) -> nn.Module:
    from vtprune.families.base import family_of

    inner = _inner(model)
    return family_of(inner).decoder(inner)


def _configs(model: nn.Module) -> tuple[str, Any]:
    """The model's type, and its decoder's config."""
    return _inner(model).config.model_type, _decoder(model).config


def _ids(model: nn.Module, prompts: Sequence, tokenizer: Any) -> list[Tensor]:
    """(1, L) token ids of every prompt, where the model takes them."""
    if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not len(prompts):
        raise ValueError(f"prompts are a list of one or more, texts or token ids; got {prompts!r}")
    device, found = model.get_input_embeddings().weight.device, []
    for prompt in prompts:
        if isinstance(prompt, str):
            if tokenizer is None:
                raise ValueError("prompts that are texts need tokenizer=, for instance processor.tokenizer")
            prompt = tokenizer(prompt)["input_ids"]
        ids = torch.as_tensor(prompt)
        if ids.dim() != 1 or not len(ids) or ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(f"a prompt is a text or its token ids, (L,) integers; got {prompt!r}")
        found.append(ids[None].to(device))
    return found


def _first_token(model: nn.Module, ids: Tensor) -> Tensor:
    """(layers, D) float32 on the CPU: the first token's activations at the inputs of the layers 3 to L - 2."""
    from vtprune.families.base import family_of

    inner = _inner(model)
    family = family_of(inner)
    decoder = family.decoder(inner)
    depth = len(decoder.layers)
    last = depth - 1 - _UNSEEN_AT_END
    if last < _FIRST_SEEN:
        raise ValueError(
            f"sinks are calibrated at layers 3 to L - 2, so L is 5 or more; this decoder has {depth} layers"
        )
    states = decoder(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    if states is None or len(states) != depth + 1:
        raise NotImplementedError(
            f"{type(decoder).__name__} does not hand out one hidden state for each of its {depth} layers; look for "
            "massive activations yourself and give vtprune.SinkDetector(dims)"
        )
    if states[0].dim() > 3:  # planes, of which policies see one
        states = [planes[getattr(decoder.config, family.active_plane)] for planes in states]
    return torch.stack([activations(states[layer][0, 0]).cpu() for layer in range(_FIRST_SEEN, last + 1)])
