"""A trained importance scorer: two linear layers say how much the visual tokens of a sample attend to each other."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import linear

WEIGHTS = ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias")
PREFIXES = ("module.", "visual.importance_scorer.", "_orig_mod.")
"""What training frameworks put before the names."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Scorer:
    """Scores a token by the mean over all tokens j of ``q_i . k_j / sqrt(H)``, no softmax.

    query, key:           (H, D) weights, all four of one dtype.
    query_bias, key_bias: (H,).
    """

    query: Tensor
    query_bias: Tensor
    key: Tensor
    key_bias: Tensor
    _copies: dict[torch.device, "Scorer"] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def width(self) -> int:
        """D of the features that it was trained on."""
        return self.query.shape[1]

    @torch.no_grad()
    def __call__(self, features: Tensor) -> Tensor:
        """(N,) scores of (N, D) features, in the dtype of the weights. Raises ValueError for another width.

        Features are cast to that dtype; sums are made in at least float32. The mean is taken of the features instead
        of the keys, and the query weights meet it first, so this is O(N D + D H).
        """
        if features.dim() != 2 or features.shape[1] != self.width:
            raise ValueError(
                f"this scorer was trained on features of width {self.width}; got {tuple(features.shape)}. Give the "
                "scorer of the model in use"
            )
        mine = self._on(features.device)
        dtype = torch.promote_types(mine.query.dtype, torch.float32)
        x = features.to(mine.query.dtype).to(dtype)
        key = linear(x.mean(0), mine.key.to(dtype), mine.key_bias.to(dtype))
        scores = x @ (mine.query.to(dtype).T @ key) + mine.query_bias.to(dtype) @ key
        return (scores / len(mine.query) ** 0.5).to(mine.query.dtype)

    def _on(self, device: torch.device) -> "Scorer":
        """The same on another device; copied there once."""
        if device == self.query.device:
            return self
        if device not in self._copies:
            weights = (self.query, self.query_bias, self.key, self.key_bias)
            self._copies[device] = Scorer(*(weight.to(device) for weight in weights))
        return self._copies[device]


def load_scorer(path: str | Path) -> Scorer:
    """The scorer in a safetensors file, which may hold other weights too; known prefixes of names are ignored.

    Raises ValueError for a file that is missing or no safetensors file, for weights that are missing, there twice or of
    shapes or dtypes that do not fit each other.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no file {str(path)!r}; give the path of the scorer's safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            names = _names(file.keys(), path)
            weights = [file.get_tensor(names[name]) for name in WEIGHTS]
    except SafetensorError as error:
        raise ValueError(
            f"{str(path)!r} is not a safetensors file ({error}); pickled weights are not read, convert them first"
        ) from None
    _check(weights, path)
    return Scorer(*weights)


def _names(found: list[str], path: str | Path) -> dict[str, str]:
    """Each of ``WEIGHTS`` -> its name in the file."""
    names: dict[str, str] = {}
    for name in found:
        plain = name
        while prefix := next((prefix for prefix in PREFIXES if plain.startswith(prefix)), ""):
            plain = plain.removeprefix(prefix)
        if plain in WEIGHTS:
            if plain in names:
                raise ValueError(f"{str(path)!r} has {plain!r} twice, as {names[plain]!r} and {name!r}; keep one")
            names[plain] = name
    if missing := [name for name in WEIGHTS if name not in names]:
        some = ", ".join(sorted(found)[:4]) or "nothing"
        raise ValueError(
            f"{str(path)!r} lacks {', '.join(missing)}, with or without {' '.join(PREFIXES)} before it; it has {some}"
        )
    return names


def _check(weights: list[Tensor], path: str | Path) -> None:
    query, query_bias, key, key_bias = weights
    shapes = [tuple(weight.shape) for weight in weights]
    if query.dim() != 2 or key.shape != query.shape or not query_bias.shape == key_bias.shape == query.shape[:1]:
        raise ValueError(
            f"weights of a scorer are (H, D) and (H,), the same for both layers; {str(path)!r} has "
            f"{', '.join(f'{name} {shape}' for name, shape in zip(WEIGHTS, shapes))}"
        )
    if query.dtype not in DTYPES or any(weight.dtype != query.dtype for weight in weights):
        raise ValueError(
            f"weights of a scorer are all of one dtype, one of {', '.join(map(str, DTYPES))}; {str(path)!r} has "
            f"{', '.join(str(weight.dtype) for weight in weights)}"
        )
