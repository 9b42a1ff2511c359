"""Pictures: reads a file as RGB, whatever it holds, and turns what a processor made of a picture into a picture again.

A file that is damaged, too large, or no picture is refused with an error that says so.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

MAX_PIXELS = 80_000_000
"""Width times height that is still read: 240 MB as RGB."""

MAX_ASPECT = 200
"""The longer side over the shorter; a processor that resizes the shorter side would make a huge picture of more."""

# formats whose decoders draw pixels; others run programs (EPS) or are documents
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")

# what Pillow's decoders raise on damaged files
_DAMAGE = (OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError)
_DAMAGE += (struct.error,)


class ImageError(ValueError):
    """A picture that cannot be read; the message names the file, what is allowed and the next step."""


def read_image(path: str | Path | bytes, max_pixels: int = MAX_PIXELS, name: str = "the picture") -> Image.Image:
    """The picture in a file as RGB, upright as its EXIF orientation says.

    path:       a file or the bytes of one: AVIF, BMP, GIF, JPEG, JPEG 2000, PNG, PPM, TIFF or WebP.
    max_pixels: larger pictures are refused by what their header says, before any pixel is decoded.
    name:       what errors call bytes.

    Transparent pixels are laid on white. 16 bits per channel become 8 by scale, not by clipping. Of an animation the
    first frame is read, with a warning.
    Raises ImageError for a missing, unreadable, damaged or too large file, and for numbers that are no brightness.
    """
    if isinstance(path, bytes):
        if not path:
            raise ImageError(f"{name} is empty (0 bytes)")
        file, path = io.BytesIO(path), Path(name)
    else:
        file = path = Path(path)
        _check_file(path)
    Image.init()
    try:
        image = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError:
        raise ImageError(
            f"{path} is no picture of a known format ({', '.join(FORMATS)}); convert it to PNG or JPEG"
        ) from None
    except Image.DecompressionBombError:
        raise ImageError(f"{path} {_too_large(max_pixels)}") from None
    except _DAMAGE as error:
        raise ImageError(f"{path} cannot be opened as a picture: {_reason(error)}") from error
    with image:
        _check_size(path, image, max_pixels)
        try:
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            image.load()
            picture = to_rgb(ImageOps.exif_transpose(image))
        except _DAMAGE as error:
            raise ImageError(f"{path} is damaged or incomplete: {_reason(error)}. Save or download it again") from error
    if frames > 1:
        warnings.warn(f"{path} is animated; the first of its {frames} frames is read", stacklevel=2)
    return picture


def _check_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise ImageError(f"{path} is a folder; give picture files, for instance {path}/picture.png")
        if not path.exists():
            raise ImageError(f"there is no file {path}; give the path of a picture")
        if not path.is_file():
            raise ImageError(f"{path} is no regular file; give the path of a picture")
        if not path.stat().st_size:
            raise ImageError(f"{path} is empty (0 bytes); save or download it again")
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {_reason(error)}") from error


def _check_size(path: Path, image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"{path} is {width} x {height} and {_too_large(max_pixels)}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(
            f"{path} is {width} x {height}; one side may be at most {MAX_ASPECT} times the other. Crop it first"
        )


def _too_large(max_pixels: int) -> str:
    return f"has more than the {max_pixels:,} pixels that are allowed; make it smaller first"


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as RGB: transparency on white, 16 bits and floats by scale.

    Raises ValueError for integers of more than 16 bits and for floats outside 0 to 1.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"its numbers run from {values.min()} to {values.max()}; 8 or 16 bits are understood")
        return _gray((values + 128) // 257)
    if image.mode == "F":
        values = np.asarray(image)
        # not (a and b), so that a NaN is refused too
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(
                f"its numbers run from {values.min()} to {values.max()}; floats are understood from 0 to 1"
            )
        return _gray(np.rint(values * 255))
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    return image.convert("RGB")


def _gray(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def seen_images(images: Sequence[Image.Image], inputs: Mapping, processor) -> list[Image.Image]:
    """What the model sees of each picture: resized, cropped and padded as its processor did, with colours again.

    images: the pictures that went into the processor. inputs: what came out. processor: it, or its image processor.

    A picture that goes in as one square or rectangle of pixels is made of these pixels, so that cropping and padding
    show. One whose tokens cover all of it (flat patches, or tiles beside a thumbnail) is returned as it is.
    Raises ValueError where tiles cannot be told apart.
    """
    pixels, sizes, count = inputs["pixel_values"], inputs.get("image_sizes"), len(images)
    if pixels.dim() == 2 or (pixels.dim() == 5 and len(pixels) == count and pixels.shape[1] > 1):
        return list(images)
    if pixels.dim() == 5:
        # one tile each, padded to a square; the sizes are those of the files
        pixels, sizes = pixels.flatten(0, 1), None
    if pixels.dim() != 4 or len(pixels) != count:
        raise ValueError(
            f"{count} pictures went in as pixels of shape {tuple(inputs['pixel_values'].shape)}: which tile shows what "
            "is known to that processor only. Switch tiling off (do_image_splitting, crop_to_patches, do_pan_and_scan)"
        )
    shown = [_colours(one, getattr(processor, "image_processor", processor)) for one in pixels]
    if sizes is None:
        return shown
    # pictures of different sizes are padded on the right and below
    return [one.crop((0, 0, int(width), int(height))) for one, (height, width) in zip(shown, sizes, strict=True)]


def _colours(pixels: Tensor, image_processor) -> Image.Image:
    """(3, H, W) normalised pixels as a picture."""
    values = pixels.float().cpu().permute(1, 2, 0).numpy()
    if getattr(image_processor, "do_normalize", False):
        values = values * np.asarray(image_processor.image_std) + np.asarray(image_processor.image_mean)
    scale = image_processor.rescale_factor if getattr(image_processor, "do_rescale", False) else 1
    return Image.fromarray(np.clip(np.rint(values / scale), 0, 255).astype(np.uint8))
