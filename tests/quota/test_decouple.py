"""Query decoupling: what is read from a model's words, and what is not."""

import ast

import pytest
import torch

from vtprune.embedded import load_image
from vtprune.quota.decouple import INSTRUCTION, MAX_NAME, MAX_OBJECTS, decouple, parse_objects


def reply(objects, answer="yes"):
    return f"Step 1: {answer}\nStep 2: [...]\nStep 3: {objects}"


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        (reply('["cat", "Red Car"]'), ["cat", "red car"]),
        (reply("['a', \"b's\"]"), ["a", "b's"]),
        (reply('["cat", "dog", "CAT", " dog  "]'), ["cat", "dog"]),
        (reply('["  two   words\\n"]'), ["two words"]),
        (reply("[]"), []),
        (reply('["", "  "]'), []),
        ("STEP 1: YES. STEP 3: ['X']", ["x"]),
        ("**Step 1:** yes\n\n**Step 3:** ['x']", ["x"]),
        ("step 1 : yes\nstep 3 :\n['x',\n 'y']\nDone.", ["x", "y"]),
        ("Step 1: yes\nStep 3: ```python\n['x']\n```", ["x"]),
        (reply('["straße", "猫", "🚗"]'), ["straße", "猫", "🚗"]),
        (reply("['x',]"), ["x"]),
        # the first answer counts, whatever is made up after it
        (reply("['x']") + "\n\nQuestion: more\n" + reply("['y']"), ["x"]),
        (reply("null") + "\n\nQuestion: more\n" + reply("['y']"), []),
        (reply("['x']", "no") + "\n" + reply("['y']"), []),
    ],
)
def test_answers_in_the_form_asked_for(text, objects):
    assert parse_objects(text) == objects


HOSTILE = [
    None,
    7,
    b"step 1: yes step 3: ['x']",
    ["step 1: yes", "step 3: ['x']"],
    "",
    "I cannot help with that.",
    "Step 1: yes",
    "Step 3: ['x']",
    "Step 3: ['x']\nStep 1: yes",
    "Step 1: maybe\nStep 3: ['x']",
    "Step 1: yesterday\nStep 3: ['x']",
    reply("null"),
    reply("None"),
    reply("42"),
    reply("{'a': 1}"),
    reply("{'a'}"),
    reply("('a', 'b')"),
    reply("'a', 'b'"),
    reply("[1, 2]"),
    reply("['a', 1]"),
    reply("['a', None]"),
    reply("['a', ['b']]"),
    reply("[['a']]"),
    reply("[" * 100_000),
    reply("[" * 300 + "'a'" + "]" * 300),
    reply("['a'"),
    reply("'a']"),
    reply("['a', 'b"),
    reply("['a' 'b', c]"),
    reply("[x for x in 'abc']"),
    reply("[__import__('os').system('touch hacked')]"),
    reply("[open('hacked', 'w')]"),
    reply("[(lambda: 1)()]"),
    reply("[f'{1}']"),
    reply("['a' * 10**9]"),
    reply("[b'a']"),
    reply("[...]"),
    reply("['a\\x']"),
    reply("['\\ud800']"),
    reply("['\\x00']"),
    reply("[\x00]"),
    reply("['" + "a" * 10_000_000 + "']"),
    reply("['" + "a" * (MAX_NAME + 1) + "']"),
    reply([f"object {i}" for i in range(MAX_OBJECTS + 1)]),
    reply("[" + "-" * 8000 + "1]"),
    "step 1: yes " + "step 3: [" * 100_000,
    "step " * 200_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_anything_else_names_nothing_and_runs_nothing(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_objects(text) == []
    assert list(tmp_path.iterdir()) == []


def test_the_limits_are_allowed():
    assert len(parse_objects(reply([f"object {i}" for i in range(MAX_OBJECTS)]))) == MAX_OBJECTS
    assert parse_objects(reply(["a" * MAX_NAME])) == ["a" * MAX_NAME]


def test_the_examples_of_the_instruction_are_in_its_own_form():
    """Oracle: the lists of step 3, read off the instruction line by line."""
    _, *examples = INSTRUCTION.split("Question: ")[:-1]
    assert len(examples) == 3
    for example in examples:
        last = example.split("Step 3: ")[1].strip()
        assert parse_objects(example) == (ast.literal_eval(last) if last != "null" else [])


class Says:
    """A model that writes given words, and the tokenizer that reads them; what it was asked is remembered."""

    chat_template = None
    bos_token = None

    def __init__(self, words):
        self.words, self.asked = words, None

    def __call__(self, text, **options):
        self.asked = text
        return Inputs(input_ids=torch.zeros(1, 3, dtype=torch.int64))

    def get_input_embeddings(self):
        return torch.nn.Embedding(1, 1)

    def generate(self, input_ids, do_sample, max_new_tokens):
        assert do_sample is False
        self.limit = max_new_tokens
        return torch.cat([input_ids, torch.tensor([[5, 6]])], 1)

    def decode(self, ids, skip_special_tokens):
        assert ids.tolist() == [5, 6], "only what is new is read"
        return self.words


class Inputs(dict):
    def to(self, device):
        return self


def test_a_model_is_asked_in_text_and_greedily():
    model = Says(reply("['Cat']"))
    assert decouple(model, model, "Where is {the} cat? ") == ["cat"]
    [prompt] = model.asked
    assert prompt.endswith("Question: Where is {the} cat?\n") and model.limit == 4096


def test_a_real_model_that_answers_something_else_names_nothing():
    model, processor = load_image()
    assert decouple(model, processor, "Is there a red circle?", max_new_tokens=4) == []
