"""Attention of the vision tower: against eager attention, and its way to the tokens against the features' own way."""

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from tests import tiny
from tests.fake_flash import flash, use_fake_flash  # noqa: F401
from vtprune.families.base import family_of, spread_tile
from vtprune.vision_signals import COLLECTED, spread_signals, vision_taps

CASES = [(name, "image") for name in tiny.FAMILIES]
CASES += [(name, "video") for name in tiny.VIDEO_FAMILIES if name != "internvl"]
WITH_CLASS_TOKEN = ("llava", "llava_next", "llava_next_video", "internvl", "video_llava")
GATHERED = {
    "image": ("pixel_values", "image_grid_thw", "image_sizes", "batch_num_images"),
    "video": ("pixel_values_videos", "video_grid_thw"),
}


def make(name, kind, attn="sdpa", dtype=torch.float32):
    """A model, its family, and the arguments of the encoder for two images of unequal size or two videos."""
    model = tiny.build(name, attn, dtype)
    inputs = tiny.batch(name, "two_images", dtype) if kind == "image" else tiny.video(name, "padded", dtype)
    arguments = {key: inputs[key] for key in GATHERED[kind] if key in inputs}
    if name in ("llava_next", "llava_next_video"):  # sizes that are no pinpoint: padding rows are taken out
        arguments["image_sizes"] = torch.tensor([[26, 24], [19, 56]]) if kind == "image" else None
    if name == "qwen2_5_vl" and kind == "image":  # windows of 2 x 2 tokens: full ones, and cut ones in the second image
        arguments["image_grid_thw"] = torch.tensor([[1, 8, 12], [2, 6, 4]])
        arguments["pixel_values"] = torch.randn(144, 3 * 2 * 14**2, generator=torch.Generator().manual_seed(0)).to(
            dtype
        )
    return model, family_of(model), {key: value for key, value in arguments.items() if value is not None}


def encode(model, kind, arguments, grad=False):
    base = tiny.base_model(model)
    encoder = base.get_image_features if kind == "image" else base.get_video_features
    with torch.set_grad_enabled(grad):
        return family_of(model).features(encoder(**arguments, return_dict=True))


@contextmanager
def watched(family, model, needs):
    """The taps of ``needs``, registered as the engine registers them."""
    handles = [
        module.register_forward_pre_hook(tap, with_kwargs=True) for module, tap in vision_taps(family, model, needs)
    ]
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def collect(model, kind, arguments):
    """(collected scores, features) of one encoder call."""
    collected = {}
    token = COLLECTED.set(collected)
    try:
        return collected, encode(model, kind, arguments)
    finally:
        COLLECTED.reset(token)


def signals(model, family, kind, arguments, *needs):
    """What the engine does: taps, an encoder call, the scores spread over sources. One joined tensor for each need."""
    with watched(family, model, needs):
        collected, features = collect(model, kind, arguments)
    sources = family.sources(model, kind, arguments, list(features))
    got = spread_signals(family, model, kind, arguments, collected, sources)
    assert [[signal.shape[-1] for signal in one.values()] for one in got] == [[len(s)] * len(needs) for s in sources]
    return [torch.cat([one[need] for one in got], -1) for need in needs]


def eager_weights(model, family, kind, arguments, layer, monkeypatch):
    """The (tiles, heads, Q, K) softmax of each call of one tower layer, as eager attention computed it."""
    module = family.vision_layers(model, kind)[layer]
    source, seen = sys.modules[type(module).__module__], []
    name = "vision_eager_attention_forward"  # Llama 4's; the others have one for tower and decoder
    name = name if hasattr(source, name) else "eager_attention_forward"
    eager = getattr(source, name)

    def spy(attn, *args, **kwargs):
        out = eager(attn, *args, **kwargs)
        if attn is module:
            seen.append(out[1])
        return out

    with monkeypatch.context() as patch:
        patch.setattr(source, name, spy)
        model.set_attn_implementation("eager")
        encode(model, kind, arguments)
    return seen


