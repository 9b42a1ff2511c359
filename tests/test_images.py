"""Pictures: every mode becomes the RGB that its numbers mean, every bad file an error that says so."""

import io
import os
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests import model_folder
from vtprune.images import MAX_ASPECT, MAX_PIXELS, ImageError, read_image, seen_images, to_rgb


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(tmp_path, image: Image.Image, name: str = "picture.png", **more):
    path = tmp_path / name
    image.save(path, **more)
    return path


def pixel(image: Image.Image) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


@pytest.mark.parametrize("name", ["p.png", "p.bmp", "p.ppm", "p.tiff", "p.webp"])
def test_lossless_files_come_back_bit_by_bit(tmp_path, name):
    pixels = noise(11, 7)
    path = saved(tmp_path, Image.fromarray(pixels), name, **({"lossless": True} if name == "p.webp" else {}))
    assert np.array_equal(np.array(read_image(path)), pixels)


# mode and value of a flat picture -> the colour it shows; transparency shows white
FLAT = [
    ("1", 1, (255, 255, 255)),
    ("L", 77, (77, 77, 77)),
    ("LA", (77, 255), (77, 77, 77)),
    ("LA", (77, 0), (255, 255, 255)),
    ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
    ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
    ("RGBA", (0, 100, 200, 51), (204, 224, 244)),  # a fifth of the colour on four fifths of white
]


@pytest.mark.parametrize(("mode", "value", "expected"), FLAT)
def test_flat_modes(tmp_path, mode, value, expected):
    assert pixel(read_image(saved(tmp_path, Image.new(mode, (4, 4), value)))) == expected


def test_palette(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    plain = read_image(saved(tmp_path, image))
    assert [plain.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (200, 100, 50)]
    clear = read_image(saved(tmp_path, image, "clear.png", transparency=1))
    assert [clear.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (255, 255, 255)]


def test_transparent_colour_of_rgb(tmp_path):
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    read = read_image(saved(tmp_path, image, transparency=(1, 2, 3)))
    assert [read.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (9, 9, 9)]


@pytest.mark.parametrize("name", ["p.jpg", "p.tiff"])
def test_cmyk(tmp_path, name):
    """Full cyan takes red away, no ink is white."""
    for ink, colour in (((255, 0, 0, 0), (0, 255, 255)), ((0, 0, 0, 0), (255, 255, 255))):
        read = read_image(saved(tmp_path, Image.new("CMYK", (16, 16), ink), name))
        assert np.abs(np.subtract(pixel(read), colour)).max() <= 3


@pytest.mark.parametrize("name", ["p.png", "p.tiff"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, name):
    values = np.array([[0, 128, 129, 257, 32768, 65534, 65535]], dtype=np.uint16)
    read = read_image(saved(tmp_path, Image.fromarray(values), name))
    assert np.array(read)[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255, 255]  # round(v / 257)


def test_floats_from_zero_to_one(tmp_path):
    read = read_image(saved(tmp_path, Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)), "p.tiff"))
    assert np.array(read)[0, :, 1].tolist() == [0, 128, 255]


@pytest.mark.parametrize("values", [np.array([[0.0, 3.5]], np.float32), np.array([[0.0, np.nan]], np.float32)])
def test_floats_that_are_no_brightness_are_refused(tmp_path, values):
    with pytest.raises(ImageError, match="floats are understood from 0 to 1"):
        read_image(saved(tmp_path, Image.fromarray(values), "p.tiff"))


def test_integers_beyond_16_bits_are_refused(tmp_path):
    with pytest.raises(ImageError, match="run from 0 to 70000"):
        read_image(saved(tmp_path, Image.fromarray(np.array([[0, 70000]], np.int32)), "p.tiff"))


# EXIF orientation -> the upright picture, by numpy
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("name", ["p.png", "p.tiff"])
def test_exif_orientation(tmp_path, name, orientation):
    pixels = noise(5, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(pixels), name, exif=exif)
    assert np.array_equal(np.array(read_image(path)), UPRIGHT[orientation](pixels))


