"""What policies see of the vision tower before the projector, against the tower and the projector called by hand."""

import pytest
import torch

import vtprune
from tests import tiny
from tests.policies.golden import load
from vtprune import BEFORE_LLM
from vtprune.attention import Call
from vtprune.tokens import Selection
from vtprune.vision_signals import joint_class_row

NEEDS = ("unprojected", "vision_keys:-2", "cls_attention_joint:-1")


class Look:
    """Keeps everything and remembers what it saw of each sample."""

    sites = (BEFORE_LLM,)

    def __init__(self, *needs):
        self.needs, self.seen = frozenset(needs), []

    def select(self, tokens):
        self.seen.append((tokens, {name: tokens.signals[name] for name in self.needs}))
        return Selection.all(tokens)


@torch.no_grad()
def looked(model, inputs, *needs):
    look = Look(*needs)
    with vtprune.pruned(model, look):
        model(**inputs)
    return look.seen


@torch.no_grad()
def tower_of(model, pixels):
    """The blocks of a CLIP tower, and its hidden states before and after each."""
    tower = model.model.vision_tower
    blocks = [module for module in tower.modules() if hasattr(module, "layer_norm1")]
    return blocks, tower(pixels, output_hidden_states=True).hidden_states


@torch.no_grad()
def test_signals_of_a_clip_tower():
    """Oracle: hidden states, query and key projections of the tower, image by image."""
    model, inputs = tiny.build("llava", "sdpa", torch.float64), tiny.batch("llava", "two_images")
    blocks, states = tower_of(model, inputs["pixel_values"])
    image = 0
    for tokens, seen in looked(model, inputs, *NEEDS):
        for segment in tokens.segments:
            x = states[-2][image]
            torch.testing.assert_close(seen["unprojected"].features[segment.span], x[1:])
            torch.testing.assert_close(seen["unprojected"].classes[segment.source], x[0])
            attn = blocks[-2].self_attn
            key = attn.k_proj(blocks[-2].layer_norm1(states[-3][image]))[1:]
            heads = key.view(len(key), attn.num_heads, -1).permute(1, 2, 0)
            torch.testing.assert_close(seen["vision_keys:-2"][..., segment.span], heads)
            last, normed = blocks[-1].self_attn, blocks[-1].layer_norm1(x)
            scores = last.q_proj(normed)[0] @ last.k_proj(normed).T / normed.shape[1] ** 0.5
            torch.testing.assert_close(seen["cls_attention_joint:-1"][segment.span], scores.softmax(-1)[1:])
            image += 1
    assert image == len(inputs["pixel_values"]) >= 2


@pytest.mark.parametrize(
    ("family", "kind", "class_token"),
    [
        ("llava", "ragged", True),
        ("llava_next", "ragged", True),
        ("llava_next_video", "video", False),
        ("video_llava", "video", False),
        ("internvl", "ragged", False),
        ("llava_onevision", "one", False),
    ],
)
@torch.no_grad()
def test_features_are_in_the_places_of_their_tokens(family, kind, class_token):
    """Oracle: the model's own projector gives the visual tokens that stand in the prompt."""
    model = tiny.build(family, "sdpa", torch.float64)
    inputs = tiny.video(family, "ragged") if kind == "video" else tiny.batch(family, kind)
    for tokens, seen in looked(model, inputs, "unprojected"):
        found = seen["unprojected"]
        assert len(found.features) == len(tokens)
        torch.testing.assert_close(found.project(found.features), tokens.hidden)
        classes = [found.classes[segment.source] for segment in tokens.segments]
        assert all((row is not None) == class_token for row in classes)


@torch.no_grad()
def test_an_image_in_several_tiles_has_the_class_token_of_its_first():
    """Oracle: the tower on the first tile of each image."""
    model, inputs = tiny.build("llava_next", "sdpa", torch.float64), tiny.batch("llava_next", "ragged")
    for sample, (tokens, seen) in zip(inputs.samples, looked(model, inputs, "unprojected"), strict=True):
        _, states = tower_of(model, sample.pixels["pixel_values"][0].to(torch.float64)[:1])
        torch.testing.assert_close(seen["unprojected"].classes[tokens.segments[0].source], states[-2][0, 0])


def test_models_without_such_a_projector_say_so():
    model = tiny.build("qwen2_5_vl")
    with pytest.raises(ValueError, match="no projector that takes one row for each"):
        vtprune.wrap(model, Look("unprojected"))
    with pytest.raises(ValueError, match="has none. Ask for 'vision_attention'"):
        vtprune.wrap(model, Look("cls_attention_joint"))
    with pytest.raises(ValueError, match="takes the index of a layer of the vision tower"):
        vtprune.wrap(model, Look("vision_keys:-2,-1"))


def test_keys_of_a_packed_tower_are_means_over_merged_patches():
    """Oracle: the same number of heads and width as the tower's, one for each visual token, not all the same."""
    model, inputs = tiny.build("qwen2_5_vl", "sdpa", torch.float64), tiny.batch("qwen2_5_vl", "two_images")
    vision = model.config.vision_config
    for tokens, seen in looked(model, inputs, "vision_keys"):
        key = seen["vision_keys"]
        assert key.shape == (vision.num_heads, vision.hidden_size // vision.num_heads, len(tokens))
        assert key.isfinite().all() and key.std(-1).min() > 0


def test_one_joint_head_is_the_released_one(golden):
    """Oracle: the released scores, which are what centres the authors' code picks in order: the largest of the row."""
    case = load(golden("prumerge") / "case03.npz")
    row = joint_class_row([Call(case["query_cls"][None, None, None], case["key"][None, None], 7.0)])[0, 0]
    torch.testing.assert_close(row.sum(), torch.tensor(1.0))  # whatever factor the heads had
    assert row[1:].topk(len(case["centres"])).indices.tolist() == case["centres"].tolist()
