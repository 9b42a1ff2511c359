"""Made-up samples in the shapes that families deliver, and made-up signals under the names that policies ask for."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate

import torch
from torch import Tensor

from vtprune.patches import Patches, Picture, joined, patches_of
from vtprune.tokens import BEFORE_LLM, Segment, Selection, VisualTokens

HEADS = 2


@dataclass(frozen=True)
class Source:
    """One image or video: its views' grids, or only its length where nothing else is known."""

    grids: tuple[tuple[int, int, int], ...] = ()
    n: int = 0
    kind: str = "image"

    def coords(self) -> Tensor:
        if not self.grids:
            return torch.full((self.n, 4), -1)
        places = [
            (v, t, r, c) for v, (T, H, W) in enumerate(self.grids) for t in range(T) for r in range(H) for c in range(W)
        ]
        return torch.tensor(places)


LAYOUTS: dict[str, tuple[Source, ...]] = {
    "image": (Source(((1, 12, 12),)),),
    "odd_image": (Source(((1, 7, 5),)),),
    "video": (Source(((4, 6, 6),), kind="video"),),
    "anyres": (Source(((1, 6, 6), (1, 12, 9))),),
    "unknown": (Source(n=50),),
    "one_token": (Source(((1, 1, 1),)),),
    "mixed": (Source(((1, 4, 6),)), Source(((1, 3, 3),)), Source(((3, 2, 4),), kind="video"), Source(n=10)),
}


@dataclass(frozen=True)
class Sample:
    """A prompt with visual tokens, unpruned. seed: another seed is another prompt of the same layout."""

    layout: str
    seed: int = 0
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    width: int = 16
    n_text: int = 7

    def __len__(self) -> int:
        return len(self.coords())

    def coords(self) -> Tensor:
        return torch.cat([source.coords() for source in LAYOUTS[self.layout]])

    def _random(self, what: str, *shape: int) -> Tensor:
        digest = blake2b(f"{what} {self.layout} {self.seed}".encode(), digest_size=7).digest()
        return torch.randn(*shape, generator=torch.Generator().manual_seed(int.from_bytes(digest, "little")))

    def hidden(self) -> Tensor:
        return self._random("hidden", len(self), self.width).to(self.device, self.dtype)

    def text(self) -> Tensor:
        return self._random("text", self.n_text, self.width).to(self.device, self.dtype)

    def signal(self, name: str) -> Tensor:
        """A signal of the unpruned sample, (..., N): rows of a softmax over all keys, cut to the visual tokens."""
        base, _, suffix = name.partition("@")[0].partition(":")
        n, m = len(self), self.n_text
        if base in ("last_query_attention", "attention_rank"):
            value = self._random(name, n + m).mul(3).softmax(-1)[:n]
        elif base in ("text_attention", "text_attention_max"):
            value = self._random(name, m, n + m).mul(3).softmax(-1)[:, :n]
        elif base == "probe_attention":
            paid = self._random(name, n + m, n + m).mul(3).masked_fill(torch.ones(n + m, n + m).triu(1) > 0, -torch.inf)
            seen = torch.arange(n + m, m, -1)  # a column is seen by its own row and those behind it
            value = torch.stack([paid.softmax(-1).sum(0)[:n], seen.float()])
        elif base == "text_attention_heads":
            value = self._random(name, HEADS, m, n + m).mul(3).softmax(-1)[..., :n]
        elif base == "text_rotary":
            value = self._random(name, m, n).abs()
        elif base in ("cls_attention", "head_weighted_cls"):
            layers = len(suffix.split(","))
            value = self._random(name, layers, HEADS, n + 1).mul(3).softmax(-1)[..., 1:]
            value = value.to(self.dtype) if base == "cls_attention" else value
        elif base == "cls_logits":
            value = self._random(name, len(suffix.split(",")), HEADS, n).mul(3).to(self.dtype)
        elif base == "vision_attention":
            value = self._random(name, n, n).mul(3).softmax(-1).mean(0)
        elif base == "cls_attention_joint":
            value = self._random(name, n + 1).mul(3).softmax(-1)[1:].to(self.dtype)
        elif base == "vision_keys":
            value = self._random(name, HEADS, 4, n).to(self.dtype)
        elif base in ("transition", "transition_unsigned"):
            value = self._random(name, len(suffix.split(",")), n).exp().div(n).to(self.dtype)
        elif base in ("keys", "text_keys", "unrotated_queries", "unrotated_keys"):
            value = self._random(name, HEADS, m if base == "text_keys" else n, 4).to(self.dtype)
        elif base in ("final_norm", "text_final_norm"):
            rows = self.hidden() if base == "final_norm" else self.text()
            value = rows * self._random("norm", self.width).exp().to(rows)
        elif base == "projected_features":
            return self._projected()
        elif base == "vision_graph":
            return self._graph(name)
        else:
            raise NotImplementedError(
                f"no made-up values for the signal {name!r}: add it to tests/policies/fabricate.py"
            )
        return value.to(self.device)

    def _projected(self) -> tuple[Tensor, ...]:
        """Before pooling a frame has twice the rows and columns; an image without a grid has one row."""
        found = []
        for i, source in enumerate(LAYOUTS[self.layout]):
            t, h, w = source.grids[0] if source.grids else (1, 1, source.n)
            wide = self._random(f"projected {i}", t, 4 * h * w, self.width)
            found.append(wide.to(self.device, self.dtype))
        return tuple(found)

    def _graph(self, name: str) -> Patches:
        """Every source is one picture, and each of its tokens one patch."""
        lengths, pictures = [len(source.coords()) for source in LAYOUTS[self.layout]], []
        for start, n in zip([0, *accumulate(lengths)], lengths, strict=False):
            query, key = (
                self._random(f"{name} {what} {start}", HEADS, n, 4).to(self.device, self.dtype) for what in ("q", "k")
            )
            pictures.append(Picture(query, key, 1.0, 0, torch.arange(start, start + n, device=self.device)))
        graphs = patches_of(pictures, (1, len(self)), lambda scores: scores[0].split(lengths, 1), lengths)
        return joined(graphs)

    def _served(self, name: str, site: float, rows: Tensor):
        """A signal as far as it exists at a site, of the rows that are left."""
        value, (base, _, suffix) = self.signal(name), name.partition("@")[0].partition(":")
        if base == "vision_graph":
            return value.of(rows.cpu(), torch.device(self.device))
        if base in ("projected_features", "text_keys", "text_final_norm"):
            return value
        if base in ("keys", "unrotated_queries", "unrotated_keys", "final_norm"):
            return value[..., rows, :].contiguous()
        if base.startswith("transition"):
            value = value[: sum(int(layer) < site for layer in suffix.split(","))]
        return value[..., rows].contiguous()

    def at(
        self,
        site: float = BEFORE_LLM,
        needs: frozenset[str] = frozenset(),
        rows: Tensor | None = None,
        memory: MutableMapping | None = None,
    ) -> VisualTokens:
        """What a policy sees at a site once all but ``rows`` of the visual tokens are gone."""
        rows = torch.arange(len(self)) if rows is None else rows.cpu()
        segments, start, alive = [], 0, 0
        for i, source in enumerate(LAYOUTS[self.layout]):
            stop = start + len(source.coords())
            n = int(((rows >= start) & (rows < stop)).sum())
            segments.append(Segment(slice(alive, alive + n), source.grids, source.kind, i))
            start, alive = stop, alive + n
        rows = rows.to(self.device)
        return VisualTokens(
            hidden=self.hidden()[rows],
            text=self.text(),
            segments=tuple(segments),
            signals={name: self._served(name, site, rows) for name in needs},
            site=site,
            rows=rows,
            coords=self.coords().to(self.device)[rows],
            position=rows + 5,
            text_position=torch.cat([torch.arange(5), len(self) + torch.arange(5, self.n_text)]).to(self.device),
            seed=self.seed,
            memory={} if memory is None else memory,
        )