def test_exif_orientation_of_a_photograph(tmp_path):
    """A JPEG that is dark on the left, to be turned clockwise: dark above."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, 16:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    read = np.array(read_image(saved(tmp_path, Image.fromarray(pixels), "p.jpg", exif=exif)))
    assert read.shape == (32, 16, 3) and read[:12].max() < 40 and read[20:].min() > 215


@pytest.mark.parametrize("name", ["p.gif", "p.webp", "p.png"])
def test_of_an_animation_the_first_frame_with_a_warning(tmp_path, name):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], lossless=True)
    with pytest.warns(UserWarning, match="the first of its 3 frames"):
        assert pixel(read_image(path)) == (255, 0, 0)


def test_a_single_pixel(tmp_path):
    assert read_image(saved(tmp_path, Image.new("RGB", (1, 1), (3, 2, 1)))).size == (1, 1)


# ------------------------------------------------------------------------------------------------------ bad files


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, reason in (("", "folder"), ("none.png", "no file"), ("pipe", "regular file")):
        with pytest.raises(ImageError, match=reason):
            read_image(tmp_path / path)
    with pytest.raises(ImageError, match="cannot be read|no file"):
        read_image("x" * 5000)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"Hello there, I am a text file.\n", "no picture"), (b"\0" * 99, "no picture")],
)
def test_what_is_no_picture(tmp_path, content, reason):
    path = tmp_path / "p.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=reason) as error:
        read_image(path)
    assert str(path) in str(error.value)


def test_formats_that_run_programs_are_refused(tmp_path):
    """Pillow writes EPS by itself and hands it to Ghostscript for reading."""
    with pytest.raises(ImageError, match="known format"):
        read_image(saved(tmp_path, Image.new("RGB", (4, 4)), "p.eps"))


@pytest.mark.parametrize("name", ["p.png", "p.jpg", "p.bmp", "p.tiff", "p.webp", "p.gif", "p.ppm"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_truncated_files(tmp_path, name, share):
    path = saved(tmp_path, Image.fromarray(noise(64, 64)), name)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError):
        read_image(path)


def png_that_claims(width: int, height: int) -> bytes:
    """A valid header and a few bytes of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(9000, 9000), (10000, 10000), (50000, 50000)])
def test_a_huge_picture_is_refused_by_its_header(tmp_path, size):
    """Had a pixel been decoded, the file would be called damaged: it holds a thousand bytes."""
    assert size[0] * size[1] > MAX_PIXELS
    path = tmp_path / "p.png"
    path.write_bytes(png_that_claims(*size))
    with pytest.raises(ImageError, match="more than the 80,000,000 pixels"):
        read_image(path)
    path.write_bytes(png_that_claims(100, 100))
    with pytest.raises(ImageError, match="damaged"):
        read_image(path)


def test_the_limit_can_be_set(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (10, 10)))
    assert read_image(path, max_pixels=100).size == (10, 10)
    with pytest.raises(ImageError, match="10 x 10 and has more than the 99 pixels"):
        read_image(path, max_pixels=99)


def test_a_thread_of_a_picture_is_refused(tmp_path):
    assert read_image(saved(tmp_path, Image.new("RGB", (MAX_ASPECT, 1)))).width == MAX_ASPECT
    with pytest.raises(ImageError, match="Crop it first"):
        read_image(saved(tmp_path, Image.new("RGB", (1, MAX_ASPECT + 1))))


def encoded(name: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(24, 24)).save(file, name)
    return file.getvalue()


FILES = {name: encoded(name) for name in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")}


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150)
@given(st.sampled_from(sorted(FILES)), st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=12))
def test_whatever_is_damaged_it_is_a_picture_or_an_image_error(tmp_path_factory, name, changes):
    """Oracle: no other exception leaves, and what comes back is RGB."""
    data = bytearray(FILES[name])
    for place, value in changes:
        data[int(place * len(data))] = value
    path = tmp_path_factory.getbasetemp() / f"damaged.{name.lower()}"
    path.write_bytes(data)
    with suppress(ImageError):
        assert read_image(path).mode == "RGB"


