"""Chunked log-probabilities against the naive ones, and their memory."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from alignment.policy import token_logprobs as module
from alignment.policy.losses import token_logprobs
from alignment.policy.token_logprobs import token_logprobs_and_entropy


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


def test_no_gradient_is_kept_when_none_is_asked_for():
    hidden, weight, labels, _ = example()
    assert not token_logprobs(hidden, weight, labels).requires_grad


MEASURE = """
import resource, sys, torch
from alignment.policy.losses import token_logprobs
hidden = torch.randn(8, 256, 32, requires_grad=True)
weight = torch.randn(32768, 32)
labels = torch.randint(0, 32768, (8, 256))
def run(function, rows):
    hidden.grad = None
    function(hidden[:rows], weight, labels[:rows]).sum().backward()
def naive(h, w, y):
    return (h @ w.T).log_softmax(-1).gather(-1, y[..., None])
function = token_logprobs if sys.argv[1] == "ours" else naive
run(function, 1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(function, 8)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss counts kibibytes on Linux")
def test_memory_does_not_grow_with_the_tokens():
    """(B, T, V) in float32 is 256 MiB here; the naive way holds two or more of it, ours a chunk of 32 MiB."""
    grown = {}
    for which in ("ours", "naive"):
        run = subprocess.run([sys.executable, "-c", MEASURE, which], capture_output=True, text=True, check=True)
        grown[which] = float(run.stdout)
    assert grown["ours"] < 128
    assert grown["naive"] > 128  # 256 MiB where the allocator gives nothing back
