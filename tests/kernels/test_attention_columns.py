"""attention_columns and log_sum_exp: references and kernels against a softmax of all heads in float64."""

import importlib

import pytest
import torch
from torch import Tensor

from vtprune_kernels.attention_columns import (
    Visible,
    attention_columns,
    attention_columns_reference,
    log_sum_exp,
    log_sum_exp_reference,
)

triton = pytest.importorskip("triton", reason="the kernels need triton (extra: kernels)")

from vtprune_kernels import attention_columns_triton as kernels  # noqa: E402
from vtprune_kernels.attention_columns_triton import attention_columns_triton, log_sum_exp_triton  # noqa: E402

blocks = importlib.import_module("vtprune_kernels.attention_columns")  # the package has the function of that name
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RUNS = [attention_columns, attention_columns_reference, attention_columns_triton]
NORMS = [log_sum_exp, log_sum_exp_reference, log_sum_exp_triton]
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16

# (B, H_q, H_k, L, d), dtype, who sees whom, softcap: below, at and above one tile
CASES = [
    ((1, 1, 1, 1, 1), F32, "all", None),
    ((2, 4, 2, 37, 20), F32, "causal", None),
    ((1, 4, 1, 70, 72), BF16, "window", None),
    ((2, 2, 2, 64, 16), F16, "padded", 3.0),
    ((1, 3, 3, 90, 32), F32, "packed", None),
]