# ------------------------------------------------------------------------------------------------ what models see


def processed(image_processor, *images):
    return image_processor(images=list(images), return_tensors="pt")


def test_to_rgb_leaves_rgb_alone():
    image = Image.fromarray(noise(3, 4))
    assert np.array_equal(np.array(to_rgb(image)), np.array(image))


def test_a_cropped_picture_is_seen_cropped():
    """Oracle: the crop done by hand; the shorter side is 56 already, so nothing is resized."""
    wide, tall = Image.fromarray(noise(56, 112)), Image.fromarray(noise(96, 56, 1))
    processor = model_folder.build_processor()
    inputs = processed(processor.image_processor, wide, tall)
    seen = seen_images([wide, tall], inputs, processor)
    assert np.array_equal(np.array(seen[0]), np.array(wide)[:, 28:84])
    assert np.array_equal(np.array(seen[1]), np.array(tall)[20:76])
    again = seen_images([wide, tall], inputs, processor.image_processor)
    assert np.array_equal(np.array(again[0]), np.array(seen[0]))


def test_a_padded_picture_is_seen_with_its_padding():
    image = Image.fromarray(noise(28, 56))
    side = {"height": 56, "width": 56}
    square = hf.LlavaImageProcessorPil(
        do_pad=True, size=side, crop_size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    (seen,) = seen_images([image], processed(square, image), square)
    seen = np.array(seen)
    assert np.array_equal(seen[14:42], np.array(image)) and np.all(seen[:14] == 127) and np.all(seen[42:] == 127)


def test_unnormalised_pixels_are_colours_too():
    image = Image.fromarray(noise(56, 56))
    plain = hf.CLIPImageProcessorPil(do_resize=False, do_center_crop=False, do_normalize=False)
    (seen,) = seen_images([image], processed(plain, image), plain)
    assert np.array_equal(np.array(seen), np.array(image))


def test_pictures_of_different_sizes_lose_their_padding():
    image, processor = Image.fromarray(noise(14, 28)), model_folder.build_processor().image_processor
    pixels = torch.zeros(1, 3, 28, 28)
    pixels[0, :, :14] = processed(hf.CLIPImageProcessorPil(**NO_RESIZE), image)["pixel_values"][0]
    (seen,) = seen_images([image], {"pixel_values": pixels, "image_sizes": torch.tensor([[14, 28]])}, processor)
    assert np.array_equal(np.array(seen), np.array(image))


NO_RESIZE = {
    "do_resize": False,
    "do_center_crop": False,
    "image_mean": model_folder.MEAN,
    "image_std": model_folder.STD,
}


def test_tokens_that_cover_all_of_it_leave_a_picture_as_it_is():
    """Flat patches (Qwen), and tiles beside a thumbnail (anyres)."""
    images = [Image.fromarray(noise(30, 20)), Image.fromarray(noise(20, 50))]
    processor = model_folder.build_processor()
    for pixels in (torch.zeros(99, 1176), torch.zeros(2, 5, 3, 56, 56)):
        assert seen_images(images, {"pixel_values": pixels}, processor) == images


def test_one_tile_for_each_picture_is_what_is_seen():
    """On the first dimension (OneVision with several pictures) or on the second (Idefics3)."""
    images = [Image.fromarray(noise(56, 56, seed)) for seed in (1, 2)]
    processor = hf.CLIPImageProcessorPil(**NO_RESIZE)
    pixels = processed(processor, *images)["pixel_values"]
    for tiles in (pixels[:, None], pixels[None]):
        seen = seen_images(images, {"pixel_values": tiles, "image_sizes": torch.tensor([[5, 5]] * 2)}, processor)
        assert all(np.array_equal(np.array(one), np.array(image)) for one, image in zip(seen, images, strict=True))


def test_tiles_that_cannot_be_told_apart_are_refused():
    with pytest.raises(ValueError, match="1 pictures went in as pixels of shape .5, 3, 56, 56."):
        seen_images([Image.new("RGB", (9, 9))], {"pixel_values": torch.zeros(5, 3, 56, 56)}, None)
