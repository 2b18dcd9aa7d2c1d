"""Tiny encoder-decoders of the true classes with random weights, each with a tokenizer of its family's own kind."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.conftest import demonstration_rows, prompt_rows
from tests.tiny_encoders import _byte_level

FAMILIES = ("t5", "bart")
CONTEXT = 96  # tokens that a tiny BART's encoder reads, and its decoder writes
T5: dict[str, Any] = {
    "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0,
    "pad_token_id": 0, "eos_token_id": 1, "initializer_factor": 1.0,
}  # fmt: skip
BART: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": CONTEXT,
    "init_std": 0.2, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip


def unigram() -> Any:
    """A tokenizer of T5's kind: pieces that begin with a blank, and ``</s>`` behind each text."""
    from transformers import PreTrainedTokenizerFast

    texts = [row["prompt"] for row in prompt_rows()]
    texts += [message["content"] for row in demonstration_rows() for message in row["messages"]]
    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    raw.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False,
        initial_alphabet=[chr(code) for code in range(33, 127)],
    )  # fmt: skip
    raw.train_from_iterator([*texts, "user: assistant: system: translate English to German:"], trainer)
    raw.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def byte_pairs() -> Any:
    """A tokenizer of BART's kind: ``<s>`` before each text, ``</s>`` behind it."""
    from transformers import PreTrainedTokenizerFast

    raw = _byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "<s>", "</s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>", pad_token="<pad>",
        unk_token="<unk>", mask_token="<mask>", model_max_length=CONTEXT,
    )  # fmt: skip


def write_seq2seq(
    folder: Path, name: str, *, seed: int = 0, dtype: str = "float32", own_head: bool = False, **changes: Any
) -> Path:
    """A tiny encoder-decoder's folder as people find them: weights, generation settings, a tokenizer, no template.

    ``own_head``: as T5 1.1, FLAN-T5 and mT5, whose head is other weights than the embedding.
    """
    from transformers import CONFIG_MAPPING, AutoModelForSeq2SeqLM

    tokenizer = unigram() if name == "t5" else byte_pairs()
    torch.manual_seed(seed)
    own = (T5 if name == "t5" else BART) | {"vocab_size": len(tokenizer)} | changes
    if own_head:
        own |= {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}
    model = AutoModelForSeq2SeqLM.from_config(CONFIG_MAPPING[name](**own))
    if name == "t5":
        with torch.no_grad():  # so that its answers differ with what they answer
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(3)
    if own_head:
        model.all_tied_weights_keys.pop("lm_head.weight")
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
