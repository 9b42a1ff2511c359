"""frame_similarity: reference and kernel against cosines of rows one by one, in float64."""

import importlib
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune_kernels.frame_similarity import frame_similarity, frame_similarity_reference

triton = pytest.importorskip("triton", reason="the kernel needs triton (extra: kernels)")

from vtprune_kernels.frame_similarity_triton import frame_similarity_triton  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RUNS = [frame_similarity, frame_similarity_reference, frame_similarity_triton]
HALVES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1, 1, 1), (2, 1, 3), (3, 17, 33), (5, 3, 1025), (2, 2, 4100)]
FLOOR = 1e-7
"""What a few roundings in float32 make of a cosine."""
module = importlib.import_module("vtprune_kernels.frame_similarity")


def video(shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """Frames that change slowly, so that cosines are of all sizes."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    return (x.cumsum(0) * torch.logspace(-2, 2, shape[1])[:, None]).to(DEVICE, dtype)


def cosines(x: Tensor, previous: list[int], eps: float = 1e-8) -> Tensor:
    """The oracle: (N,) float64, one pair of rows after the other; -2 where there is no row before."""
    rows, out = x.double().cpu(), []
    for now, p in zip(rows, previous, strict=True):
        norms = max(float(now.norm()), eps) * max(float(rows[p].norm()), eps)
        out.append(-2.0 if p < 0 else float(now @ rows[p]) / norms)
    return torch.tensor(out, dtype=torch.float64)


def places(T: int, N: int) -> list[int]:
    return [max(-1, i - N) for i in range(T * N)]


def torch_error(x: Tensor, previous: Tensor, expected: Tensor) -> float:
    """How far torch's own cosine in float32 is off."""
    later = (previous >= 0).nonzero().flatten()
    if not len(later):
        return 0.0
    found = F.cosine_similarity(x[later].float(), x[previous[later]].float(), dim=-1)
    return float((found.double().cpu() - expected[later.cpu()]).abs().max())


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_token_is_compared_with_its_place_one_frame_earlier(run, dtype, shape):
    """Oracle: float64, pair by pair; the error is at most twice torch's own. Widths around the kernel's blocks."""
    x = video(shape, dtype)
    expected = cosines(x.flatten(0, 1), places(*shape[:2]))
    y = run(x)
    assert y.shape == shape[:2] and y.dtype == torch.float32
    bound = 2 * torch_error(x.flatten(0, 1), torch.tensor(places(*shape[:2]), device=DEVICE), expected) + FLOOR
    assert float((y.flatten().double().cpu() - expected).abs().max()) <= bound


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    "previous", [[-1, -1, 0, 1, 2, 3, 4, 4, 4, -1, 12, 7, -1, 13, 0, 1, 1, 2], [0, 2, 1, 3], [1, 2, 3, -1]], ids=str
)
def test_any_token_may_be_the_one_before(run, previous, dtype):
    """Oracle: float64, pair by pair; holes, a run of neighbours, a token later in order, one shared by several."""
    x = video((1, len(previous), 257), dtype)[0]
    expected = cosines(x, previous)
    index = torch.tensor(previous, device=DEVICE)
    y = run(x, index)
    assert y.shape == (len(previous),)
    bound = 2 * torch_error(x, index, expected) + FLOOR
    assert float((y.double().cpu() - expected).abs().max()) <= bound


