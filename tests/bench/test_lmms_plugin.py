"""The model for lmms-eval, beside stand-ins for the few names it takes from there; `make test-lmms` runs the real one.

Oracle: the harness's own path to the same model, and counts that are written out here.
"""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from PIL import Image

from vtprune.bench.ask import ask, read_prompts, write_prompt
from vtprune.bench.condition import Condition
from vtprune.embedded.clips import make_clip
from vtprune.embedded.scenes import make_scene
from vtprune.lmms_eval.answer import Manner, read_manner, until_stop
from vtprune.lmms_eval.chat import Reading, Turn, read_messages, write_chat
from vtprune.lmms_eval.settings import read_settings
from vtprune.models import load

TOLD: list[dict] = []
LOGGED: list[str] = []


@dataclass
class TokenCounts:
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass
class GenerationResult:
    text: str
    token_counts: TokenCounts | None = None


@dataclass
class Instance:
    args: tuple


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None


class lmms:  # noqa: N801
    is_simple = True

    def __init__(self):
        self._rank, self.task_dict, self.cleaned = 0, {}, False

    @property
    def rank(self):
        return self._rank

    @staticmethod
    def _resolve_system_prompt(value):
        return value

    def clean(self):
        self.cleaned = True


def log_metrics(total_elapsed_time, total_gen_tokens, avg_speed, additional_metrics=None):
    TOLD.append({"tokens": total_gen_tokens, **additional_metrics})


class Log:
    def info(self, text):
        LOGGED.append(text)

    warning = info


@pytest.fixture
def model(monkeypatch):
    """``vtprune.lmms_eval.model``, imported beside the stand-ins."""
    parts = {
        "lmms_eval.api.instance": {
            "GenerationResult": GenerationResult,
            "Instance": Instance,
            "TokenCounts": TokenCounts,
        },
        "lmms_eval.api.model": {"lmms": lmms},
        "lmms_eval.models.model_utils.gen_metrics": {"log_metrics": log_metrics},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
        "loguru": {"logger": Log()},
    }
    for name, values in parts.items():
        for end in range(name.count(".") + 1):
            package = ".".join(name.split(".")[: end + 1])
            monkeypatch.setitem(sys.modules, package, sys.modules.get(package) or types.ModuleType(package))
        stand_in = types.ModuleType(name)
        vars(stand_in).update(values)
        monkeypatch.setitem(sys.modules, name, stand_in)
    TOLD.clear()
    LOGGED.clear()
    monkeypatch.delitem(sys.modules, "vtprune.lmms_eval.model", raising=False)
    import vtprune.lmms_eval.model as found

    yield found
    sys.modules.pop("vtprune.lmms_eval.model", None)


@pytest.fixture(scope="module")
def pictures():
    return load("embedded-image", device="cpu")


@pytest.fixture(scope="module")
def clips():
    return load("embedded-video", device="cpu")


def user(*content):
    return [{"role": "user", "content": [typed(one) for one in content]}]


def typed(one):
    if isinstance(one, Image.Image):
        return {"type": "image", "url": one}
    return {"type": "text", "text": one} if isinstance(one, str) else one


def requests(messages, kwargs=None, task="scenes"):
    kwargs = kwargs or {"max_new_tokens": 8, "temperature": 0.0, "until": ["\n\n"]}
    made = [Instance(("", lambda doc: doc, dict(kwargs), i, task, "test")) for i in range(len(messages))]
    return made, {task: {"test": messages}}


def scene_questions(n):
    scenes = [make_scene(5000 + i, "test") for i in range(n)]
    return [(scene.image, question.text) for scene in scenes for question in scene.questions[:2]]


