"""The interactive demo: what it computes, without gradio; ``page/`` holds the layout and the callbacks, with it."""
