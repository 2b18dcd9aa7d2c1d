"""Tiny encoders of the true classes with random weights, each with a tokenizer of its family's own kind."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.conftest import demonstration_rows, prompt_rows

ENCODERS = ("bert", "roberta", "modernbert")
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "initializer_range": 0.2,
}  # fmt: skip
CONTEXT = 96  # tokens that each of them reads
EXTRA = "user: assistant: system: red. blue. it is red. what is the word for it today? who saw it? name it in one word"


def _texts() -> list[str]:
    texts = [row["prompt"] for row in prompt_rows()]
    texts += [message["content"] for row in demonstration_rows() for message in row["messages"]]
    return [*texts, EXTRA, EXTRA.title()]


def _wordpiece() -> tuple[Tokenizer, dict[str, str]]:
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    raw.train_from_iterator(
        _texts(), trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return raw, {
        "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"
    }  # fmt: skip


def _byte_level(special: list[str], begin: str, end: str) -> Tokenizer:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        _texts(),
        trainers.BpeTrainer(vocab_size=360, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    twice = f"{end} {end}" if begin == "<s>" else end
    raw.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", pair=f"{begin} $A {twice} $B {end}",
        special_tokens=[(begin, special.index(begin)), (end, special.index(end))],
    )  # fmt: skip
    return raw


def write_encoder(
    folder: Path, name: str, *, seed: int = 0, head: str = "MaskedLM", context: int = CONTEXT, **changes: Any
) -> Path:
    """An encoder's folder as people find them: with its masked-language-model head, or another one."""
    import transformers
    from transformers import CONFIG_MAPPING, PreTrainedTokenizerFast

    inputs = ["input_ids", "attention_mask"]
    if name == "bert":
        raw, names = _wordpiece()
        inputs.append("token_type_ids")
    elif name == "roberta":
        raw = _byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "<s>", "</s>")
        names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>",
                 "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}  # fmt: skip
    else:
        raw = _byte_level(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "[CLS]", "[SEP]")
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
                 "mask_token": "[MASK]"}  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, model_max_length=context, model_input_names=inputs, **names
    )
    own: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    own["max_position_embeddings"] = context + (2 if name == "roberta" else 0)
    if name == "roberta":
        own |= {"type_vocab_size": 1, "bos_token_id": 0, "eos_token_id": 2}
    if name == "modernbert":
        own |= {"local_attention": 8, "global_attn_every_n_layers": 2, "initializer_cutoff_factor": 2.0,
                "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}  # fmt: skip
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[name](**SIZES | own | changes)
    stem = {"bert": "Bert", "roberta": "Roberta", "modernbert": "ModernBert"}[name]
    model = getattr(transformers, f"{stem}For{head}" if head else f"{stem}Model")(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
