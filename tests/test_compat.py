"""What differs between versions of transformers, and what must not move in it, against transformers itself."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from transformers import cache_utils, modeling_outputs
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel
from transformers.models.video_llava.modeling_video_llava import VideoLlavaModel

from tests import tiny
from tests.leaned import rows
from tests.moved import NEWEST, moved
from tests.release import RELEASE
from vtprune.compat import anyres_tiles, feature_layer, joined_frames, picture_base, text_part, with_attention
from vtprune.families.base import family_of

PINPOINTS = {
    "llava-next": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    "onevision": [[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)],
}


@pytest.mark.parametrize(("name", "side"), [("llava-next", 336), ("onevision", 384)])
def test_tiles_are_counted_as_the_model_counts_them(name, side):
    """Oracle: transformers' own count, on 300 random sizes and every pinpoint."""
    sizes = torch.randint(20, 3000, (300, 2), generator=torch.Generator().manual_seed(0))
    sizes = torch.cat([sizes, torch.tensor(PINPOINTS[name])])
    expected = [image_size_to_num_patches(size, PINPOINTS[name], side) for size in sizes.tolist()]
    assert anyres_tiles(sizes, PINPOINTS[name], side) == expected
    assert anyres_tiles(sizes.tolist(), PINPOINTS[name], side) == expected
    assert len(set(expected)) > 1


def test_a_config_with_another_attention_leaves_the_first_as_it_was():
    config = hf.LlavaConfig(attn_implementation="eager")
    changed = with_attention(config, "sdpa")
    assert changed._attn_implementation == "sdpa" and changed.text_config is config.text_config
    assert config._attn_implementation == config.text_config._attn_implementation == "eager"


def test_the_frames_of_a_video_may_come_apart():
    """As LLaVA-NeXT-Video gives them in 5.9. Oracle: token by token."""
    features = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    joined = joined_frames(tuple(features))
    assert [video.tolist() for video in joined] == [[t.tolist() for f in video for t in f] for video in features]
    assert all(torch.equal(a, b) for a, b in zip(joined_frames(joined), joined, strict=True))


def test_a_thinker_may_encode_pictures_itself():
    """As Qwen's Omni thinkers do in 5.9; oracle: parts put together by hand. ViP-LLaVA's layers had a plural."""
    text, encode = SimpleNamespace(layers=()), "get_image_features"
    old = SimpleNamespace(model=text, **{encode: None})
    inner = SimpleNamespace(language_model=text, **{encode: None})
    new = SimpleNamespace(model=inner, **{encode: None})
    assert picture_base(old) is old and text_part(old) is text
    assert picture_base(new) is inner and text_part(inner) is text
    assert picture_base(SimpleNamespace(model=text)) is text
    assert feature_layer(SimpleNamespace(vision_feature_layers=[-2, 6])) == [-2, 6]
    assert feature_layer(SimpleNamespace(vision_feature_layer=-2)) == -2 and feature_layer(SimpleNamespace()) is None


def test_the_newline_that_ends_a_video_is_told_wherever_it_is_added():
    """The encoder of LLaVA-OneVision adds it in 5.23, the model in 5.9. Oracle: two frames of 2 x 2 places by hand."""
    model, arguments = tiny.build("llava_onevision"), {"pixel_values_videos": torch.zeros(1, 2, 3, 28, 28)}
    places = [[0, frame, row, column] for frame in range(2) for row in range(2) for column in range(2)]
    for count in (8, 9):
        features = [torch.zeros(count, 64)]
        (source,) = family_of(model).sources(model, "video", arguments, features)
        assert source.coords.tolist() == [*places, [-1] * 4] and source.patch.tolist() == [True] * 8 + [False]


# ------------------------------------------------------------------------------------------------ what may not move


def test_nothing_that_vtprune_leans_on_has_moved():
    """The first test to read when a new release of transformers fails many: it names what moved, and who uses it."""
    found = moved(rows())
    assert not found, f"transformers {hf.__version__}:\n" + "\n".join(found)


def _renamed_argument(self, cache_position):
    return 0, 0


def _renamed_part(self):
    self.language_model = self.image_encoder = self.video_tower = None


def _other_work(self, inputs_embeds, position_ids, attention_mask, past_key_values):
    return self.layers(position_embeddings=None)


MOVES = [
    (
        cache_utils.DynamicLayer,
        "get_mask_sizes",
        _renamed_argument,
        ["cache_utils:DynamicLayer.get_mask_sizes no longer takes query_length (used by vtprune/cache.py)"],
    ),
    (
        modeling_outputs,
        "BaseModelOutputWithPooling",
        modeling_outputs.BaseModelOutput,
        [
            "modeling_outputs:BaseModelOutputWithPooling no longer has pooler_output "
            "(used by vtprune/families/base.py encoder.py)"
        ],
    ),
    (
        VideoLlavaModel,
        "__init__",
        _renamed_part,
        ["/video_llava:VideoLlavaModel no longer holds image_tower (used by vtprune/families/video_llava.py)"],
    ),
    (
        Qwen3VLTextModel,
        "forward",
        _other_work,
        ["/qwen3_vl:Qwen3VLTextModel.forward no longer says _deepstack_process (used by vtprune/between.py)"],
    ),
    (
        cache_utils,
        "StaticSlidingWindowLayer",
        None,
        [
            "cache_utils no longer has StaticSlidingWindowLayer (used by vtprune/cache.py)",
            "cache_utils:StaticSlidingWindowLayer is gone (used by vtprune/cache.py)",
        ],
    ),
]


@pytest.mark.parametrize("owner, name, instead, expected", MOVES, ids=[move[1] for move in MOVES])
def test_what_moves_is_named_and_nothing_else(owner, name, instead, expected, monkeypatch):
    """Oracle: transformers with one thing renamed or gone, by hand."""
    if instead is None:
        monkeypatch.delattr(owner, name)
    else:
        monkeypatch.setattr(owner, name, instead)
    assert moved(rows()) == [f"transformers {line}" for line in expected]


def test_a_model_that_is_gone_has_moved_unless_the_release_is_older():
    gone = moved([("families/none.py", "has", "/none_such:NoneModel", "visual")])
    line = "transformers models.none_such.modeling_none_such is gone (used by vtprune/families/none.py)"
    assert gone == ([line] if RELEASE >= NEWEST else [])


def test_every_family_s_file_is_in_the_table_and_every_file_in_it_exists():
    library = Path(__file__).parents[1] / "vtprune"
    named = {file for who, *_ in rows() for file in who.split()}
    assert all((library / file).exists() for file in named)
    families = {f"families/{path.name}" for path in (library / "families").glob("*.py")}
    assert families - named == {"families/__init__.py", "families/base.py"} - named
