"""The head that is fitted before a reward model trains: against scikit-learn, and on features whose law is known."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from sklearn.linear_model import LogisticRegression

from alignment.models.adapters import add_lora
from alignment.models.linear_probe import STRENGTHS, fit_probe, start_at_probe
from alignment.models.reward_model import new_reward_model, score
from alignment.recipe.base import Lora
from alignment.records import Artifact
from alignment.stage import StageContext


def test_it_is_the_penalised_regression_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    direction = generator.normal(size=6)
    differences = generator.normal(size=(400, 6)) * np.array([1, 10, 0.1, 1, 3, 1])
    chosen = generator.random(400) < 1 / (1 + np.exp(-differences @ direction))
    differences = np.where(chosen[:, None], differences, -differences)
    weights = fit_probe(differences, np.zeros_like(differences), range(400))
    scale = differences.std(axis=0)
    both = np.concatenate([differences / scale, -differences / scale])  # scikit-learn wants two classes
    labels = [1] * 400 + [0] * 400
    theirs = [
        LogisticRegression(C=width / 2, fit_intercept=False, tol=1e-8, max_iter=10_000).fit(both, labels).coef_[0]
        / scale
        for width in STRENGTHS
    ]
    assert min(np.abs(weights - other).max() / np.abs(other).max() for other in theirs) < 1e-3
    assert np.corrcoef(weights * scale, direction * scale)[0, 1] > 0.95


def test_noise_is_shrunk_away() -> None:
    """Of 500 features that say nothing, on 200 pairs, an unpenalised fit would separate all pairs with ease."""
    generator = np.random.default_rng(1)
    weights = fit_probe(generator.normal(size=(200, 500)), np.zeros((200, 500)), range(200))
    fresh = generator.normal(size=(2000, 500)) @ weights
    assert np.abs(fresh).mean() < 0.4  # nats


def test_scores_are_centred_as_the_training_centres_them() -> None:
    """Features with a large common part: without the term the scores have an offset, which says nothing."""
    generator = np.random.default_rng(2)
    differences = generator.normal(size=(300, 4)) + 0.5
    common = np.array([5.0, 0, 0, 0]) + 0.1 * generator.normal(size=(300, 4))
    chosen, rejected = common + differences / 2, common - differences / 2
    offsets = []
    for centering in (0.0, 0.01):
        weights = fit_probe(chosen, rejected, range(300), centering=centering)
        offsets.append(np.abs(np.concatenate([chosen, rejected]) @ weights).mean())
        assert ((chosen - rejected) @ weights > 0).mean() > 0.75
    assert offsets[1] < offsets[0] / 2


@pytest.mark.parametrize("adapted", [False, True])
def test_the_model_scores_with_the_fitted_head(
    adapted: bool, base: Artifact, make_context: Callable[..., StageContext], tmp_path: Path
) -> None:
    context = make_context(tmp_path, "reward", {"base": base})
    model, tokenizer = new_reward_model(base, base, context.run)
    generator = torch.Generator().manual_seed(0)

    def answers(last: int) -> list[list[int]]:
        return [[*torch.randint(3, 300, (n % 5 + 3,), generator=generator).tolist(), last] for n in range(60)]

    chosen, rejected = answers(40), answers(41)  # told apart by their last token
    trained = add_lora(model, Lora(), reward=True) if adapted else model
    done: list[int] = []
    start_at_probe(
        trained, tokenizer, chosen, rejected, clusters=range(60), centering=0.01, batch_size=16, heard=done.append
    )
    assert done == [16, 32, 48, 64, 80, 96, 112, 120]
    pairs = zip(score(trained, tokenizer, chosen), score(trained, tokenizer, rejected), strict=True)
    assert all(c > r for c, r in pairs)
    whole = trained.merge_and_unload() if isinstance(trained, PeftModel) else trained
    before = score(trained, tokenizer, chosen)
    assert score(whole, tokenizer, chosen) == pytest.approx(before, abs=1e-4)