def left_out(
    sizes: Sequence[int], side: int, width: int, seed: int, signal: str = ""
) -> tuple[VisualTokens, list[list[list[float]]]]:
    """A clip of frames of side x side places, of which ``sizes`` have a token, and its frames as lists of vectors."""
    generator = torch.Generator().manual_seed(seed)
    places = [torch.randperm(side * side, generator=generator)[:n].sort().values for n in sizes]
    coords = [torch.stack([p * 0, p * 0 + f, p // side, p % side], 1) for f, p in enumerate(places)]
    hidden = torch.randn(sum(sizes), width, generator=generator)
    signals = {signal: torch.rand(len(hidden), generator=generator)} if signal else {}
    segment = Segment(slice(0, len(hidden)), ((len(sizes), side, side),), "video")
    tokens = VisualTokens(hidden, hidden[:0], (segment,), signals, coords=torch.cat(coords))
    return tokens, [frame.tolist() for frame in hidden.split(list(sizes))]


def serve(policy, sample: Sample) -> list[tuple[VisualTokens, Selection]]:
    """Asks a policy at each of its sites in turn, as one forward would; survivors keep their hidden states."""
    rows, memory, served = torch.arange(len(sample), device=sample.device), {}, []
    for site in policy.sites:
        tokens = sample.at(site, policy.needs, rows, memory)
        selection = policy.select(tokens)
        served.append((tokens, selection))
        rows = rows[selection.keep]
    return served


def tensors(signal: object) -> list[Tensor]:
    """What a signal holds."""
    if isinstance(signal, Patches):
        pictures = [picture for part in signal.parts for picture in part.encoded.pictures]
        return [part.rows for part in signal.parts] + [x for one in pictures for x in (one.query, one.key)]
    return [signal] if isinstance(signal, Tensor) else list(signal)
