"""Whether an architecture reads and writes as encoder-decoders do here, by passes of a tiny copy of it."""

import logging
from typing import Any

_log = logging.getLogger(__name__)
SMALL = {  # sizes of the copy, where its configuration has them
    "vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2,
    "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64, "dropout": 0.0,
}  # fmt: skip
PROMPT, ANSWER = (5, 6, 7, 8), (9, 10, 11, 3)
CLOSE = 1e-4


def family_problem(config: Any) -> str | None:
    """What stands against models of this configuration as policies; None where nothing does."""
    kind = config.model_type
    start = getattr(config, "decoder_start_token_id", None)
    if start is None:
        return f"{kind} names no decoder_start_token_id, with which its decoder would begin"
    if getattr(config, "pad_token_id", None) is None:
        return f"{kind} names no pad_token_id"
    try:
        return _passes_problem(config)
    except Exception as error:  # sizes of an architecture that do not fit together: each library says so otherwise
        _log.debug("the tiny copy of %s does not run: %s", kind, error)
        return f"no small copy of {kind} runs here, so that nothing vouches for it"


def _passes_problem(config: Any) -> str | None:
    import torch

    from alignment.models.seq2seq.passes import decoder_inputs

    kind = config.model_type
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = tiny_copy(config).eval()
        prompt, answer = torch.tensor([PROMPT]), torch.tensor([ANSWER])
        read = decoder_inputs(model, answer)
        if not torch.equal(read, model.prepare_decoder_input_ids_from_labels(labels=answer)):
            return f"the decoder of {kind} begins with something else than its decoder_start_token_id"

        def logits(prompt: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
            given: torch.Tensor = model(input_ids=prompt, decoder_input_ids=read, use_cache=False).logits[0]
            return given

        plain = logits(prompt, read)
        later = read.clone()
        later[0, -1] += 1
        if not torch.allclose(logits(prompt, later)[:-1], plain[:-1], atol=CLOSE):
            return f"the decoder of {kind} sees what comes after a token"
        if torch.allclose(logits(prompt + 1, read), plain, atol=CLOSE):
            return f"the decoder of {kind} does not see the prompt"
    return None


def tiny_copy(config: Any) -> Any:
    """A model of the same architecture with random weights, in float32."""
    import torch

    from alignment.models.seq2seq.architecture import policy_class

    small = type(config).from_dict(config.to_dict())
    for name, value in SMALL.items():
        if getattr(small, name, None) is not None:
            setattr(small, name, value)
    small.pad_token_id, small.decoder_start_token_id, small.eos_token_id = 0, 0, 3
    return policy_class(small).from_config(small, dtype=torch.float32)
