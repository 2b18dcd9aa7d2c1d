"""WHAT is done: the library of rlhf-flows. It imports no prefect, no ray and no gradio."""

import logging

# Whoever imports peft imports these where they are installed, and each tells of kernels that this machine lacks.
for _name in ("torch.utils._pytree", "torchao", "bitsandbytes"):
    logging.getLogger(_name).setLevel(logging.ERROR)
