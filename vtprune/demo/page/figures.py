"""Drawings inside HTML: pictures with captions that wrap on a phone, and a clip over time with its bars."""

import base64
import io
from collections.abc import Iterable
from html import escape

from PIL import Image

from vtprune.demo.clip_study import DrawnClip
from vtprune.demo.page.words import heading, note

LABELS = 5
"""Times below the bars, at most."""


def data_url(picture: Image.Image) -> str:
    """The picture itself as an address, so that nothing has to be kept to be fetched later."""
    held = io.BytesIO()
    picture.save(held, format="PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode("ascii")


def figure(picture: Image.Image | None, alt: str, caption: str) -> str:
    """One picture. alt: its words. caption: HTML."""
    shown = f'<img src="{data_url(picture)}" alt="{escape(alt)}">' if picture else '<div class="vt-none"></div>'
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def figures(each: Iterable[str], kind: str = "") -> str:
    """Figures beside each other, as many as there is room for."""
    return f'<div class="vt-figures {kind}">{"".join(each)}</div>'


def sites(drawn: list[tuple[Image.Image, str]]) -> str:
    """What is left after each site; "" for none."""
    if not drawn:
        return ""
    each = (figure(picture, f"Left by the site {text}", escape(text)) for picture, text in drawn)
    return heading("Visual tokens that survive each site") + figures(each)


def clip_over_time(drawn: DrawnClip) -> str:
    """The bars of the budget, then a panel for each step, then what the cells mean."""
    each = (
        figure(
            one.picture,
            f"{one.time}: kept {one.kept} of {one.of}" + (f", merged {one.merged}" if one.merged else ""),
            f"<span>{one.time}</span><b>{one.count}</b>",
        )
        for one in drawn.panels
    )
    keys = "".join(
        f'<span><img src="{data_url(swatch)}" alt="">{escape(words)}</span>' for swatch, words in drawn.legend
    )
    return (
        heading("Visual tokens kept of each step")
        + bars(drawn)
        + heading("The clip over time")
        + figures(each, "small")
        + f'<div class="vt-keys">{keys}</div>'
        + note("Below each panel: when it begins, and kept of offered visual tokens.")
    )


def bars(drawn: DrawnClip) -> str:
    """The bars with their axes."""
    n, most = len(drawn.panels), max(one.of for one in drawn.panels)
    numbers = sorted({round(i * (n - 1) / (LABELS - 1)) for i in range(LABELS)})
    times = "".join(f'<span style="left:{100 * (i + 0.5) / n:.2f}%">{drawn.panels[i].time}</span>' for i in numbers)
    merged = '<span><i class="merged"></i>merged</span>' if any(one.merged for one in drawn.panels) else ""
    return (
        f'<div class="vt-bars"><div class="up"><span>{most}</span><span>0</span></div>{drawn.bars}'
        f'<div class="along">{times}</div></div>'
        f'<div class="vt-keys"><span><i class="kept"></i>kept</span>{merged}'
        '<span><i class="offered"></i>offered</span></div>'
    )
