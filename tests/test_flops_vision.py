"""FLOPs of vision towers and projectors against torch's own counter, for every family, images and videos."""

import inspect
from functools import wraps

import pytest
import torch
import transformers as hf
from torch import nn

from tests import tiny
from tests.test_flops import assert_same, count, counted, model_of
from vtprune.families.base import family_of
from vtprune.flops import Flops, attention_rows_flops
from vtprune.flops_vision import vision_flops


def named(method, *args, **kwargs) -> dict:
    """The arguments of an encoder call by name, with its kind."""
    bound = inspect.signature(method).bind(*args, **kwargs).arguments
    return {**bound, **bound.pop("kwargs", {}), "kind": "video" if "video" in method.__name__ else "image"}


def recorded(model: nn.Module, inputs: dict) -> list[dict]:
    """The arguments, by name, of the encoder calls in a forward of ``inputs``; not of calls that such a call makes."""
    base, calls, running = tiny.base_model(model), [], []

    def recording(method):
        @wraps(method)
        def call(*args, **kwargs):
            if not running:  # Qwen3-VL encodes videos by its own method for images
                calls.append(named(method, *args, **kwargs))
            running.append(method)
            try:
                return method(*args, **kwargs)
            finally:
                running.pop()

        return call

    names = [name for name in ("get_image_features", "get_video_features") if hasattr(base, name)]
    for name in names:
        setattr(base, name, recording(getattr(base, name)))
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for name in names:
            delattr(base, name)
    return calls


def compare(model: nn.Module, inputs: dict) -> tuple[Flops, Flops]:
    """What the formulas say of a forward's pictures, and what the counter saw outside decoder and head."""
    calls = []
    counter = count(lambda: calls.extend(recorded(model, inputs)))
    assert calls
    base, text = tiny.base_model(model), tiny.text_model(model)
    parts = [name for name, child in base.named_children() if text not in child.modules()]
    # a list is not called, its modules are
    lists = {part: len(getattr(base, part)) for part in parts if isinstance(getattr(base, part), nn.ModuleList)}
    parts = [part for part in parts if part not in lists] + [f"{at}.{i}" for at, n in lists.items() for i in range(n)]
    parts = parts if base is model else [f"model.{part}" for part in parts]
    seen = {name.split(".", 1)[-1] for name in counter.get_flop_counts()}
    theirs = sum((counted(counter, part) for part in parts if part in seen), Flops())
    return vision_flops(model, base, calls), theirs


