"""One row for one operation at one size: how long its forms take, what the device allows, whether they agree."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks import kernels_cases, kernels_selection
from benchmarks.engine_time import in_turns, ratios, spread
from benchmarks.kernels_cases import Case
from benchmarks.kernels_limits import Limits
from benchmarks.kernels_time import back_to_back, timed
from benchmarks.measure import peak_bytes
from benchmarks.policies_literal import TooLarge

OPERATIONS: dict[str, Callable[[int, int, torch.dtype, str], Case]] = {
    "gather_tokens": kernels_cases.gather,
    "gather_site": kernels_cases.gather_site,
    "pack": kernels_cases.pack,
    "unpack": kernels_cases.unpack,
    "merge_tokens": kernels_cases.merge,
    "frame_similarity": kernels_cases.frame_similarity,
    "transition": kernels_cases.transition,
    "attention_rows": kernels_selection.attention_rows,
    "attention_columns": kernels_selection.attention_columns,
    "greedy_select mmr": kernels_selection.greedy("mmr"),
    "greedy_select maxmin": kernels_selection.greedy("maxmin"),
    "greedy_select dpp": kernels_selection.greedy("dpp"),
    "greedy_select coverage": kernels_selection.greedy("coverage"),
}
"""By name: what makes a case of N tokens of width D in a dtype on a device."""

FAILURES = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError)
QUICK_SECONDS = 1e-3
"""Calls faster than this on a GPU are also timed back to back: there the host may be what is slow."""


@dataclass
class Bench:
    """What all rows of a run share.

    patience: seconds that one call of a form may be expected to take. seen: of each operation, width and form the last
    size and its seconds, from which the next is expected.
    """

    device: str
    dtype: torch.dtype
    limits: Limits
    rounds: int
    clock: Mapping
    patience: float = 5.0
    seen: dict[tuple[str, int, str], tuple[int, float]] = field(default_factory=dict)

    def row(self, name: str, n: int, d: int) -> dict:
        """One row; what is not there, too large or fails says so in it."""
        row = {"what": "kernel", "op": name, "n": n, "d": d, "dtype": str(self.dtype).removeprefix("torch.")}
        try:
            case = OPERATIONS[name](n, d, self.dtype, self.device)
        except ImportError as error:
            return {**row, "error": f"not there: {error}"}
        except FAILURES as error:
            return {**row, "error": f"{type(error).__name__}: {error}"}
        return {**row, "shapes": case.shapes, **self._timed(name, n, d, case)}

    @torch.no_grad()
    def _timed(self, name: str, n: int, d: int, case: Case) -> dict:
        forms = {"ours": case.ours, "reference": case.reference, "plain": case.plain, "literal": case.literal}
        if self.device == "cpu":
            del forms["reference"]  # ours is the reference there
        answers, calls, skipped, once = {}, {}, {}, {}
        for form, function in forms.items():
            if function is None:
                continue
            try:
                self._expect(name, d, form, n, case.growth)
                once[form] = self._first(form, function, case, answers, calls)
            except (TooLarge, *FAILURES) as error:
                told = str(error) if isinstance(error, TooLarge) else f"{type(error).__name__}: {error}"
                skipped[form] = told.splitlines()[0]
            else:
                self.seen[name, d, form] = n, once[form]
        row = {"kernel": self._kernel(case), "moved_bytes": case.moved, "flops": case.flops}
        row |= {"literal": case.about} if case.about else {}
        row |= {"not_run": skipped} if skipped else {}
        if "ours" not in calls:
            return {**row, "error": skipped.get("ours", "")}
        row |= self._numbers(calls, case)
        return {**row, **_agreement(case, answers)}

    def _expect(self, name: str, d: int, form: str, n: int, growth: int) -> None:
        """Raises TooLarge where a call is expected to take longer than ``patience``."""
        before, seconds = self.seen.get((name, d, form), (n, 0.0))
        if (expected := seconds * (n / before) ** growth) > self.patience:
            raise TooLarge(f"by what {before} tokens took, a call would take about {expected:.0f} s")

    def _first(self, form: str, function: Callable, case: Case, answers: dict, calls: dict) -> float:
        """Calls once more than is counted, so that what is compiled is there; remembers the answer; seconds."""
        if self.device != "cpu":
            function(*case.inputs)

        def once():
            answers[form] = function(*case.inputs)

        calls[form] = lambda: function(*case.inputs)
        return in_turns({form: once}, 1, self.clock)[form][0]

    def _kernel(self, case: Case) -> bool:
        """Whether a Triton kernel answers."""
        use_triton = kernels_cases.operations("dispatch").use_triton
        return use_triton(*(t for t in case.inputs if isinstance(t, Tensor)))

    def _numbers(self, calls: Mapping[str, Callable[[], object]], case: Case) -> dict:
        seconds = timed(calls, self.rounds, self.device, self.clock)
        row = {}
        for form, values in seconds.items():
            row |= spread(f"{form}_seconds", values)
        row["runs"] = len(seconds["ours"])
        for form in seconds:
            if form != "ours":
                row |= spread(f"over_{form}", ratios(seconds[form], seconds["ours"]))
        least, name = self.limits.seconds(case.moved, case.flops)
        row |= {"limit_seconds": least, "limited_by": name, "of_limit": least / row["ours_seconds"]}
        if self.device == "cpu":
            return row
        if row["ours_seconds"] < QUICK_SECONDS:
            for form, values in back_to_back({f: c for f, c in calls.items() if f != "literal"}, 3).items():
                row |= spread(f"{form}_call_seconds", values)
        # by torch's allocator; what can be seen of a CPU's memory is too coarse for this
        return {**row, "peak_bytes": peak_bytes(calls["ours"])}


def _agreement(case: Case, answers: Mapping[str, object]) -> dict:
    """Of ours and of plain torch, or else of the literal form: equal bits, the share of equal picks, or a difference.

    ``difference`` is the largest one, over the largest number; both are rounded where they round.
    """
    other = answers.get("plain", answers.get("literal"))
    if other is None:
        return {}
    pairs = list(zip(*(a if isinstance(a, tuple) else (a,) for a in (answers["ours"], other)), strict=True))
    if case.exact == "picks":
        return {"same_picks": float((pairs[0][0] == pairs[0][1]).double().mean())}
    if case.exact:
        return {"same": all(torch.equal(a, b) for a, b in pairs)}
    return {"difference": max(_difference(a, b) for a, b in pairs)}


def _difference(a: Tensor, b: Tensor) -> float:
    if not b.numel():
        return 0.0
    b = b.to(a.device)
    return float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-30))
