"""Prefill, decode steps and cache bytes of a pruned model against the unpruned one, a short prompt and a peer."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from torch import nn

import vtprune
from benchmarks.engine_model import Steps, cache_bytes, prefill, prompt, short_prompt, twin
from benchmarks.engine_peer import Masked
from benchmarks.engine_time import WALL, Bound, HookTimes, Seconds, hook_times, in_turns, ratios, scatter, spread
from vtprune.flops import kv_bytes
from vtprune.tokens import BEFORE_LLM, site_name

OVERHEAD = Bound("<=", 1.02)
"""Prefill with everything kept, over the unwrapped model."""
SHORT = Bound(">=", 0.97)
"""Speed over that of a prompt which was short from the start."""
FLOPS = Bound(">=", 0.93)
"""Speed over what the FLOPs allow at the rate of the unpruned prefill."""
LAYER = 2
"""The site inside the LLM: the first layer that sees the shorter sequence."""

UNPRUNED, NONE, MASKED = "unpruned", "none", "masked"


@dataclass
class Runner:
    """One configuration: a model, its prompt, and what it is to be compared with.

    about:  the parameters that its rows begin with. short: the runner whose prompt was short from the start.
    cache:  of the last prefill.
    """

    model: nn.Module
    inputs: dict
    about: dict
    short: str | None = None
    cache: object = None
    report: vtprune.api.Report | None = None

    def prefill(self) -> None:
        self.cache = None
        self.cache = prefill(self.model, self.inputs)

    @property
    def wrapped(self) -> bool:
        return self.report is not None


@dataclass
class Bench:
    """All runners for one prompt of ``images`` images and ``n_text`` text tokens.

    policies: (name, options) of what is pruned before the LLM, beside ``none``.
    """

    model: nn.Module
    images: int
    n_text: int
    keep_ratios: Sequence[float]
    policies: Sequence[str] = ("random",)
    runners: dict[str, Runner] = field(default_factory=dict)

    def __post_init__(self):
        self.visual = self.images * self.model.config.image_seq_length
        self._add(UNPRUNED, self.model, {"policy": None})
        self._wrapped(NONE, "none", {})
        for ratio in self.keep_ratios:
            for policy in self.policies:
                self._wrapped(f"{policy} {ratio:g}", policy, {"keep_ratio": ratio}, f"short {ratio:g}")
            self._wrapped(f"layer {LAYER} {ratio:g}", "random", {"keep_ratio": ratio, "layer": LAYER})

    def _add(self, name: str, model: nn.Module, about: dict, **more) -> None:
        inputs = prompt(model, [self.images], self.n_text)
        self.runners[name] = Runner(model, inputs, {"visual": self.visual, "text": self.n_text, **about}, **more)

    def _wrapped(self, name: str, policy: str, options: dict, short: str | None = None) -> None:
        model = vtprune.wrap(twin(self.model), policy, **options)
        site = options.get("layer", BEFORE_LLM)
        about = {"policy": policy, "site": site_name(site), "keep_ratio": options.get("keep_ratio", 1.0)}
        self._add(name, model, about, short=short, report=vtprune.report(model))

    def start(self, tell: Callable[[str], None]) -> None:
        """Runs what is pruned once, to warm up and to learn how much it keeps, and adds the runners that need that."""
        for name, runner in list(self.runners.items()):
            if runner.about.get("keep_ratio", 1.0) == 1.0:
                continue
            tell(f"warming up: {name}")
            runner.prefill()
            kept = runner.about["kept"] = runner.report.tokens[0][1]
            if runner.short:
                inputs = short_prompt(self.model, [kept], self.n_text)
                about = {"visual": kept, "text": self.n_text, "policy": None, "kept": kept}
                self.runners[runner.short] = Runner(self.model, inputs, about)
                self.runners[runner.short].prefill()
            elif MASKED not in self.runners:
                # how much it hides makes no difference to what it costs
                self._mask(runner)

    def groups(self) -> list[list[str]]:
        """What is timed in turns: what begins at full length; then each prompt that was short with what is as short.

        A long prefill leaves memory and caches behind in a state that the next one pays for, so like stays with like.
        """
        shorts = {name: [name] for name in self.runners if name.startswith("short")}
        for name, runner in self.runners.items():
            if runner.short:
                shorts[runner.short].append(name)
        grouped = {name for group in shorts.values() for name in group}
        return [[name for name in self.runners if name not in grouped], *shorts.values()]

    def _mask(self, runner: Runner) -> None:
        """The peer, hiding the same columns as ``runner`` dropped."""
        last, ratio = runner.report.last, runner.about["keep_ratio"]
        row, rows = last.layout.rows[0], last.sites[-1].kept[0]
        columns = [*row.text.tolist(), *row.columns[last.offered[0]][rows].tolist()]
        model = twin(self.model)
        Masked(model, LAYER, columns, last.layout.length)
        about = {"policy": "masking, for comparison", "site": site_name(LAYER), "keep_ratio": ratio}
        self._add(MASKED, model, {**about, "kept": runner.about["kept"]})


def noise_row(bench: Bench, seconds: Seconds) -> dict:
    """The unpruned prefill over itself, one round earlier: what a ratio of 1 looks like on this machine.

    scatter: by how much any time differs from another of the same runner, as a standard deviation.
    """
    whole = seconds[UNPRUNED]
    found = ratios(whole[1:], whole[:-1]) or [1.0]
    row = {"what": "noise", "visual": bench.visual, "runs": len(whole), "scatter": scatter(seconds)}
    return {**row, **spread("ratio", found)}


def timed(
    bench: Bench,
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Mapping,
    hook_clock: Callable[[], float],
    tell: Callable[[str], None],
) -> tuple[Seconds, dict[str, HookTimes]]:
    """Seconds of each runner's call in each round, and of every hook of the wrapped ones meanwhile.

    rounds: of the group at full length; the others, shorter and harder to tell apart, get twice as many.
    """
    seconds: Seconds = {}
    with ExitStack() as stack:
        wrapped = {name: runner.model for name, runner in bench.runners.items() if runner.wrapped}
        hooks = {name: stack.enter_context(hook_times(model, hook_clock)) for name, model in wrapped.items()}
        for group in bench.groups():
            many = rounds if UNPRUNED in group else 2 * rounds
            told = partial(_tell_round, tell, f"{bench.visual} visual tokens: {', '.join(group)}", many)
            seconds |= in_turns({name: calls[name] for name in group}, many, clock, told)
        return seconds, hooks


def _tell_round(tell: Callable[[str], None], what: str, rounds: int, done: int) -> None:
    if done in (1, rounds):
        tell(f"{what}: round {done} of {rounds}")


def speedup(seconds: Seconds, name: str) -> dict[str, float]:
    """The unpruned median over each time of a runner."""
    whole = statistics.median(seconds[UNPRUNED])
    return spread("speedup", [whole / own for own in seconds[name]])


def prefill_rows(bench: Bench, seconds: Seconds, hooks: Mapping[str, HookTimes]) -> list[dict]:
    """One row for each runner. Ratios above 1 are good, but for the overhead of keeping everything.

    hook_seconds: CPU time inside the hooks of one prefill, mean: free of the noise of everything else.
    """
    rows, whole, noise = [], seconds[UNPRUNED], scatter(seconds)
    for name, runner in bench.runners.items():
        row = {"what": "prefill", "runner": name, **runner.about, **spread("seconds", seconds[name])}
        row |= {"runs": len(seconds[name]), **speedup(seconds, name)}
        if name == NONE:
            row |= {"against": "unpruned", **OVERHEAD.judged("overhead", ratios(seconds[name], whole), noise)}
        elif runner.short:
            row |= {
                "against": "short prompt",
                **SHORT.judged("speed", ratios(seconds[runner.short], seconds[name]), noise),
            }
        elif runner.wrapped:
            row |= _by_flops(runner, whole, seconds[name], noise)
            row |= spread("over_masked", ratios(seconds[MASKED], seconds[name]))
        if runner.wrapped:
            row["hook_seconds"] = hooks[name].seconds / len(seconds[name])
        rows.append(row)
    return rows


def _by_flops(runner: Runner, whole: Sequence[float], own: Sequence[float], noise: float) -> dict:
    """The time that the FLOPs allow at the unpruned prefill's rate, over the time it took."""
    share = runner.report.flops.total_causal / runner.report.flops_unpruned.total_causal
    allowed = [share * seconds for seconds in whole]
    return {
        "against": "FLOPs at the unpruned rate",
        "flops_share": share,
        **FLOPS.judged("speed", ratios(allowed, own), noise),
    }


