"""How the page looks: fonts of the system, colours that everybody can tell apart, one column on a phone."""

import gradio as gr

FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "monospace")

CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
.vt-head h1 { font-size: 1.7rem; margin: 0.2rem 0 0; letter-spacing: -0.01em; }
.vt-head p { margin: 0.3rem 0 0.6rem; opacity: 0.85; max-width: 62em; line-height: 1.5; }
.vt-cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); gap: 14px; }
.vt-card { border: 1px solid var(--border-color-primary); border-radius: 12px; padding: 14px 16px;
  background: var(--block-background-fill); }
.vt-card h3 { margin: 0 0 4px; font-size: 0.85rem; font-weight: 600; opacity: 0.8; }
.vt-card.whole { border-top: 4px solid #0072B2; }
.vt-card.less { border-top: 4px solid #E69F00; }
.vt-said { font-size: 1.45rem; font-weight: 650; margin: 0 0 8px; overflow-wrap: anywhere; }
.vt-said small { font-size: 0.8rem; font-weight: 500; opacity: 0.8; }
.vt-nums { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.92rem; }
.vt-nums td, .vt-nums th { padding: 3px 8px 3px 0; text-align: right; border: 0; font-weight: 400; }
.vt-nums td:first-child, .vt-nums th:first-child { text-align: left; opacity: 0.85; }
.vt-nums b { font-weight: 650; }
.vt-scroll { overflow-x: auto; }
.vt-agree { margin-top: 12px; font-size: 0.95rem; }
.vt-meter { height: 10px; border-radius: 5px; margin: 6px 0; overflow: hidden;
  background: var(--border-color-primary); }
.vt-meter > i { display: block; height: 100%; background: #009E73; }
.vt-line { font-size: 0.95rem; line-height: 1.5; margin: 0; }
.vt-line.stale { border-left: 4px solid #D55E00; padding-left: 10px; }
.vt-note { font-size: 0.88rem; opacity: 0.85; margin: 6px 0 0; }
.vt-scale { display: flex; align-items: center; gap: 8px; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
.vt-scale > i { flex: 1; height: 10px; border-radius: 5px;
  background: linear-gradient(90deg, #002256, #394C6C, #707173, #AA9E70, #FDE73C); }
.vt-empty { opacity: 0.8; padding: 18px 4px; }
.vt-keys { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 0.88rem; }
.vt-keys i { display: inline-block; width: 14px; height: 14px; border-radius: 3px; vertical-align: -2px;
  margin-right: 6px; }
button:focus-visible, input:focus-visible, [role="tab"]:focus-visible, textarea:focus-visible {
  outline: 3px solid #0072B2 !important; outline-offset: 2px; }
@media (max-width: 640px) {
  .gradio-container { padding: 8px !important; }
  .vt-head h1 { font-size: 1.35rem; }
  .vt-said { font-size: 1.25rem; }
}
@media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important; } }
"""


def theme() -> gr.themes.Base:
    """The theme. Its fonts are the system's: none is fetched."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        font=list(FONT),
        font_mono=list(MONO),
    ).set(
        button_primary_background_fill="#0072B2",
        button_primary_background_fill_hover="#005B8E",
        button_primary_text_color="white",
        slider_color="#0072B2",
    )
