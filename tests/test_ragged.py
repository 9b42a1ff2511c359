"""Attention without padding against a softmax written out, by every back end; and what its mask is to everyone else."""

import copy
import functools
import pickle
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from vtprune import ragged
from vtprune.ragged import RaggedMask, back_end, check_ragged, one_by_one, packs, through_flash, through_varlen

LENGTHS = [(3, 9, 1), (5, 5), (7, 0), (1, 1, 1, 12)]


def inputs(lengths, heads=4, groups=2, d=8, dv=8, dtype=torch.float64, device="cpu"):
    """Queries, keys and values as attention modules hold them: (B, n, H, d) turned."""
    g, n = torch.Generator().manual_seed(sum(lengths)), max(lengths)
    shapes = ((heads, d), (heads // groups, d), (heads // groups, dv))
    return [torch.randn(len(lengths), n, *s, generator=g).to(device, dtype).transpose(1, 2) for s in shapes]


def mask_of(lengths, device="cpu"):
    """The plain mask and the packed one, by hand: padding on the left, pads see themselves."""
    n = max(lengths)
    valid = torch.zeros(len(lengths), n, dtype=torch.bool)
    plain = torch.eye(n, dtype=torch.bool)[None, None].repeat(len(lengths), 1, 1, 1)
    for b, length in enumerate(lengths):
        valid[b, n - length :] = True
        for i in range(n - length, n):
            plain[b, 0, i, n - length : i + 1] = True
    plain, valid = plain.to(device), valid.to(device)
    return plain, RaggedMask.of(plain.clone(), valid, lengths)


def by_hand(query, key, value, lengths, scale=None):
    """A softmax for every row of every sample, in float64; zeros for padding."""
    query, key, value = (x.double().cpu() for x in (query, key, value))
    out, n = torch.zeros(*query.shape[:3], value.shape[-1], dtype=torch.float64), query.shape[2]
    groups, scale = query.shape[1] // key.shape[1], query.shape[-1] ** -0.5 if scale is None else scale
    for b, length in enumerate(lengths):
        for h in range(query.shape[1]):
            for i in range(n - length, n):
                keys = key[b, h // groups, n - length : i + 1]
                out[b, h, i] = (keys @ query[b, h, i] * scale).softmax(0) @ value[b, h // groups, n - length : i + 1]
    return out


@pytest.mark.parametrize(("groups", "dv", "scale"), [(1, 8, None), (2, 8, 0.3), (4, 5, None)])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_attention_with_the_mask_is_a_softmax_over_each_sample(lengths, groups, dv, scale):
    """Oracle: by hand; and for what is not padding, torch with the plain mask."""
    q, k, v = inputs(lengths, groups=groups, dv=dv)
    plain, packed = mask_of(lengths)
    more = {"scale": scale, "enable_gqa": groups > 1}
    got = F.scaled_dot_product_attention(q, k, v, attn_mask=packed, **more)
    assert type(got) is torch.Tensor and got.transpose(1, 2).is_contiguous()
    torch.testing.assert_close(got, by_hand(q, k, v, lengths, scale), atol=1e-12, rtol=0)
    masked = F.scaled_dot_product_attention(q, k, v, plain, 0.0, False, **more)
    real = packed.valid[:, None, :, None]
    torch.testing.assert_close(got, masked * real, atol=1e-12, rtol=0)
    assert bool(real.all()) or not torch.equal(got, masked), "the plain mask was used"


def test_gradients_go_through():
    """Oracle: autograd through torch with the plain mask."""
    lengths, found = (3, 6), []
    for mask in mask_of(lengths):
        q, k, v = (x.detach().requires_grad_() for x in inputs(lengths, groups=1))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        (out * mask_of(lengths)[1].valid[:, None, :, None]).square().sum().backward()
        found.append([x.grad for x in (q, k, v)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


# ---------------------------------------------------------------------------------------- what the mask is to others


def test_to_everyone_else_it_is_a_plain_mask():
    """Oracle: the same functions of the plain mask."""
    plain, packed = mask_of((3, 9))
    for f in (
        *(torch.logical_not, lambda m: m & True, lambda m: m[:, :, 2:], lambda m: m[:, 0, -1], torch.clone),
        *(lambda m: m.to(torch.float32), lambda m: torch.where(m, 0.0, -1.0), lambda m: m.expand(2, 4, -1, -1)),
        *(lambda m: m.repeat_interleave(2, 0), lambda m: m[[1, 0]], lambda m: m.flip(3)[..., :]),
    ):
        assert type(f(packed)) is torch.Tensor and torch.equal(f(packed), f(plain))
    for copied in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert type(copied) is torch.Tensor and torch.equal(copied, plain)
    assert "True" in repr(packed) and packed.shape == plain.shape and packed.device == plain.device


def test_it_stays_what_it_is_when_all_of_it_is_taken():
    """As models and accelerate take it: cut to the keys' length, moved to where it is, made contiguous."""
    _, packed = mask_of((3, 9))
    for same in (packed[:, :, :, :9], packed[:, :, -9:, :12], packed.to("cpu"), packed.contiguous(), packed[...]):
        assert type(same) is RaggedMask and same.lengths == (3, 9)


@pytest.mark.parametrize("case", ["fewer queries", "more keys", "another batch", "dropout", "written into"])
def test_what_it_was_not_made_for_is_masked(case, monkeypatch):
    """Oracle: torch with the plain mask; the packed way would fail."""
    plain, packed = mask_of((3, 9))
    q, k, v = inputs((3, 9), groups=1)
    more, cut = {}, lambda m: m
    if case == "fewer queries":
        q, cut = q[:, :, -2:], lambda m: m[:, :, -2:]
    elif case == "more keys":
        k, v = (F.pad(x, (0, 0, 0, 3)) for x in (k, v))
        cut = lambda m: F.pad(m, (0, 3))  # noqa: E731
    elif case == "another batch":
        (q, k, v), cut = (x[:1] for x in (q, k, v)), lambda m: m[:1]
    elif case == "dropout":
        more = {"dropout_p": 1e-300}
    else:
        plain[0, 0, 8, 7] = packed[0, 0, 8, 7] = False
    monkeypatch.setattr(ragged, "back_end", lambda *args: pytest.fail("packed"))
    got, expected = (F.scaled_dot_product_attention(q, k, v, attn_mask=cut(m), **more) for m in (packed, plain))
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


def test_it_works_in_inference_mode():
    with torch.inference_mode():
        q, k, v = inputs((3, 9), groups=1)
        got = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_of((3, 9))[1])
        torch.testing.assert_close(got, by_hand(q, k, v, (3, 9)), atol=1e-12, rtol=0)


def test_a_mask_of_the_models_own_is_packed_if_it_is_causal_and_no_more():
    """Oracle: by hand. What padding sees makes no difference; anything else does."""
    plain, packed = mask_of((3, 9))
    other = plain.clone()
    other[0, 0, :6] = True
    for mask in (plain, other):
        assert type(RaggedMask.if_causal(mask, packed.valid, (3, 9))) is RaggedMask
    for i, j, seen in ((8, 6, False), (7, 8, True), (8, 0, True)):
        window = plain.clone()
        window[0, 0, i, j] = seen
        assert RaggedMask.if_causal(window, packed.valid, (3, 9)) is window
    for mask in (plain.float(), plain.repeat(1, 2, 1, 1), plain[..., 1:]):
        assert RaggedMask.if_causal(mask, packed.valid, (3, 9)) is mask


# ----------------------------------------------------------------------------------------------- FlashAttention's kind


def checked(q, k, v, cu_q, cu_k, max_q, max_k, causal, scale, grouped):
    """The contract of FlashAttention's kernels, on the CPU: half precision, int32 ends, plain ints; fp32 inside."""
    assert q.dtype == k.dtype == v.dtype and q.dtype in (torch.float16, torch.bfloat16), "half precisions only"
    assert q.dim() == k.dim() == v.dim() == 3 and k.shape == v.shape and len(q) == len(k)
    assert all(x.stride(-1) == 1 for x in (q, k, v)) and q.shape[2] == k.shape[2] <= 256 and q.shape[2] % 8 == 0
    assert q.shape[1] == k.shape[1] or (grouped and q.shape[1] % k.shape[1] == 0), "heads"
    assert cu_q.dtype == cu_k.dtype == torch.int32 and cu_q.is_contiguous() and torch.equal(cu_q, cu_k)
    assert type(max_q) is type(max_k) is int and max_q == max_k == int(cu_q.diff().max()) and int(cu_q[-1]) == len(q)
    assert causal
    out, scale = torch.empty_like(q), q.shape[-1] ** -0.5 if scale is None else scale
    for a, b in zip(cu_q.tolist(), cu_q.tolist()[1:]):
        keys, values = (x[a:b].float().repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q[a:b].float(), keys) * scale
        scores = scores.masked_fill(torch.ones(b - a, b - a).triu(1).bool(), -torch.inf)
        out[a:b] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).to(q)
    return out


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False,
    block_table=None,
):  # fmt: skip
    """flash-attn 2.8."""
    assert dropout_p == 0
    return checked(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, softmax_scale, True)


def varlen_attn_210(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    return checked(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal, None, False)


def varlen_attn_211(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    causal = window_size == (-1, 0)
    return checked(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, causal, scale, False)


def varlen_attn_212(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1),
    enable_gqa=False, seqused_k=None, block_table=None, num_splits=None,
):  # fmt: skip
    causal = window_size == (-1, 0)
    return checked(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, causal, scale, enable_gqa)


KERNELS = {
    "flash-attn": through_flash(flash_attn_varlen_func),
    "torch 2.10": through_varlen(varlen_attn_210),
    "torch 2.11": through_varlen(varlen_attn_211),
    "torch 2.12": through_varlen(varlen_attn_212),
}


@pytest.mark.parametrize(("groups", "scale"), [(1, None), (2, 0.3)])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_are_asked_as_they_want_to_be(kernel, lengths, groups, scale, monkeypatch):
    """Oracle: by hand, in float64 of the same half-precision numbers; stand-ins with the kernels' signatures."""
    monkeypatch.setattr(ragged, "back_end", lambda query, value: KERNELS[kernel])
    q, k, v = inputs(lengths, groups=groups, dtype=torch.bfloat16)
    more = {"scale": scale, "enable_gqa": groups > 1}
    got = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_of(lengths)[1], **more)
    expected = by_hand(q, k, v, lengths, scale)
    assert got.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits; where the scale is not the kernel's own, torch 2.10 rounds the queries once more
    torch.testing.assert_close(got.double(), expected, atol=2e-2, rtol=1e-2)
    assert not got.transpose(1, 2)[~mask_of(lengths)[1].valid].any()


@pytest.mark.parametrize("groups", [1, 2])
def test_the_installed_torch_takes_what_it_is_given(groups):
    """Oracle: torch's own function and its checks, on tensors without numbers, which need no GPU."""
    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="torch is older than 2.10")

    @functools.wraps(varlen.varlen_attn)
    def shapes(*args, **kwargs):
        out = varlen.varlen_attn(*(x.to("meta") if isinstance(x, torch.Tensor) else x for x in args), **kwargs)
        return torch.ones(out.shape, dtype=out.dtype)

    q, k, v = inputs((3, 9), groups=groups, dtype=torch.bfloat16)
    mask = mask_of((3, 9))[1]
    got = through_varlen(shapes)(q, k, v, mask, 0.3)
    assert torch.equal(got.transpose(1, 2), mask.valid[..., None, None].expand(2, 9, 4, 8).to(torch.bfloat16))


@pytest.mark.parametrize(
    ("device", "dtype", "widths", "capability", "installed", "expected"),
    [
        ("cuda", torch.bfloat16, (128, 128), (9, 0), "flash varlen", "flash"),
        ("cuda", torch.float16, (64, 64), (8, 0), "varlen", "varlen"),
        ("cuda", torch.bfloat16, (128, 128), (8, 9), "", "one by one"),
        ("cuda", torch.float32, (128, 128), (9, 0), "flash varlen", "one by one"),
        ("cuda", torch.bfloat16, (128, 128), (7, 5), "flash varlen", "one by one"),
        ("cuda", torch.bfloat16, (512, 512), (9, 0), "flash varlen", "one by one"),
        ("cuda", torch.bfloat16, (192, 128), (9, 0), "flash varlen", "one by one"),
        ("cuda", torch.bfloat16, (20, 20), (9, 0), "flash varlen", "one by one"),
        ("cpu", torch.bfloat16, (128, 128), (9, 0), "flash varlen", "one by one"),
    ],
)
def test_the_back_end_is_one_that_can(device, dtype, widths, capability, installed, expected, monkeypatch):
    """Oracle: by hand, from what FlashAttention says it takes."""
    for name in ("flash", "varlen"):
        monkeypatch.setattr(ragged, f"{name}_attend", lambda name=name: name if name in installed.split() else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    kind = SimpleNamespace(type=device)
    query, value = (SimpleNamespace(device=kind, dtype=dtype, shape=(2, 4, 9, width)) for width in widths)
    assert back_end(query, value) == (one_by_one if expected == "one by one" else expected)


def test_the_words_and_where_they_pack():
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    found = {(word, device.type): packs(word, "sdpa", device) for word in ragged.RAGGED for device in (cpu, gpu)}
    assert {key for key, packed in found.items() if packed} == {("auto", "cpu"), ("packed", "cpu"), ("packed", "cuda")}
    kinds = ("eager", "flex_attention", "flash_attention_2", "sdpa_paged")
    assert not any(packs("packed", kind, device) for kind in kinds for device in (cpu, gpu))
    with pytest.raises(ValueError, match="'auto', 'padded', 'packed'; got 'flash'"):
        check_ragged("flash")


# ---------------------------------------------------------------------------------------------------------- on a GPU


def real_kernel(name):
    made = {"flash": ragged.flash_attend, "varlen": ragged.varlen_attend, "one by one": lambda: one_by_one}[name]()
    if made is None:
        pytest.skip({"flash": "flash-attn is not installed", "varlen": "torch is older than 2.10"}[name])
    return made


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("d", "scale"), [(64, None), (128, 0.05)])
@pytest.mark.parametrize("groups", [1, 7])
@pytest.mark.parametrize("name", ["flash", "varlen", "one by one"])
def test_kernels_on_a_gpu(name, groups, d, scale, dtype):
    """Oracle: by hand in float64; at most twice the error of torch with the plain mask, and a rounding."""
    lengths, attend = (70, 300, 1), real_kernel(name)
    q, k, v = inputs(lengths, heads=7, groups=groups, d=d, dv=d, dtype=dtype, device="cuda")
    plain, packed = mask_of(lengths, "cuda")
    expected = exact(q, k, v, packed, plain, scale)
    got = attend(q, k, v, packed, scale).double()
    real = packed.valid[:, None, :, None]
    masked = F.scaled_dot_product_attention(q, k, v, attn_mask=plain, scale=scale, enable_gqa=groups > 1).double()
    own = ((masked - expected) * real).abs().max()
    assert not (got * ~real).any() and bool(got.isfinite().all())
    assert (got - expected).abs().max() <= 2 * own + torch.finfo(dtype).eps


def exact(q, k, v, packed, plain, scale):
    """A masked softmax in float64, zeros for padding; the loop by hand takes minutes at such lengths."""
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    return scores.masked_fill(~plain, -torch.inf).softmax(-1) @ v * packed.valid[:, None, :, None]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_packs_when_told_to(dtype):
    """Oracle: the last rows of the CPU's answer, through the same mask; float32 goes one by one."""
    lengths = (70, 300)
    q, k, v = inputs(lengths, groups=1, d=64, dv=64, dtype=dtype)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_of(lengths)[1])
    got = F.scaled_dot_product_attention(q.cuda(), k.cuda(), v.cuda(), attn_mask=mask_of(lengths, "cuda")[1])
    torch.testing.assert_close(got.cpu(), expected, atol=1e-5 if dtype == torch.float32 else 3e-2, rtol=0)
