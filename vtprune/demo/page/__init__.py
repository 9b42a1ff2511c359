"""The page of the demo: layout and callbacks, the only place that knows gradio."""
