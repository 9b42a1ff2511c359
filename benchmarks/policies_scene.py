"""A prompt of real size at the sites of a policy, with the library's own code for each signal over one real layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import transformers as hf
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPAttention
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionAttention

from benchmarks.policies_shapes import Shape
from vtprune.apply import merge_rows
from vtprune.attention import Call, attention_inputs
from vtprune.blocks.probe_rows import probe_rows
from vtprune.families.base import grid_coords
from vtprune.patches import Patches, patches_of
from vtprune.policies.base import Policy
from vtprune.probes import PROBED, probe_attention
from vtprune.rank import layer_rank
from vtprune.rows import row_attention
from vtprune.signals import CLASS_ROWS, GRAPH, UNPROJECTED, Need, needed
from vtprune.tokens import BEFORE_LLM, Segment, Selection, VisualTokens
from vtprune.transition import Transitions
from vtprune.unprojected import Unprojected
from vtprune.unrotated import UNROTATED, unrotated
from vtprune.vision_signals import COLLECTED, VisionTap

SEED = 7
PATCHES = 4
"""Patches that make a visual token behind Qwen's tower."""


class Scene:
    """One prompt of a shape: made-up hidden states, one attention module of the decoder and one of the tower.

    Weights are random, so that attention is neither even nor all on one token. In a video half of the tokens are those
    of the frame before, slightly changed. The layers of a model are taken to be alike: each has the same input.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype, device: str = "cpu"):
        self.shape, self.dtype, self.device = shape, dtype, device
        self.generator = torch.Generator().manual_seed(shape.visual)
        self.hidden = self._frames() if shape.kind == "video" else self._noise(shape.visual, shape.width)
        self.text = self._noise(shape.text, shape.width)
        views = [grid_coords(*grid, view=view) for view, grid in enumerate(shape.grids)]
        self.coords = torch.cat(views).to(device)
        config = shape.config()
        self.attn = self._built((Qwen2Attention if shape.tower == "qwen" else LlamaAttention)(config, layer_idx=0))
        self.norm = self._built(LlamaRMSNorm(shape.width))
        positions = torch.arange(shape.visual + shape.text, device=device)[None]
        self.rotary = LlamaRotaryEmbedding(config).to(device)(self.hidden, positions)
        self.tower, self.tower_inputs = self._clip() if shape.tower == "clip" else self._qwen()
        self._found: dict[str, Tensor | Unprojected | Patches] = {}

    def _noise(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.generator).to(self.device, self.dtype)

    def _frames(self) -> Tensor:
        """(N, D): a frame's token is the one before with a third of noise, or with as good a chance a new one."""
        (frames, height, width), *_ = self.shape.grids
        x = torch.randn(frames, height * width, self.shape.width, generator=self.generator)
        same = torch.rand(frames, height * width, generator=self.generator) < 0.5
        for now in range(1, frames):
            x[now][same[now]] = x[now - 1][same[now]] + 0.3 * x[now][same[now]]
        return x.flatten(0, 1).to(self.device, self.dtype)

    def _built(self, module: nn.Module) -> nn.Module:
        """With weights that make queries and keys of unit size and a few times that."""
        with torch.no_grad():
            for name, weight in module.named_parameters():
                if weight.dim() == 2:
                    size = 3.0 if "q_proj" in name else 1.0
                    weight.copy_(torch.randn(weight.shape, generator=self.generator) * size / weight.shape[1] ** 0.5)
        return module.to(self.device, self.dtype).eval().requires_grad_(False)

    def _clip(self) -> tuple[nn.Module, dict]:
        s = self.shape
        config = hf.CLIPVisionConfig(hidden_size=s.tower_width, num_attention_heads=s.tower_heads)
        x = self._noise(s.tiles, s.side**2 + 1, s.tower_width)
        return self._built(CLIPAttention(config)), {"hidden_states": x, "attention_mask": None}

    def _qwen(self) -> tuple[nn.Module, dict]:
        s, ((frames, height, width), *_) = self.shape, self.shape.grids
        config = Qwen2_5_VLVisionConfig(hidden_size=s.tower_width, num_heads=s.tower_heads)
        n, size = PATCHES * height * width, s.tower_width // s.tower_heads
        angle = torch.arange(frames * n)[:, None] / 100.0 ** (torch.arange(size) / size)
        return self._built(Qwen2_5_VLVisionAttention(config)), {
            "hidden_states": self._noise(frames * n, s.tower_width),
            "cu_seqlens": torch.arange(0, frames * n + 1, n, device=self.device, dtype=torch.int32),
            "position_embeddings": (angle.cos().to(self.device), angle.sin().to(self.device)),
        }

    @cached_property
    def tower_calls(self) -> list[Call]:
        """The queries and keys that the tower's module compares."""
        return attention_inputs(self.tower, **self.tower_inputs)

    def from_tower(self, need: Need) -> Tensor | Unprojected | Patches:
        """A signal as ``SIGNALS`` has it, by the taps that sit on the tower's layers; its order is the tower's own."""
        if need.name == UNPROJECTED:
            return self._unprojected()
        tap_of = {layer: VisionTap(layer, [need], self.shape.tower == "clip") for layer in need.where}
        collected: dict = {}
        token = COLLECTED.set(collected)
        try:
            for tap in tap_of.values():
                tap(self.tower, (), self.tower_inputs)
        finally:
            COLLECTED.reset(token)
        if need.name == GRAPH:
            [[(pictures, size)]] = collected[need.text].values()
            [graph] = patches_of(pictures, size, lambda scores: [self._of_tokens(scores)], [self.shape.visual])
            return graph
        # (tiles, heads or 1, patches), of keys (tiles, heads, d, patches)
        found = [torch.cat(collected[need.text][layer]) for layer in need.where]
        scores = torch.stack([self._of_tokens(score) for score in found])
        return scores if need.name in CLASS_ROWS else scores[0] if need.name == "vision_keys" else scores[0, 0]

    def _of_tokens(self, scores: Tensor) -> Tensor:
        """(tiles, ..., patches) -> (..., N)."""
        scores = scores.movedim(0, -2).flatten(-2)
        return scores.unflatten(-1, (-1, PATCHES)).mean(-1) if self.shape.tower == "qwen" else scores

    def _unprojected(self) -> Unprojected:
        """The tower's tokens as a projector of one layer takes them."""
        if self.shape.tower != "clip":
            raise NotImplementedError("unprojected tokens are made up for towers with a class token alone")
        x = self.tower_inputs["hidden_states"]
        return Unprojected(x[:, 1:].flatten(0, 1), (x[0, 0],), self.projector)

    @cached_property
    def projector(self) -> nn.Module:
        return self._built(nn.Linear(self.shape.tower_width, self.shape.width))

    def remembered(self, need: Need) -> Tensor | Unprojected | Patches:
        """``from_tower``, computed once for all who do not time it."""
        if need.text not in self._found:
            self._found[need.text] = self.from_tower(need)
        return self._found[need.text]