@pytest.mark.parametrize("kind", ["one", "ragged"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_images_equal_the_counter(family, kind):
    """Oracle: torch's counter around the vision tower and the projector of the unwrapped model."""
    mine, theirs = compare(model_of(family), tiny.batch(family, kind, torch.float32))
    assert_same(mine, theirs)


@pytest.mark.parametrize("family", tiny.VIDEO_FAMILIES)
def test_videos_equal_the_counter(family):
    """Oracle: the same counter."""
    mine, theirs = compare(model_of(family), tiny.video(family, "ragged", torch.float32))
    assert_same(mine, theirs)


# ------------------------------------------------------------------------------- shapes that the tiny batches lack


def encode(model: nn.Module, pixels: torch.Tensor, kind: str = "image", **arguments) -> tuple[Flops, Flops]:
    """Formulas and counter for one encoder call; its first argument has had several names."""
    method = getattr(model.model, f"get_{kind}_features")
    counter = count(lambda: method(pixels, **arguments))
    return vision_flops(model, model.model, [named(method, pixels, **arguments)]), counted(counter)


@pytest.mark.parametrize("family", tiny.MROPE_FAMILIES)
@pytest.mark.parametrize("grids", [[(1, 6, 10)], [(3, 2, 14), (1, 10, 6)], [(2, 12, 4), (2, 8, 8), (1, 2, 2)]])
def test_grids_of_any_shape(family, grids):
    """Oracle: the counter. Windows of Qwen2.5-VL hold 2 x 2 merged patches here, so most of these leave a rest."""
    pixels = torch.randn(sum(t * h * w for t, h, w in grids), 3 * 2 * 14**2)
    assert_same(*encode(model_of(family), pixels, image_grid_thw=torch.tensor(grids)))
    assert_same(*encode(model_of(family), pixels, "video", video_grid_thw=torch.tensor(grids)))


@pytest.mark.parametrize("full", [[3], [0, 1, 2], []])
def test_windows_one_by_one(full):
    """Oracles: the counter, and the windows cut by hand: 6 x 10 patches are 3 x 5 merged ones, in windows of 2 x 2."""
    model = tiny.build("qwen2_5_vl", dtype=torch.float32)
    tower = model.model.visual
    tower.fullatt_block_indexes = tower.config.fullatt_block_indexes = full
    windows = [4 * high * wide for high in (2, 1) for wide in (2, 2, 1)]  # 4 patches in each merged one
    assert sum(windows) == 60
    pairs = (4 - len(full)) * sum(n * n for n in windows) + len(full) * 60 * 60
    mine, theirs = encode(model, torch.randn(60, 1176), image_grid_thw=torch.tensor([[1, 6, 10]]))
    assert_same(mine, theirs)
    assert mine.attention == mine.attention_causal == 4 * 32 * pairs
    shapes = {"pixel_values": (60, 1176), "image_grid_thw": [[1, 6, 10]]}
    assert vision_flops(model, model.model, [shapes]) == mine


@pytest.mark.parametrize(
    ("family", "side", "strategy"),
    [("llava", 28, "default"), ("llava", 28, "full"), ("video_llava", 28, "full"), ("internvl", 56, "default")],
)
def test_the_class_token_is_projected_or_not(family, side, strategy):
    """Oracle: the counter; the strategy of a call goes before that of the config."""
    pixels = torch.randn(2, 3, side, side)
    assert_same(*encode(model_of(family), pixels, vision_feature_select_strategy=strategy))


@pytest.mark.parametrize("sizes", [[(56, 56)], [(28, 56), (56, 42), (14, 14)]])
def test_pictures_of_their_own_sizes(sizes):
    """Oracles: the counter, as one masked sequence holds all pictures; and the pairs inside each picture, by hand."""
    model = model_of("mistral3")
    mine, theirs = encode(model, torch.randn(len(sizes), 3, 56, 56), image_sizes=torch.tensor(sizes))
    assert_same(mine, theirs)
    patches = [h * w // 49 for h, w in sizes]
    layers = model.config.vision_config.num_hidden_layers
    assert mine.attention == layers * 4 * 32 * sum(patches) ** 2
    assert mine.attention_causal == layers * 4 * 32 * sum(n * n for n in patches)


def test_flash_attention_keeps_pictures_apart():
    """Oracle: the pairs inside each picture, by hand; only what the config says changes, nothing is run."""
    model = tiny.build("mistral3", dtype=torch.float32)
    call = {"pixel_values": (2, 3, 56, 56), "image_sizes": [(28, 56), (56, 42)]}
    packed = vision_flops(model, model.model, [call])
    model.model.vision_tower.config._attn_implementation_internal = "flash_attention_2"
    apart = vision_flops(model, model.model, [call])
    layers = model.config.vision_config.num_hidden_layers
    assert apart.attention == apart.attention_causal == packed.attention_causal == layers * 4 * 32 * (32**2 + 48**2)
    assert apart.linear == packed.linear


@pytest.mark.parametrize("family", ["idefics3", "smolvlm"])
def test_pictures_that_are_all_zero_are_not_encoded(family):
    """Oracle: the counter; given a shape, every picture counts, as if none were zero."""
    pixels = torch.randn(2, 3, 3, 56, 56)
    full = encode(model_of(family), pixels.clone())
    pixels[0, 1:] = 0
    part = encode(model_of(family), pixels)
    assert_same(*full)
    assert_same(*part)
    assert part[0].total * 6 == full[0].total * 4
    assert vision_flops(model_of(family), model_of(family).model, [{"pixel_values": pixels.shape}]) == full[0]


def test_smolvlm_encodes_one_picture_where_all_are_zero():
    assert_same(*encode(model_of("smolvlm"), torch.zeros(1, 2, 3, 56, 56)))


def test_crops_without_their_padding():
    """Oracle: the counter; five-dimensional pixels hold padding crops, four-dimensional ones do not."""
    model, sizes = model_of("llava_next"), torch.tensor([(56, 56), (28, 28)])  # 5 and 2 crops
    five = encode(model, torch.randn(2, 5, 3, 28, 28), image_sizes=sizes)
    four = encode(model, torch.randn(7, 3, 28, 28), image_sizes=sizes)
    assert_same(*five)
    assert_same(*four)
    assert five[0] == four[0]


# ------------------------------------------------------------------------------------------- towers of other kinds


def llava_with(vision: hf.PreTrainedConfig) -> nn.Module:
    text = hf.LlamaConfig(**tiny_text())
    strategy = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1, "image_seq_length": 16}
    config = hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=100, **strategy)
    return hf.LlavaForConditionalGeneration(config).eval()


def tiny_text() -> dict:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 128}
    return {**sizes, "num_attention_heads": 4, "num_key_value_heads": 2}


TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 7}


@pytest.mark.parametrize("head", [False, True])
def test_siglip_with_and_without_its_pooling_head(head):
    """Oracle: the counter; the head's one query per picture attends to all patches."""
    model = llava_with(hf.SiglipVisionConfig(**TOWER, image_size=28, vision_use_head=head))
    assert any(isinstance(m, nn.MultiheadAttention) for m in model.modules()) == head
    assert_same(*encode(model, torch.randn(3, 3, 28, 28)))


def test_llava_with_a_pixtral_tower():
    """Oracle: the counter."""
    model = llava_with(hf.PixtralVisionConfig(**TOWER, image_size=56))
    assert_same(*encode(model, torch.randn(2, 3, 56, 56), image_sizes=torch.tensor([(28, 56), (56, 42)])))


@pytest.mark.parametrize("mode", ["average", "conv"])
@pytest.mark.parametrize("side", [28, 35])
def test_video_frames_are_pooled_before_the_projector(mode, side):
    """Oracle: the counter, for even and odd grids; a convolution that pools counts too."""
    config = hf.LlavaNextVideoConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER, image_size=side),
        text_config=hf.LlamaConfig(**tiny_text()),
        spatial_pool_mode=mode,
        image_grid_pinpoints=[[side, side]],
    )
    model = hf.LlavaNextVideoForConditionalGeneration(config).eval()
    assert_same(*encode(model, torch.randn(2, 3, 3, side, side), "video"))


def test_calls_add_up():
    """Oracle: the counter around two calls; images and videos of one prompt are two calls."""
    model = model_of("qwen2_5_vl")
    pictures = {"pixel_values": torch.randn(32, 1176), "image_grid_thw": torch.tensor([(1, 4, 8)])}
    clips = {"pixel_values_videos": torch.randn(48, 1176), "video_grid_thw": torch.tensor([(3, 4, 4)])}
    counter = count(
        lambda: (model.model.get_image_features(**pictures), model.model.get_video_features(**clips)),
    )
    assert_same(vision_flops(model, model.model, [pictures, clips]), counted(counter))
    assert vision_flops(model, model.model, []) == Flops()


# ----------------------------------------------------------------------------------------------- signals, mistakes


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_attention_rows_of_a_tower(family):
    """Oracle: the weights of the query, key and value projections in the tower's first block."""
    tower = family_of(model_of(family)).towers(model_of(family))["image"]
    depth = getattr(tower.config, "depth", None) or tower.config.num_hidden_layers
    blocks = next(m for m in tower.modules() if isinstance(m, nn.ModuleList) and len(m) == depth)
    inputs = [
        m for name, m in blocks[0].named_modules() if name.rsplit(".")[-1] in ("q_proj", "k_proj", "v_proj", "qkv")
    ]
    weights = sum(m.weight.numel() for m in inputs)
    mine = attention_rows_flops(tower.config, 3, 50, peek=True, query_rows=50, value_rows=50)
    assert mine.linear == 2 * 50 * weights > 0
    assert mine.attention == 2 * 3 * 50 * 32


def test_what_is_not_known_is_refused():
    """A wrong number would be worse than none."""
    model = llava_with(hf.Siglip2VisionConfig(**TOWER, num_patches=16))
    with pytest.raises(NotImplementedError, match="'llava' with a tower 'siglip2_vision_model'"):
        vision_flops(model, model.model, [{"pixel_values": (1, 3, 28, 28)}])
    with pytest.raises(ValueError, match=r"one of pixel_values_videos, pixel_values.*got \['image_sizes'\]"):
        vision_flops(model_of("llava"), model_of("llava").model, [{"image_sizes": [(28, 28)]}])
    with pytest.raises(ValueError, match='"image" or "video"; got \'audio\''):
        vision_flops(model_of("llava"), model_of("llava").model, [{"pixel_values": (1, 3, 28, 28), "kind": "audio"}])
    with pytest.raises(NotImplementedError, match="no family for model_type 'llama'"):
        text = hf.LlamaModel(hf.LlamaConfig(**tiny_text()))
        vision_flops(text, text, [{"pixel_values": (1, 3, 28, 28)}])
