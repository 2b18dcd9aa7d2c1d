"""GGUF files: blocks and pairs by hand, and the whole file through two readers that did not write it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from alignment.chat import load_tokenizer
from alignment.compression.gguf_export import architecture_problem, paired, write_gguf
from alignment.compression.gguf_vocabulary import splitting
from alignment.models.quantised import load_weights
from alignment.models.weights import GGUF_FILE

TEXT = "<|im_start|>user\nWhat colour is the cat?<|im_end|>\n<|im_start|>assistant\nIt's 12 red.\n\n  owls"


def exported(folder: Path, target: Path, scheme: str) -> tuple[Any, Any, Path]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), load_tokenizer(folder)
    target.mkdir()
    write_gguf(model, tokenizer, target / GGUF_FILE, scheme)
    tokenizer.save_pretrained(target)
    return model, tokenizer, target


def kl(policy: Any, ids: list[int], other: torch.Tensor) -> float:
    with torch.no_grad():
        own = policy(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return float((own.exp() * (own - other.double().log_softmax(-1))).sum(-1).mean())


def test_pairs_by_hand() -> None:
    """One head of width 4: rows 0 and 2 rotate together, and 1 and 3; llama.cpp wants them side by side."""
    assert paired(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), 1).flatten().tolist() == [0.0, 2.0, 1.0, 3.0]
    two = torch.arange(8.0)[:, None]
    assert paired(two, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_eight_bit_blocks_by_hand(make_wide_model: Callable[..., Path], tmp_path: Path) -> None:
    model, _tokenizer, target = exported(make_wide_model(tmp_path / "model"), tmp_path / "out", "q8_0")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(target / GGUF_FILE).tensors}
    assert "output.weight" not in tensors  # the head is the embedding
    weight = model.model.layers[1].mlp.down_proj.weight.detach().numpy()
    raw = tensors["blk.1.ffn_down.weight"].data.reshape(64, 4, 34)
    scales = raw[..., :2].copy().view(np.float16)[..., 0].astype(np.float32)
    whole = raw[..., 2:].copy().view(np.int8) * scales[..., None]
    blocks = weight.reshape(64, 4, 32)
    assert scales == pytest.approx(np.abs(blocks).max(-1) / 127, rel=1e-3)
    assert np.abs(whole - blocks).max() <= scales.max() * 0.51


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_transformers_reads_what_was_written(make_wide_model: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    model, tokenizer, target = exported(make_wide_model(tmp_path / "model", kind=kind), tmp_path / "out", "q8_0")
    read = load_weights(target, torch.float32, None).eval()
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        assert kl(model, ids, read(input_ids=torch.tensor([ids])).logits[0]) < 0.02


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_llama_cpp_reads_what_was_written(make_wide_model: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    pytest.importorskip("llama_cpp")
    from alignment.compression.llama_cpp_reader import read_with_llama_cpp

    model, tokenizer, target = exported(make_wide_model(tmp_path / "model", kind=kind), tmp_path / "out", "q8_0")
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    reading = read_with_llama_cpp(target / GGUF_FILE, [TEXT], [(ids[:1], ids[1:])])
    assert reading.texts == [ids]
    assert reading.speed.tokens == len(ids) - 1
    with torch.no_grad():
        own = model(input_ids=torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    assert float((own.exp() * (own - reading.logits[0].double().log_softmax(-1))).sum(-1).mean()) < 0.05


def test_a_file_that_llama_cpp_cannot_read_is_said_in_a_line(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from alignment.compression.llama_cpp_reader import read_with_llama_cpp
    from alignment.errors import StageError

    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(StageError, match=r"llama.cpp cannot read broken.gguf"):
        read_with_llama_cpp(tmp_path / "broken.gguf", [], [([1], [2])])


def test_what_cannot_be_written_is_known_by_its_configuration() -> None:
    from transformers import AutoConfig

    assert architecture_problem(AutoConfig.for_model("llama")) is None
    assert "gpt2" in str(architecture_problem(AutoConfig.for_model("gpt2")))
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    assert "linear" in str(architecture_problem(AutoConfig.for_model("llama", rope_parameters=scaled)))


def test_ways_to_cut_texts() -> None:
    from types import SimpleNamespace

    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    def named(*steps: Any) -> str | None:
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.Sequence(list(steps)) if len(steps) > 1 else steps[0]
        return splitting(SimpleNamespace(backend_tokenizer=raw))

    whole, plain = (pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use) for use in (True, False))
    qwen = (  # tokenizer.json of Qwen2.5, in two
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    assert named(whole) == "gpt-2"
    assert named(pre_tokenizers.Digits(individual_digits=True), whole) == "smollm"
    assert named(pre_tokenizers.Split(Regex(qwen), "isolated"), plain) == "qwen2"
    assert named(pre_tokenizers.Split(Regex(r"\w+"), "isolated"), plain) is None
    assert named(pre_tokenizers.Whitespace()) is None
