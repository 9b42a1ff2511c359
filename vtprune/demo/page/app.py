"""The page as a whole: four tabs, one engine, a queue with a limit; no request leaves the machine."""

from pathlib import Path

import gradio as gr

from vtprune.demo.engine import Engine
from vtprune.demo.page.batch_tab import batch_tab
from vtprune.demo.page.compare_tab import compare_tab
from vtprune.demo.page.image_tab import image_tab
from vtprune.demo.page.style import CSS, HEAD, theme
from vtprune.demo.page.video_tab import video_tab
from vtprune.demo.shown import MAX_BYTES

QUEUE = 24
"""Events that may wait; more are refused with a message."""

SESSIONS = 64
"""Sessions that are remembered."""

KEEP_FILES = (3_600, 7_200)
"""Seconds: how often drawings and uploads are looked through, and how old they become."""

TITLE = "vtprune: what a vision-language model still sees"
WELCOME = """
# vtprune: what a vision-language model still sees
A picture becomes hundreds of visual tokens. A policy keeps some of them and drops or merges the others, so that the
language model has less to read. Here both answers stand side by side: with all tokens, and with those that were kept.
"""


def build(engine: Engine) -> gr.Blocks:
    """The page. Nothing is loaded and nothing is served yet."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=KEEP_FILES) as page:
        gr.Markdown(WELCOME, elem_classes="vt-head")
        with gr.Tab("Image"):
            image_tab(engine, page)
        for name, tab in (("Video", video_tab), ("Compare", compare_tab), ("Batch", batch_tab)):
            with gr.Tab(name):
                tab(engine)
        gr.Markdown(_about(engine), elem_classes="vt-note")
    page.queue(max_size=QUEUE, default_concurrency_limit=4)
    return page


def _about(engine: Engine) -> str:
    # of a folder its name: whoever may see the page need not know where it is
    names = dict.fromkeys(Path(name).name for name in engine.names.values())
    toys = [name for name in names if name.startswith("embedded")]
    toy = " They ship with vtprune and are toys: their times say little about those of large models." if toys else ""
    return f"Models: {', '.join(f'`{name}`' for name in names)}.{toy} Everything runs on this machine."


def launch(page: gr.Blocks, host: str = "127.0.0.1", port: int | None = None) -> str:
    """Serves the page in threads of its own and returns its address. Raises OSError for a port in use."""
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        theme=theme(),
        css=CSS,
        head=HEAD,
        share=False,
        inbrowser=False,
        show_error=True,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=MAX_BYTES,
        footer_links=["api"],
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
        state_session_capacity=SESSIONS,
    )
    return address
