"""Scenes: what is drawn, asked and answered, against rules written down a second time."""

import hashlib
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from vtprune.embedded.drawing import COLORS, SHAPES, SIZE, TEST_COLUMNS, TRAIN_COLUMNS, assets
from vtprune.embedded.scenes import KINDS, SPLITS, make_scene

PLURALS = {"shapes": ("shape",), "digits": ("digit",), "objects": ("shape", "digit")}


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(seed, split) for seed in range(60) for split in SPLITS]


def recomputed(text, objects):
    """The answer by trying every object on the question's words."""
    words = re.findall(r"[a-z]+|\d", text.lower())
    if words[:2] == ["how", "many"]:
        return str(len([o for o in objects if o.kind in PLURALS[words[2]]]))
    if words[0] == "is":
        return "yes" if [o for o in objects if o.color == words[-2] and o.name == words[-1]] else "no"
    if words[0] == "which":
        (found,) = [o for o in objects if o.kind == words[1] and o.color == words[-1]]
        return found.name
    (found,) = [o for o in objects if o.name == words[-1]]
    if words[0] == "what":
        return found.color
    left, top, right, bottom = found.box
    vertical = "top" if top < SIZE - bottom else "bottom"  # the nearer border
    return f"{vertical} {'left' if left < SIZE - right else 'right'}"


def test_answers_follow_from_the_objects(scenes):
    for scene in scenes:
        for question in scene.questions:
            assert question.answer == recomputed(question.text, scene.objects), (question, scene.objects)


def test_every_kind_is_asked_and_no_balances_yes(scenes):
    asked = [question for scene in scenes for question in scene.questions]
    assert {question.kind for question in asked} == set(KINDS)
    answers = [question.answer for question in asked if question.kind == "exists"]
    assert answers.count("yes") == answers.count("no") == len(answers) / 2


def test_the_picture_shows_the_objects_where_they_are_said_to_be(scenes):
    """Oracle: the pixels. In its box, most pixels that have an object colour at all have this object's colour."""
    names = list(COLORS)
    palette = np.array([COLORS[name] for name in names], float)
    for scene in scenes:
        pixels = np.asarray(scene.image).astype(float)
        for thing in scene.objects:
            left, top, right, bottom = thing.box
            inside = pixels[top:bottom, left:right].reshape(-1, 3)
            # an object is drawn at 85 to 100 % of its colour's brightness
            shades = palette[None] * np.linspace(0.85, 1, 7)[:, None, None]
            distance = np.abs(inside[:, None, None] - shades).max(-1).min(1)
            counts = (distance < 8).sum(0)
            assert counts.argmax() == names.index(thing.color) and counts.max() >= 12, (thing, counts)


def test_boxes_lie_in_the_picture_and_apart(scenes):
    for scene in scenes:
        covered = np.zeros((SIZE, SIZE), int)
        for thing in scene.objects:
            left, top, right, bottom = thing.box
            assert 0 <= left < right <= SIZE and 0 <= top < bottom <= SIZE
            covered[top:bottom, left:right] += 1
        assert covered.max() == 1 and len(scene.objects) >= 2
        assert len({thing.color for thing in scene.objects}) == len({thing.name for thing in scene.objects})


def test_digits_and_crops_of_the_splits_are_disjoint():
    data = assets()
    train, test = ({image.tobytes() for image in data[f"{split}_digits"]} for split in SPLITS)
    assert len(train) > 1300 and len(test) > 400 and not train & test
    assert TRAIN_COLUMNS[1] <= TEST_COLUMNS[0] and TEST_COLUMNS[1] == data["china"].shape[1]


def test_the_digits_are_scikit_learns():
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    known = {image.astype(np.uint8).tobytes(): label for image, label in zip(digits.images, digits.target, strict=True)}
    for split in SPLITS:
        labels = assets()[f"{split}_labels"]
        assert [known[image.tobytes()] for image in assets()[f"{split}_digits"]] == labels.tolist()


def test_same_seed_same_scene_on_every_machine():
    """Oracle: a hash taken once."""
    digest = hashlib.sha256()
    for seed in range(40):
        for split in SPLITS:
            scene = make_scene(seed, split)
            digest.update(scene.image.tobytes() + repr((scene.objects, scene.questions)).encode())
    assert digest.hexdigest() == "535ebe168917e0b333d6248963b01ffb28daed8e36801358bf00178bd36dc55b"


def test_scenes_need_no_scikit_learn_and_the_package_stays_light():
    code = (
        "import sys; sys.modules['sklearn'] = None; import vtprune; before = set(sys.modules); import vtprune.embedded;"
        "print(sorted({'numpy', 'PIL', 'torch', 'transformers'} & (set(sys.modules) - before)));"
        "from vtprune.embedded.scenes import make_scene; make_scene(0)"
    )
    # a checkout that is not installed finds both packages as this process does
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="unknown split 'validation'; known: train, test"):
        make_scene(0, "validation")


def test_shapes_are_all_drawn_differently():
    from vtprune.embedded.drawing import shape_coverage

    masks = [shape_coverage(shape, 21) for shape in SHAPES]
    for i, one in enumerate(masks):
        assert one.max() == 1 and 0.2 < one.mean() < 0.9
        assert all(np.abs(one - other).mean() > 0.05 for other in masks[:i])