class State:
    """What is left of a scene at some point of the forward. rows: (N,) of its visual tokens. hidden: (N, D) theirs."""

    def __init__(self, scene: Scene, rows: Tensor, hidden: Tensor):
        shape, n = scene.shape, len(rows)
        self.scene, self.n = scene, n
        device, before = rows.device, shape.before
        ends = torch.arange(shape.text, device=device)
        text_position = ends + (ends >= before) * shape.visual
        position = rows + before
        self.tokens = VisualTokens(
            hidden=hidden,
            text=scene.text,
            segments=(Segment(slice(0, n), shape.grids, shape.kind),),
            rows=rows,
            coords=scene.coords[rows],
            position=position,
            text_position=text_position,
            seed=SEED,
        )
        # physical rows: text, visual tokens, text
        self.columns = torch.cat([text_position[:before], position, text_position[before:]])[None]
        self.text_rows = (ends + (ends >= before) * n)[None]
        self.visual_rows = torch.arange(before, before + n, device=device)
        self.sequence = torch.cat([scene.text[:before], hidden, scene.text[before:]])[None]
        self.rotary = tuple(table[:, self.columns[0]] for table in scene.rotary)

    @cached_property
    def normed(self) -> Tensor:
        """(1, P, D) the input of a layer's attention."""
        return self.scene.norm(self.sequence)

    @cached_property
    def call(self) -> Call:
        """All queries and keys that a layer compares: they are there when its rows are asked for after it has run."""
        inputs = {"hidden_states": self.normed, "position_embeddings": self.rotary, "attention_mask": None}
        (call,) = attention_inputs(self.scene.attn, without=("v_proj",), **inputs)
        return call

    @cached_property
    def outcome(self) -> Tensor:
        """(1, P, D) what a module of a layer gives, for transitions."""
        return self.normed.flip(1).contiguous()

    def decoder_keys(self, need: Need) -> Tensor:
        """(heads, N or M, d) as ``vtprune.sight`` gives them: the keys of a layer that has run are in its cache."""
        rows = self.text_rows[0] if need.name == "text_keys" else self.visual_rows
        if need.name not in UNROTATED and need.where != "peek":
            return self.call.key[0][:, rows]
        inputs = {"hidden_states": self.scene.norm(self.sequence), "position_embeddings": self.rotary}
        if need.name in UNROTATED:
            return unrotated(self.scene.attn, inputs, need.name)[0][:, rows]
        (call,) = attention_inputs(self.scene.attn, without=("q_proj", "v_proj"), attention_mask=None, **inputs)
        return call.key[0][:, rows]

    def decoder_norm(self, need: Need) -> Tensor:
        """(N or M, D) through the last norm, which is like any other."""
        return self.scene.norm(self.scene.text if need.name == "text_final_norm" else self.tokens.hidden)

    def decoder_rows(self, need: Need) -> Tensor:
        """(N,) or (M, N) rows of a layer's attention, or their PageRank, as ``vtprune.sight`` asks for them."""
        if need.name == "attention_rank":
            inputs = {"hidden_states": self.normed, "position_embeddings": self.rotary}
            real = torch.ones(1, self.sequence.shape[1], dtype=torch.bool, device=self.sequence.device)
            return layer_rank(self.scene.attn, inputs, real, 0)[0, self.visual_rows]
        if need.name == PROBED:
            peek, length = need.where == "peek", self.sequence.shape[1]
            hidden = self.scene.norm(self.sequence) if peek else self.normed
            inputs = {"hidden_states": hidden, "position_embeddings": self.rotary}
            rows = probe_rows(length, need.probes).to(hidden.device)
            found = probe_attention(self.scene.attn, inputs, [rows], None, None if peek else self.call.key)
            return found[0][:, self.visual_rows]
        peek, last = need.where == "peek", need.name == "last_query_attention"
        hidden = self.scene.norm(self.sequence) if peek else self.normed
        inputs = {"hidden_states": hidden, "position_embeddings": self.rotary}
        rows = self.text_rows[:, -1:] if last else self.text_rows
        keys = None if peek else self.call.key
        attention = row_attention(self.scene.attn, inputs, rows, None, keys, reduce=need.over_heads)
        return attention[0, 0, self.visual_rows] if last else attention[0][:, self.visual_rows]