def numbers(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """q (B, H_q, L, d) and k (B, H_k, L, d), with scores far enough apart that the softmax is not flat."""
    B, heads, groups, L, d = shape
    g = torch.Generator().manual_seed(sum(shape))
    q, k = 3 * torch.randn(B, heads, L, d, generator=g), torch.randn(B, groups, L, d, generator=g)
    return q.to(dtype).to(DEVICE), k.to(dtype).to(DEVICE)


def masks(kind: str, B: int, L: int) -> tuple[Visible, Tensor, Tensor]:
    """The op's way to say it, the table (B, L, L) that it stands for, and which queries are real (B, L)."""
    i, batch = torch.arange(L, device=DEVICE), torch.arange(B, device=DEVICE)
    rows, real = i.expand(B, L), torch.ones(B, L, dtype=torch.bool, device=DEVICE)
    later = i[None, :] > i[:, None]
    if kind == "all":
        return Visible(), torch.ones(B, L, L, dtype=torch.bool, device=DEVICE), real
    if kind == "causal":
        return Visible(last=rows), (~later).expand(B, L, L), real
    if kind == "window":
        return Visible(rows - 6, rows), (~later & (i[:, None] - i[None, :] < 7)).expand(B, L, L), real
    if kind == "padded":
        # samples of different lengths, padded on the left
        real = i >= 5 * batch[:, None]
        return Visible(last=rows, valid=real), ~later & real[:, None], real
    # three images one behind the other, the last of two tokens
    image = (i >= L // 3).long() + (i >= L - 2).long()
    first = torch.tensor([0, L // 3, L - 2], device=DEVICE)[image].expand(B, L)
    last = torch.tensor([L // 3 - 1, L - 3, L - 1], device=DEVICE)[image].expand(B, L)
    return Visible(first, last), (image[:, None] == image).expand(B, L, L), real


def scores(q: Tensor, k: Tensor, scale: float, seen: Tensor, softcap: float | None) -> Tensor:
    """(B, H_q, L, L): what the softmax is taken of, in the dtype of ``q``; -inf where nothing is seen."""
    dots = torch.einsum("bgsrd,bgnd->bgsrn", q.unflatten(1, (k.shape[1], -1)), k).flatten(1, 2) * scale
    dots = dots if softcap is None else softcap * torch.tanh(dots / softcap)
    return dots.masked_fill(~seen[:, None], -torch.inf)


def column_means(p: Tensor, seen: Tensor, weights: Tensor, over: str) -> Tensor:
    """(B, N) from probabilities (B, H, L, N): the weighted mean that the op promises."""
    total = torch.einsum("br,bhrn->bn", weights, p) / p.shape[1]
    counted = weights * seen.any(-1)
    count = counted.sum(1, keepdim=True) if over == "queries" else torch.einsum("br,brn->bn", counted, seen.to(p.dtype))
    return torch.where(count > 0, total / count, 0)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(("shape", "dtype", "kind", "softcap"), CASES, ids=str)
def test_columns_are_the_mean_softmax(run, shape, dtype, kind, softcap):
    """Oracle: one softmax in float64; torch's own answer in the dtype errs half as much at least, fp32 scores aside."""
    B, L, d = shape[0], shape[3], shape[4]
    q, k = numbers(shape, dtype)
    visible, seen, real = masks(kind, B, L)
    call = {"scale": d**-0.5, "visible": visible, "softcap": softcap}
    exact = scores(q.double(), k.double(), d**-0.5, seen, softcap)
    torchs = scores(q, k, d**-0.5, seen, softcap).softmax(-1, dtype=F32).nan_to_num(0)
    uneven = torch.rand(B, L, generator=torch.Generator().manual_seed(7)).to(DEVICE) * real
    for weights, over, norm in (
        (None, "queries", None),
        (real.float(), "seeing", exact.logsumexp(-1).float()),
        (uneven, "queries", exact.logsumexp(-1).float()),
        (uneven, "seeing", None),
    ):
        given = torch.ones(B, L, device=DEVICE) if weights is None else weights
        expected = column_means(exact.softmax(-1).nan_to_num(0), seen, given.double(), over)
        y = run(q, k, norm, weights=weights, over=over, **call)
        assert y.dtype == F32 and y.shape == (B, L)
        allowed = 2 * (column_means(torchs, seen, given, over) - expected).abs().max()
        assert (y - expected).abs().max() <= allowed + 4e-6 * expected.abs().max()
        if over == "queries":
            torch.testing.assert_close(y.sum(1), torch.ones(B, device=DEVICE), rtol=2e-6, atol=0)


@pytest.mark.parametrize("run", NORMS)
@pytest.mark.parametrize(("shape", "dtype", "kind", "softcap"), CASES, ids=str)
def test_log_sum_exp_is_that_of_torch(run, shape, dtype, kind, softcap):
    """Oracle: torch.logsumexp of all scores in float64; queries before the first token see nothing and have -inf."""
    B, L, d = shape[0], shape[3], shape[4]
    q, k = numbers(shape, dtype)
    visible, seen, _ = masks(kind, B, L)
    expected = scores(q.double(), k.double(), d**-0.5, seen, softcap).logsumexp(-1)
    y = run(q, k, scale=d**-0.5, visible=visible, softcap=softcap)
    assert y.dtype == F32
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=2e-6)
    assert kind != "padded" or (y == -torch.inf).any()


@pytest.mark.parametrize("run", RUNS)
def test_images_of_a_packed_sequence_are_on_their_own(run):
    """Oracle: the op on each image alone. Over all queries an image's share is that of its queries."""
    q, k = numbers((1, 4, 2, 50, 16), F32)
    lengths = [20, 1, 29]
    bounds = torch.tensor([0, *lengths], device=DEVICE).cumsum(0)
    image = torch.arange(3, device=DEVICE).repeat_interleave(torch.tensor(lengths, device=DEVICE))
    visible = Visible(bounds[image][None], bounds[image + 1][None] - 1)
    alone = [run(a, b, scale=0.3) for a, b in zip(q.split(lengths, 2), k.split(lengths, 2))]
    y = run(q, k, scale=0.3, visible=visible, over="seeing")
    torch.testing.assert_close(y, torch.cat(alone, 1), rtol=1e-5, atol=1e-7)
    share = torch.cat([a * n / 50 for a, n in zip(alone, lengths)], 1)
    torch.testing.assert_close(run(q, k, scale=0.3, visible=visible), share, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # inf - inf, in the interpreter
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("blank", [float("inf"), float("-inf"), float("nan")])
def test_padding_leaves_no_trace(run, blank):
    """Oracle: the call without the padding, by value; whatever the padding and its log-sum-exp hold."""
    q, k = numbers((2, 2, 1, 24, 8), F32)
    i = torch.arange(24, device=DEVICE)
    real = (i >= 6).expand(2, -1)
    visible = Visible(last=i.expand(2, -1), valid=real)
    short = Visible(last=i[:18].expand(2, -1))
    expected = run(q[:, :, 6:], k[:, :, 6:], scale=0.4, visible=short)
    norm = log_sum_exp(q, k, scale=0.4, visible=visible)
    q[:, :, :6], k[:, :, :6], norm[:, :, :6] = blank, blank, blank
    for lse in (None, norm):
        for over in ("queries", "seeing"):
            y = run(q, k, lse, scale=0.4, visible=visible, weights=real.float(), over=over)
            assert (y[:, :6] == 0).all() and y.isfinite().all()
            if over == "queries":
                torch.testing.assert_close(y[:, 6:], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("programs", [1, 4000])
def test_the_kernels_may_divide_their_loops(programs, monkeypatch):
    """Oracle: torch.logsumexp and the softmax in float64; loops in one piece, and in as many as the shapes allow."""
    monkeypatch.setattr(kernels, "PROGRAMS", programs)
    q, k = numbers((1, 1, 1, 300, 4), F32)
    visible, seen, _ = masks("window", 1, 300)
    for some, table in ((Visible(), torch.ones_like(seen)), (visible, seen)):
        exact = scores(q.double(), k.double(), 0.5, table, None)
        norm = log_sum_exp_triton(q, k, scale=0.5, visible=some)
        torch.testing.assert_close(norm.double(), exact.logsumexp(-1), rtol=1e-6, atol=2e-6)
        y = attention_columns_triton(q, k, norm, scale=0.5, visible=some)
        torch.testing.assert_close(y.double(), exact.softmax(-1).mean((1, 2)), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("run", RUNS)
def test_bounds_may_be_any_integers(run):
    """Oracle: bounds clamped by hand to the keys that exist; beyond them means no bound, or nothing seen."""
    q, k = numbers((1, 2, 1, 6, 4), F32)
    first = torch.tensor([[-(2**40), 2**40, 0, -3, 2, 2**31 + 5]], device=DEVICE)
    last = torch.tensor([[2**40, 2**40, -(2**40), 2**31 + 5, 1, 3]], device=DEVICE)
    weights = torch.tensor([[1.0, 0, 0, 1, 0, 0]], device=DEVICE)
    expected = run(q, k, scale=0.5, weights=weights)
    torch.testing.assert_close(run(q, k, scale=0.5, visible=Visible(first, last)), expected)


@pytest.mark.parametrize("shape", [(0, 2, 1, 3, 4), (2, 2, 1, 0, 4)], ids=str)
def test_nothing_in_gives_nothing_out(shape):
    q, k = numbers(shape, F32)
    B, heads, _, L, _ = shape
    for run in RUNS:
        for over in ("queries", "seeing"):
            assert run(q, k, scale=1.0, over=over).shape == (B, L)
            assert (run(q[:, :, :0], torch.ones_like(k), scale=1.0, over=over) == 0).all()
    for norm in NORMS:
        assert norm(q, k, scale=1.0).shape == (B, heads, L)
        assert (norm(q, k[:, :, :0], scale=1.0) == -torch.inf).all()


def test_blocks_of_any_size_give_the_same_columns(monkeypatch):
    """Oracle: the softmax in float64; blocks of one row of one key head and larger, over three images."""
    q, k = (x.cpu() for x in numbers((2, 6, 3, 41, 8), BF16))
    visible, seen, _ = masks("packed", 2, 41)
    visible, seen = Visible(visible.first.cpu(), visible.last.cpu()), seen.cpu()
    exact = scores(q.double(), k.double(), 0.4, seen, None)
    ones = torch.ones(2, 41, dtype=torch.float64)
    for room in (1 << 8, 1 << 12, 1 << 16):
        monkeypatch.setattr(blocks, "CPU_BLOCK_BYTES", room)
        monkeypatch.setattr(blocks, "CPU_BLOCK_ROWS", 1)
        for over in ("queries", "seeing"):
            y = attention_columns_reference(q, k, scale=0.4, visible=visible, over=over)
            expected = column_means(exact.softmax(-1), seen, ones, over)
            torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-7)
        norm = log_sum_exp_reference(q, k, scale=0.4, visible=visible)
        torch.testing.assert_close(norm.double(), exact.logsumexp(-1), rtol=1e-6, atol=1e-6)


def test_gradients_flow_through_the_reference():
    """Oracle: autograd through the softmax of all heads; a wanted gradient never runs in Triton."""
    q, k = (x.double().requires_grad_() for x in numbers((1, 4, 2, 9, 4), F32))
    visible, seen, _ = masks("causal", 1, 9)
    target = torch.linspace(-1, 1, 9, device=DEVICE)
    y = attention_columns(q, k, scale=0.5, visible=visible, softcap=4.0)
    got = torch.autograd.grad((y * target).sum(), (q, k))
    p = scores(q, k, 0.5, seen, 4.0).softmax(-1).mean((1, 2))
    torch.testing.assert_close(got, torch.autograd.grad((p * target).sum(), (q, k)), rtol=1e-5, atol=1e-7)


def test_gradients_flow_to_weights_and_sums_over_several_blocks(monkeypatch):
    """Oracle: autograd through the same mean over all rows at once."""
    monkeypatch.setattr(blocks, "CPU_BLOCK_BYTES", 1 << 8)
    monkeypatch.setattr(blocks, "CPU_BLOCK_ROWS", 1)
    q, k = (x.cpu().double() for x in numbers((1, 4, 2, 9, 4), F32))
    s = scores(q, k, 0.5, torch.ones(1, 9, 9, dtype=torch.bool), None)
    weights, target = torch.rand(1, 9, dtype=torch.float64).requires_grad_(), torch.linspace(-1, 1, 9)
    lse = s.logsumexp(-1).requires_grad_()
    p = (s - lse[..., None]).exp().mean(1)
    expected = torch.autograd.grad(((weights @ p)[:, 0] / weights.sum() * target).sum(), (weights, lse))
    y = attention_columns_reference(q, k, lse, scale=0.5, weights=weights)
    got = torch.autograd.grad((y * target).sum(), (weights, lse))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"over": "keys"}, ValueError, "'queries' or 'seeing'.*'keys'"),
        ({"lse": torch.zeros(2, 2, 3)}, ValueError, r"lse .*\(2, 4, 3\).*\(2, 2, 3\)"),
        ({"lse": torch.zeros(2, 4, 3, dtype=torch.int64)}, TypeError, "lse is floating point; got torch.int64"),
        ({"lse": torch.zeros(2, 4, 3, device="meta")}, ValueError, "lse on meta"),
        ({"weights": torch.ones(3)}, ValueError, r"weights .*\(2, 3\).*\(3,\)"),
        ({"k": torch.ones(2, 0, 5, 8)}, ValueError, "4 query and 0 key heads"),
        ({"k": torch.ones(2, 2, 5, 9)}, ValueError, r"attention_columns takes q"),
    ],
    ids=str,
)
def test_a_wrong_call_says_what_is_wrong(change, error, says):
    right = {"q": torch.ones(2, 4, 3, 8), "k": torch.ones(2, 2, 5, 8), "scale": 1.0}
    attention_columns(**right)
    with pytest.raises(error, match=says):
        attention_columns(**{**right, **change})


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
@pytest.mark.parametrize(("kind", "shape"), [("packed", (2, 16, 16, 2025, 72)), ("padded", (2, 28, 4, 1537, 128))])
def test_real_sizes_on_a_gpu(dtype, kind, shape):
    """Oracle: the softmax of all heads in float64, a tower and a decoder; the same bits in every run, no wait."""
    B, L, d = shape[0], shape[3], shape[4]
    q, k = numbers(shape, dtype)
    visible, seen, real = masks(kind, B, L)
    weights, scale = real.float(), d**-0.5
    exact = scores(q.double(), k.double(), scale, seen, None)
    expected = column_means(exact.softmax(-1).nan_to_num(0), seen, weights.double(), "seeing")
    torchs = scores(q, k, scale, seen, None).softmax(-1, dtype=F32).nan_to_num(0)
    allowed = 2 * (column_means(torchs, seen, weights, "seeing") - expected).abs().max()
    norm = exact.logsumexp(-1).float()
    attention_columns(q, k, norm, scale=scale, visible=visible, weights=weights, over="seeing")
    torch.cuda.set_sync_debug_mode("error")
    try:
        runs = [
            attention_columns(q, k, lse, scale=scale, visible=visible, weights=weights, over="seeing")
            for lse in (norm, norm, None, None)
        ]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[2], runs[3])
    for y in runs[::2]:
        assert (y - expected).abs().max() <= allowed + 4e-6 * expected.abs().max()
