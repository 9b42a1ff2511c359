"""use_triton: which calls may run in Triton; stand-ins take the place of CUDA tensors."""

from types import SimpleNamespace

import pytest
import torch

from vtprune_kernels import dispatch
from vtprune_kernels.dispatch import use_triton


def cuda(index: int = 0, requires_grad: bool = False) -> SimpleNamespace:
    return SimpleNamespace(is_cuda=True, device=torch.device("cuda", index), requires_grad=requires_grad)


@pytest.fixture(autouse=True)
def triton_is_there(monkeypatch):
    monkeypatch.setattr(dispatch, "HAS_TRITON", True)
    monkeypatch.delenv("VTPRUNE_REFERENCE", raising=False)


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


def test_the_environment_asks_for_the_reference(monkeypatch):
    monkeypatch.setenv("VTPRUNE_REFERENCE", "1")
    assert not use_triton(cuda())


def test_without_triton_there_is_only_the_reference(monkeypatch):
    monkeypatch.setattr(dispatch, "HAS_TRITON", False)
    assert not use_triton(cuda())
