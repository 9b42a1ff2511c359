"""FasterVLM, against the released code's picks and a real CLIP tower."""

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.policies.golden import load
from vtprune.policies.fastervlm import FasterVLM
from vtprune.tokens import Segment, VisualTokens


def tokens_of(rows):
    """Visual tokens whose [CLS] rows (heads, N) are known."""
    n = rows.shape[-1]
    hidden = torch.zeros(n, 2)
    return VisualTokens(hidden, hidden[:1], (Segment(slice(0, n)),), {"cls_attention:-2": rows[None]})


def test_released_results_are_met(golden):
    """Oracle: the authors' code, image by image."""
    paths = sorted(golden("fastervlm").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        for rows, keep in zip(case["cls_attn"], case["keep"], strict=True):
            policy = FasterVLM(n_keep=int(case["k"]))
            assert policy.select(tokens_of(rows)).keep.tolist() == keep.tolist(), path.name


def test_worked_example():
    """The head mean is (.1, .1, .4, .4); either head alone, or the first three patches, would keep others."""
    rows = torch.tensor([[0.05, 0.15, 0.5, 0.3], [0.15, 0.05, 0.3, 0.5]])
    assert FasterVLM(n_keep=2).select(tokens_of(rows)).keep.tolist() == [2, 3]
    assert FasterVLM(n_keep=1).select(tokens_of(rows)).keep.tolist() == [2], "a tie goes to the lowest index"
    assert FasterVLM(keep_ratio=0.3).select(tokens_of(torch.full((2, 5), 0.2))).keep.tolist() == [0, 1]


def test_it_says_what_it_reads():
    assert FasterVLM().needs == {"cls_attention:-2"} and FasterVLM(layer=-3).needs == {"cls_attention:-3"}
    assert FasterVLM(signal="vision").needs == {"vision_attention"}
    assert FasterVLM().positions == "compact" and FasterVLM().notes == ()
    for option, value in (("layer", 1.5), ("layer", True), ("signal", "both")):
        with pytest.raises(ValueError, match=option) as error:
            FasterVLM(**{option: value})
        assert repr(value) in str(error.value)


@torch.no_grad()
def test_a_wrapped_model_keeps_what_its_tower_looks_at():
    """Oracle: eager attention maps of the tower; then ``generate`` on a prompt made of the kept features alone."""
    model, inputs = tiny.build("llava", "eager", torch.float64), tiny.batch("llava", "one")
    maps = model.model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions
    row = maps[-2][0, :, 0, 1:].mean(0)
    keep = row.topk(round(0.25 * len(row))).indices.sort().values
    kept, columns = ~tiny.visual(inputs), tiny.visual(inputs)[0].nonzero().flatten()
    kept[0, columns[keep]] = True
    expected = oracle.shortened(model, inputs, kept, 4)
    with vtprune.pruned(model, "fastervlm", keep_ratio=0.25) as report:
        found = tiny.greedy(model, inputs, 4)
        assert report.kept()[0].rows.tolist() == keep.tolist()
    torch.testing.assert_close(torch.cat(found.logits), torch.cat(expected.logits), rtol=0, atol=1e-9)


def test_a_tower_without_a_class_token_uses_the_stand_in_and_says_so():
    """Oracle: another policy of the same rule."""
    model, inputs, kept = tiny.build("qwen2_5_vl"), tiny.batch("qwen2_5_vl", "two_images"), []
    for name in ("vtc_cls", "fastervlm"):
        with vtprune.pruned(model, name, keep_ratio=0.4) as report:
            tiny.greedy(model, inputs, 1)
            kept.append(report.sites[0].kept)
            assert any("stand in for its class token" in note for note in report.notes)
    assert all(map(torch.equal, *kept))
