"""Dropout off, everywhere in a model: for every trainer that compares a policy with a reference.

A policy that drops units is another distribution at each pass: before the first step it is nats away from the model
that it is a copy of, and ratios, KLs and DPO's margins measure that noise. ``Dropout`` modules are one of the places
where it is: OPT, BLOOM and others call the function with a number of their own, Falcon reads it from its
configuration, OPT leaves out whole layers, and mixtures of experts shake their router. Evaluation mode turns all of
them off, but a trainer sets training mode at every step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from alignment.errors import StageError
from alignment.models.seq2seq.architecture import is_encoder_decoder

NOISE = ("drop", "jitter")  # in the names of the numbers that only training mode looks at
PROBE = 8  # tokens that the check reads
ROUNDING = 1e-3  # of the largest logit


def switch_off_dropout(model: nn.Module) -> None:
    """Sets every dropout rate, layer-dropping rate and router noise in a model to 0, those of its configuration too.

    :func:`configured_dropout` brings the configuration's back, for a model that is written.
    """
    configured: list[tuple[Any, str, float]] = getattr(model, "dropout_rates", [])
    for module in model.modules():
        config = getattr(module, "config", None)
        for name in list(_rates(config)):
            configured.append((config, name, getattr(config, name)))
            setattr(config, name, 0.0)
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name in list(_rates(module)):
            setattr(module, name, 0.0)
    model.dropout_rates = configured  # type: ignore[assignment]


@contextmanager
def configured_dropout(model: Any) -> Iterator[None]:
    """The configuration has its own rates for as long as the context lasts."""
    rates = getattr(model, "dropout_rates", [])
    for config, name, rate in rates:
        setattr(config, name, rate)
    try:
        yield
    finally:
        for config, name, _rate in rates:
            setattr(config, name, 0.0)


def check_no_dropout(model: Any) -> None:
    """Raises StageError where two passes of a model in training mode differ: something in it is still drawn."""
    was_training = model.training
    size = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(PROBE, device=model.device) % size)[None]
    model.train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            first, second = (_seeded_logits(model, ids, seed) for seed in range(2))
    finally:
        model.train(was_training)
    if not torch.allclose(first, second, rtol=0, atol=ROUNDING * first.abs().max().item()):
        raise StageError(
            f"{type(model).__name__} gives other logits at each pass in training mode, with dropout off: it cannot be "
            "compared with a reference; train it with sft alone"
        )


def _rates(holder: Any) -> Iterator[str]:
    """The names of a module's or a configuration's own numbers that say how much noise there is in training mode."""
    for name, value in vars(holder).items() if holder is not None else ():
        is_number = isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool))
        if is_number and value and any(noise in name.lower() for noise in NOISE):
            yield name


def _seeded_logits(model: Any, ids: torch.Tensor, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    options = {"decoder_input_ids": ids} if is_encoder_decoder(model.config) else {}
    logits: torch.Tensor = model(input_ids=ids, use_cache=False, **options).logits.float()
    return logits
