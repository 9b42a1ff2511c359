"""Made-up prompts that look like pictures and clips, and every signal ready: for timing what selecting alone takes.

The tokens of a picture are smooth fields with edges in them, those of a clip stay as they are for a while; whatever is
made of a token, its keys or what attends to it, is made of the same few numbers, so that what is alike in one signal is
alike in the others. How many tokens are alike decides how long some methods search.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from hashlib import blake2b

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.policies_scene import PATCHES
from benchmarks.policies_shapes import Shape
from vtprune.apply import merge_rows
from vtprune.families.base import grid_coords
from vtprune.patches import Patches, Picture, patches_of
from vtprune.policies.base import Policy
from vtprune.probes import PROBED
from vtprune.signals import CLASS_ROWS, GRAPH, NORMED, TRANSITIONS, UNPROJECTED, Need, needed, row_layer
from vtprune.tokens import Segment, Selection, VisualTokens
from vtprune.unprojected import Unprojected

SEED = 7
LATENT = 48
"""Numbers behind every token."""
PATCH = 6
"""Tokens from one point of a smooth field to the next."""
ROUGH = 0.6
"""Of the numbers behind a token what no neighbour has, but its place in the next frame, if it stays."""
COMMON, NOISE = 0.6, 0.1
"""Lengths of what all tokens have in common, and of what no two of them have, beside what a picture shows."""
SCENE, STILL = 8, 1.0
"""Frames until a clip shows something else, and how far from 0 a normal number may be where a place stays as it is."""


class Prompt:
    """The tokens of one prompt of a shape, and what a policy may ask to see of them.

    latent: (N, LATENT) of the visual tokens. hidden: (N, D) and text: (M, D) before the LLM.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype, device: str = "cpu"):
        self.shape, self.dtype, self.device = shape, dtype, device
        self._made: dict[str, object] = {}
        self.latent = self._clip(*shape.grids[0]) if shape.kind == "video" else self._views()
        self.coords = torch.cat([grid_coords(*grid, view=view) for view, grid in enumerate(shape.grids)]).to(device)
        self.hidden = self.features("hidden", shape.width)
        self.text = self._draws("text")(shape.text, shape.width).to(device, dtype)
        ends = torch.arange(shape.text)
        self.text_position = (ends + (ends >= shape.before) * shape.visual).to(device)

    # ---- what the picture shows

    def _draws(self, name: str) -> Draws:
        """Numbers that depend on the prompt and a name, whatever else was made before."""
        return Draws(f"{name} {self.shape.visual} {self.shape.kind}")

    def _views(self) -> Tensor:
        """The views of an image show the same."""
        draws = self._draws("image")
        field = _field(draws, *self.shape.grids[-1][1:])
        shown = torch.cat([_drawn(field, height, width) for _, height, width in self.shape.grids])
        return shown + ROUGH * draws(*shown.shape)

    def _clip(self, frames: int, height: int, width: int) -> Tensor:
        """Scenes of some frames, in which most places stay as they were."""
        draws, shown = self._draws("clip"), []
        for t in range(frames):
            now = _drawn(_field(draws, height, width), height, width)
            now += ROUGH * draws(*now.shape)
            if t % SCENE:
                still = draws(len(now), 1).abs() < STILL
                now = torch.where(still, shown[-1] + 0.05 * draws(*now.shape), (now + shown[-1]) / 2**0.5)
            shown.append(now)
        return torch.cat(shown)

    # ---- what is made of it

    def features(self, name: str, width: int) -> Tensor:
        """(N, width) in the model's dtype: another view of the same things, by name."""
        if name not in self._made:
            draws = self._draws(name)
            x = self.latent @ draws(LATENT, width) / (2 * LATENT) ** 0.5
            x += COMMON * draws(width) + NOISE * draws(*x.shape)
            self._made[name] = x.to(self.device, self.dtype)
        return self._made[name]

    def attention(self, name: str, rows: int) -> Tensor:
        """(rows, N) float32: softmax rows over the visual tokens, each with tastes of its own."""
        return self.logits(name, rows).softmax(-1)

    def logits(self, name: str, rows: int) -> Tensor:
        if name not in self._made:
            draws = self._draws(name)
            taste = draws(LATENT, rows) / (2 * LATENT) ** 0.5
            few = 4 * (draws(len(self.latent), 1) > 2)
            self._made[name] = (2 * self.latent @ taste + few).T.contiguous().to(self.device)
        return self._made[name]

    def unprojected(self) -> Unprojected:
        """What a projector of LLaVA's kind was given."""
        shape = self.shape
        x = self.features("unprojected", shape.tower_width)
        if "projector" not in self._made:
            projector = nn.Sequential(
                nn.Linear(shape.tower_width, shape.width), nn.GELU(), nn.Linear(shape.width, shape.width)
            ).requires_grad_(False)
            for name, weight in projector.named_parameters():
                weight.copy_(self._draws(name)(*weight.shape) / weight.shape[-1] ** 0.5)
            self._made["projector"] = projector.to(self.device, self.dtype)
        return Unprojected(x, (x[0],), self._made["projector"])

    def tokens(self, site: float, rows: Tensor, hidden: Tensor, needs: tuple[Need, ...]) -> VisualTokens:
        """What a policy sees at a site where ``rows`` are left, as ``hidden``."""
        shape = self.shape
        return VisualTokens(
            hidden=hidden,
            text=self.text,
            segments=(Segment(slice(0, len(rows)), shape.grids, shape.kind),),
            signals=Given({need.text: partial(self.signal, need, site, rows, hidden) for need in needs}),
            site=site,
            rows=rows,
            coords=self.coords[rows],
            position=rows + shape.before,
            text_position=self.text_position,
            seed=SEED,
        )

    def signal(self, need: Need, site: float, rows: Tensor, hidden: Tensor) -> object:
        """A signal in the shape that ``vtprune.signals.SIGNALS`` gives, of the ``rows`` that are left."""
        if need.kind in ("rows", "keys") and row_layer(need, site) is None:
            raise KeyError(f"{need.text!r} does not exist at site {site}")
        if need.name == UNPROJECTED:
            return self.unprojected().of(rows, rows.device)
        if need.name == GRAPH:
            return self.graph(need).of(rows, rows.device)
        if need.kind == "keys":
            return self._keys(need, rows)
        if need.name in NORMED:
            return F.normalize(hidden if need.name == "final_norm" else self.text, dim=-1) * hidden.shape[1] ** 0.5
        if need.name in (*CLASS_ROWS, "vision_keys", "cls_attention_joint", "vision_attention"):
            return self._of_tower(need, rows)
        if need.name in TRANSITIONS:
            layers = sum(layer < site for layer in need.where)
            return self.attention(need.text, len(need.where))[:layers, rows].to(self.dtype)
        if need.kind != "rows":
            raise NotImplementedError(f"the signal {need.text!r} is not made up yet; add it to {__name__}")
        if need.name == PROBED:
            paid = self.attention(need.text, 1)[0]
            # every token is seen from itself and from those behind it
            seen = torch.arange(len(paid), 0, -1, device=self.device) + self.shape.text - self.shape.before
            return torch.stack([paid, seen])[:, rows]
        if need.name == "text_attention_heads":
            every = self.attention(need.text, self.shape.heads * self.shape.text)[:, rows]
            return every.unflatten(0, (self.shape.heads, -1))
        of_text = need.name in ("text_attention", "text_attention_max")
        found = self.attention(need.text, self.shape.text if of_text else 1)[:, rows]
        return found if of_text else found[0]

    def _of_tower(self, need: Need, rows: Tensor) -> Tensor:
        shape = self.shape
        size = shape.tower_width // shape.tower_heads
        if need.name == "vision_keys":
            keys = self.features(need.text, shape.tower_width)[rows]
            return keys.T.unflatten(0, (shape.tower_heads, size)).contiguous()
        if need.name not in CLASS_ROWS:
            score = self.attention(need.text, 1)[0, rows]
            return score if need.name == "vision_attention" else score.to(self.dtype)
        make = self.logits if need.name == "cls_logits" else self.attention
        every = make(need.text, len(need.where) * shape.tower_heads)[:, rows]
        every = every.unflatten(0, (len(need.where), -1))
        return every if need.name == "head_weighted_cls" else every.to(self.dtype)

    def graph(self, need: Need) -> Patches:
        """Tiles of patches behind a class token, in the order of the tokens; or frames, patches alike in fours."""
        shape, clip = self.shape, self.shape.tower == "clip"
        if need.text not in self._made:
            made, each = [], 1 if clip else PATCHES
            both = [self.features(f"{need.text} {what}", shape.tower_width) for what in ("queries", "keys")]
            size = shape.side**2 if clip else shape.grids[0][1] * shape.grids[0][2]
            for i, parts in enumerate(zip(*(x.split(size) for x in both), strict=True)):
                parts = [torch.cat([x[:1], x]) if clip else x.repeat_interleave(each, 0) for x in parts]
                query, key = (x.unflatten(1, (shape.tower_heads, -1)).transpose(0, 1) for x in parts)
                places = torch.arange(query.shape[1], device=self.device) + (-1 if clip else i * size * each)
                made.append(Picture(query, key, query.shape[-1] ** -0.5, i if clip else 0, places))
            patches = (shape.tiles, size) if clip else (1, shape.visual * each)

            def spread(scores: Tensor) -> list[Tensor]:
                return [scores.transpose(0, 1).flatten(1).unflatten(1, (-1, each)).mean(-1)]

            [self._made[need.text]] = patches_of(made, patches, spread, [shape.visual])
        return self._made[need.text]

    def _keys(self, need: Need, rows: Tensor) -> Tensor:
        """(heads, N or M, d) of the decoder."""
        shape = self.shape
        heads, size = shape.heads if need.name == "unrotated_queries" else shape.key_heads, shape.width // shape.heads
        if need.name == "text_keys":
            x = self.text[:, : heads * size]
        else:
            x = self.features(need.text, heads * size)[rows]
        return x.unflatten(1, (heads, size)).transpose(0, 1).contiguous()


