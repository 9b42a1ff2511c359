"""Many workers at once, on one machine or a cluster: Ray holds them, hands out units and starts them again.

A unit is handed to whichever worker is free. What it answers comes back when all of it is done, so that a worker that
dies loses no row and repeats none: Ray starts it again, and the unit with it.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vtprune.bench.plan import Plan, Unit
from vtprune.cli.error import one_line

RETRIES = 3
"""How often a unit is tried again after its worker died."""


@dataclass(frozen=True)
class Share:
    """What each of the workers gets. cpus, gpus: of one machine, a part of one where they are less than 1."""

    workers: int
    cpus: float
    gpus: float


class _Host:
    """A worker in a process of its own. It loads what it needs in a task, not when it is made.

    Ray starts a process that dies at birth without end; one that dies in a task it starts again as often as it is told.
    """

    def __init__(self, worker: Callable[[Plan], Any], plan: Plan):
        self._make, self._worker = (worker, plan), None

    def start(self) -> str:
        """Loads; gives the version of vtprune here."""
        from vtprune import __version__

        self._loaded()
        return __version__

    def do(self, unit: Unit) -> list[dict]:
        return self._loaded().do(unit)

    def failures(self, unit: Unit, error: str) -> list[dict]:
        return self._loaded().failures(unit, error)

    def _loaded(self) -> Any:
        if self._worker is None:
            worker, plan = self._make
            self._worker = worker(plan)
        return self._worker


def results(
    plan: Plan,
    units: Iterable[Unit],
    *,
    address: str | None = None,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    worker: Callable[[Plan], Any] | None = None,
    retries: int = RETRIES,
) -> Iterator[list[dict]]:
    """The rows of each unit, as units are finished; a unit's rows come together and once.

    address:         of a cluster that runs ("auto": the one this machine belongs to; "ray://..." of a client); None for
                     workers on this machine alone. The machines of a cluster need this vtprune, the model and the data
                     under the same paths, which must not be relative ones.
    workers:         how many, one model each; None for as many as the GPUs go round, or one for each machine without.
                     Ray tells each its GPUs, so that the plan's device is "auto" or "cuda".
    gpus_per_worker: 0.5 puts two models on a GPU; None for 1, or 0 where there is none.
    worker:          what is made of the plan in each process, ``vtprune.bench.work.Worker`` if None: something with
                     ``do(unit)`` and ``failures(unit, error)``, which both give rows.
    retries:         so often is a unit tried again that its worker died of; then ``failures`` says so in its rows.

    Raises ImportError without Ray; ValueError for more than the machines have; RuntimeError where workers cannot be
    started or no cluster answers; and what a worker raised.
    """
    if worker is None:
        from vtprune.bench.work import Worker as worker
    with _cluster(address) as ray:
        share = share_out(_machines(ray), workers, gpus_per_worker)
        hosts = _hosts(ray, share, worker, plan, retries)
        try:
            yield from _served(ray, hosts, units, retries)
        finally:
            for host in hosts:
                ray.kill(host)


@contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """Ray, connected. What was connected before stays so; what is begun here ends here."""
    try:
        import ray
    except ImportError as error:
        raise ImportError(f"--engine ray needs Ray ({error}); pip install 'vtprune[ray]'") from error
    if ray.is_initialized():
        yield ray
        return
    more: dict[str, Any] = {}
    if address is None:
        # workers here find the packages that this process finds, also in a checkout that is not installed
        paths = [os.path.abspath(path) for path in sys.path if os.path.isdir(path)]
        more = {"include_dashboard": False, "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}}}
    try:
        _knock(address)
        # a cluster that is begun by init reports its use to nobody
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **more)
    except OSError as error:
        raise RuntimeError(
            f"no Ray cluster answers at {address!r}: {error}; start one (`ray start --head`), or leave out the address"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str | None) -> None:
    """Raises OSError where nobody listens at "host:port", which Ray tries for many minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and "/" not in host and port.isdecimal():
        with socket.create_connection((host, int(port)), timeout=10):
            pass


