"""A button that ends long work, alive only while there is some."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from vtprune.demo.page.words import STOPPED, line

# they run in the browser, so that the button does not wait in the queue behind the work that it is to end
_WAKE, _SLEEP = (f"() => ({{__type__: 'update', interactive: {value}}})" for value in ("true", "false"))


def stop_button(*, render: bool = True) -> gr.Button:
    """The button, asleep."""
    return gr.Button("Stop", variant="secondary", interactive=False, min_width=80, scale=1, render=render)


def connect(
    stop: gr.Button, triggers: Sequence[Any], begin: Callable[[Sequence[Any]], Any], said: gr.HTML, prefix: str
) -> None:
    """Wakes the button with the triggers of long work and lets it sleep afterwards, however that ended.

    begin: makes the event of the work, from the triggers. said: where it says that the work was stopped. prefix: of
    API names.
    """
    # what a trigger sets off is done in the order in which it was made, so waking comes first
    gr.on(triggers, None, None, stop, js=_WAKE, api_name=f"{prefix}_began")
    working = begin(triggers)
    working.then(None, None, stop, js=_SLEEP, api_name=f"{prefix}_ended")
    stop.click(lambda: line(STOPPED), None, said, cancels=[working], queue=False, api_name=f"{prefix}_stop")
