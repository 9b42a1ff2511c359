"""Tasks of lmms-eval in a folder: generated scenes in a parquet file, as data sets are published; generated clips."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

SCENES, CLIPS = "vtprune_scenes", "vtprune_clips"
FIRST_SEED = 5000

_YAML = """\
task: {name}
dataset_path: {kind}
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
{asking}
doc_to_target: "answer"
generation_kwargs:
  max_new_tokens: 8
  temperature: 0
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 1.0
"""
_ASKING = {
    SCENES: 'doc_to_visual: !function asking.picture\ndoc_to_text: "question"',
    CLIPS: 'doc_to_messages: !function asking.messages\ndoc_to_text: "question"',
}
_PYTHON = '''\
"""What the tasks of this folder ask."""


def picture(doc):
    return [doc["image"].convert("RGB")]


def messages(doc):
    clip, text = {"type": "video", "url": doc["video"]}, {"type": "text", "text": doc["question"]}
    return [{"role": "user", "content": [clip, text]}]
'''


def write_tasks(folder: Path) -> None:
    """The YAML files of both tasks and their data."""
    (folder / "asking.py").write_text(_PYTHON)
    for name, kind, data in ((SCENES, "parquet", "scenes.parquet"), (CLIPS, "json", "clips.jsonl")):
        text = _YAML.format(name=name, kind=kind, data=folder / data, asking=_ASKING[name])
        (folder / f"{name}.yaml").write_text(text)
    _write_scenes(folder / "scenes.parquet")
    _write_clips(folder / "clips.jsonl")


def _write_scenes(path: Path) -> None:
    import datasets

    from vtprune.embedded.scenes import make_scene

    scenes = [make_scene(FIRST_SEED + i, "test") for i in range(4)]
    asked = [(scene.image, question) for scene in scenes for question in scene.questions[:5]]
    columns = {
        "image": [image for image, _ in asked],
        "question": [question.text for _, question in asked],
        "answer": [question.answer for _, question in asked],
    }
    texts = datasets.Value("string")
    kinds = datasets.Features({"image": datasets.Image(), "question": texts, "answer": texts})
    datasets.Dataset.from_dict(columns, features=kinds).to_parquet(path)


def _write_clips(path: Path) -> None:
    from vtprune.embedded.clips import make_clip

    lines = []
    for i in range(2):
        clip, folder = make_clip(FIRST_SEED + i, "test", 16), path.with_name(f"clip{i}")
        folder.mkdir()
        for number, frame in enumerate(clip.frames):
            Image.fromarray(frame).save(folder / f"{number:03d}.png")
        lines += [
            {"video": str(folder), "question": question.text, "answer": question.answer}
            for question in clip.questions[:4]
        ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
