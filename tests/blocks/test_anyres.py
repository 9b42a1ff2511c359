"""Anyres images: their crops against the arrangement that the models themselves make."""

import pytest
import torch

from tests import tiny
from tests.policies.tiles import anyres_tokens
from vtprune.blocks.anyres import Anyres, anyres, tile_rows
from vtprune.families.base import family_of
from vtprune.tokens import Segment

PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
# the last but one lies across two crops, the last in the middle one of three
SIZES = [(28, 56), (56, 56), (40, 56), (41, 56), (30, 90), (90, 30), (100, 70), (37, 113), (25, 21), (9, 9)]


@pytest.mark.parametrize("size", SIZES)
def test_crops_are_those_of_the_model(size):
    """Oracle: the model's own packing of tiles whose features are the number of the tile and of the patch in it."""
    model = tiny.build("llava_next_video", dtype=torch.float32)  # tiles of 28 pixels, 4 x 4 patches
    model.config.image_grid_pinpoints = [[28, 84]] if size == (9, 9) else PINPOINTS
    family, arguments = family_of(model), {"image_sizes": torch.tensor([size])}
    [count] = family.tiles(model, arguments)
    numbers = torch.cartesian_prod(torch.arange(count), torch.arange(16)).view(count, 16, 2).float()
    [packed] = family.pack(model, arguments, [numbers], torch.full((2,), -1.0))
    [source] = family.sources(model, "image", arguments, [packed])
    patches = packed[source.patch].long()
    segment = Segment(slice(0, len(patches)), source.grids, crops=source.crops)
    views = anyres(segment, source.coords[source.patch])
    assert isinstance(views, Anyres)
    assert patches[views.thumbnail].tolist() == [[0, i] for i in range(16)]
    assert (patches[views.canvas, 0] - 1).tolist() == views.crop.tolist()
    tiles = [patches[rows] for rows in tile_rows(segment, source.coords[source.patch])]
    assert len(views.sizes) == count - 1
    numbers = [set(tile[:, 0].tolist()) for tile in tiles]
    assert numbers == [{number} for number, size in enumerate([16, *views.sizes]) if size]
    for tile in tiles:
        assert tile[:, 1].tolist() == sorted(tile[:, 1].tolist())
    assert [len(tile) for tile in tiles[1:]] == [size for size in views.sizes if size]


@pytest.mark.parametrize("size", [(140, 140), (100, 140), (140, 83)])
def test_crops_shrink_with_the_canvas(size):
    """Oracle: the model's own packing of tiles that hold their number as one of 25 features, which it interpolates."""
    model = tiny.build("llava_onevision", dtype=torch.float32)
    model.config.image_grid_pinpoints = [[140, 140]]  # 5 x 5 tiles of 4 x 4 patches, of which the model leaves 9 tiles
    family, arguments = family_of(model), {"image_sizes": torch.tensor([size]), "vision_aspect_ratio": "anyres_max_9"}
    numbers = torch.cat([torch.zeros(1, 25), torch.eye(25)])[:, None].expand(26, 16, 25)
    [packed] = family.pack(model, arguments, [numbers.contiguous()], torch.full((25,), -1.0))
    [source] = family.sources(model, "image", arguments, [packed])
    segment = Segment(slice(0, int(source.patch.sum())), source.grids, crops=source.crops)
    views = anyres(segment, source.coords[source.patch])
    assert views.crops == (5, 5) and max(views.size) < 20
    seen = packed[source.patch][views.canvas]
    best, second = seen.topk(2, 1).values.T
    clear = best - second > 0.1
    assert clear.float().mean() > 0.7
    assert torch.equal(seen.argmax(1)[clear], views.crop[clear])


def test_thumbnail_patches_lie_in_the_crop_of_their_centre():
    """Three crops in a line; a thumbnail of 4 columns: centres at 1.5, 4.5, 7.5 and 10.5 of 12."""
    tokens = anyres_tokens(3, 1, 4, {})
    views = anyres(tokens.segments[0], tokens.coords)
    assert views.shown.view(4, 4)[0].tolist() == [0, 1, 1, 2]
    assert (views.shown.view(4, 4) == views.shown[:4]).all()
    # with a row of padding above and below, two crops show 6 rows: centres at 1.75, 3.25, 4.75 and 6.25 of 8
    tokens = anyres_tokens(1, 2, 4, {}, top=1)
    views = anyres(tokens.segments[0], tokens.coords)
    assert views.shown.view(4, 4)[:, 0].tolist() == [0, 0, 1, 1] and views.sizes == [12, 12]


def test_an_image_has_crops_only_if_both_views_are_whole():
    tokens = anyres_tokens(2, 1, 4, {})
    [segment] = tokens.segments
    assert isinstance(anyres(segment, tokens.coords), Anyres)
    assert anyres(Segment(slice(0, 47), segment.grids), tokens.coords[:47]) is None
    assert anyres(Segment(slice(0, 48), (*segment.grids, (1, 1, 1))), tokens.coords) is None
    assert anyres(Segment(slice(0, 48), ((1, 4, 4),)), tokens.coords) is None
    assert anyres(segment, torch.full((48, 4), -1)) is None
    assert anyres(segment, None) is None
    assert tile_rows(segment, None)[0].tolist() == list(range(48))
