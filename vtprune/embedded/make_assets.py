"""Builds ``scene_assets.npz`` (handwritten digits and two photographs) from scikit-learn's bundled data; run once.

``python -m vtprune.embedded.make_assets`` needs scikit-learn and pillow; drawing scenes afterwards needs neither.
"""

from pathlib import Path

import numpy as np

ASSETS = Path(__file__).with_name("scene_assets.npz")
TEST_EVERY = 4  # every fourth digit is kept for the test split
PHOTO_SIZE = (320, 213)


def digit_arrays() -> dict[str, np.ndarray]:
    """The 1,797 digits, (n, 8, 8) uint8 in 0..16 with their labels, those of the test split apart.

    A test digit whose pixels equal those of a training digit would be a leak, so such a one is left out.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = data.images.astype(np.uint8), data.target.astype(np.uint8)
    test = np.arange(len(images)) % TEST_EVERY == TEST_EVERY - 1
    seen = {image.tobytes() for image in images[~test]}
    test_rows = np.array([i for i in np.flatnonzero(test) if images[i].tobytes() not in seen])
    return {
        "train_digits": images[~test],
        "train_labels": labels[~test],
        "test_digits": images[test_rows],
        "test_labels": labels[test_rows],
    }


def photo_arrays() -> dict[str, np.ndarray]:
    """The two photographs at half size, (213, 320, 3) uint8."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos = zip(("china", "flower"), load_sample_images().images, strict=True)
    return {name: np.asarray(Image.fromarray(photo).resize(PHOTO_SIZE)) for name, photo in photos}


def main() -> None:
    np.savez_compressed(ASSETS, **digit_arrays(), **photo_arrays())


if __name__ == "__main__":
    main()
