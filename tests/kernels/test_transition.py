"""transition: reference and kernels against the definition, row by row in float64."""

import importlib
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune_kernels.transition import transition, transition_reference

triton = pytest.importorskip("triton", reason="the kernel needs triton (extra: kernels)")

from vtprune_kernels.transition_triton import transition_triton  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RUNS = [transition, transition_reference, transition_triton]
SHAPES = [(1, 1, 1), (2, 3, 17), (3, 17, 33), (2, 2, 1025), (1, 3, 4100)]
RELATIVE_FLOOR = 1e-6
"""What a few roundings in float32 make of a product of three numbers."""
module = importlib.import_module("vtprune_kernels.transition")


def by_definition(x: Tensor, out: Tensor, real: Tensor | None, unsigned: bool) -> Tensor:
    """The oracle: (B, P) float64, token after token, the sum last; 0 for padding."""
    x, out = x.double().cpu(), out.double().cpu()
    real = torch.ones(x.shape[:2], dtype=torch.bool) if real is None else real.cpu()
    answer = torch.zeros(x.shape[:2], dtype=torch.float64)
    for b in range(len(x)):
        size, turn = {}, {}
        for i in real[b].nonzero().flatten().tolist():
            a, o = x[b, i], out[b, i]
            cosine = float(a @ o) / (max(float(a.norm()), 1e-8) * max(float(o.norm()), 1e-8))
            size[i] = float(o.norm() / a.norm())
            turn[i] = math.exp(1 - (abs(cosine) if unsigned else cosine))
        for i in turn:
            answer[b, i] = size[i] * turn[i] / math.fsum(turn.values())
    return answer


