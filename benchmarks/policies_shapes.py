"""The three models whose prompts are selected from, by their sizes alone, and what their prefill would take."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import transformers as hf

from benchmarks.engine_time import in_turns, spread
from vtprune.flops import decoder_flops, lm_head_flops
from vtprune.tokens import ModelFacts


@dataclass(frozen=True)
class Shape:
    """One prompt for one model: a quarter of its text, then one image or video, then the rest of the text.

    model_type: of the model's config. title: for tables.
    kind:       of the source; grids: (T, H, W) in visual tokens of its views.
    width to vocab: of the decoder. text: tokens beside the visual ones.
    tower:      "clip" sees ``tiles`` images of ``side`` x ``side`` patches and a class token, each a visual token;
                "qwen" sees the frames of the grid at once, four patches for each visual token, without a class token.
    """

    title: str
    model_type: Literal["llava", "llava_next", "qwen2_5_vl"]
    kind: Literal["image", "video"]
    grids: tuple[tuple[int, int, int], ...]
    width: int
    layers: int
    heads: int
    key_heads: int
    mlp: int
    vocab: int
    tower: Literal["clip", "qwen"]
    tower_width: int
    tower_heads: int
    tower_layers: int
    tiles: int = 1
    side: int = 0
    text: int = 64

    @property
    def visual(self) -> int:
        """Visual tokens before any pruning."""
        return sum(t * h * w for t, h, w in self.grids)

    @property
    def before(self) -> int:
        """Text tokens in front of the visual ones."""
        return self.text // 4

    @property
    def facts(self) -> ModelFacts:
        clip = self.tower == "clip"
        return ModelFacts(self.model_type, self.layers, self.width, clip, clip, self.tower_layers)

    def config(self) -> hf.PreTrainedConfig:
        """The text config of the decoder."""
        cls = hf.Qwen2Config if self.tower == "qwen" else hf.LlamaConfig
        return cls(
            hidden_size=self.width,
            intermediate_size=self.mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            vocab_size=self.vocab,
            max_position_embeddings=32768,
        )


LLAMA = dict(width=4096, layers=32, heads=32, key_heads=32, mlp=11008, vocab=32000)
CLIP = dict(tower="clip", tower_width=1024, tower_heads=16, tower_layers=24, side=24)
QWEN = dict(width=3584, layers=28, heads=28, key_heads=4, mlp=18944, vocab=152064)
QWEN_TOWER = dict(tower="qwen", tower_width=1280, tower_heads=16, tower_layers=32)

SHAPES = {
    "llava-1.5": Shape("LLaVA-1.5-7B", "llava", "image", ((1, 24, 24),), **LLAMA, **CLIP),
    "llava-next": Shape("LLaVA-NeXT-7B", "llava_next", "image", ((1, 24, 24), (1, 48, 48)), **LLAMA, **CLIP, tiles=5),
    "qwen2.5-vl": Shape("Qwen2.5-VL-7B, video", "qwen2_5_vl", "video", ((64, 16, 16),), **QWEN, **QWEN_TOWER),
}

_SMALL = dict(width=64, layers=28, heads=4, key_heads=2, mlp=96, vocab=128, tower_width=32, tower_heads=2, text=8)
QUICK = {
    "llava-1.5": Shape(
        "tiny, image", "llava", "image", ((1, 6, 6),), **_SMALL, tower="clip", tower_layers=24, tiles=1, side=6
    ),
    "llava-next": Shape(
        *("tiny, views", "llava_next", "image", ((1, 4, 4), (1, 8, 8))),
        **_SMALL,
        **dict(tower="clip", tower_layers=24, tiles=5, side=4),
    ),
    "qwen2.5-vl": Shape("tiny, video", "qwen2_5_vl", "video", ((8, 4, 4),), **_SMALL, tower="qwen", tower_layers=32),
}
"""The same shapes too small to time, for tests of everything else."""


def prefill_flops(shape: Shape) -> int:
    """Of all decoder layers over the whole prompt and of the logits of its last token.

    Attention is counted over the pairs that the mask allows; the vision tower, norms, rotations and the softmax are
    left out. So it is the least that a prefill computes, and shares of it come out too large rather than too small.
    """
    config = shape.config()
    lengths = [shape.visual + shape.text] * shape.layers
    return decoder_flops(config, lengths).total_causal + lm_head_flops(config).total


# ------------------------------------------------------------------------------------------------- matrix products


@dataclass(frozen=True)
class Product:
    """A matrix product of the decoder: (rows, inner) times (inner, outer).

    call: computes it once. dtype: by name. rate: FLOPs in a second, the median when it was compared with others.
    """

    call: Callable[[], object]
    dtype: str
    rows: int
    inner: int
    outer: int
    rate: float = 0.0

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inner * self.outer


def matrices(shape: Shape) -> list[tuple[int, int]]:
    """(inner, outer) of the attention's output projection and of the MLP's matrices up and down."""
    return [(shape.width, shape.width), (shape.width, shape.mlp), (shape.mlp, shape.width)]


def products(shape: Shape, device: str) -> list[Product]:
    """The decoder's matrices in each dtype that this device may be fast in, on as many rows as it takes to be so."""
    rows, made = 512 if device == "cpu" else 8192, []
    for dtype in ("bfloat16", "float32") if device == "cpu" else ("bfloat16", "float16", "float32"):
        for inner, outer in matrices(shape):
            x = torch.ones(rows, inner, device=device, dtype=getattr(torch, dtype))
            w = torch.ones(outer, inner, device=device, dtype=getattr(torch, dtype))
            made.append(Product(lambda x=x, w=w: torch.nn.functional.linear(x, w), dtype, rows, inner, outer))
    return made


def rate_rows(
    shapes: Sequence[Shape], device: str, rounds: int, clock: Mapping
) -> tuple[list[dict], dict[tuple[int, int], Product]]:
    """Rows with the FLOPs in a second of every product, in turns, and the fastest product of each decoder.

    The second is keyed by the decoder's (width, mlp).
    """
    rows, best = [], {}
    for shape in shapes:
        key = (shape.width, shape.mlp)
        if key in best:
            continue
        made = {f"{p.dtype} {p.inner} {p.outer}": p for p in products(shape, device)}
        for product in made.values():
            product.call()
        seconds = in_turns({name: product.call for name, product in made.items()}, rounds, clock)
        for name, product in made.items():
            rate = spread("flops_per_second", [product.flops / second for second in seconds[name]])
            sizes = {"rows": product.rows, "inner": product.inner, "outer": product.outer}
            rows.append({"what": "rate", "model": shape.title, "dtype": product.dtype, **sizes, **rate, "runs": rounds})
            found = Product(product.call, product.dtype, *sizes.values(), rate["flops_per_second"])
            best[key] = max(best.get(key, found), found, key=lambda p: p.rate)
    return rows, best


def prefill_row(shape: Shape, product: Product) -> dict:
    """What the unpruned prefill is taken to last: derived from its FLOPs, not run."""
    flops = prefill_flops(shape)
    how = f"{product.dtype}, {product.rows} x {product.inner} x {product.outer}"
    return {
        "what": "prefill",
        **{"model": shape.title, "visual": shape.visual, "text": shape.text, "flops": flops},
        **{"derived_seconds": flops / product.rate, "flops_per_second": product.rate, "derived_from": how},
    }
