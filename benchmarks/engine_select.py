"""What choosing costs: every registered policy on made-up videos of growing length, signals included."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import measure
from benchmarks.policies_given import Given
from vtprune.attention import Call
from vtprune.blocks.attention_rank import attention_rank
from vtprune.blocks.probe_rows import probe_rows
from vtprune.families.base import grid_coords
from vtprune.patches import patches_of, pictures_of
from vtprune.policies.base import POLICIES, Policy
from vtprune.probes import PROBED
from vtprune.signals import CLASS_ROWS, GRAPH, Need, needed
from vtprune.tokens import Segment, Selection, VisualTokens
from vtprune.unprojected import Unprojected
from vtprune.vision_signals import class_rows, column_means, head_weighted_rows, joint_class_row
from vtprune_kernels.attention_columns import Visible
from vtprune_kernels.attention_rows import attention_rows

GRIDS = {576: (4, 12, 12), 2880: (20, 12, 12), 16384: (64, 16, 16)}
"""Visual tokens -> frames, rows and columns of one video, so that one budget covers all of them."""
KEEP_RATIO = 0.25
HEADS, KEY_HEADS, SIZE, TOWER_HEADS = 14, 2, 64, 16
SLOW, FAST = 10.0, 0.2
"""Seconds: what is expected to take longer than SLOW is not run; what takes less than FAST is repeated."""


@dataclass
class Video:
    """One made-up prompt: the tokens, and a layer of the decoder and of the tower, ready for signals to be computed.

    query:  (HEADS, M, SIZE) of the text tokens. key: (KEY_HEADS, N + M, SIZE) of all tokens.
    asked:  (HEADS, N, SIZE) queries of the visual tokens.
    tower:  one layer that saw the frames one by one, each with a class token first.
    coords: (N, 4) places of the visual tokens.
    """

    grid: tuple[int, int, int]
    hidden: Tensor
    text: Tensor
    query: Tensor
    key: Tensor
    tower: list[Call]
    coords: Tensor
    asked: Tensor

    @staticmethod
    def make(n: int, width: int = 896, n_text: int = 64, device: str = "cpu") -> "Video":
        grid, generator = GRIDS[n], torch.Generator().manual_seed(n)

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device)

        frames = (grid[0], TOWER_HEADS, grid[1] * grid[2] + 1, SIZE)
        tower = [Call(*(noise(*frames) for _ in range(2)), SIZE**-0.5, value=noise(*frames))]
        layer = noise(HEADS, n_text, SIZE), noise(KEY_HEADS, n + n_text, SIZE)
        coords, asked = grid_coords(*grid).to(device), noise(HEADS, n, SIZE)
        return Video(grid, noise(n, width), noise(n_text, width), *layer, tower, coords, asked)

    def tokens(self, site: float, rows: Tensor, signals: Mapping[str, Tensor], memory: dict) -> VisualTokens:
        """What a policy sees at a site where ``rows`` are left."""
        # gathering is the engine's work, not the policy's
        whole = len(rows) == len(self.hidden)
        return VisualTokens(
            hidden=self.hidden if whole else self.hidden[rows],
            text=self.text,
            segments=(Segment(slice(0, len(rows)), (self.grid,), "video"),),
            signals=signals,
            site=site,
            rows=rows,
            coords=self.coords if whole else self.coords[rows],
            position=rows + len(self.text) // 4,
            text_position=self.text_position,
            seed=7,
            memory=memory,
        )

    @property
    def text_position(self) -> Tensor:
        """(M,) a quarter of the text stands before the visual tokens."""
        ends = torch.arange(len(self.text), device=self.text.device)
        return ends + (ends >= len(self.text) // 4) * len(self.hidden)

    def signal(self, need: Need, rows: Tensor, site: float = 1) -> object:
        """A signal in the shape that ``SIGNALS`` gives, computed as for a real layer; ``rows`` are still there."""
        if need.kind == "tower":
            return self._of_tower(need, rows)
        if need.kind == "norm":
            x = self.text if need.name == "text_final_norm" else self.hidden[rows]
            return F.rms_norm(x, x.shape[-1:])
        if need.kind == "transition":
            run = sum(layer < site for layer in need.where)
            return self.hidden[rows].norm(dim=-1).expand(run, -1)
        text = torch.arange(len(self.hidden), self.key.shape[1], device=rows.device)
        if need.kind == "keys":
            some = text if need.name == "text_keys" else rows
            return (self.asked if need.name == "unrotated_queries" else self.key)[:, some]
        alive = torch.cat([rows, text])
        key = self.key if len(alive) == self.key.shape[1] else self.key[:, alive]
        if need.name == "attention_rank":
            query, real = (
                torch.cat([self.asked[:, rows], self.query], 1),
                torch.ones_like(alive, dtype=torch.bool)[None],
            )
            visible = Visible(last=torch.arange(len(alive), device=rows.device)[None], valid=real)
            return attention_rank(query[None], key[None], scale=SIZE**-0.5, visible=visible, real=real)[0, : len(rows)]
        if need.name == PROBED:
            places = probe_rows(len(alive), need.probes).to(rows.device)
            query = torch.cat([self.asked[:, rows], self.query], 1)[:, places]
            visible = Visible(last=places[None])
            paid = attention_rows(query[None], key[None], scale=SIZE**-0.5, visible=visible, reduce="heads+rows")
            seen = len(places) - torch.searchsorted(places, torch.arange(len(rows), device=rows.device))
            return torch.stack([paid[0, : len(rows)] * len(places), seen])
        last = need.name == "last_query_attention"
        query = self.query[:, -1:] if last else self.query
        found = attention_rows(query[None], key[None], scale=SIZE**-0.5, reduce=need.over_heads)[0, :, : len(rows)]
        return found[0] if last else found

    def _of_tower(self, need: Need, rows: Tensor) -> object:
        """The class token of every frame has a column too."""
        if need.name in CLASS_ROWS:
            rows_of = partial(class_rows, logits=need.name == "cls_logits")
            rows_of = head_weighted_rows if need.name == "head_weighted_cls" else rows_of
            layers = [rows_of(self.tower)[..., 1:].transpose(0, 1).flatten(1) for _ in need.where]
            return torch.stack(layers)[..., rows]
        if need.name == GRAPH:
            pictures, size = pictures_of(self.tower, {}, causal=False, class_token=True)
            [graph] = patches_of(pictures, size, lambda x: [x.transpose(0, 1).flatten(1)], [len(self.hidden)])
            return graph.of(rows, rows.device)
        if need.name == "cls_attention_joint":
            return joint_class_row(self.tower)[..., 1:].flatten()[rows]
        keys = self.tower[0].key[:, :, 1:]  # (frames, heads, patches, SIZE)
        if need.name == "vision_keys":
            return keys.permute(1, 3, 0, 2).flatten(2)[..., rows]
        if need.name == "unprojected":
            features, wide = keys.transpose(1, 2).flatten(2).flatten(0, 1)[rows], self.hidden.shape[1]
            # a projector that repeats what it is given, cut to the width
            repeats = -(-wide // features.shape[1])
            return Unprojected(features, (features[0],), lambda x: x.repeat(1, repeats)[:, :wide])
        if need.name != "vision_attention":
            raise NotImplementedError(f"no {need.text!r} is made up here")
        return column_means(self.tower, {}).view(self.grid[0], -1)[:, 1:].flatten()[rows]


def make(name: str) -> Policy:
    """A registered policy with its defaults, but for the common keep ratio where it has one."""
    cls = POLICIES[name]
    known = {field.name for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    return cls(keep_ratio=KEEP_RATIO) if "keep_ratio" in known else cls()


def serve(policy: Policy, video: Video) -> list[Selection]:
    """Asks a policy at all of its sites, as one forward would."""
    rows, memory, answers = torch.arange(len(video.hidden), device=video.hidden.device), {}, []
    for site in policy.sites:
        make = {need.text: partial(video.signal, need, rows, site) for need in needed(policy)}
        answers.append(policy.select(video.tokens(site, rows, Given(make), memory)))
        if answers[-1].last:
            break
        rows = rows[answers[-1].keep]
    return answers


def select_rows(
    names: Sequence[str], sizes: Sequence[int], device: str, clock: Mapping, tell: Callable[[str], None]
) -> list[dict]:
    """One row for each policy and size, with the growth exponent from the size before; a failure is a row too."""
    rows = []
    for name in names:
        tell(f"selecting: {name}")
        before = None
        for n in sizes:
            row = {"what": "selection", "policy": name, "visual": n, **_row(name, n, device, clock, before)}
            rows.append(row)
            before = row
    return rows


def _row(name: str, n: int, device: str, clock: Mapping, before: dict | None) -> dict:
    if before is not None:
        if "error" in before:
            return {"error": f"not run, because {before['visual']} tokens failed"}
        expected = before["seconds"] * (n / before["visual"]) ** 2
        if expected > SLOW:
            return {"error": f"not run: as the square of the size it would take {expected:.0f} s"}
    try:
        policy, video = make(name), Video.make(n, device=device)
        found = measure(lambda: serve(policy, video), warmup=1 if n <= 576 else 0, runs=1, **clock)
        if found["seconds"] < FAST:
            found = {**measure(lambda: serve(policy, video), warmup=1, runs=5, **clock)}
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    row = {"keep_ratio": getattr(policy, "keep_ratio", None), **found}
    if before is not None:
        row["exponent"] = exponent(before["visual"], before["seconds"], n, found["seconds"])
    if n >= 16384 and found["peak_bytes"] is not None:
        # less than one byte for each pair: not even a mask of all pairs was held
        row |= {"bound": f"peak_bytes < {n * n}", "verdict": "met" if found["peak_bytes"] < n * n else "missed"}
    return row


def exponent(n: int, seconds: float, more: int, more_seconds: float) -> float:
    """The slope between two sizes on double logarithmic paper: 1 is linear, 2 quadratic."""
    return math.log(more_seconds / seconds) / math.log(more / n)