def module_call(shape: tuple[int, int, int], dtype: torch.dtype, padded: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens of all sizes that turn by all angles; the padding holds NaN."""
    g = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=g) * torch.logspace(-2, 1, shape[1])[:, None]
    out = torch.linspace(-2, 2, shape[1])[:, None] * x + torch.randn(shape, generator=g)
    real = None
    if padded:
        real = torch.rand(shape[:2], generator=g) < 0.7
        x[~real], out[~real] = math.nan, math.inf
        real = real.to(DEVICE)
    return x.to(DEVICE, dtype), out.to(DEVICE, dtype), real


def formula(x: Tensor, out: Tensor, real: Tensor | None, unsigned: bool) -> Tensor:
    """torch's own way, in float32 at least."""
    x, out = (t if t.dtype == torch.float64 else t.float() for t in (x, out))
    if real is not None:
        x, out = x.masked_fill(~real[..., None], 0), out.masked_fill(~real[..., None], 0)
    cosine = F.cosine_similarity(x, out, dim=-1)
    turn = (1 - (cosine.abs() if unsigned else cosine)).exp()
    turn = turn if real is None else turn.masked_fill(~real, 0)
    return out.norm(dim=-1) / x.norm(dim=-1) * turn / turn.sum(1, keepdim=True)


def relative_error(y: Tensor, expected: Tensor) -> float:
    there = expected > 0
    return float((y.double().cpu()[there] / expected[there] - 1).abs().max()) if bool(there.any()) else 0.0


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(("unsigned", "padded"), [(False, True), (True, False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_definition_is_met(run, dtype, unsigned, padded, shape):
    """Oracle: float64, token by token; the relative error is at most twice that of torch's own formulation."""
    x, out, real = module_call(shape, dtype, padded)
    expected = by_definition(x, out, real, unsigned)
    y = run(x, out, real, unsigned=unsigned)
    assert y.shape == shape[:2] and y.dtype == torch.float32
    assert bool((y.cpu()[expected == 0] == 0).all())
    bound = 2 * relative_error(formula(x, out, real, unsigned), expected) + RELATIVE_FLOOR
    assert relative_error(y, expected) <= bound


@pytest.mark.parametrize("run", RUNS)
def test_worked_example(run):
    """By hand: (1, 0) -> (0, 1) turns by a right angle at full size, (0, 2) -> (0, -1) turns round at half size."""
    x, out = (torch.tensor(rows, device=DEVICE) for rows in ([[[1.0, 0], [0, 2]]], [[[0.0, 1], [0, -1]]]))
    e = math.e
    assert run(x, out).tolist()[0] == pytest.approx([e / (e + e**2), 0.5 * e**2 / (e + e**2)])
    assert run(x, out, unsigned=True).tolist()[0] == pytest.approx([e / (e + 1), 0.5 / (e + 1)])


@pytest.mark.parametrize("run", RUNS)
def test_each_sample_is_normalised_by_itself(run):
    """Oracle: batches of one, by bits."""
    x, out, real = module_call((3, 9, 40), torch.bfloat16, True)
    whole = run(x, out, real)
    alone = [run(x[b : b + 1], out[b : b + 1], real[b : b + 1]) for b in range(3)]
    assert torch.equal(whole, torch.cat(alone))


@pytest.mark.parametrize("run", RUNS)
def test_a_sample_of_padding_is_all_zeros(run):
    x = torch.full((2, 3, 4), math.nan, device=DEVICE)
    x[1] = 1
    real = torch.tensor([[False] * 3, [True] * 3], device=DEVICE)
    assert run(x, x, real).tolist() == [[0, 0, 0], pytest.approx([1 / 3] * 3)]


@pytest.mark.filterwarnings("ignore:overflow")  # numpy, in the interpreter
@pytest.mark.parametrize("run", RUNS)
def test_rows_of_zeros_never_give_nan(run):
    """By the definition: no direction, so the cosine is 0; 0 / 0 counts as no change, 1 / 0 as a huge one."""
    x = torch.tensor([[[0.0, 0], [0, 0], [1, 1]]], device=DEVICE)
    out = torch.tensor([[[0.0, 0], [3, 4], [1, 1]]], device=DEVICE)
    y = run(x, out).tolist()[0]
    assert y[0] == 0 and y[1] > 1e37 and y[2] == pytest.approx(1 / (2 * math.e + 1))


@pytest.mark.parametrize("run", RUNS)
def test_large_half_precision_values_do_not_overflow(run):
    """Squares of 3,000 are beyond float16. A right angle, and rows that stay."""
    x = torch.tensor([[[3000, 3000], [3000, 0]]], dtype=torch.float16, device=DEVICE)
    out = torch.tensor([[[3000, -3000], [3000, 0]]], dtype=torch.float16, device=DEVICE)
    assert run(x, out).tolist()[0] == pytest.approx([math.e / (math.e + 1), 1 / (math.e + 1)])


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (0, 0, 0), (1, 2, 0)], ids=str)
def test_nothing_in_gives_nothing_out(run, shape):
    """Rows without numbers do not change."""
    y = run(torch.ones(shape, device=DEVICE), torch.ones(shape, device=DEVICE))
    assert y.shape == shape[:2] and bool((y == 0).all())


@pytest.mark.parametrize("run", RUNS)
def test_strides_do_not_matter(run):
    """Oracle: float64, token by token, of transposed and sliced tensors and of a transposed mask."""
    x, out, real = module_call((5, 8, 6), torch.float32, False)
    real = torch.rand(8, 5, generator=torch.Generator().manual_seed(1)).to(DEVICE).T > 0.4
    for a, b, mask in ((x.transpose(1, 2), out.transpose(1, 2), None), (x[:, ::2], out[:, 1::2], real[:, ::2])):
        assert not a.is_contiguous() and not b.is_contiguous()
        expected = by_definition(a, b, mask, False)
        torch.testing.assert_close(run(a, b, mask).double().cpu(), expected, rtol=2e-6, atol=0)


def test_blocks_do_not_show(monkeypatch):
    """Oracle: float64, token by token; four rows at a time, so blocks end inside of samples."""
    monkeypatch.setattr(module, "BLOCK_BYTES", 4 * 33 * 4)
    monkeypatch.setattr(module, "DEVICE_BLOCK_BYTES", 4 * 33 * 4)
    x, out, real = module_call((3, 17, 33), torch.float32, True)
    y = transition_reference(x, out, real)
    torch.testing.assert_close(y.double().cpu(), by_definition(x, out, real, False), rtol=2e-6, atol=0)


@pytest.mark.parametrize("block", [1, 4, 16])
def test_shares_are_of_the_whole_sample(block, monkeypatch):
    """Oracle: float64, token by token; many programs of the second kernel for each sample."""
    monkeypatch.setattr("vtprune_kernels.transition_triton.SHARE_BLOCK", block)
    x, out, real = module_call((2, 17, 5), torch.float32, True)
    y = transition_triton(x, out, real)
    torch.testing.assert_close(y.double().cpu(), by_definition(x, out, real, False), rtol=2e-6, atol=0)


def test_float64_stays_float64():
    x, out, real = module_call((2, 5, 40), torch.float64, True)
    y = transition(x, out, real)
    assert y.dtype == torch.float64
    torch.testing.assert_close(y.cpu(), by_definition(x, out, real, False), rtol=1e-13, atol=0)


def test_a_wanted_gradient_is_that_of_torch():
    """Oracle: autograd through torch's own formulation, of the real tokens alone."""
    x, out, _ = module_call((1, 4, 8), torch.float64, False)
    real = torch.tensor([[True, False, True, True]], device=DEVICE)
    x.requires_grad_()
    weight = torch.tensor([3.0, 1, 2], device=DEVICE, dtype=torch.float64)
    (mine,) = torch.autograd.grad((transition(x, out, real)[:, real[0]] * weight).sum(), x)
    (theirs,) = torch.autograd.grad((formula(x[:, real[0]], out[:, real[0]], None, False) * weight).sum(), x)
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"x": torch.ones(3, 4)}, ValueError, r"\(B, P, D\).*got \(3, 4\)"),
        ({"out": torch.ones(2, 3, 5)}, ValueError, r"\(2, 3, 5\)"),
        ({"real": torch.ones(3, dtype=torch.bool)}, ValueError, r"\(3,\)"),
        ({"out": torch.ones(2, 3, 4).bfloat16()}, TypeError, r"bfloat16: call out\.to\(x\.dtype\)"),
        ({"x": torch.ones(2, 3, 4).long(), "out": torch.ones(2, 3, 4).long()}, TypeError, "int64"),
        ({"real": torch.ones(2, 3)}, TypeError, r"float32: call real\.bool\(\)"),
        ({"out": torch.ones(2, 3, 4, device="meta")}, ValueError, "one device"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(change, error, says):
    right = {"x": torch.ones(2, 3, 4), "out": torch.ones(2, 3, 4), "real": torch.ones(2, 3, dtype=torch.bool)}
    transition(**right)
    with pytest.raises(error, match=says):
        transition(**{**right, **change})


def test_dispatch_asks_for_the_kernel_in_dtypes_that_it_knows(monkeypatch):
    """Oracle: which of the two was called."""
    called = []
    stand_in = lambda x, out, real, *, unsigned: called.append((x.dtype, unsigned))  # noqa: E731
    monkeypatch.setattr("vtprune_kernels.transition_triton.transition_triton", stand_in)
    monkeypatch.setattr(module, "use_triton", lambda *tensors: True)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        x = torch.ones(1, 2, 3, dtype=dtype)
        transition(x, x, unsigned=True)
    assert called == [(torch.float32, True), (torch.bfloat16, True), (torch.float16, True)]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 8192, 3584), (1, 65536, 896), (3, 2895, 4096)], ids=str)
