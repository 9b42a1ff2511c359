"""Query decoupling: the model names the physical things that a question makes one look for, step by step.

The structure is that of QuoTA (arXiv:2503.08689, section 3.1): whether things have to be found, which, and those of
them that a detector could find. Wording and examples are ours.
"""

import ast
import re
from typing import Any

import torch
from torch import nn

from vtprune.chat import chat_text, device_of, encode

MAX_OBJECTS, MAX_NAME = 64, 100
"""Longer lists and names are no answer to the question."""

INSTRUCTION = """\
A question about a video follows. Do not answer it. Work out what must be seen in a frame to answer it, in three steps.
Step 1: Does one have to find people, animals or things in the frames? Write yes or no.
Step 2: If yes, write everything one has to look for as a Python list of short names in quotes. If no, write null.
Step 3: Write the list of step 2 again without whatever cannot be seen and touched, such as feelings, reasons, times \
and actions. Write null if nothing is left.

Question: What does the woman put on the table after she closes the oven? A. a cake B. a knife C. a towel
Step 1: yes
Step 2: ["woman", "table", "oven", "cake", "knife", "towel", "closing"]
Step 3: ["woman", "table", "oven", "cake", "knife", "towel"]

Question: How does the mood of the story change towards the end?
Step 1: no
Step 2: null
Step 3: null

Question: Why did the cyclist in the yellow jersey stop beside the van?
Step 1: yes
Step 2: ["cyclist", "yellow jersey", "van", "reason for stopping"]
Step 3: ["cyclist", "yellow jersey", "van"]

Question: {question}
"""

_COLON = r"\s{0,3}\*{0,2}\s{0,3}:\s{0,3}\*{0,2}\s{0,3}"
_YES_NO = re.compile(r"step\s{0,3}1" + _COLON + r"(yes|no)\b")
_STEP_3 = re.compile(r"step\s{0,3}3" + _COLON)
# no bracket inside: a flat list, so that nothing nested is ever parsed
_LIST = re.compile(r"(?:```(?:python)?\s{0,3})?(\[[^\[\]]{0,8192}\])")


def parse_objects(text: object) -> list[str]:
    """The names after "step 3:" of an answer whose step 1 says yes, lower-cased; [] for anything else.

    Only a flat list of strings is taken, read as literals: nothing that a model writes is run.
    """
    text = text.lower() if isinstance(text, str) else ""
    first = _YES_NO.search(text)
    # the first one: models go on and make up further questions
    third = _STEP_3.search(text, first.end()) if first and first.group(1) == "yes" else None
    names = _LIST.match(text, third.end()) if third else None
    if names is None:
        return []
    try:
        found = ast.literal_eval(names.group(1))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return []
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        return []
    objects = list(dict.fromkeys(" ".join(name.split()) for name in found if name.strip()))
    sound = len(objects) <= MAX_OBJECTS and all(len(name) <= MAX_NAME and name.isprintable() for name in objects)
    return objects if sound else []


@torch.no_grad()
def decouple(model: nn.Module, processor: Any, question: str, *, max_new_tokens: int = 4096) -> list[str]:
    """What to look for in the frames to answer ``question``: names, or [] where the question itself has to serve.

    model:     the answering model, asked greedily and with text only.
    processor: its processor or tokenizer.
    """
    text = chat_text(processor, INSTRUCTION.format(question=question.strip()))
    inputs = encode(processor, [text], device_of(model))
    out = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    tokenizer = getattr(processor, "tokenizer", processor)
    return parse_objects(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
