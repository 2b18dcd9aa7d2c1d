"""WHAT is done: the library of rlhf-flows. It imports no prefect, no ray and no gradio."""
