"""The card of the embedded video model: its numbers come from a measurement or from the training run."""

from vtprune.embedded.card import interval

CARD = """---
library_name: transformers
pipeline_tag: video-text-to-text
language: en
---
# A small Qwen3-VL that answers questions about generated clips

A stock `Qwen3VLForConditionalGeneration` ({parameters:,} parameters, {tower_parameters:,} of them in the vision tower;
{grid} x {grid} visual tokens per slice of two frames, one DeepStack level, {layers} decoder layers with mRoPE) for
trying, testing and demonstrating visual token pruning on video where no checkpoint can be downloaded. It was trained
from nothing, on this task alone.

```python
from vtprune.embedded import load_video
from vtprune.embedded.clips import make_clip

model, processor = load_video()
clip = make_clip(1000, "test")
question = clip.questions[0]
chat = [{{"role": "user", "content": [{{"type": "video"}}, {{"type": "text", "text": question.text}}]}}]
inputs = processor(processor.apply_chat_template(chat, add_generation_prompt=True), clip.frames)
output = model.generate(**inputs)
print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True), "/", question.answer)
```

## Accuracy

Per cent of answers that are exactly right, greedy, float32 on a CPU, through the processor and `model.generate` in
left-padded batches; at most {asked} questions about each clip, chosen at random. "Wrong" is another clip, "grey" one of
one colour, "middle" the frame in the middle repeated, "shuffled" the frames in a random order, "none" the question
alone, "constant" the most frequent training answer to each kind of question. The intervals are Wilson's and take
questions as independent, which questions about one clip are not quite. Reproduce: `{command}`.

### Clips of {frames} frames ({tokens} visual tokens): {n_clips} of the test split, from number {first}

{clips_table}

### Clips of {long} frames ({long_tokens} visual tokens): {n_long} of the test split, from number {first}

"Few frames" and "few slices" are {frames} of the {long} frames, evenly spaced one by one or in pairs, unpruned. The
columns named after a policy have all {long} frames, pruned by
`vtprune.pruned(model, policy, keep_ratio={frames} / {long})` to as many visual tokens, {tokens} (on average over the
layers, if the policy prunes inside them).

{long_table}

### Clips of {longest} frames ({longest_tokens} visual tokens): {n_longest} of the test split, from number {first}

"Few frames" are {frames}, "more frames" {long} of the {longest} frames, unpruned; the policies have all of them,
pruned to {tokens} visual tokens. A policy that cannot reach so few, and says so in its report, is given as it is.

{longest_table}

### Single frames ({still_tokens} visual tokens): {n_stills} of the test split, from number {first}

"Does a red circle appear?" (colour and name), "Does a circle appear?" (name), "Does a red shape appear?" (colour and
kind), "Does a digit appear?" (kind), about one frame given as a picture; about half of the right answers are "no".

{stills_table}

| kind | example |
|---|---|
| color, shape | "What color is the circle?", "Which shape is red?" |
| digit, needle | "Which digit is red?", "What color is the 7?": shown for four or six frames, for two frames |
| when | "What color is the shape when the 7 appears?", "Which shape is there when the 7 appears?" |
| order | "Which shape appears first (last)?", "Which shape appears after the circle?" |
| before | "Does the circle appear before the ring?" (as often "no" as "yes") |
| move | "Which way does the circle move?": left, right, up, down, nowhere |
| part | "In which part of the clip does the 7 appear?": beginning, middle, end |
| count | "How many different shapes (digits) appear?" |
| exists | "Does a red circle appear?" (as often "no" as "yes"; half of the "no" have both, but not together) |

## Training

{tower_steps:,} steps of {tower_slices} slices for the vision tower ({tower_minutes:.0f} minutes), which learns to write
into each visual token the words for what it covers: name, colour and direction; then {answer_steps:,} steps of 4 to 16
clips with up to 10 questions each for the decoder ({answer_minutes:.0f} minutes), on the frozen tower's features of
clips of {frames}, 32 and {long} frames, of which {pool:,}, {pool_middle:,} and {pool_long:,} are kept and the oldest
replaced at every step. For the first {closer:.0f} % of the second stage the decoder sees {closer_tokens} visual tokens
of a clip only, those on objects first. Minutes are wall-clock time on {cpu}, {threads} thread(s) of a busy machine,
bfloat16 autocast, torch {torch}, seed {seed}. Train one with `python -m vtprune.embedded.train_video --out DIR`.

A third stage went on from there for {long_steps:,} steps ({long_minutes:.0f} minutes), with clips of up to {longest}
frames and single frames (`train_video_long`). Most long clips were shorter ones whose slices stood where those of a
longer one would, with gaps between them; no visual token was left out.

The shipped weights do not come from one uninterrupted run. In the second stage, words of the question were shown what
they name only after 1,450 steps, which taught the look-up by colour at once; heads were shown where to look until step
2,500, few visual tokens were shown until about step 600, and key words gave way to sentences between steps 650 and
1,050. The share of long clips was raised after 2,500 steps. Time budgets, and with them the learning rate, were changed
on the way. A run from the start was not tried.

## Data

Clips are drawn by `vtprune.embedded.clips.make_clip(seed, split, frames)`: one to four shapes, one after another, each
in a colour of its own, and none to two digits in a fixed style, on a texture or a darkened photograph crop that
flickers a little. A shape moves one way for some time or stays; one clip in seven is a still scene. Events begin and
end with a slice of two frames. Photograph crops of the two splits come from different columns.

## Limits

It knows {words} words, these question forms and these clips; anything else gives an arbitrary answer. Frames are
resized to {side} x {side} pixels. No time stamps are written between the slices, unlike in the prompts of large
models of this class. A number of this model says nothing about pruning a large model on natural video.

During most of the second stage, two heads of each of three decoder layers were shown where to look: in layer
{word_layer} (counted from 0) from a word to the visual tokens it names, in layer {cue_layer} from the end of the
question to what it speaks of, and in layer {evidence_layer} to where the answer is seen. What these layers attend to
is therefore a better guide than it would be in a model trained on answers alone, which favours policies that read it.

## Licences

* Photographs: `china.jpg` (flickr.com/photos/danielbuechele/6061409035) by danielbuechele and `flower.jpg`
  (flickr.com/photos/vultilion/6056698931) by vultilion, both CC BY 2.0, bundled by scikit-learn; here at half size, in
  `scene_assets.npz`, and darkened in clips.
* Weights: the licence of this project.
"""
_SHORT = {"wrong clip": "wrong", "grey clip": "grey", "middle frame": "middle", "shuffled frames": "shuffled"}
_SHORT |= {"no clip": "none"}


