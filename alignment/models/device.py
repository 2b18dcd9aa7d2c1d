"""The device that models run on."""

import torch

from alignment.errors import StageError
from alignment.recipe.resources import Resources


def pick_device(resources: Resources) -> torch.device:
    """The device a recipe asks for. Raises StageError where it asks for a GPU that is not there."""
    if resources.device == "cuda" and not torch.cuda.is_available():
        raise StageError("resources.device is cuda, but torch finds no GPU; set it to auto or cpu")
    use_cuda = resources.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if use_cuda else "cpu")