@dataclass(frozen=True)
class Stop:
    """A site as a forward reaches it. watched: decoder layers with transitions to see since the stop before."""

    site: float
    state: State
    watched: tuple[int, ...]


class Served(Mapping):
    """The signals of one stop, each computed when it is first read."""

    def __init__(self, serve: Mapping[str, Callable[[], object]]):
        self._serve, self._seen = serve, {}

    def __getitem__(self, name: str):
        if name not in self._seen:
            self._seen[name] = self._serve[name]()
        return self._seen[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._serve)

    def __len__(self) -> int:
        return len(self._serve)


def signals(stop: Stop, needs: tuple[Need, ...], transitions: Transitions, tower: Callable) -> Served:
    """What a policy may read at a stop; transitions of the layers watched are seen whether it reads them or not.

    tower: gives the signals of the vision tower.
    """
    state, serve = stop.state, {}
    watching = [need for need in needs if need.kind == "transition"]
    for layer in stop.watched:
        names = [need.name for need in watching if layer in need.where]
        real = torch.ones(1, state.sequence.shape[1], dtype=torch.bool, device=state.sequence.device)
        for part in ("attention", "mlp"):
            transitions.see(names, layer, part, state.normed, state.outcome, real, state.columns)
    where = state.tokens.position
    for need in needs:
        if need.name == "projected_features":
            raise NotImplementedError("no features before pooling are made up here; leave out features='unpooled'")
        if need.name in (UNPROJECTED, GRAPH):
            serve[need.text] = lambda need=need: tower(need).of(state.tokens.rows, where.device)
        elif need.kind == "tower":
            serve[need.text] = lambda need=need: tower(need)[..., state.tokens.rows]
        elif need.kind == "rows":
            serve[need.text] = lambda need=need: state.decoder_rows(need)
        elif need.kind == "keys":
            serve[need.text] = lambda need=need: state.decoder_keys(need)
        elif need.kind == "norm":
            serve[need.text] = lambda need=need: state.decoder_norm(need)
        elif transitions.done(need):
            serve[need.text] = lambda need=need: transitions.rows(need, 0, where, where.device)
    return Served(serve)


@torch.no_grad()
def record(policy: Policy, scene: Scene) -> list[Stop]:
    """The stops of one forward, each with what the answers before it left."""
    needs, memory, transitions = needed(policy), {}, Transitions()
    rows = torch.arange(scene.shape.visual, device=scene.device)
    state, stops, since = State(scene, rows, scene.hidden), [], BEFORE_LLM
    seen = sorted({layer for need in needs if need.kind == "transition" for layer in need.where})
    for site in policy.sites:
        stop = Stop(site, state, tuple(layer for layer in seen if since <= layer < site))
        answer = _ask(policy, stop, signals(stop, needs, transitions, scene.remembered), memory)
        stops.append(stop)
        if answer.last:
            break
        since = site
        if len(answer.keep) < state.n or answer.changes:
            kept = state.tokens.rows[answer.keep.to(scene.device)]
            state = State(scene, kept, merge_rows(state.tokens.hidden, answer))
    return stops


def _ask(policy: Policy, stop: Stop, served: Served, memory: dict) -> Selection:
    return policy.select(replace(stop.state.tokens, site=stop.site, signals=served, memory=memory))


@torch.no_grad()
def serve(policy: Policy, stops: list[Stop]) -> list[Selection]:
    """Asks a policy at all of its stops, as one forward would; gathering the rows in between is not done again."""
    needs, memory, transitions, answers = needed(policy), {}, Transitions(), []
    for stop in stops:
        served = signals(stop, needs, transitions, stop.state.scene.from_tower)
        answers.append(_ask(policy, stop, served, memory))
    return answers