class Given(Mapping):
    """The signals of one site: made when they are first read, and free from then on."""

    def __init__(self, make: Mapping):
        self._make, self._seen = make, {}

    def __getitem__(self, name: str) -> object:
        if name not in self._seen:
            self._seen[name] = self._make[name]()
        return self._seen[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._make)

    def __len__(self) -> int:
        return len(self._make)


class Draws:
    """Normal numbers from a seed that a name gives."""

    def __init__(self, name: str):
        digest = blake2b(name.encode(), digest_size=7).digest()
        self._generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))

    def __call__(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self._generator)


def _field(draws: Draws, height: int, width: int) -> Tensor:
    """(1, LATENT, h, w): points that a picture of height x width is smooth between, some of them alike."""
    h, w = (max(2, -(-side // PATCH)) for side in (height, width))
    return draws(1, LATENT, h, w) + F.interpolate(draws(1, LATENT, -(-h // 2), -(-w // 2)), size=(h, w))


def _drawn(field: Tensor, height: int, width: int) -> Tensor:
    """(height * width, LATENT): smooth between the points of a field, but for half of its numbers, which have edges."""
    smooth, edges = field.chunk(2, 1)
    smooth = F.interpolate(smooth, size=(height, width), mode="bilinear", align_corners=True)
    return torch.cat([smooth, F.interpolate(edges, size=(height, width))], 1)[0].flatten(1).T


@torch.no_grad()
def reached(policy: Policy, prompt: Prompt) -> list[VisualTokens]:
    """What a policy sees at each of its sites; its own answers decide what is left, and the layers between change it.

    It was asked once, so every signal that it reads is there.
    """
    needs, memory, found = needed(policy), {}, []
    rows, hidden = torch.arange(len(prompt.hidden), device=prompt.device), prompt.hidden
    for site in policy.sites:
        if found:
            hidden = hidden + 0.1 * hidden.roll(len(found), 0)
        found.append(prompt.tokens(site, rows, hidden, needs))
        answer = policy.select(replace(found[-1], memory=memory))
        if answer.last:
            break
        if len(answer.keep) < len(rows) or answer.changes:
            rows, hidden = rows[answer.keep], merge_rows(hidden, answer)
    return found


@torch.no_grad()
def select(policy: Policy, seen: list[VisualTokens]) -> list[Selection]:
    """Asks a policy at every site, as one forward would."""
    memory: dict = {}
    return [policy.select(replace(tokens, memory=memory)) for tokens in seen]