@pytest.mark.parametrize("block_bytes", [1, 5 * 64 * 4, 1 << 20])
def test_blocks_do_not_show(block_bytes, monkeypatch):
    """Oracle: float64, pair by pair; one row at a time, five, and all at once, so neighbours and holes fall anyhow."""
    monkeypatch.setattr(module, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(module, "DEVICE_BLOCK_BYTES", block_bytes)
    previous = [-1] * 7 + [0, 1, 2, 3, 4, 5, 6, -1, 8, 9, 11, 10, 13, 14, -1]
    x = video((1, len(previous), 64), torch.float32)[0]
    y = frame_similarity_reference(x, torch.tensor(previous, device=DEVICE))
    torch.testing.assert_close(y.double().cpu(), cosines(x, previous), atol=1e-6, rtol=0)


@pytest.mark.parametrize("run", RUNS)
def test_frames_are_a_case_of_previous(run):
    """Oracle: the same call with the places spelt out, by bits."""
    x = video((4, 5, 130), torch.bfloat16)
    spelt = torch.tensor(places(4, 5), device=DEVICE)
    assert torch.equal(run(x).flatten(), run(x.flatten(0, 1), spelt))


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy about 0 / 0 in the first frame, in the interpreter
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_step_is_rounded_where_asked(run, dtype):
    """Oracle: Python numbers, rounded after every product and after the sum, the norms, their product, the quotient.

    Sums of either side may round to neighbours, so one unit in the last place is allowed; most must agree.
    """

    if run is frame_similarity_triton and dtype == torch.bfloat16 and DEVICE == "cpu":
        pytest.skip("Triton's interpreter cuts bfloat16 off instead of rounding it")

    def rounded(number: float) -> float:
        return float(torch.tensor(number, dtype=torch.float64).to(dtype))

    x = torch.randn(26, 8, 70, generator=torch.Generator().manual_seed(1)).cumsum(0).to(DEVICE, dtype)
    expected = []
    for now, then in zip(x[1:].flatten(0, 1).double().tolist(), x[:-1].flatten(0, 1).double().tolist()):
        dot = rounded(math.fsum(rounded(a * b) for a, b in zip(now, then)))
        a, b = (rounded(math.sqrt(math.fsum(v * v for v in row))) for row in (now, then))
        expected.append(rounded(dot / rounded(a * b)))
    y = run(x, rounded=True)
    assert y.dtype == dtype and y[0].tolist() == [-2] * 8
    off = (y[1:].flatten().double().cpu() - torch.tensor(expected, dtype=torch.float64)).abs()
    assert float(off.max()) <= torch.finfo(dtype).eps and int((off == 0).sum()) >= 190, int((off == 0).sum())
    at_the_end = run(x)[1:].flatten().to(dtype).double().cpu()
    assert int((at_the_end == torch.tensor(expected, dtype=torch.float64)).sum()) < 150


def test_float64_stays_float64():
    x = video((3, 2, 50), torch.float64)
    y = frame_similarity(x)
    assert y.dtype == torch.float64
    torch.testing.assert_close(y.flatten().cpu(), cosines(x.flatten(0, 1), places(3, 2)), atol=1e-14, rtol=0)


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy about 0 / 0, in the interpreter
@pytest.mark.parametrize("run", RUNS)
def test_rows_of_zeros(run):
    """By the definition: similar to nothing; without a bound on the norms 0 / 0. Tiny rows are similar to little."""
    x = torch.tensor([[[0.0, 0]], [[0, 0]], [[3, 4]], [[6, 8]], [[3e-12, 4e-12]]], device=DEVICE)
    assert run(x).flatten().tolist() == pytest.approx([-2, 0, 0, 1, 5e-4])
    free = run(x, eps=0).flatten()
    assert free[[1, 2]].isnan().all() and free[[0, 3, 4]].tolist() == pytest.approx([-2, 1, 1])


@pytest.mark.parametrize("run", RUNS)
def test_what_nobody_compares_leaves_no_trace(run):
    """Oracle: the same call with numbers in the rows that are neither compared nor compared with."""
    x, previous = video((1, 6, 40), torch.float32)[0], torch.tensor([-1, -1, 0, -1, 2, -1], device=DEVICE)
    clean = run(x, previous)
    x[[1, 3]], x[5] = math.nan, math.inf
    assert torch.equal(run(x, previous), clean)


@pytest.mark.parametrize("run", RUNS)
def test_half_precision_does_not_overflow(run):
    """Squares of 3,000 are beyond float16; the rows stand at a right angle, then opposite."""
    x = torch.tensor([[[3000, 3000]], [[3000, -3000]], [[-3000, 3000]]], dtype=torch.float16, device=DEVICE)
    assert run(x).flatten().tolist() == pytest.approx([-2, 0, -1])


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (0, 0, 0), (2, 3, 0)], ids=str)
def test_nothing_in_gives_nothing_out(run, shape):
    """Rows without numbers are rows of zeros."""
    y = run(torch.ones(shape, device=DEVICE))
    assert y.shape == shape[:2] and y.flatten().tolist() == [-2.0, -2, -2, 0, 0, 0][: y.numel()]
    none = run(torch.ones(0, shape[2], device=DEVICE), torch.zeros(0, dtype=torch.int64, device=DEVICE))
    assert none.shape == (0,)