@pytest.mark.parametrize(
    ("more", "condition", "kept"),
    [
        ({"policy": "none"}, Condition("full"), 144),
        ({"policy": "fastv", "keep_ratio": 0.1, "layer": 3}, Condition("policy", "fastv", ("layer=3",), 0.1), 14),
    ],
)
def test_answers_and_counts(model, pictures, more, condition, kept):
    """Batches of two of one kind; a question without a picture stands between those with one."""
    asked = scene_questions(2)
    messages = [user(picture, text) for picture, text in asked]
    messages.insert(1, user("Which digit is red?"))
    made, task_dict = requests(messages)
    lm = model.VTPrune(pretrained="embedded-image", batch_size="2", device="cpu", **more)
    lm.task_dict = task_dict
    results = lm.generate_until(made)
    ours = []
    for first in (0, 2):
        prompts = [write_prompt(pictures, text, [picture]) for picture, text in asked[first : first + 2]]
        ours += ask(pictures, read_prompts(pictures, prompts), condition, 8)
    del results[1]
    assert [one.text for one in results] == [said.raw for said in ours]
    assert [one.token_counts.output_tokens for one in results] == [said.new_tokens for said in ours]
    (told,) = TOLD
    assert (told["visual_tokens"], told["visual_tokens_kept"]) == (4 * 144, 4 * kept)
    assert told["prompts_without_visuals"] == 1
    assert f"kept {4 * kept:,} of 576 visual tokens" in LOGGED[-1]


def test_a_policy_that_prunes_nothing_is_told(model):
    lm = model.VTPrune(pretrained="embedded-image", policy="fastv", keep_ratio=1, device="cpu")
    made, lm.task_dict = requests([user(*scene_questions(1)[0])])
    lm.generate_until(made)
    assert "nothing was pruned" in LOGGED[-1]


def test_clips_are_read_by_us(model, clips, tmp_path):
    """An animation of one frame a second: four of those between two seconds. Two frames make 16 visual tokens."""
    path = str(tmp_path / "clip.webp")
    frames = [Image.fromarray(frame) for frame in make_clip(5000, "test", 16).frames]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=1000, lossless=True)
    question = "How many different shapes appear?"
    part = {"type": "video", "url": {"path": path, "video_start": 4.0, "video_end": 12.0}}
    same = {"type": "video", "url": path, "start_time": 4.0, "end_time": 12.0}
    lm = model.VTPrune(
        pretrained="embedded-video", policy="framefusion", keep_ratio=0.5, max_num_frames=4, device="cpu"
    )
    made, lm.task_dict = requests([user(part, question), user(same, question)])
    one, other = lm.generate_until(made)
    assert one == other
    assert TOLD[0]["visual_tokens"] == 2 * 2 * 16
    (turn,) = read_messages(user(part, question), Reading(4))
    assert len(turn.parts[0]) == 4 and turn.parts[0].seconds[0] >= 4 and turn.parts[0].seconds[-1] <= 12
    (turn,) = read_messages(user(part, question), Reading(8, fps=0.5))
    assert turn.parts[0].seconds.tolist() == [4, 6, 8, 10, 12]


def test_what_cannot_be_read_ends_the_run(model, tmp_path):
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    lm = model.VTPrune(pretrained="embedded-image", policy="none", device="cpu")
    broken = {"type": "image", "url": str(tmp_path / "damaged.png")}
    made, lm.task_dict = requests([user(broken, "Which digit is red?")])
    with pytest.raises(ValueError, match=r"question 0 of scenes \(test\): .*damaged.png"):
        lm.generate_until(made)
    made, lm.task_dict = requests([user({"type": "audio", "url": "a.wav"}, "Who speaks?")])
    with pytest.raises(NotImplementedError, match="shows 'audio'"):
        lm.generate_until(made)


def test_what_is_not_answered_says_so(model):
    lm = model.VTPrune(pretrained="embedded-image", policy="none", device="cpu")
    with pytest.raises(NotImplementedError, match="generate_until"):
        lm.loglikelihood([])
    with pytest.raises(NotImplementedError, match="one round"):
        lm.generate_until_multi_round([])
    lm.clean()
    assert lm.cleaned and lm.loaded is None


def test_the_manifest_names_the_class(model):
    manifest = model.manifest()
    module, _, name = manifest.chat_class_path.rpartition(".")
    assert (manifest.model_id, module) == ("vtprune", model.__name__)
    assert getattr(model, name).is_simple is False


