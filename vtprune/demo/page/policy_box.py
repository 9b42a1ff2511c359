"""Policy, keep ratio and options: controls made of the policy's own fields, the same components for every policy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from vtprune.cli.docs import policy_card
from vtprune.demo.controls import (
    DEFAULT,
    Control,
    controls_of,
    has_ratio,
    lowest_ratio,
    options_text,
    suggested,
)
from vtprune.demo.page.words import told
from vtprune.policies.base import POLICIES, pruning_policies

KINDS = ("choice", "switch", "number", "whole", "text")
"""The order of the slots; a policy's controls take the first ones of their kind."""


@dataclass(frozen=True)
class PolicyBox:
    """The components. options: lines ``name=value``, which is what an answer goes by.

    chosen: the policy whose controls are shown, which lags behind ``policy`` while they are fetched.
    """

    policy: gr.Dropdown
    chosen: gr.State
    ratio: gr.Slider
    options: gr.Textbox
    about: gr.Markdown
    slots: dict[str, list[Any]]

    @property
    def all_slots(self) -> list[Any]:
        return [slot for kind in KINDS for slot in self.slots[kind]]


def policy_box(model: str, policy: str, ratio: float, buttons: Sequence[gr.Button]) -> PolicyBox:
    """The components, for a policy to begin with. buttons: that ask, put above the long list of options."""
    choice = gr.Dropdown(pruning_policies(), value=policy, label="Policy", info="how visual tokens are chosen")
    slider = gr.Slider(
        lowest_ratio(policy),
        1.0,
        value=ratio,
        step=0.01,
        label="Keep ratio",
        info="fraction of visual tokens KEPT",
        buttons=[],
    )
    with gr.Row():
        for button in buttons:
            button.render()
    with gr.Accordion("Options of the policy", open=False):
        about = gr.Markdown(about_policy(policy))
        slots = _slots(policy)
        options = gr.Textbox(
            suggested(model, policy),
            label="Options as text",
            info="one name=value in a line, as vtprune run --option takes it; the controls above write it",
            lines=2,
            max_lines=6,
        )
    return PolicyBox(choice, gr.State(policy), slider, options, about, slots)


def _slots(policy: str) -> dict[str, list[Any]]:
    """As many components of each kind as the richest policy needs; those that this one does not need are hidden."""
    most = {kind: max(sum(c.kind == kind for c in controls_of(name)) for name in pruning_policies()) for kind in KINDS}
    made: dict[str, list[Any]] = {}
    for kind in KINDS:
        mine = [control for control in controls_of(policy) if control.kind == kind]
        made[kind] = [_component(kind, mine[i] if i < len(mine) else None) for i in range(most[kind])]
    return made


def _component(kind: str, control: Control | None) -> Any:
    """A component of a kind, showing a control, or hidden."""
    made = {"choice": gr.Dropdown, "switch": gr.Checkbox, "number": gr.Number, "whole": gr.Number, "text": gr.Textbox}
    return made[kind](**_settings(kind, control))


def _settings(kind: str, control: Control | None) -> dict[str, Any]:
    if control is None:
        return {"visible": False, "label": "unused", "value": None if kind != "switch" else False}
    found: dict[str, Any] = {"visible": True, "label": control.name, "info": control.help}
    found["value"] = control.default
    if kind == "choice":
        found |= {"choices": list(control.choices), "value": _choice(control)}
    elif kind in ("number", "whole"):
        found |= {"minimum": control.minimum, "maximum": control.maximum}
        found |= {"precision": 0, "step": 1} if kind == "whole" else {"precision": None, "step": 0.05}
    elif kind == "text":
        value = control.default
        found["value"] = ",".join(map(str, value)) if isinstance(value, (tuple, list)) else value
    return found


def _choice(control: Control) -> str:
    return DEFAULT if control.default is None else str(control.default)


def about_policy(name: str) -> str:
    """What a policy is, in its own words."""
    card = policy_card(name, POLICIES[name])
    source = f"\n\n*{card.source}*" if card.source else ""
    ratio = "" if has_ratio(name) else "\n\nIt has no keep ratio, so the slider is off."
    return f"**{name}**: {card.summary or card.title}{source}{ratio}"


def connect(box: PolicyBox, model: str, prefix: str) -> None:
    """The events of the box; whoever wants to follow a choice listens to ``box.chosen.change``.

    model: whose suggestions are followed. prefix: of API names.
    """

    def choose(name: str, ratio: float) -> list[Any]:
        """Shows the controls of a policy, its suggested options, and the keep ratios that it takes."""
        with told():
            lowest = lowest_ratio(name) if has_ratio(name) else None
            slider = gr.Slider(interactive=lowest is not None)
            if lowest is not None:
                slider = gr.Slider(minimum=lowest, value=max(ratio, lowest), interactive=True)
            shown: list[Any] = [name, slider, about_policy(name), suggested(model, name)]
            for kind in KINDS:
                mine = [control for control in controls_of(name) if control.kind == kind]
                for i in range(len(box.slots[kind])):
                    shown.append(_component(kind, mine[i] if i < len(mine) else None))
            return shown

    def write(name: str, *values: Any) -> str:
        """The options as text, from the controls."""
        with told():
            return options_text(name, in_order(name, values, {kind: len(box.slots[kind]) for kind in KINDS}))

    # a hand moved it; what choosing a policy writes into the slots is none
    moved = [slot.input for slot in box.all_slots]
    gr.on(moved, write, [box.policy, *box.all_slots], box.options, api_name=f"{prefix}_options", queue=False)
    outputs = [box.chosen, box.ratio, box.about, box.options, *box.all_slots]
    given = [box.policy, box.ratio]
    box.policy.input(choose, given, outputs, api_name=f"{prefix}_policy", show_progress="hidden")


def in_order(name: str, values: Sequence[Any], lengths: dict[str, int]) -> list[Any]:
    """The values of a policy's controls in the order of its fields, from those of all slots."""
    queues, at = {}, 0
    for kind in KINDS:
        queues[kind] = iter(values[at : at + lengths[kind]])
        at += lengths[kind]
    return [next(queues[control.kind]) for control in controls_of(name)]
