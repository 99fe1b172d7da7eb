"""Scores that know nothing: the rectifier must leave AUROC where it is, and add no more than the pattern can."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import binom
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mmnar_lightning.rectifier import Rectifier, patient_keys

Rows = tuple[Tensor, Tensor, Tensor, Tensor]
Draw = Callable[[int, torch.Generator], Tensor]
M = 12


def _falling(n: int, g: torch.Generator) -> Tensor:
    return torch.multinomial(1 / (1 + torch.arange(64.0)), n, replacement=True, generator=g) * 37 % 64


def _even(n: int, g: torch.Generator) -> Tensor:
    return torch.randint(64, (n,), generator=g)


def _two_and_many_rare(n: int, g: torch.Generator) -> Tensor:
    rare = torch.randint(2**M, (n,), generator=g)
    return torch.where(torch.rand(n, generator=g) < 0.8, 4095 * torch.randint(2, (n,), generator=g), rare)


def _three(n: int, g: torch.Generator) -> Tensor:
    return torch.tensor([1, 3, 7])[torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), n, replacement=True, generator=g)]


PATTERNS: dict[str, Draw] = {"falling": _falling, "even": _even, "mostly_unseen": _two_and_many_rare, "three": _three}


def drawn(seed: int, n: int, prevalence: float, patterns: Draw, shift: Tensor | None = None) -> Rows:
    """Logits that labels don't depend on, targets, labelled, pattern; `shift` [2^M] of the labels' own logit."""
    g = torch.Generator().manual_seed(seed)
    pattern = patterns(n, g)
    base = float(np.log(prevalence / (1 - prevalence)))
    logits = base + torch.randn(n, 1, generator=g, dtype=torch.float64)
    truth = torch.full_like(logits, base) + (0 if shift is None else shift[pattern, None])
    targets = torch.bernoulli(truth.sigmoid(), generator=g)
    return logits, targets, torch.ones_like(targets, dtype=torch.bool), pattern


def z_of_auroc(targets: Tensor, scores: Tensor) -> float:
    """(AUROC − ½) over its exact null sd, that of the Mann–Whitney statistic (scores without ties)."""
    y, s = targets[:, 0].numpy(), scores[:, 0].numpy()
    events, others = y.sum(), (1 - y).sum()
    sd = np.sqrt((events + others + 1) / (12 * events * others))
    return float((roc_auc_score(y, s) - 0.5) / sd)


def fit_intercepts(rows: Rows) -> Rectifier:
    return Rectifier(["y"]).fit(*rows, M)


def fit_additive(rows: Rows) -> Rectifier:
    return Rectifier(["y"], scale="probability").fit(*rows, M)


def fit_slopes(rows: Rows) -> Rectifier:
    return Rectifier(["y"], "slopes").fit(*rows, M)


def fit_ladder(rows: Rows) -> Rectifier:
    return Rectifier(["y"]).fit_ladder(*rows, patient_keys(range(len(rows[3]))), M)


def null_z(
    fit: Callable[[Rows], Rectifier], patterns: Draw, seeds: range, n: int = 1200, on_test: bool = False
) -> list[float]:
    found = []
    for seed in seeds:
        prevalence = (0.06, 0.3)[seed % 2]
        calibration = drawn(2 * seed, n, prevalence, patterns)
        test = drawn(2 * seed + 1, n, prevalence, patterns)
        rectifier = fit(test if on_test else calibration)
        found.append(z_of_auroc(test[1], rectifier.apply(test[0], test[3])))
    return found


def fails_the_null(z: list[float]) -> bool:
    """Whether a test of mean 0 (at 0.1 %) or of the nominal share of 95 % intervals that miss (at 0.1 %) fails.

    Under the null each z is standard normal whatever the rectifier did, since it has not seen the test labels. So the
    mean has sd 1/√seeds, and the number of misses is binomial. Both tests together fail by chance in 0.2 % of runs.
    """
    values = np.array(z)
    misses = int((np.abs(values) > 1.96).sum())
    return bool(abs(values.mean()) * np.sqrt(len(z)) > 3.29 or misses > binom.ppf(0.999, len(z), 0.05))


@pytest.mark.parametrize("fit", [fit_intercepts, fit_additive])
def test_label_independent_scores_stay_at_one_half(fit: Callable[[Rows], Rectifier]) -> None:
    assert not fails_the_null([z for draw in PATTERNS.values() for z in null_z(fit, draw, range(14))])


def test_fitting_on_test_does_not_pass_that_test() -> None:
    assert fails_the_null(
        [z for draw in PATTERNS.values() for z in null_z(fit_intercepts, draw, range(14), 1200, True)]
    )


@pytest.mark.slow
@pytest.mark.parametrize("patterns", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("fit", [fit_intercepts, fit_additive, fit_slopes])
def test_label_independent_scores_stay_at_one_half_over_200_seeds(
    patterns: Draw, fit: Callable[[Rows], Rectifier]
) -> None:
    assert not fails_the_null(null_z(fit, patterns, range(1000, 1200)))


@pytest.mark.slow
@pytest.mark.parametrize("patterns", [_falling, _even])
def test_fitting_on_test_does_not_pass_over_200_seeds(patterns: Draw) -> None:
    assert fails_the_null(null_z(fit_intercepts, patterns, range(1000, 1200), on_test=True))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_ladder_stays_at_one_half_over_200_seeds() -> None:
    assert not fails_the_null(
        [
            z
            for i, draw in enumerate(PATTERNS.values())
            for z in null_z(fit_ladder, draw, range(50 * i, 50 * i + 50), 800)
        ]
    )


def gains(seeds: range, on_test: bool = False) -> NDArray[np.float64]:
    """AUROC of the rectified scores and of the true risk of the pattern, [seeds, 2]; labels depend on it alone."""
    shift = 0.8 * torch.randn(2**M, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for seed in seeds:
        calibration = drawn(2 * seed, 2000, 0.3, _falling, shift)
        test = drawn(2 * seed + 1, 2000, 0.3, _falling, shift)
        rectified = fit_intercepts(test if on_test else calibration).apply(test[0], test[3])[:, 0]
        y = test[1][:, 0].numpy()
        found.append((roc_auc_score(y, rectified), roc_auc_score(y, shift[test[3]])))
    return np.array(found)


def exceeds_the_pattern(pairs: NDArray[np.float64]) -> bool:
    """Whether the mean gain over the true risk of the pattern is more than 3 standard errors above 0."""
    over = pairs[:, 0] - pairs[:, 1]
    return bool(over.mean() > 3 * over.std(ddof=1) / np.sqrt(len(over)))


def test_labels_that_depend_on_patterns_gain_what_the_pattern_alone_predicts() -> None:
    pairs = gains(range(20))
    ours, oracle = pairs.mean(0)
    assert oracle > 0.58
    assert not exceeds_the_pattern(pairs)
    # 64 shifts estimated from 2,000 rows, and what is left of the scores' noise, cost a little
    assert oracle - 0.04 < ours


def test_fitting_on_test_gains_more_than_the_pattern_predicts() -> None:
    assert exceeds_the_pattern(gains(range(20), on_test=True))