def test_system_prompts_and_earlier_turns_are_written_by_the_template(pictures):
    """Oracle: the template itself, asked for the whole chat."""
    chat = [
        {"role": "system", "content": "Be brief."},
        *user(Image.new("RGB", (8, 8)), "Which digit is red?"),
        {"role": "assistant", "content": [{"type": "text", "text": "5"}]},
        *user("Where is the 5?"),
    ]
    processor = types.SimpleNamespace(
        chat_template="{% for m in messages %}[{{ m.role }}:"
        "{% for c in m.content %}<{{ c.type }}>{{ c.text }}{% endfor %}]{% endfor %}"
        "{% if add_generation_prompt %}[assistant:{% endif %}",
    )
    processor.tokenizer = pictures.processor.tokenizer
    processor.apply_chat_template = partial(
        pictures.processor.tokenizer.apply_chat_template, chat_template=processor.chat_template
    )
    loaded = types.SimpleNamespace(name="stand-in", processor=processor)
    prompt = write_chat(loaded, read_messages(chat, Reading()))
    assert prompt.text == (
        "[system:<text>Be brief.][user:<image><text>Which digit is red?][assistant:<text>5][user:<text>Where is the 5?]"
        "[assistant:"
    )
    assert [one.size for one in prompt.shown] == [(8, 8)]
    processor.chat_template, processor.tokenizer = None, types.SimpleNamespace()
    with pytest.raises(ValueError, match="no chat template"):
        write_chat(loaded, [Turn("system", ("a",)), Turn("user", ("b",))])


def test_manner_of_answers():
    greedy = Manner((), 1024, False, (("num_beams", 1),))
    assert read_manner({}) == (greedy, [])
    assert read_manner({"until": ["\n\n"], "temperature": 0.0, "top_p": 0.9}) == (greedy, [])
    drawn = (("num_beams", 1), ("temperature", 0.7), ("top_p", 0.9))
    asked = {
        "until": ["\n", "</s>"],
        "max_new_tokens": 16,
        "temperature": 0.7,
        "top_p": 0.9,
        "image_aspect_ratio": "pad",
    }
    assert read_manner(asked) == (Manner(("\n", "</s>"), 16, True, drawn), ["image_aspect_ratio"])
    assert read_manner({"temperature": 0.7, "do_sample": False})[0] == greedy
    assert read_manner({"until": "stop"})[0].stops == ("stop",)


@pytest.mark.parametrize(
    ("text", "stops", "left"),
    [(" red \n blue", ("\n",), "red"), ("\nred", ("\n",), "red"), ("a b c", ("c", "b"), "a"), ("red.", (), "red.")],
)
def test_until_stop(text, stops, left):
    assert until_stop(text, stops) == left


def test_stops_end_the_answer(model, pictures):
    """Oracle: the same question without stops, cut here."""
    picture, text = next(
        (s.image, q.text)
        for s in map(partial(make_scene, split="test"), range(9))
        for q in s.questions
        if q.text.startswith("Where") and " " in q.answer
    )
    lm = model.VTPrune(pretrained="embedded-image", policy="none", device="cpu")
    made, lm.task_dict = requests([user(picture, text)])
    (whole,) = lm.generate_until(made)
    first, second = whole.text.split()
    made, lm.task_dict = requests([user(picture, text)], {"until": [second], "max_new_tokens": 8})
    (cut,) = lm.generate_until(made)
    assert cut.text == first


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"policy": "fastv"}, "pretrained=FOLDER"),
        ({"pretrained": "x"}, "policy=none is the plain model"),
        ({"pretrained": "x", "policy": "fastvv"}, "did you mean 'fastv'"),
        ({"pretrained": "x", "policy": "fastv", "keep_ration": 0.1}, "did you mean 'keep_ratio'"),
        ({"pretrained": "x", "policy": "fastv", "keep_ratio": 75}, "75"),
        ({"pretrained": "x", "policy": "none", "keep_ratio": 0.5}, "keep_ratio"),
        (
            {"pretrained": "x", "policy": "none", "batch_size": "auto"},
            "batch_size is a whole number, 1 or more; got 'auto'",
        ),
        ({"pretrained": "x", "policy": "none", "fps": -1}, "fps"),
    ],
)
def test_wrong_arguments_teach(values, said):
    with pytest.raises(ValueError, match=said):
        read_settings(values)


def test_right_arguments():
    values = {"pretrained": "x", "policy": "random", "keep_ratio": 0.5, "seed": 7, "batch_size": "4", "device": "cpu"}
    settings, policy = read_settings(values)
    assert (policy.keep_ratio, policy.seed, settings.batch_size, settings.place()) == (0.5, 7, 4, "cpu")
    assert np.isclose(read_settings({**values, "keep_ratio": 1})[1].keep_ratio, 1)