@pytest.mark.parametrize("run", RUNS)
def test_strides_do_not_matter(run):
    """Oracle: float64, pair by pair, of a transposed, a sliced and an expanded tensor; every other previous."""
    x = video((4, 6, 10), torch.float32)
    for view in (x.transpose(1, 2), x[:, ::2, 1:], x[:1].expand(3, -1, -1)):
        assert not view.is_contiguous()
        expected = cosines(view.flatten(0, 1), places(*view.shape[:2]))
        torch.testing.assert_close(run(view).flatten().double().cpu(), expected, atol=1e-6, rtol=0)
    rows, previous = video((1, 12, 4), torch.float32)[0].T, torch.tensor([-1, 9, 0, 9, 1, 9, 1, 9], device=DEVICE)[::2]
    assert not rows.is_contiguous() and not previous.is_contiguous()
    expected = cosines(rows, previous.tolist())
    torch.testing.assert_close(run(rows, previous).double().cpu(), expected, atol=1e-6, rtol=0)


def test_a_wanted_gradient_is_that_of_torch():
    """Oracle: autograd through torch's cosine."""
    x = video((3, 4, 8), torch.float64).requires_grad_()
    (mine,) = torch.autograd.grad(frame_similarity(x)[1:].sum(), x)
    (theirs,) = torch.autograd.grad(F.cosine_similarity(x[1:], x[:-1], dim=-1).sum(), x)
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("x", "previous", "eps", "error", "says"),
    [
        (torch.ones(3, 4), None, 1e-8, ValueError, r"\(T, N, D\).*got x \(3, 4\)"),
        (torch.ones(2, 3, 4), torch.zeros(2, dtype=torch.int64), 1e-8, ValueError, r"\(2, 3, 4\) and previous \(2,\)"),
        (torch.ones(3, 4), torch.zeros(2, dtype=torch.int64), 1e-8, ValueError, r"previous \(2,\)"),
        (torch.ones(2, 3, 4, dtype=torch.int64), None, 1e-8, TypeError, r"int64.*x\.float\(\)"),
        (torch.ones(2, 3, 4), None, -1.0, ValueError, "0 or more; got -1"),
        (torch.ones(2, 3, 4), None, math.nan, ValueError, "got nan"),
        (torch.ones(3, 4), torch.zeros(3), 1e-8, TypeError, r"float32.*previous\.long\(\)"),
        (torch.ones(3, 4, device="meta"), torch.zeros(3, dtype=torch.int64), 1e-8, ValueError, "meta and cpu"),
        (torch.ones(3, 4), torch.tensor([-1, 0, 3]), 1e-8, ValueError, r"\[-1, 3\).*-1\.\.3"),
        (torch.ones(3, 4), torch.tensor([-2, 0, 1]), 1e-8, ValueError, r"-2\.\.1"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(x, previous, eps, error, says):
    with pytest.raises(error, match=says):
        frame_similarity(x, previous, eps=eps)


def test_dispatch_asks_for_the_kernel_in_dtypes_that_it_knows(monkeypatch):
    """Oracle: which of the two was called."""
    called = []
    stand_in = lambda x, previous, *, eps, rounded: called.append((x.dtype, eps))  # noqa: E731
    monkeypatch.setattr("vtprune_kernels.frame_similarity_triton.frame_similarity_triton", stand_in)
    monkeypatch.setattr(module, "use_triton", lambda *tensors: True)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        frame_similarity(torch.ones(2, 1, 1, dtype=dtype), eps=0.5)
    assert called == [(torch.float32, 0.5), (torch.bfloat16, 0.5), (torch.float16, 0.5)]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(64, 256, 3584), (16, 729, 896), (7, 1025, 4096)], ids=str)
def test_kernel_on_a_gpu_at_real_sizes(shape):
    """Oracle: float64 on the same device; the error is at most twice that of torch's cosine in float32."""
    g = torch.Generator(device="cuda").manual_seed(0)
    x = torch.randn(shape, generator=g, device="cuda").cumsum(0).bfloat16()
    now, then = x[1:], x[:-1]
    expected = torch.cat([F.cosine_similarity(a.double(), b.double(), dim=-1)[None] for a, b in zip(now, then)])
    theirs = (F.cosine_similarity(now.float(), then.float(), dim=-1).double() - expected).abs().max()
    mine = (frame_similarity_triton(x)[1:].double() - expected).abs().max()
    assert mine <= 2 * theirs + FLOOR


@pytest.mark.gpu
def test_kernel_reads_beyond_two_to_the_31_on_a_gpu():
    """Oracle: two rows written by hand on either side of number 2**31: one is the double of the other."""
    D = 1024
    N = 2**31 // D + 4
    x = torch.zeros(N, D, dtype=torch.float16, device="cuda")
    x[-1], x[0] = 2, 1
    previous = torch.full((N,), -1, device="cuda")
    previous[-1] = 0
    y = frame_similarity_triton(x, previous)
    assert float(y[-1]) == pytest.approx(1) and float(y[:-1].max()) == -2
