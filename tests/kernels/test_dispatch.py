"""use_triton and backend: which calls may run in Triton, and what is said of it; stand-ins take CUDA tensors' place."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vtprune_kernels import dispatch
from vtprune_kernels.dispatch import backend, backend_reason, use_triton
from vtprune_kernels.gather import gather_tokens

HAS_TRITON = dispatch.HAS_TRITON
if HAS_TRITON:
    # now, while the environment still says whether kernels are interpreted
    from vtprune_kernels import gather_triton

KERNELS = Path(dispatch.__file__).parents[1]
SWITCHES = ("VTPRUNE_REFERENCE", "TRITON_INTERPRET", "VTPRUNE_INTERPRET")


def cuda(index: int = 0, requires_grad: bool = False) -> SimpleNamespace:
    return SimpleNamespace(is_cuda=True, device=torch.device("cuda", index), requires_grad=requires_grad)


@pytest.fixture(autouse=True)
def triton_is_there(monkeypatch):
    monkeypatch.setattr(dispatch, "HAS_TRITON", True)
    for switch in SWITCHES:
        monkeypatch.delenv(switch, raising=False)


def test_cuda_tensors_on_one_device_run_in_triton():
    assert use_triton(cuda(), cuda())


def test_a_cpu_tensor_among_them_does_not():
    assert not use_triton(torch.ones(1)) and not use_triton(cuda(), torch.ones(1))


def test_two_devices_do_not():
    assert not use_triton(cuda(0), cuda(1))


def test_a_wanted_gradient_does_not():
    """The kernels have no backward pass; under no_grad nothing is recorded, so they may run."""
    assert not use_triton(cuda(requires_grad=True), cuda())
    with torch.no_grad():
        assert use_triton(cuda(requires_grad=True), cuda())


@pytest.mark.parametrize(("value", "triton"), [("1", False), ("true", False), ("0", True), ("", True), ("False", True)])
def test_the_environment_asks_for_the_reference(monkeypatch, value, triton):
    monkeypatch.setenv("VTPRUNE_REFERENCE", value)
    assert use_triton(cuda()) == triton


def test_without_triton_there_is_only_the_reference(monkeypatch):
    monkeypatch.setattr(dispatch, "HAS_TRITON", False)
    assert not use_triton(cuda())


@pytest.mark.parametrize(
    ("device", "installed", "switches", "name", "why"),
    [
        ("cuda", True, (), "triton", "CUDA device"),
        ("cuda:1", True, ("TRITON_INTERPRET",), "triton-interpreter", "TRITON_INTERPRET is set"),
        ("cpu", True, (), "reference", "tensors are on cpu"),
        ("cpu", True, ("TRITON_INTERPRET",), "reference", "tensors are on cpu"),
        ("cpu", True, ("VTPRUNE_INTERPRET",), "reference", "tensors are on cpu"),
        ("cpu", True, ("TRITON_INTERPRET", "VTPRUNE_INTERPRET"), "triton-interpreter", "VTPRUNE_INTERPRET"),
        ("meta", True, ("TRITON_INTERPRET", "VTPRUNE_INTERPRET"), "reference", "tensors are on meta"),
        ("cuda", False, ("TRITON_INTERPRET",), "reference", r"not installed.*vtprune\[kernels\]"),
        ("cuda", True, ("VTPRUNE_REFERENCE",), "reference", "VTPRUNE_REFERENCE is set"),
        ("cpu", False, SWITCHES, "reference", "VTPRUNE_REFERENCE is set"),
    ],
)
def test_the_backend_is_named_and_used(monkeypatch, device, installed, switches, name, why):
    """Oracle: the table of what there is; ``use_triton`` decides the same for a tensor of that device."""
    monkeypatch.setattr(dispatch, "HAS_TRITON", installed)
    for switch in switches:
        monkeypatch.setenv(switch, "1")
    assert backend(device) == name and re.search(why, backend_reason(torch.device(device)))
    tensor = SimpleNamespace(device=torch.device(device), requires_grad=False)
    assert use_triton(tensor) == (name != "reference")


@pytest.mark.parametrize(("there", "name"), [(True, "triton"), (False, "reference")])
def test_without_a_device_the_best_there_is_is_meant(monkeypatch, there, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert backend() == name


@pytest.mark.skipif(not HAS_TRITON, reason="the kernel needs triton (extra: kernels)")
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here, not interpreted")
def test_cpu_tensors_reach_the_interpreter_when_asked(monkeypatch):
    """Oracle: the rows by hand, and that the kernel's launcher made them."""
    calls, launch = [], gather_triton.gather_tokens_triton
    monkeypatch.setattr(gather_triton, "gather_tokens_triton", lambda *args: calls.append(1) or launch(*args))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("VTPRUNE_INTERPRET", "1")
    y = gather_tokens(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[2, 0]]))
    assert y.tolist() == [[[3], [1]]] and calls == [1]


def test_a_machine_without_triton_runs_every_operation():
    """Oracle: a fresh interpreter in which triton cannot be imported; values by hand."""
    code = f"""
import sys
sys.modules["triton"] = None
sys.path[:0] = [{str(KERNELS)!r}]
import torch
from vtprune_kernels import dispatch
from vtprune_kernels.gather import gather_tokens
from vtprune_kernels.gather_site import gather_site
from vtprune_kernels.merge import merge_tokens
from vtprune_kernels.pack import pack, unpack

x, columns = torch.arange(6.0).view(1, 3, 2), torch.tensor([[2, 0]])
assert gather_tokens(x, columns).tolist() == gather_site([x], columns)[0].tolist() == [[[4, 5], [0, 1]]]
assert merge_tokens(x[0], torch.tensor([0, -1, 0]), None, 1).tolist() == [[2, 3]]
packed, cu_seqlens, _ = pack(x, torch.tensor([[False, True, True]]))
assert unpack(packed, cu_seqlens, length=3).tolist() == [[[0, 0], [2, 3], [4, 5]]]
print(dispatch.backend("cuda"), dispatch.backend("cpu"), dispatch.backend_reason("cuda"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("reference reference triton is not installed")
