"""attention_rows: reference and kernel against a softmax of all heads in float64."""

import importlib

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vtprune_kernels.attention_columns import Visible
from vtprune_kernels.attention_rows import attention_rows, attention_rows_reference

triton = pytest.importorskip("triton", reason="the kernel needs triton (extra: kernels)")

from vtprune_kernels.attention_rows_triton import attention_rows_triton  # noqa: E402

blocks = importlib.import_module("vtprune_kernels.attention_columns")  # the package has the function of that name
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RUNS = [attention_rows, attention_rows_reference, attention_rows_triton]
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16

# (B, H_q, H_k, R, N, d), dtype, which masks, softcap: below, at and above one tile; one head, shared and own key heads
CASES = [
    ((1, 1, 1, 1, 1, 1), F32, "", None),
    ((2, 4, 2, 17, 33, 20), F32, "first last valid allowed", None),
    ((2, 3, 1, 5, 70, 72), BF16, "last valid", None),
    ((1, 6, 2, 3, 129, 64), F16, "", 2.0),
    ((2, 2, 2, 1, 1025, 8), F32, "valid", None),
    ((1, 2, 1, 35, 64, 130), BF16, "last", None),
]


def random_case(shape: tuple[int, ...], dtype: torch.dtype, masks: str) -> tuple[Tensor, Tensor, Visible]:
    """Random numbers and masks; the scores spread over some units, so that rows are far from uniform."""
    B, heads, groups, R, N, d = shape
    g = torch.Generator().manual_seed(sum(shape))
    q, k = torch.randn(B, heads, R, d, generator=g), torch.randn(B, groups, N, d, generator=g)
    every = {
        "first": torch.randint(-2, N // 2 + 1, (B, R), generator=g),
        "last": torch.randint(N // 3, N + 3, (B, R), generator=g),
        "valid": torch.rand(B, N, generator=g) < 0.7,
        "allowed": torch.rand(B, R, N, generator=g) < 0.7,
    }
    some = Visible(**{name: every[name].to(DEVICE) for name in masks.split()})
    return (2 * q).to(dtype).to(DEVICE), k.to(dtype).to(DEVICE), some


def table(visible: Visible, B: int, R: int, N: int) -> Tensor:
    """(B, R, N) bool: who sees whom, asked one by one."""
    first, last, valid, allowed = (
        None if t is None else t.tolist() for t in (visible.first, visible.last, visible.valid, visible.allowed)
    )

    def sees(b: int, r: int, n: int) -> bool:
        after = first is None or n >= first[b][r]
        before = last is None or n <= last[b][r]
        return after and before and (valid is None or valid[b][n]) and (allowed is None or allowed[b][r][n])

    answers = [[[sees(b, r, n) for n in range(N)] for r in range(R)] for b in range(B)]
    return torch.tensor(answers, dtype=torch.bool).reshape(B, R, N).to(DEVICE)


def eager(q: Tensor, k: Tensor, scale: float, seen: Tensor, softcap: float | None) -> Tensor:
    """(B, H_q, R, N): the oracle in float64, torch's own answer in every other dtype; zero where nothing is seen."""
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(-1, -2) * scale
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen[:, None], -torch.inf)
    return scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).nan_to_num(0)


def check(y: Tensor, expected: Tensor, torchs: Tensor) -> None:
    """At most twice the error of torch's own formulation in the same dtype, and what fp32 does to scores around 10."""
    assert y.dtype == torch.float32 and y.shape == expected.shape
    error, allowed = (y - expected).abs().max(), 2 * (torchs - expected).abs().max()
    assert error <= allowed + 4e-6 * expected.abs().max()


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(("shape", "dtype", "masks", "softcap"), CASES, ids=str)
def test_rows_are_the_mean_softmax(run, shape, dtype, masks, softcap):
    """Oracle: one softmax of all heads in float64, over a table of who sees whom that Python filled."""
    q, k, visible = random_case(shape, dtype, masks)
    B, _, _, R, N, d = shape
    seen, scale = table(visible, B, R, N), d**-0.5
    heads, torch_heads = eager(q.double(), k.double(), scale, seen, softcap), eager(q, k, scale, seen, softcap)
    expected, torchs = heads.mean(1), torch_heads.mean(1)
    call = {"scale": scale, "visible": visible, "softcap": softcap}
    check(run(q, k, **call), expected, torchs)
    check(run(q, k, reduce="largest", **call), heads.amax(1), torch_heads.amax(1))
    weights = torch.linspace(0, 2, R + 1, device=DEVICE)[1:].flip(0).expand(B, R)
    share = weights * seen.any(-1)
    share = (share / share.sum(1, keepdim=True).clamp(min=1e-9))[:, :, None]
    y = run(q, k, weights=weights, reduce="heads+rows", **call)
    check(y, (expected * share).sum(1), (torchs * share).sum(1))


