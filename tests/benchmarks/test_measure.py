"""The stopwatch, by a clock that the measured functions move themselves: no test waits, none depends on the machine."""

import sys

import pytest
import torch

from benchmarks import measure as stopwatch
from benchmarks.measure import conditions, measure, paired, peak_bytes
from vtprune.bench import memory
from vtprune.bench.versions import commit

MIB = 2**20


class Clock:
    """Stands still, except inside the functions that it makes."""

    def __init__(self):
        self.now = 100.0
        self.order = []

    def __call__(self) -> float:
        return self.now

    def takes(self, name: str, *seconds: float):
        """A function whose calls take these seconds, one after the other."""
        left = iter(seconds)

        def call():
            self.order.append(name)
            self.now += next(left)

        return call


@pytest.fixture
def no_memory(monkeypatch):
    """The extra call for the memory is another test's."""
    monkeypatch.setattr(stopwatch, "peak_bytes", lambda fn: None)


def test_measure_leaves_the_warmup_out(no_memory):
    """Oracle: median and extremes by hand of the last five; the two warm-up calls were the slowest."""
    clock = Clock()
    result = measure(clock.takes("f", 50, 40, 3, 1, 2, 7, 5), warmup=2, runs=5, clock=clock)
    assert result == {"seconds": 3, "seconds_min": 1, "seconds_max": 7, "runs": 5, "peak_bytes": None}
    assert clock.order == ["f"] * 7


def test_the_median_of_an_even_number_lies_between_the_middle_two(no_memory):
    clock = Clock()
    assert measure(clock.takes("f", 8, 1, 2, 4), warmup=0, runs=4, clock=clock)["seconds"] == 3


def test_measure_takes_the_memory_of_one_call_more(monkeypatch):
    """The timed calls and the call for the memory are different ones: what measures memory takes time."""
    calls = []
    monkeypatch.setattr(stopwatch, "peak_bytes", lambda fn: fn() or 17)
    assert measure(lambda: calls.append(1), warmup=1, runs=3)["peak_bytes"] == 17
    assert len(calls) == 1 + 3 + 1


def test_paired_alternates_and_divides_pair_by_pair():
    """Oracle: by hand. The machine slows down tenfold half-way: each pair's ratio is untouched, the medians' is not."""
    clock = Clock()
    a, b = clock.takes("A", 9, 2, 4, 30), clock.takes("B", 9, 1, 2, 10)
    result = paired(a, b, warmup=1, runs=3, clock=clock)
    assert clock.order == ["A", "B"] * 4
    assert result == {
        "a": {"seconds": 4, "seconds_min": 2, "seconds_max": 30},
        "b": {"seconds": 2, "seconds_min": 1, "seconds_max": 10},
        "runs": 3,
        "ratio": 2,
        "ratio_min": 2,
        "ratio_max": 3,
    }


def test_the_clock_is_read_when_the_device_is_idle(monkeypatch, no_memory):
    """Oracle: the order of events around one call; before each look at the clock the device has finished."""
    events = []
    monkeypatch.setattr(stopwatch, "_synchronize", lambda: events.append("idle"))

    def clock():
        events.append("clock")
        return 0.0

    measure(lambda: events.append("call"), warmup=0, runs=1, clock=clock)
    assert events == ["idle", "clock", "call", "idle", "clock"]


@pytest.mark.parametrize("arguments", [{"warmup": -1}, {"runs": 0}])
def test_a_count_that_makes_no_sense_is_refused(arguments):
    for call in (lambda: measure(lambda: None, **arguments), lambda: paired(lambda: None, lambda: None, **arguments)):
        with pytest.raises(ValueError, match="warmup is 0 or more and runs 1 or more"):
            call()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the high-water mark is Linux's")
def test_the_peak_is_what_was_held_at_once():
    """Oracle: sizes chosen by hand. 96 MiB, then 64 MiB after they were freed, peak at 96, not at 64 or 160."""

    def two_in_turn():
        first = torch.ones(96 * MIB // 4, device="cuda" if torch.cuda.is_available() else "cpu")
        del first
        return torch.ones(64 * MIB // 4, device="cuda" if torch.cuda.is_available() else "cpu")

    for _ in range(2):  # the second time the memory of the first lies ready, and counts all the same
        found = peak_bytes(two_in_turn)
        assert found == pytest.approx(96 * MIB, abs=8 * MIB)
    assert peak_bytes(lambda: None) < 8 * MIB


def test_without_a_high_water_mark_the_peak_is_unknown(monkeypatch):
    """Not zero and not a guess; and the function is not called for nothing."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(memory, "_reset_high_water_mark", lambda: None)
    called = []
    assert peak_bytes(lambda: called.append(1)) is None and not called


def test_conditions_say_what_a_number_depends_on(monkeypatch):
    """Oracle: this process, asked in other ways."""
    monkeypatch.setattr(sys, "orig_argv", ["/some/where/bin/python3", "-m", "benchmarks.engine", "--quick"])
    found = conditions()
    assert found["command"] == "python -m benchmarks.engine --quick"
    assert found["versions"]["torch"] == str(torch.__version__)
    assert found["versions"]["python"] == sys.version.split()[0]
    assert found["threads"] == torch.get_num_threads()
    assert set(found) == {"device", "threads", "commit", "command", "versions", "date"}


def test_outside_a_checkout_the_commit_is_unknown(monkeypatch, tmp_path):
    assert commit(tmp_path) is None
    monkeypatch.setattr(stopwatch, "commit", lambda: commit(tmp_path))
    assert conditions()["commit"] == "unknown"
