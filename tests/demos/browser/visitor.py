"""A visitor of the page: what was logged and asked for meanwhile, and when the page rests."""

import re

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
WAIT = 60_000
"""Milliseconds: a busy machine is no defect of the page."""


class Visit:
    """One visitor's page. errors, urls: what was logged as an error, and all that was asked for."""

    def __init__(self, context):
        self.context, self.errors, self.urls = context, [], []
        # of the context, not of the page, so that workers are heard too
        context.on("request", lambda request: self.urls.append(request.url))
        self.page = context.new_page()
        self.page.set_default_timeout(WAIT)
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))


def settle(page) -> None:
    """Until no work of the page is under way: none is announced, and no Stop is awake."""
    page.wait_for_function(
        """() => ![...document.querySelectorAll('.vt-meter.busy, button:not([disabled])')].some(
            one => one.offsetParent && (one.tagName == 'DIV' || one.textContent.trim() == 'Stop'))"""
    )


def asked_by_pages(log: dict) -> list[str]:
    """The requests of a log of chromium's that a page began; others, as a look for updates, are the browser's own."""
    begun = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    found = [event["params"] for event in log["events"] if event["type"] == begun and "url" in event.get("params", {})]
    return [one["url"] for one in found if re.match(r"https?://", one.get("initiator", ""))]