@pytest.mark.parametrize("run", RUNS)
def test_causal_rows_are_those_of_torchs_attention(run):
    """Oracle: scaled_dot_product_attention with the identity as values shows its probabilities."""
    q, k, _ = random_case((2, 4, 2, 19, 19, 16), F32, "")
    values = torch.eye(19, device=DEVICE).expand(2, 2, -1, -1)
    attend = torch.nn.functional.scaled_dot_product_attention
    expected = attend(q, k, values, is_causal=True, scale=0.3, enable_gqa=True).mean(1)
    last = torch.arange(19, device=DEVICE).expand(2, -1)
    torch.testing.assert_close(run(q, k, scale=0.3, visible=Visible(last=last)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("run", RUNS)
def test_every_row_sums_to_one(run):
    q, k, visible = random_case((1, 4, 4, 18, 50, 24), BF16, "valid")
    y = run(q, k, scale=1.0, visible=visible)
    torch.testing.assert_close(y.sum(-1), torch.ones_like(y[..., 0]), rtol=1e-5, atol=0)
    assert (y >= 0).all() and (y[:, :, ~visible.valid[0]] == 0).all()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # inf - inf, in the interpreter
@pytest.mark.parametrize("run", RUNS)
def test_what_is_hidden_leaves_no_trace(run):
    """Oracle: the same call with zeros in the hidden keys and in the row that is dropped, by bits."""
    q, k, visible = random_case((2, 4, 2, 6, 40, 16), F32, "last valid")
    visible.last[:, 2], weights = -1, torch.ones(2, 6, device=DEVICE)
    weights[:, 4], q[:, :, 4] = 0, 0
    assert not visible.valid.all(1).any()
    calls = [{"reduce": "heads"}, {"reduce": "heads+rows", "weights": weights}, {"reduce": "largest"}]
    answers = []
    for poison in (0.0, float("nan"), float("inf")):
        k.transpose(1, 2)[~visible.valid], q[:, :, 2] = poison, poison
        clean = [run(q, k, scale=0.2, visible=visible, **calls[i]) for i in (0, 2)]
        q[:, :, 4] = poison
        answers.append((*clean, run(q, k, scale=0.2, visible=visible, **calls[1])))
        q[:, :, 4] = 0
    assert all(torch.equal(a, b) for other in answers[1:] for a, b in zip(answers[0], other))
    assert answers[0][0].isfinite().all() and (answers[0][0][:, 2] == 0).all()


@pytest.mark.parametrize("run", RUNS)
def test_rows_that_see_nothing_do_not_count(run):
    """Oracle: the call without them, and zeros for the sample that has no others."""
    q, k, _ = random_case((2, 2, 1, 5, 20, 8), F32, "")
    last = torch.tensor([[-1, 19, -7, 19, 4], [-1, -1, -1, -1, -1]], device=DEVICE)
    y = run(q, k, scale=0.5, visible=Visible(last=last), reduce="heads+rows")
    kept = Visible(last=last[:1, [1, 3, 4]])
    torch.testing.assert_close(y[:1], run(q[:1, :, [1, 3, 4]], k[:1], scale=0.5, visible=kept, reduce="heads+rows"))
    assert (y[1] == 0).all()


@pytest.mark.parametrize("run", RUNS)
def test_strides_do_not_matter(run):
    """Oracle: the same numbers in one piece. Heads behind rows, as projections leave them, and part of a cache."""
    q, k, _ = random_case((2, 4, 2, 6, 30, 16), F32, "")
    apart = q.transpose(1, 2).contiguous().transpose(1, 2)
    cache = torch.full((2, 2, 50, 16), float("nan"), device=DEVICE)
    cache[:, :, 7:37] = k
    last = torch.arange(40, 52, device=DEVICE).reshape(6, 2).T - 30
    expected = run(q, k, scale=0.25, visible=Visible(last=last.contiguous()))
    for queries, keys in ((apart, cache[:, :, 7:37]), (q.mT.contiguous().mT, k.mT.contiguous().mT)):
        assert not queries.is_contiguous() and not keys.is_contiguous() and not last.is_contiguous()
        y = run(queries, keys, scale=0.25, visible=Visible(last=last))
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("shape", [(0, 2, 1, 3, 5, 4), (2, 2, 1, 0, 5, 4), (2, 2, 1, 3, 0, 4)], ids=str)
def test_nothing_in_gives_nothing_out(run, shape):
    B, _, _, R, N, _ = shape
    q, k, _ = random_case(shape, F32, "")
    rows = torch.zeros(B, R, dtype=torch.int64, device=DEVICE)
    for visible in (Visible(), Visible(first=rows, last=rows)):
        assert torch.equal(run(q, k, scale=1.0, visible=visible), torch.zeros(B, R, N, device=DEVICE))
        y = run(q, k, scale=1.0, visible=visible, reduce="heads+rows")
        assert y.shape == (B, N) and (R > 0 or (y == 0).all())


def test_kernel_reads_beyond_two_to_the_31():
    """Oracle: three keys a billion numbers apart, two of them written by hand. Untouched pages cost nothing."""
    numpy, step = pytest.importorskip("numpy"), 2**30
    if DEVICE == "cpu":
        far = torch.from_numpy(numpy.zeros(2 * step + 2, dtype=numpy.float16))
    else:
        far = torch.zeros(2 * step + 2, dtype=F16, device=DEVICE)
    k = far.as_strided((1, 1, 3, 2), (far.numel(), far.numel(), step, 1))
    k[0, 0, 1], k[0, 0, 2] = 1, 2
    q = torch.ones(1, 2, 2, 2, dtype=F16, device=DEVICE)
    expected = torch.tensor([0.0, 1.0, 2.0], device=DEVICE).softmax(0).expand(1, 2, 3)
    torch.testing.assert_close(attention_rows_triton(q, k, scale=0.5), expected)


@pytest.mark.parametrize("room", [1 << 8, 1 << 12, 1 << 16])
def test_blocks_of_any_size_give_the_same_rows(room, monkeypatch):
    """Oracle: the softmax in float64. From one row of one key head at a time to everything at once."""
    monkeypatch.setattr(blocks, "CPU_BLOCK_BYTES", room)
    monkeypatch.setattr(blocks, "CPU_BLOCK_ROWS", 1)
    q, k, visible = random_case((2, 6, 3, 13, 37, 8), BF16, "first last valid")
    q, k, visible = q.cpu(), k.cpu(), Visible(visible.first.cpu(), visible.last.cpu(), visible.valid.cpu())
    expected = eager(q.double(), k.double(), 0.4, table(visible, 2, 13, 37).cpu(), None).mean(1)
    y = attention_rows_reference(q, k, scale=0.4, visible=visible)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-7)
    expected = eager(q.double(), k.double(), 0.4, table(visible, 2, 13, 37).cpu(), None).amax(1)
    y = attention_rows_reference(q, k, scale=0.4, visible=visible, reduce="largest")
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-7)


