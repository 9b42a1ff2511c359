"""Generated scenes: coloured shapes and handwritten digits on a texture or photograph, with questions and answers.

The same seed gives the same picture and questions on every machine. Digits and photograph crops of the two splits are
disjoint. Shapes, digits and colours do not repeat inside a scene, so every question has one answer.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vtprune.embedded.drawing import COLORS, SHAPES, SIZE, assets, background, digit_coverage, paint, shape_coverage

SPLITS = ("train", "test")
KINDS = ("color", "shape", "digit", "digit_color", "exists", "where", "count")
MIDDLE_MARGIN = 5  # pixels: nothing is asked about the place of an object nearer to a centre line
SHAPE_SIDES = (16, 25)  # pixels, upper end excluded
DIGIT_SIDE, DIGIT_STEP = 24, 8  # pixels; digits lie on a lattice, so that a small tower can learn to read them
_GAP = 2  # pixels between objects, and to the border


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    kind:  "shape" or "digit".
    name:  "circle", ..., or "0" to "9".
    color: a key of ``COLORS``.
    box:   (left, top, right, bottom) in pixels, the last two excluded.
    """

    kind: str
    name: str
    color: str
    box: tuple[int, int, int, int]

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) in pixels."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True)
class Question:
    """A question about a scene: its kind (one of ``KINDS``), its English text and the expected answer."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Scene:
    """A picture (RGB, ``SIZE`` x ``SIZE``), what is on it, and what can be asked about it."""

    image: Image.Image
    objects: tuple[SceneObject, ...]
    questions: tuple[Question, ...]


def make_scene(seed: int, split: str = "train") -> Scene:
    """The scene number ``seed`` of a split ("train" or "test")."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    rng = np.random.Generator(np.random.PCG64([seed, SPLITS.index(split)]))
    n_shapes, n_digits = int(rng.integers(1, 5)), int(rng.integers(3))
    return draw(rng, split, n_shapes, max(n_digits, 2 - n_shapes))


def draw(rng: np.random.Generator, split: str, n_shapes: int, n_digits: int) -> Scene:
    """A scene with that many shapes and digits at most: what finds no free place is left out."""
    canvas = background(rng, split)
    objects = []
    for kind, name, color, coverage in _cast(rng, split, n_shapes, n_digits):
        place = _free_place(rng, coverage.shape[0], DIGIT_STEP if kind == "digit" else 1, objects)
        if place is None:
            continue
        left, top = place
        paint(canvas, coverage, left, top, np.array(COLORS[color]) * rng.uniform(0.85, 1.0))
        side = coverage.shape[0]
        objects.append(SceneObject(kind, name, color, (left, top, left + side, top + side)))
    pixels = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
    return Scene(Image.fromarray(pixels), tuple(objects), tuple(ask(rng, objects)))


def _cast(rng: np.random.Generator, split: str, n_shapes: int, n_digits: int) -> list[tuple[str, str, str, np.ndarray]]:
    """Who shall appear: (kind, name, color, coverage), the digits first because they have fewer places to go."""
    digits, labels = assets()[f"{split}_digits"], assets()[f"{split}_labels"]
    cast = []
    for label in rng.permutation(10)[:n_digits]:
        rows = np.flatnonzero(labels == label)
        digit = digits[rows[rng.integers(len(rows))]]
        cast.append(("digit", str(label), digit_coverage(digit, DIGIT_SIDE, rng.uniform(-0.2, 0.2))))
    for i in rng.permutation(len(SHAPES))[:n_shapes]:
        cast.append(("shape", SHAPES[i], shape_coverage(SHAPES[i], int(rng.integers(*SHAPE_SIDES)))))
    colors = [list(COLORS)[i] for i in rng.permutation(len(COLORS))]
    return [(kind, name, color, coverage) for (kind, name, coverage), color in zip(cast, colors, strict=False)]


def _free_place(rng: np.random.Generator, side: int, step: int, objects: list[SceneObject]) -> tuple[int, int] | None:
    """(left, top), multiples of ``step``, of a square that touches no other object; None if forty tries found none."""
    first, last = -(-_GAP // step), (SIZE - side - _GAP) // step
    for left, top in step * rng.integers(first, last + 1, (40, 2)):
        boxes = (other.box for other in objects)
        if all(
            left >= right + _GAP or left + side + _GAP <= x or top >= bottom + _GAP or top + side + _GAP <= y
            for x, y, right, bottom in boxes
        ):
            return int(left), int(top)
    return None


def place_of(thing: SceneObject) -> str | None:
    """ "top left", "bottom right", ...; None when the object is too near to a centre line to say."""
    x, y = thing.center
    if min(abs(x - SIZE / 2), abs(y - SIZE / 2)) < MIDDLE_MARGIN:
        return None
    return f"{'top' if y < SIZE / 2 else 'bottom'} {'left' if x < SIZE / 2 else 'right'}"


def ask(rng: np.random.Generator, objects: list[SceneObject]) -> list[Question]:
    """All questions about the objects: what each is, where it is, how many there are, and as many "no" as "yes"."""
    questions = []
    for thing in objects:
        kind = {"shape": "color", "digit": "digit_color"}[thing.kind]
        questions.append(Question(kind, f"What color is the {thing.name}?", thing.color))
        questions.append(Question(thing.kind, f"Which {thing.kind} is {thing.color}?", thing.name))
        place = place_of(thing)
        if place:
            questions.append(Question("where", f"Where is the {thing.name}?", place))
    for noun in ("shape", "digit", "object"):
        n = sum(noun in (thing.kind, "object") for thing in objects)
        questions.append(Question("count", f"How many {noun}s are there?", str(n)))
    return questions + _exists(rng, objects)


def not_there(
    rng: np.random.Generator, color: str, name: str, names: Sequence[str], colors: Collection[str]
) -> tuple[str, str]:
    """A colour and a name that do not go together, from a thing that is there.

    names, colors: of all that is there. Half of the answers have both among them, if there are two names; the others
    lack the one or the other.
    """
    trick, others = rng.integers(4), [other for other in names if other != name]
    if trick < 2 and others:
        return color, others[rng.integers(len(others))]
    if trick < 3:
        absent = [other for other in SHAPES if other not in names]
        return color, absent[rng.integers(len(absent))]
    absent = [other for other in COLORS if other not in colors]
    return absent[rng.integers(len(absent))], name


def _exists(rng: np.random.Generator, objects: list[SceneObject]) -> list[Question]:
    """Two questions to be answered "yes", and for each a "no".

    Half of the "no" have colour and name in the picture, but not together; the others lack the one or the other.
    """
    names, colors = [o.name for o in objects], [o.color for o in objects]
    questions = []
    for i in rng.permutation(len(objects))[:2]:
        thing = objects[i]
        color, name = not_there(rng, thing.color, thing.name, names, colors)
        questions.append(Question("exists", f"Is there a {thing.color} {thing.name}?", "yes"))
        questions.append(Question("exists", f"Is there a {color} {name}?", "no"))
    return questions
