"""How the page looks: fonts of the system, colours that everybody can tell apart, one column on a phone."""

import gradio as gr

FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "monospace")

CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
.vt-head h1 { font-size: 1.6rem; margin: 0; letter-spacing: -0.01em; line-height: 1.25; }
.vt-head p { margin: 0.25rem 0 0.2rem; opacity: 0.85; max-width: 75em; line-height: 1.5; }
footer .divider { display: none; }
.block.vt .html-container { padding: 0; min-width: 0; }
.vt { font-size: 0.95rem; line-height: 1.5; color: var(--body-text-color); }
.vt p, .vt h3, .vt h4, .vt figure { margin: 0; }
.vt-pair { align-items: flex-end; }
.vt-pair > button { height: 42px; margin-bottom: 12px; }

.vt-heading { font-size: 0.95rem; font-weight: 650; padding: 2px 0; }
* + .vt-heading { margin-top: 18px !important; }
.vt-line.stale { border-left: 4px solid #D55E00; padding-left: 10px; }
.vt-note { font-size: 0.85rem; opacity: 0.85; line-height: 1.4; }
.vt-empty { opacity: 0.8; padding: 10px 0; }
.vt-meter { height: 8px; border-radius: 4px; margin: 6px 0; overflow: hidden;
  background: var(--border-color-primary); }
.vt-meter > i { display: block; height: 100%; background: #009E73; }
.vt-meter.busy { margin: 4px 0 0; }
.vt-meter.busy > i { background: #0072B2; }

.vt-trio { align-items: flex-start; }
.vt-trio > .column { gap: 5px; }
.vt-small { width: auto !important; align-self: flex-start; flex: none; }
.vt-trio .image-frame img, .vt-trio img { cursor: crosshair; }
.vt-scale { display: flex; align-items: center; gap: 8px; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
.vt-scale > i { flex: 1; height: 10px; border-radius: 5px;
  background: linear-gradient(90deg, #002256, #394C6C, #707173, #AA9E70, #FDE73C); }
.vt-inspect { align-items: center; border: 1px solid var(--border-color-primary); border-radius: 12px;
  padding: 8px 14px; }
.vt-inspect .form, .vt-inspect .form .block { border: 0; background: none; }
.vt-inspect button { height: 42px; align-self: flex-end; margin-bottom: 2px; }

.vt-cards { display: grid; grid-template-columns: repeat(3, 1fr); gap: 14px; margin-bottom: 10px; }
.vt-card { border: 1px solid var(--border-color-primary); border-radius: 12px; padding: 10px 14px;
  background: var(--block-background-fill); min-width: 0; }
.vt-card h4 { font-size: 0.85rem; font-weight: 600; opacity: 0.85; }
.vt-card .vt-said, .vt-card .vt-share { font-size: 1.6rem; }
.vt-card.whole { border-top: 4px solid #0072B2; }
.vt-card.less { border-top: 4px solid #E69F00; }
.vt-card.agree { border-top: 4px solid #009E73; }
.vt-said small { margin-left: 4px; }
.vt-said, .vt-share { font-size: 1.4rem; font-weight: 650; line-height: 1.35; overflow-wrap: anywhere; }
.vt small { font-size: 0.85rem; font-weight: 500; }
.vt-right { color: #007A59; }
.vt-wrong { color: #B34A00; }
.dark .vt-right { color: #2FCB9F; }
.dark .vt-wrong { color: #FF9A5C; }

/* a wide table scrolls; it does not widen the page */
.vt-scroll { overflow-x: auto; contain: inline-size; margin-top: 10px; }
.vt-nums { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
.vt-nums td, .vt-nums th { padding: 4px 0 4px 18px; text-align: right; font-weight: 400; white-space: nowrap; }
.vt-nums th:first-child { text-align: left; padding-left: 0; }
.vt-nums thead th { font-size: 0.8rem; opacity: 0.8; }
.vt-nums tbody tr { border-top: 1px solid var(--border-color-primary); }

.vt-figures { display: grid; gap: 14px 12px; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr));
  margin: 6px 0; }
.vt-figures.small { gap: 8px; grid-template-columns: repeat(auto-fill, minmax(102px, 1fr)); }
.vt-figures.strip { gap: 4px; grid-template-columns: repeat(6, 1fr); margin: 0; }
.vt-figures img { display: block; width: 100%; border-radius: 6px; }
.vt-figures.small img, .vt-figures.strip img { border-radius: 2px; }
.vt figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 8px; font-size: 0.85rem;
  font-variant-numeric: tabular-nums; line-height: 1.45; padding-top: 3px; }
.vt figcaption p, .vt figcaption .vt-meter { flex: 1 0 100%; margin: 0; }
.vt figcaption .vt-meter { margin: 3px 0; }
.vt-figures.cells .vt-said small { margin-left: 4px; }
.vt-said, .vt-share { font-size: 1.1rem; }
.vt-figures.small figcaption { font-size: 0.78rem; }
.vt-none { aspect-ratio: 1; border-radius: 6px; background: var(--border-color-primary); opacity: 0.5; }

.vt-keys { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 0.85rem; padding: 2px 3px; }
.vt-keys span { display: inline-flex; align-items: center; gap: 6px; }
.vt-keys img { height: 20px; width: auto; }
.vt-keys i { width: 14px; height: 14px; border-radius: 2px; }
.vt-keys .kept-cell { background: #b9c3cf; box-shadow: 0 0 0 2px #E69F00; }
.vt-keys .merged-cell { background: radial-gradient(circle at 35% 65%, #fff 2.5px, #5b6673 3px);
  box-shadow: 0 0 0 2px #56B4E9; }
.vt-keys .dropped-cell { background: #4a4a4a; }
.vt-keys .kept { background: #0072B2; }
.vt-keys .merged { background: #8CC8EC; }
.vt-keys .offered { background: currentColor; opacity: 0.14; }

.vt-bars { display: grid; grid-template-columns: auto 1fr; gap: 2px 8px; font-size: 0.78rem;
  font-variant-numeric: tabular-nums; }
.vt-bars .up { display: flex; flex-direction: column; justify-content: space-between; text-align: right;
  line-height: 1; }
.vt-bars svg { width: 100%; height: 110px; border-bottom: 1px solid currentColor; }
.vt-bars .along { grid-column: 2; position: relative; height: 1.4em; }
.vt-bars .along span { position: absolute; transform: translateX(-50%); white-space: nowrap; }
.vt-plot svg { display: block; width: 100%; }
.vt-plot.narrow { display: none; }

button:focus-visible, input:focus-visible, [role="tab"]:focus-visible, textarea:focus-visible,
.vt-scroll:focus-visible { outline: 3px solid #0072B2 !important; outline-offset: 2px; }
.dark button:focus-visible, .dark input:focus-visible, .dark [role="tab"]:focus-visible {
  outline-color: #56B4E9 !important; }
@media (max-width: 940px) {
  .vt-cards { grid-template-columns: 1fr 1fr; gap: 8px; }
  .vt-card.agree { grid-column: 1 / -1; }
  .vt-inspect { flex-wrap: wrap; }
  .vt-inspect > * { flex: 1 0 100%; min-width: 0; }
  .vt-nums { font-size: 0.85rem; }
  .vt-nums td, .vt-nums th { padding-left: 9px; }
  .vt-nums th { white-space: normal; }
}
@media (max-width: 640px) {
  .vt-head h1 { font-size: 1.3rem; }
  .vt-trio > :last-child { flex-basis: 100%; }
  .vt-card { padding: 8px 10px; }
  .vt-figures { grid-template-columns: 1fr 1fr; }
  .vt-figures.small { grid-template-columns: repeat(3, 1fr); }
  .vt-plot.wide { display: none; }
  .vt-plot.narrow { display: block; }
}
@media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important; } }
"""

HEAD = "<style>@media (max-width: 640px) { .gradio-container .fillable { padding: 14px !important; } }</style>"
"""What is outside of the part of the page that gradio lets ``CSS`` reach."""


def theme() -> gr.themes.Base:
    """The theme. Its fonts are the system's: none is fetched."""
    blue = {"button_primary_background_fill": "#0072B2", "button_primary_background_fill_hover": "#005B8E"}
    blue |= {"slider_color": "#0072B2", "checkbox_background_color_selected": "#0072B2"}
    both = blue | {f"{name}_dark": value for name, value in blue.items()}
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        font=list(FONT),
        font_mono=list(MONO),
    ).set(**both, button_primary_text_color="white")
