"""Chunked log-probabilities against the naive ones, and their memory."""

import weakref

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alignment.training import token_logprobs as module
from alignment.training.token_logprobs import token_logprobs, token_logprobs_and_entropy


def naive(hidden, weight, labels, temperature, bias=None):
    logprobs = (F.linear(hidden, weight, bias) / temperature).log_softmax(-1)
    return logprobs.gather(-1, labels[..., None]).squeeze(-1), -(logprobs.exp() * logprobs).sum(-1)


def example(dtype=torch.float64, vocabulary=37, shape=(3, 50)):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(*shape, 16, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(vocabulary, 16, generator=generator, dtype=torch.float64).to(dtype)
    bias = torch.randn(vocabulary, generator=generator, dtype=torch.float64).to(dtype)
    return hidden, weight, torch.randint(0, vocabulary, shape, generator=generator), bias


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("by_hidden", "by_weight"), [(True, True), (True, False), (False, True)])
def test_values_and_gradients_are_the_naive_ones(by_hidden, by_weight, temperature, with_bias, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ENTRIES", 1)  # many chunks of 32 tokens, the last one shorter
    hidden, weight, labels, bias = example()
    bias = bias if with_bias else None
    upstream = torch.randn(labels.shape, dtype=torch.float64)
    grads, results = [], []
    for function in (naive, lambda h, w, y, t, b: token_logprobs_and_entropy(h, w, y, temperature=t, head_bias=b)):
        h, w = hidden.clone().requires_grad_(by_hidden), weight.clone().requires_grad_(by_weight)
        logprobs, entropy = function(h, w, labels, temperature, bias)
        (logprobs * upstream).sum().backward()
        grads.append([x.grad for x in (h, w) if x.requires_grad])
        results.append((logprobs.detach(), entropy.detach()))
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(grads[0], grads[1])


def test_gradcheck():
    hidden, weight, labels, _ = example(shape=(2, 3))
    hidden.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda h, w: token_logprobs(h, w, labels, temperature=0.9), (hidden, weight))


def test_bfloat16_comes_back_in_float32_and_close():
    hidden, weight, labels, _ = example(torch.bfloat16)
    hidden.requires_grad_()
    logprobs = token_logprobs(hidden, weight, labels)
    assert logprobs.dtype == torch.float32
    logprobs.sum().backward()
    exact = hidden.detach().double().requires_grad_()
    expected, _ = naive(exact, weight.double(), labels, 1.0)
    expected.sum().backward()
    torch.testing.assert_close(logprobs.double(), expected, atol=0.1, rtol=0.02)  # 8 bits of mantissa
    torch.testing.assert_close(hidden.grad.double(), exact.grad, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("certain", [0.5, 0.99, 0.999, 0.99999])
@pytest.mark.parametrize("by_weight", [False, True])
def test_the_gradient_of_a_confident_token_is_right_in_bfloat16(by_weight, certain):
    """Against the naive one in float64. Entries are powers of two, so logits are exact and only the gradient rounds."""
    vocabulary, count = 64, 8
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, vocabulary, (count,), generator=generator)
    signs = torch.randint(0, 2, (vocabulary, 16), generator=generator).double() * 2 - 1
    weight = torch.cat([signs, torch.eye(vocabulary, dtype=torch.float64)], dim=1)  # the label's logit is set alone
    margin = torch.tensor(certain / (1 - certain) * (vocabulary - 1)).log().mul(8).round() / 8  # exact in 8 bits
    hidden = torch.zeros(count, weight.shape[1], dtype=torch.float64)
    hidden[torch.arange(count), 16 + labels] = margin.double()
    grads = []
    for dtype, function in ((torch.float64, lambda h, w: naive(h, w, labels, 1.0)[0]),
                            (torch.bfloat16, lambda h, w: token_logprobs(h, w, labels))):  # fmt: skip
        h, w = hidden.to(dtype, copy=True).requires_grad_(), weight.to(dtype, copy=True).requires_grad_(by_weight)
        function(h, w).sum().backward()
        grads.append([x.grad.double() for x in ((h, w) if by_weight else (h,))])
    for exact, rounded in zip(*grads, strict=True):
        error = (rounded - exact).norm() / exact.norm()
        assert error < 0.01, f"relative error {error:.3f}"  # 8 bits: 1/256 each


def test_no_gradient_is_kept_when_none_is_asked_for():
    hidden, weight, labels, _ = example()
    assert not token_logprobs(hidden, weight, labels).requires_grad


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations made and that are still held, and their peak.

    Resident memory would say less: it depends on what the allocator keeps, and on what ran before.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._known = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._meet(tensor.untyped_storage())
        return result

    def _meet(self, storage):
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known[key] = weakref.ref(storage, lambda _: self._leave(key, size))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _leave(self, key, size):
        del self._known[key]
        self.live -= size


def peak_bytes(function, tokens, *, trained_head, width=16, vocabulary=4096):
    """The most that a forward and a backward pass hold at a time, inputs apart."""
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=trained_head)
    labels = torch.randint(0, vocabulary, (tokens,))
    with LiveBytes() as counted:
        function(hidden, weight, labels).sum().backward()
    return counted.peak


def naive_logprobs(hidden, weight, labels):
    return naive(hidden, weight, labels, 1.0)[0]


@pytest.mark.parametrize("trained_head", [False, True])
def test_memory_does_not_grow_with_the_tokens(trained_head, monkeypatch):
    """The naive way holds (N, V) several times over; ours a few chunks, however many tokens there are."""
    monkeypatch.setattr(module, "CHUNK_ENTRIES", 1)  # chunks of CHUNK_TOKENS tokens
    chunk = 4096 * module.CHUNK_TOKENS * 4
    few, many = (peak_bytes(token_logprobs, count, trained_head=trained_head) for count in (256, 1024))
    assert many < 6 * chunk
    assert many - few < chunk  # what there is per token and width; 768 tokens' logits are 24 chunks
    few, many = (peak_bytes(naive_logprobs, count, trained_head=trained_head) for count in (256, 1024))
    assert many - few > 24 * chunk, "the measure sees the (N, V) tensors of the naive way"
