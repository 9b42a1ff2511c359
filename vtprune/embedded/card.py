"""The card of the embedded image model: its numbers come from a measurement or from the training run."""

CARD = """---
library_name: transformers
pipeline_tag: image-text-to-text
language: en
---
# A small LLaVA that answers questions about generated scenes

A stock `LlavaForConditionalGeneration` ({parameters:,} parameters; CLIP vision tower with a trained [CLS],
{grid} x {grid} visual tokens, {layers} Qwen3 decoder layers) for trying, testing and demonstrating visual token pruning
where no checkpoint can be downloaded. It was trained from nothing, on this task alone.

```python
from vtprune.embedded import example, load_image

model, processor = load_image()
picture, question, answer = example()
chat = [{{"role": "user", "content": [{{"type": "image"}}, {{"type": "text", "text": question}}]}}]
prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
inputs = processor(images=picture, text=prompt, return_tensors="pt")
output = model.generate(**inputs)
print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True), "/", answer)
```

## Accuracy

Per cent of answers that are exactly right, on {n:,} questions about {scenes} scenes of the test split (seeds {first}
to {last}), greedy, float32 on a CPU, through the processor and `model.generate` in left-padded batches. "Wrong
picture" is that of another scene; "grey" is a picture of one colour; "none" is the question alone; "constant" is the
most frequent training answer to each kind of question.

| question | n | picture | 95 % interval | wrong picture | grey | none | constant |
|---|---|---|---|---|---|---|---|
{table}

Without a picture at most {blind:.1f} % are right (the best of grey, none and constant). The intervals are Wilson's and
take questions as independent, which questions about one scene are not quite. Reproduce: `{command}`.

| kind | example |
|---|---|
| color, shape | "What color is the circle?", "Which shape is red?" |
| digit, digit_color | "Which digit is red?", "What color is the 7?" |
| exists | "Is there a red circle?" (as often "no" as "yes"; half of the "no" have both, but not together) |
| where | "Where is the circle?": top left, top right, bottom left, bottom right |
| count | "How many shapes (digits, objects) are there?" |

## Training

{tower_steps:,} steps of {tower_batch} scenes for the vision tower ({tower_minutes:.0f} minutes), which learns to
name, patch by patch, what covers the patch, and on [CLS] what is present; then {answer_steps:,} steps of
{answer_batch} scenes with up to 12 questions each for projector and decoder ({answer_minutes:.0f} minutes) on the
frozen tower's features of {pool:,} scenes. Before that, the projector alone learns to write the words for what is seen
into the visual tokens (400 steps), and for the first {closer:.0f} % of the second stage the decoder sees
{closer_tokens} visual tokens only, those on objects first. Minutes are wall-clock time on {cpu},
{threads} thread(s) of a busy machine, bfloat16 autocast, torch {torch}, seed {seed}. Train one with
`python -m vtprune.embedded.train_image --out DIR`.

The shipped weights do not come from one uninterrupted run. The first 1,200 steps of the tower saw digits of 22 to 28
pixels anywhere in the picture, and no crowds of digits. In the second stage, the second word of a two-word answer was
shown where to look only after 1,900 steps, and the term that keeps visual tokens resembling words was added after
2,450. Time budgets, and with them the learning rate, were changed on the way. A run from the start was not tried.

## Data

Scenes are drawn by `vtprune.embedded.scenes.make_scene(seed, split)`: one to four shapes and none to two digits, each
in a colour of its own, on a texture or a darkened photograph crop. The handwritten digits of the two splits are
different images (every fourth is for testing), but the same writers may be in both. Photograph crops of the two splits
come from different columns.

## Limits

It knows {words} words, these question forms and these pictures; anything else gives an arbitrary answer. Pictures are
resized to {size} x {size} pixels, so what is not square or has small objects will suffer. A number of this model says
nothing about pruning a large model on natural pictures.

During the first {guided:.0f} % of the second stage, two heads of decoder layer {layer} (counted from 0) were shown
which visual tokens a question is about. What that layer attends to is therefore a better guide than it would be in a
model trained on answers alone, which favours policies that read it.

## Licences

* Digits: "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, UCI Machine Learning
  Repository), in the form that scikit-learn (BSD 3-Clause) bundles.
* Photographs: `china.jpg` (flickr.com/photos/danielbuechele/6061409035) by danielbuechele and `flower.jpg`
  (flickr.com/photos/vultilion/6056698931) by vultilion, both CC BY 2.0, bundled by scikit-learn; here at half size, in
  `scene_assets.npz`, and darkened in scenes and in `example.png`.
* Weights: the licence of this project.
"""


def interval(right: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share."""
    z = 1.96
    center, half = right + z * z / 2, z * (right * (n - right) / n + z * z / 4) ** 0.5
    return (center - half) / (n + z * z), (center + half) / (n + z * z)


def card(rows: dict[str, dict], facts: dict, seeds: range, command: str) -> str:
    """The card's text.

    rows:  from ``evaluate.measure``, with all its conditions.
    facts: what ``train_image`` wrote to ``training.json``.
    seeds: of the scenes.
    """
    lines = []
    for kind, row in rows.items():
        low, high = interval(row["picture"], row["n"])
        share = {name: f"{100 * right / row['n']:.1f}" for name, right in row.items() if name != "n"}
        bounds = f"{100 * low:.1f} to {100 * high:.1f}"
        columns = ("wrong picture", "grey picture", "no picture", "most frequent answer")
        lines.append(
            f"| {kind} | {row['n']} | {share['picture']} | {bounds} | {' | '.join(share[c] for c in columns)} |"
        )
    total = rows["all"]
    blind = max(total[name] for name in ("grey picture", "no picture", "most frequent answer"))
    return CARD.format(
        **facts,
        table="\n".join(lines),
        n=total["n"],
        scenes=len(seeds),
        first=seeds[0],
        last=seeds[-1],
        blind=100 * blind / total["n"],
        command=command,
    )