class Largest(TorchDispatchMode):
    """The largest memory, in bytes, that any operation took; views of what was there before take none."""

    def __init__(self, *before: Tensor):
        super().__init__()
        self.before, self.bytes = {t.untyped_storage().data_ptr() for t in before}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if torch.is_tensor(tensor) and tensor.untyped_storage().data_ptr() not in self.before:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("reduce", ["heads", "heads+rows", "largest"])
@pytest.mark.parametrize(("rows", "keys"), [(1, 2000), (200, 1000)])
def test_temporaries_stay_small(reduce, rows, keys, monkeypatch):
    """Oracle: the sizes of all tensors that are made, with 1 MB for a block. The scores of the second case are 13 MB,
    those of one key head 1.6, and the keys of the first in fp32 4 MB. The answer itself is smaller."""
    monkeypatch.setattr(blocks, "CPU_BLOCK_BYTES", 1 << 20)
    q, k = torch.zeros(1, 16, rows, 64, dtype=BF16), torch.zeros(1, 8, keys, 64, dtype=BF16)
    with Largest(q, k) as largest:
        attention_rows_reference(q, k, scale=0.1, reduce=reduce)
    assert 1 << 18 <= largest.bytes <= 1 << 20


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"q": torch.ones(2, 3, 4)}, ValueError, r"attention_rows takes q.*\(2, 3, 4\)"),
        ({"q": torch.ones(2, 3, 3, 8)}, ValueError, "3 query and 2 key heads"),
        ({"q": torch.ones(2, 4, 3, 8, dtype=torch.int64)}, TypeError, "int64"),
        ({"k": torch.ones(2, 2, 5, 8).half()}, TypeError, "k is torch.float32; got torch.float16"),
        ({"visible": Visible(last=torch.zeros(2, 5, dtype=torch.int64))}, ValueError, r"last .*\(2, 3\).*\(2, 5\)"),
        ({"visible": Visible(first=torch.zeros(2, 3))}, TypeError, "first is torch.int64; got torch.float32"),
        ({"visible": Visible(valid=torch.ones(2, 5))}, TypeError, "valid is torch.bool"),
        ({"visible": Visible(allowed=torch.ones(2, 5).bool())}, ValueError, r"allowed .*\(2, 3, 5\)"),
        ({"visible": Visible(valid=torch.ones(2, 5, device="meta").bool())}, ValueError, "cpu and valid on meta"),
        ({"weights": torch.ones(2, 3)}, ValueError, r"reduce='heads\+rows'"),
        ({"weights": torch.ones(2, 3).long(), "reduce": "heads+rows"}, TypeError, "weights is floating point"),
        ({"reduce": "rows"}, ValueError, r"'heads' or 'heads\+rows'.*'largest'.*'rows'"),
        ({"weights": torch.ones(2, 3), "reduce": "largest"}, ValueError, r"reduce='heads\+rows'; got reduce='largest'"),
        ({"softcap": 0.0}, ValueError, "softcap .*got 0.0"),
    ],
    ids=str,
)
def test_a_wrong_call_says_what_is_wrong(change, error, says):
    right = {"q": torch.ones(2, 4, 3, 8), "k": torch.ones(2, 2, 5, 8), "scale": 1.0}
    attention_rows(**right)
    with pytest.raises(error, match=says):
        attention_rows(**{**right, **change})


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
@pytest.mark.parametrize(
    ("rows", "heads", "d"), [(1, (28, 4), 128), (64, (28, 4), 128), (100, (16, 16), 72), (5, (8, 4), 256)]
)
def test_real_sizes_on_a_gpu(dtype, rows, heads, d):
    """Oracle: the eager softmax in float64, rows at the end of a left-padded prompt; and no wait for the device."""
    q, k, _ = random_case((2, *heads, rows, 2880, d), dtype, "")
    last = torch.arange(2880 - rows, 2880, device=DEVICE).expand(2, -1)
    valid = torch.arange(2880, device=DEVICE) >= torch.tensor([[0], [371]], device=DEVICE)
    seen = valid[:, None] & (torch.arange(2880, device=DEVICE) <= last[:, :, None])
    heads, torch_heads = eager(q.double(), k.double(), d**-0.5, seen, None), eager(q, k, d**-0.5, seen, None)
    expected, torchs = heads.mean(1), torch_heads.mean(1)
    attention_rows(q, k, scale=d**-0.5, visible=Visible(last=last, valid=valid))
    torch.cuda.set_sync_debug_mode("error")
    try:
        y = attention_rows(q, k, scale=d**-0.5, visible=Visible(last=last, valid=valid))
        both = attention_rows(q, k, scale=d**-0.5, visible=Visible(last=last, valid=valid), reduce="heads+rows")
        most = attention_rows(q, k, scale=d**-0.5, visible=Visible(last=last, valid=valid), reduce="largest")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    check(y, expected, torchs)
    check(both, expected.mean(1), torchs.mean(1))
    check(most, heads.amax(1), torch_heads.amax(1))