def table_of(rows: dict[str, dict]) -> str:
    """A Markdown table of ``evaluate_video.tally``'s rows, in per cent; the interval is that of "clip"."""
    columns = [name for name in rows["all"] if name not in ("n", "clip")]
    head = ["question", "n", "clip", "95 % interval", *(_SHORT.get(name, name) for name in columns)]
    lines = [head, ["---"] * len(head)]
    for kind, row in rows.items():
        if not row["n"]:
            continue
        low, high = (f"{100 * bound:.1f}" for bound in interval(row["clip"], row["n"]))
        share = {name: f"{100 * row[name] / row['n']:.1f}" for name in ("clip", *columns)}
        lines.append([kind, str(row["n"]), share["clip"], f"{low} to {high}", *(share[name] for name in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def video_card(tables: dict[str, dict[str, dict]], facts: dict, layout: dict, command: str) -> str:
    """The card's text.

    tables: "clips", "long", "longest" and "stills", rows of ``asking.tally``.
    facts:  what ``train_video`` wrote to ``training.json``.
    layout: n_clips, n_long, n_longest, n_stills, first (number), asked (questions of a clip), longest (frames).
    """
    per_frame = facts["grid"] ** 2 // 2
    return CARD.format(
        **facts,
        **layout,
        **{f"{name}_table": table_of(rows) for name, rows in tables.items()},
        tokens=facts["frames"] * per_frame,
        long_tokens=facts["long"] * per_frame,
        longest_tokens=layout["longest"] * per_frame,
        still_tokens=facts["grid"] ** 2,
        command=command,
    )