def test_kernel_on_a_gpu_at_real_sizes(shape):
    """Oracle: float64 on the same device; the error is at most twice that of torch's formulation in float32."""
    g = torch.Generator(device="cuda").manual_seed(0)
    x, noise = (torch.randn(shape, generator=g, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = x * torch.linspace(-1, 1, shape[1], device="cuda", dtype=torch.bfloat16)[:, None] + noise
    real = torch.arange(shape[1], device="cuda")[None] >= torch.tensor([[0], [77], [1000]], device="cuda")[: shape[0]]
    cosine, size = torch.zeros(2, *shape[:2], dtype=torch.float64, device="cuda")
    for b in range(shape[0]):
        for i in range(0, shape[1], 4096):
            a, o = x[b, i : i + 4096].double(), out[b, i : i + 4096].double()
            cosine[b, i : i + 4096] = F.cosine_similarity(a, o, dim=-1)
            size[b, i : i + 4096] = o.norm(dim=-1) / a.norm(dim=-1)
    turn = (1 - cosine).exp().masked_fill(~real, 0)
    expected = (size * turn / turn.sum(1, keepdim=True)).cpu()
    theirs = relative_error(formula(x, out, real, False), expected)
    assert relative_error(transition_triton(x, out, real), expected) <= 2 * theirs + RELATIVE_FLOOR