def decode_rows(bench: Bench, rounds: int, clock: Mapping, tell: Callable[[str], None], warmup: int = 2) -> list[dict]:
    """One row for each runner: steps of all of them in turns, each on its own cache."""
    steps = {name: Steps(r.model, r.inputs, r.cache) for name, r in bench.runners.items()}
    for step in [*steps.values()] * warmup:
        step()
    seconds, hooks = timed(bench, steps, rounds, clock, WALL, tell)
    rows = []
    for name, runner in bench.runners.items():
        row = {"what": "decode step", "runner": name, **runner.about, **spread("seconds", seconds[name])}
        row |= {"runs": len(seconds[name]), **speedup(seconds, name)}
        if runner.short:
            row |= {"against": "short prompt", **SHORT.judged("speed", ratios(seconds[runner.short], seconds[name]))}
        if runner.wrapped:
            row |= spread("hook_us", hooks[name].layer)
        rows.append(row)
    return rows


def kv_rows(bench: Bench) -> list[dict]:
    """Bytes of keys and values right after a prefill; before any step is made. Exact, or missed."""
    full = bench.runners[UNPRUNED]
    config = bench.model.config.text_config
    size = bench.model.get_input_embeddings().weight.element_size()
    rows = []
    for name, runner in bench.runners.items():
        if not runner.wrapped:
            continue
        held, kept = cache_bytes(runner.cache), runner.about.get("kept", bench.visual)
        first = LAYER if runner.about["site"] == site_name(LAYER) else 0
        length = [bench.n_text + (bench.visual if i < first else kept) for i in range(config.num_hidden_layers)]
        row = {"what": "kv bytes", "runner": name, **runner.about, "kept": kept, "bytes": held}
        row |= {"reported": runner.report.kv_bytes, "by_config": kv_bytes(config, length, size)}
        row |= {"share": held / cache_bytes(full.cache)}
        equal = {held, row["reported"], row["by_config"]}
        if runner.short:
            row["short_prompt"] = cache_bytes(bench.runners[runner.short].cache)
            equal.add(row["short_prompt"])
        rows.append({**row, "bound": "all equal", "verdict": "met" if len(equal) == 1 else "missed"})
    return rows