def column_means(name, weights, class_token, arguments):
    """(all patches,) from eager softmaxes: the mean over heads and over the queries of the same image."""
    parts = []
    for weight in weights:
        rows = weight.mean(1)
        if name == "mistral3":  # all images in one sequence, the softmax is zero across their borders
            sides = [(int(h) // 7) * (int(w) // 7) for h, w in arguments["image_sizes"]]
            own = torch.repeat_interleave(torch.tensor(sides), torch.tensor(sides))
            parts.append(rows[0].sum(0) / own)
        else:
            parts.append(rows.mean(1)[:, 1 if class_token else 0 :].flatten())
    return torch.cat(parts)


def arrangement(name, model, family, kind, arguments, class_token, cut_after=None):
    """(tokens, patches): how strongly each visual token depends on each patch where it leaves the tower.

    Taken by differentiating the model's own way from there, or from behind ``cut_after``, to the features.
    """
    tower, leaves = family.towers(model)[kind], []

    def leaf(hidden):
        leaves.append(hidden.detach().requires_grad_())
        return leaves[-1]

    def cut(module, args, output):
        if torch.is_tensor(output):
            return leaf(output)
        output["last_hidden_state"] = leaf(output["last_hidden_state"])
        if output.get("hidden_states") is not None:
            output["hidden_states"] = tuple(h if h is None else leaf(h) for h in output["hidden_states"])
        return output

    cut_after = cut_after or (tower.blocks[-1] if name in tiny.MROPE_FAMILIES else tower)
    handle = cut_after.register_forward_hook(cut)
    try:
        features = torch.cat([f.reshape(-1, f.shape[-1]) for f in encode(model, kind, arguments, grad=True)])
    finally:
        handle.remove()
    out = []
    sides = torch.randn(features.shape[1], generator=torch.Generator().manual_seed(0), dtype=features.dtype)
    for token in features @ sides:
        slopes = torch.autograd.grad(token, leaves, retain_graph=True, allow_unused=True)
        strength = sum(slope.norm(dim=-1) for slope in slopes if slope is not None)
        out.append(strength.reshape(-1, strength.shape[-1])[:, int(class_token) :].flatten())
    return torch.stack(out)


def weights_of(name, kind, moved):
    if name == "llava_onevision" and kind == "video":
        # four patches share a token, so the largest weight of a patch alone is a quarter
        return moved / moved.sum(0) / 4
    support = (moved > 1e-9).to(moved.dtype)
    return support / support.sum(1, keepdim=True).clamp(min=1)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_scores_equal_eager_attention_carried_along_the_features(name, kind, monkeypatch):
    """Oracle: eager softmaxes, carried to tokens by the patches that each feature depends on."""
    model, family, arguments = make(name, kind)
    class_token = family.has_class_token(model, kind)
    assert class_token == (name in WITH_CLASS_TOKEN)
    exact, _, wide = make(name, kind, dtype=torch.float64)
    share = weights_of(name, kind, arrangement(name, exact, family, kind, wide, class_token)).float()

    needs = ["vision_attention", "vision_attention:0"] + ["cls_attention:-3,-2"] * class_token
    last, first, *of_class = signals(model, family, kind, arguments, *needs)
    softmax = [
        eager_weights(model, family, kind, arguments, layer, monkeypatch)
        for layer in (-1, 0, -3, -2)[: 2 + 2 * class_token]
    ]
    for got, weights in ((last, softmax[0]), (first, softmax[1])):
        torch.testing.assert_close(
            got, share @ column_means(name, weights, class_token, arguments), atol=1e-6, rtol=1e-5
        )
        assert got.dtype == torch.float32 and got.std() > 1e-5
    for got in of_class:
        rows = torch.stack([torch.cat(w)[:, :, 0, 1:].transpose(0, 1).flatten(1) for w in softmax[2:]])
        assert got.shape[:2] == (2, 2)
        torch.testing.assert_close(got, rows @ share.T, atol=1e-6, rtol=1e-5)


def test_class_attention_is_rounded_as_eager_attention_rounds_it(monkeypatch):
    """Oracle: eager attention in bfloat16, bit for bit."""
    model, family, arguments = make("llava", "image", "eager", torch.bfloat16)
    (got,) = signals(model, family, "image", arguments, "cls_attention")
    (weights,) = eager_weights(model, family, "image", arguments, -2, monkeypatch)
    assert got.dtype == torch.bfloat16 and got.shape[:2] == (1, 2)
    assert torch.equal(got[0], weights[:, :, 0, 1:].transpose(0, 1).flatten(1))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_back_end_gives_the_same_scores(name, kind, flash):  # noqa: F811
    """Oracle: the scores under sdpa (above: equal to eager's). Flash attention packs images, without a mask."""
    model, family, arguments = make(name, kind)
    need = "cls_attention" if name in WITH_CLASS_TOKEN else "vision_attention"
    (expected,) = signals(model, family, kind, arguments, need)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(signals(model, family, kind, arguments, need)[0], expected, atol=1e-6, rtol=1e-5)
    use_fake_flash(model)
    torch.testing.assert_close(signals(model, family, kind, arguments, need)[0], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind", "sizes", "ratio"),
    [
        ("llava_next", "image", [[19, 56], [56, 30]], None),
        ("llava_next_video", "image", [[19, 56], [56, 30]], None),
        ("llava_onevision", "image", [[19, 56], [56, 30]], "anyres_max_9"),
        ("llava_onevision", "image", [[50, 56], [56, 30]], "anyres_max_1"),  # too many tokens: the rows are resized
        ("llava_onevision", "video", None, None),
    ],
)
def test_anyres_scores_take_the_way_of_the_features(name, kind, sizes, ratio):
    """Oracle: projected features, spread as if they were scores, are the model's own features; newlines are 0."""
    model, family, arguments = make(name, kind)
    if kind == "image":
        crops = torch.randn(2, 5, 3, 28, 28, generator=torch.Generator().manual_seed(1))
        arguments = {"pixel_values": crops, "image_sizes": torch.tensor(sizes)}
        arguments.update({"vision_aspect_ratio": ratio} if ratio else {})
    projected = []
    handle = model.model.multi_modal_projector.register_forward_hook(lambda m, a, out: projected.append(out))
    features = encode(model, kind, arguments)
    handle.remove()
    got = family.spread(model, kind, arguments, projected[0].transpose(1, 2), [len(f) for f in features])
    assert len(got) == len(features) == 2
    for spread, feature in zip(got, features):
        newline = (feature == model.model.image_newline).all(1)
        assert newline.any()
        torch.testing.assert_close(spread.T, feature.masked_fill(newline[:, None], 0))


def test_padded_patches_neither_give_nor_get(monkeypatch):
    """Oracle: eager softmaxes of the real patches alone, in the tile of Idefics3 whose lower half is padding."""
    model, family, arguments = make("idefics3", "image")
    real = torch.ones(1, 2, 56, 56, dtype=torch.bool)
    real[0, 0, 28:] = False
    arguments["pixel_attention_mask"] = real
    (got,) = signals(model, family, "image", arguments, "vision_attention")
    (weights,) = eager_weights(model, family, "image", arguments, -1, monkeypatch)
    above = weights[0].mean(0)[:32].mean(0)
    below = weights[1].mean(0).mean(0)
    blocks = [tile.view(-1, 2, 4, 2).mean((1, 3)).flatten() for tile in (above, below)]
    torch.testing.assert_close(got, torch.cat(blocks), atol=1e-6, rtol=1e-5)
    assert (got[8:16] == 0).all() and (got[:8] > 0).all()


def test_taps_sleep_while_nobody_collects():
    """Oracle: the projections that the tower computes, counted: as many as without taps, one more when collecting."""
    model, family, arguments = make("llava", "image")
    counts = []
    for layer in family.vision_layers(model):
        layer.q_proj.register_forward_hook(lambda *_: counts.append(1))
    plain = encode(model, "image", arguments)
    with watched(family, model, ["cls_attention:-3,-2", "vision_attention:-2"]) as handles:
        assert len(handles) == 2  # one for each layer, not one for each need
        for collecting, projections in ((False, 3), (True, 5)):
            counts.clear()
            features = collect(model, "image", arguments)[1] if collecting else encode(model, "image", arguments)
            assert len(counts) == projections
            assert all(torch.equal(a, b) for a, b in zip(features, plain))
    with watched(family, model, ["last_query_attention"]) as handles:
        assert not handles


def test_threads_collect_their_own_scores():
    """Oracle: the same calls one after the other."""
    model, family, arguments = make("qwen2_5_vl", "image")
    several = [{**arguments, "pixel_values": arguments["pixel_values"] * scale} for scale in (0.2, 0.5, 1.0, 2.0)]
    with watched(family, model, ["vision_attention"]):
        one = [collect(model, "image", some)[0]["vision_attention"][3] for some in several]
        with ThreadPoolExecutor(4) as pool:
            many = list(pool.map(lambda some: collect(model, "image", some)[0]["vision_attention"][3], several * 3))
    assert all(len(scores) == 1 for scores in one + many)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one * 3, many))
    assert not torch.equal(one[0][0], one[1][0])


def test_a_layer_that_did_not_run_is_named():
    model, family, arguments = make("llava", "image")
    sources = family.sources(model, "image", arguments, list(encode(model, "image", arguments)))
    collected = {"cls_attention:-2,-1": {1: [torch.rand(2, 2, 16)]}}
    with pytest.raises(NotImplementedError, match="layer -1 of the vision tower, which did not run"):
        spread_signals(family, model, "image", arguments, collected, sources)


def test_unknown_arrangements_are_refused():
    with pytest.raises(NotImplementedError, match="16 patches .* 5 visual tokens; the family must define spread"):
        spread_tile(torch.rand(1, 16), 5)
    model, family, _ = make("llava", "image")
    with pytest.raises(NotImplementedError, match="3 tiles do not divide among 2"):
        family.spread(model, "image", {}, torch.rand(3, 1, 16), [16, 16])