def _machines(ray: Any) -> list[tuple[float, float]]:
    """(CPUs, GPUs) of each machine."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(found.get("CPU", 0.0), found.get("GPU", 0.0)) for found in alive]


def share_out(
    machines: Sequence[tuple[float, float]], workers: int | None = None, gpus_per_worker: float | None = None
) -> Share:
    """What each worker gets of machines of (CPUs, GPUs). Raises ValueError where they have not enough GPUs."""
    total = sum(gpus for _, gpus in machines)
    gpus = (1.0 if total else 0.0) if gpus_per_worker is None else float(gpus_per_worker)
    if gpus < 0 or (gpus > 1 and gpus != int(gpus)):
        raise ValueError(f"a worker has a part of a GPU, such as 0.5, or whole ones, 1 or more; got {gpus_per_worker}")
    if workers is not None and workers < 1:
        raise ValueError(f"there must be a worker, so workers is 1 or more; got {workers}")
    with_cpus = [(cpus, some) for cpus, some in machines if cpus > 0]
    # a part of a GPU is never made of two
    fits = (
        [int(some // gpus) if gpus >= 1 else int(1 / gpus + 1e-6) * int(some) for _, some in with_cpus] if gpus else []
    )
    if gpus and (not sum(fits) or (workers or 0) > sum(fits)):
        raise ValueError(
            f"{workers or 1} workers with {gpus:g} GPUs each do not fit on {len(machines)} machines of {total:g} GPUs; "
            f"room is for {sum(fits)}. Ask for fewer workers or a smaller part of a GPU"
        )
    if not with_cpus:
        raise ValueError("no machine of the cluster has a CPU for a worker; give it some (`ray start --num-cpus`)")
    used = [cpus for (cpus, _), room in zip(with_cpus, fits or [1] * len(with_cpus)) if room]
    count = workers or (sum(fits) if gpus else len(used))
    # as if they were spread evenly; on a machine with room for more of them each still gets no more
    crowd = max(fits) if gpus else -(-count // len(used))
    cpus = min(used) / min(crowd, count)
    return Share(count, float(int(cpus)) if cpus >= 1 else cpus, gpus)


def _hosts(ray: Any, share: Share, worker: Callable, plan: Plan, retries: int) -> list[Any]:
    host = ray.remote(
        num_cpus=share.cpus,
        num_gpus=share.gpus,
        max_restarts=-1,
        max_task_retries=retries,
        scheduling_strategy="SPREAD",
    )(_Host)
    return [host.remote(worker, plan) for _ in range(share.workers)]


def _served(ray: Any, hosts: Sequence[Any], units: Iterable[Unit], retries: int) -> Iterator[list[dict]]:
    """Gives each free worker the next unit. One at a time: what waits behind a unit would die of it too."""
    queue = iter(units)
    busy = {host.start.remote(): (host, None) for host in hosts}
    while busy:
        (done,), _ = ray.wait(list(busy), num_returns=1)
        host, unit = busy.pop(done)
        rows = _rows(ray, done, host, unit, retries)
        following = next(queue, None)
        if following is not None:
            # before the rows are stored, so that the worker need not wait for that
            busy[host.do.remote(following)] = (host, following)
        else:
            # nobody needs to load a model any more
            busy = {task: pair for task, pair in busy.items() if pair[1] is not None}
        if rows:
            yield rows


def _rows(ray: Any, done: Any, host: Any, unit: Unit | None, retries: int) -> list[dict]:
    """What a task gave: rows, or nothing if it was the loading."""
    try:
        found = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayActorError as error:
        died = f"the worker died {retries + 1} times"
        if unit is None:
            raise RuntimeError(
                f"{died} while it loaded the model: out of memory, a crash, or killed; use fewer workers, or --dtype "
                f"bfloat16 ({one_line(error)})"
            ) from error
        return _failed(ray, host, unit, f"{died} of these questions: out of memory, a crash, or killed")
    if unit is None:
        _check_version(found)
        return []
    return found


def _failed(ray: Any, host: Any, unit: Unit, text: str) -> list[dict]:
    try:
        return ray.get(host.failures.remote(unit, text))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayActorError as error:
        raise RuntimeError(f"{text}; and again when it was to say so ({one_line(error)})") from error


def _check_version(found: str) -> None:
    from vtprune import __version__

    if found != __version__:
        raise RuntimeError(
            f"a worker has vtprune {found} and here is {__version__}; install the same version on every machine"
        )
