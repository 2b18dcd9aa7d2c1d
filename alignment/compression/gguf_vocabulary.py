"""A byte-level BPE tokenizer as the keys of a GGUF file.

How a text is cut before merges is not in such a file: llama.cpp knows the ways by name. The name is found by the
tokenizer's own regular expressions; one that has none is not exported.
"""

import json
from typing import Any

import gguf

from alignment.errors import StageError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {  # the first cut of a tokenizer by its regular expression → llama.cpp's name for it
    _CONTRACTIONS + _WORDS + r"|\p{N}{1,3}" + _REST: "llama-bpe",
    _CONTRACTIONS + _WORDS + r"|\p{N}" + _REST: "qwen2",
}


def splitting(tokenizer: Any) -> str | None:
    """llama.cpp's name for how a byte-level BPE tokenizer cuts texts; None where it has none, and for any other."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    parts = json.loads(backend.to_str())
    if parts["model"]["type"] != "BPE" or parts.get("normalizer") not in (None, {"type": "NFC"}):
        return None
    before = parts.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    kinds = [step["type"] for step in steps[:-1]]
    if steps[-1].get("use_regex", True):  # GPT-2's expression, after digits by themselves where they are cut first
        if kinds == ["Digits"] and steps[0].get("individual_digits"):
            return "smollm"
        return None if kinds else "gpt-2"
    if kinds == ["Split"] and steps[0].get("behavior") == "Isolated":
        return PATTERNS.get(steps[0]["pattern"].get("Regex", ""))
    return None


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer: Any, size: int) -> None:
    """Writes tokens, merges, special tokens and the chat template.

    Args:
        size: embeddings of the model; those without a token get one that is never used.

    Raises:
        StageError: llama.cpp has no name for how the tokenizer cuts texts.
    """
    cut = splitting(tokenizer)
    if cut is None:
        raise StageError("llama.cpp has no name for how this tokenizer cuts texts, so its GGUF file would read others")
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = {number: token for token, number in tokenizer.get_vocab().items()}
    added = {number: token.special for number, token in tokenizer.added_tokens_decoder.items()}
    types = []
    for number in range(size):
        if number in added:
            types.append(gguf.TokenType.CONTROL if added[number] else gguf.TokenType.USER_DEFINED)
        else:
            types.append(gguf.TokenType.NORMAL if number in tokens else gguf.TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list([tokens.get(number, f"[PAD{number}]") for number in range(size)])
    writer.add_token_types(types)
    merges = backend["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    special = {
        writer.add_bos_token_id: tokenizer.bos_token_id,
        writer.add_eos_token_id: tokenizer.eos_token_id,
        writer.add_pad_token_id: tokenizer.pad_token_id,
        writer.add_unk_token_id: tokenizer.unk_token_id,
    }
    for add, number in special.items():
        if number is not None:
            add(number)
    writer.add_add_bos_token(False)  # the chat template writes what a conversation begins with
    writer.add_add_space_prefix(False)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
