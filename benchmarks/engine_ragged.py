"""What attention without padding saves in the prefill of a batch whose samples keep different numbers of tokens."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

import vtprune
from benchmarks.engine_model import SHAPES, build, prefill, prompt, twin
from benchmarks.engine_time import Bound, in_turns, ratios, scatter, spread
from vtprune.ragged import back_end, flash_attend, one_by_one, varlen_attend
from vtprune.tokens import BEFORE_LLM, Selection, VisualTokens

SHARES = (0.1, 0.25, 0.4, 0.7)
"""Of its visual tokens, what each sample of the batch keeps."""
LAYERS = {"cpu": 1}
"""Every layer saves the same, so one says it all; elsewhere 8, so that what happens once weighs little."""
FASTER = Bound(">=", 1.0)


@dataclass
class Unequal:
    """Keeps evenly spaced rows, of each sample in turn another share."""

    needs = frozenset()
    sites = (BEFORE_LLM,)
    asked: int = 0

    def select(self, tokens: VisualTokens) -> Selection:
        n = len(tokens)
        kept = round(SHARES[self.asked % len(SHARES)] * n)
        self.asked += 1
        return Selection(torch.arange(kept, device=tokens.hidden.device) * n // kept)


def way(device: str, dtype: torch.dtype, width: int) -> str:
    """What packed samples go through, for heads of this width."""
    x = torch.empty(1, 1, 1, width, dtype=dtype, device=device)
    names = {flash_attend(): "flash-attn", varlen_attend(): "torch's varlen_attn", one_by_one: "one by one"}
    return names[back_end(x, x)]


def ragged_rows(
    shape: str,
    dtype: torch.dtype,
    device: str,
    images: Sequence[int],
    n_text: int,
    rounds: Sequence[int],
    clock: Mapping,
    tell: Callable[[str], None],
    side: int = 24,
) -> list[dict]:
    """For each prompt of ``images`` images, timed in turns: the padded prefill, and the packed one with its speed."""
    few = replace(SHAPES[shape], layers=min(SHAPES[shape].layers, LAYERS.get(device, 8)))
    model, rows = build(few, dtype, device, side), []
    for many, count in zip(images, rounds, strict=True):
        visual, calls = many * model.config.image_seq_length, {}
        for word in ("padded", "packed"):
            wrapped = vtprune.wrap(twin(model), Unequal(), ragged=word)
            calls[word] = partial(prefill, wrapped, prompt(wrapped, [many] * len(SHARES), n_text))
            tell(f"{visual} visual tokens in each of {len(SHARES)} samples: {word}")
            calls[word]()
        seconds = in_turns(calls, count, clock)
        about = {"what": "ragged prefill", "visual": visual, "text": n_text, "layers": few.layers}
        about |= {"kept": [round(share * visual) for share in SHARES], "runs": count}
        rows.append({**about, "runner": "padded", **spread("seconds", seconds["padded"])})
        found = ratios(seconds["padded"], seconds["packed"])
        row = {**about, "runner": "packed", "way": way(device, dtype, few.hidden // few.heads)}
        row |= {"against": "padded", **spread("seconds", seconds["packed"])}
        rows.append({**row, **FASTER.judged("speed", found, scatter(seconds))})
    return rows
