"""What the ladder chooses where the truth is known, and that the rule is the one that is written down."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss
from torch import Tensor

from mmnar_lightning.rectifier import Rectifier, patient_keys
from mmnar_lightning.rectifier.calibration import fold_of
from mmnar_lightning.rectifier.intercepts import fit_intercepts
from mmnar_lightning.rectifier.ladder import _choice, _Patients
from mmnar_lightning.rectifier.likelihood import Rows
from mmnar_lightning.rectifier.patterns import PatternTree, keep

M = 5
G = torch.Generator().manual_seed(0)
SHIFT = 0.7 * torch.randn(2**M, generator=G, dtype=torch.float64)
SLOPE = torch.tensor([-0.7, 0.6], dtype=torch.float64)[torch.arange(2**M) % 2]
Data = tuple[Tensor, Tensor, Tensor, Tensor]


def drawn(seed: int, n: int, shift: float = 0.0, slope: float = 0.0, prevalence: float = 0.3) -> Data:
    """Logits, targets, labelled and pattern; SHIFT and SLOPE times what is planted."""
    g = torch.Generator().manual_seed(seed)
    pattern = torch.multinomial(1 / (1 + torch.arange(2.0**M)), n, replacement=True, generator=g)
    x = 1.3 * torch.randn(n, 1, generator=g, dtype=torch.float64)
    logits = x + float(np.log(prevalence / (1 - prevalence)))
    truth = logits + shift * SHIFT[pattern, None] + slope * SLOPE[pattern, None] * x
    return logits, torch.bernoulli(truth.sigmoid(), generator=g), torch.ones(n, 1, dtype=torch.bool), pattern


def laddered(data: Data) -> Rectifier:
    return Rectifier(["y"]).fit_ladder(*data, patient_keys(range(len(data[3]))), M)


def pattern_ece(targets: Tensor, probabilities: Tensor, pattern: Tensor) -> float:
    """Σ_p n_p / n |mean outcome − mean probability|."""
    gap = torch.zeros(2**M, dtype=torch.float64).index_add_(0, pattern, (targets - probabilities)[:, 0])
    return float(gap.abs().sum() / len(pattern))


@pytest.mark.parametrize("seed", range(3))
def test_planted_bias_is_found_recovered_and_paid_for(seed: int) -> None:
    test = drawn(100 + seed, 30000, shift=1)
    rectifier = laddered(drawn(seed, 3000, shift=1))
    assert rectifier.rungs == ("intercepts",)
    state = rectifier.to_state()
    offset = state["bias"][0]
    error = torch.tensor([row[0] + offset for row in state["shift"]]) - SHIFT[state["patterns"]]
    inside = (error.abs() < 1.96 * torch.tensor([row[0] for row in state["sd"]])).double().mean()
    # 32 intervals at once, which share the error of bias and centre: 26 of them at least
    assert inside > 0.8
    y = test[1].numpy()
    raw, plain, ours = (
        test[0].sigmoid(),
        rectifier.recalibrate(test[0]).sigmoid(),
        rectifier.probabilities(test[0], test[3]),
    )
    for score in (brier_score_loss, log_loss):
        assert score(y, ours[:, 0]) < min(score(y, raw[:, 0]), score(y, plain[:, 0])) - 0.005
    ece = [pattern_ece(test[1], p, test[3]) for p in (raw, plain, ours)]
    assert ece[2] < 0.5 * min(ece[:2])


@pytest.mark.parametrize("prevalence", [0.06, 0.3])
def test_nothing_planted_changes_nothing(prevalence: float) -> None:
    rungs, beyond = [], []
    for seed in range(6):
        rectifier = laddered(drawn(seed, 1500, prevalence=prevalence))
        rungs.append(rectifier.rungs[0])
        logits, targets, _, pattern = drawn(100 + seed, 5000, prevalence=prevalence)
        after, before = rectifier.apply(logits, pattern), rectifier.recalibrate(logits)
        bce = torch.nn.functional.binary_cross_entropy_with_logits
        d = (bce(after, targets, reduction="none") - bce(before, targets, reduction="none"))[:, 0]
        beyond.append(float(d.mean().abs()) > max(float(d.std()) / 5000**0.5, 1e-12))
    assert rungs.count("global") >= 5
    assert sum(beyond) <= 1


@pytest.mark.parametrize("seed", range(2))
def test_planted_slopes_are_found_and_pay(seed: int) -> None:
    rectifier = laddered(drawn(seed, 3000, shift=0.5, slope=1))
    assert rectifier.rungs == ("slopes",)
    assert rectifier.shifts()["y/slope/1"] > 0.2
    assert rectifier.shifts()["y/slope/0"] < -0.2
    logits, targets, _, pattern = drawn(100 + seed, 20000, shift=0.5, slope=1)
    lower = Rectifier(["y"]).fit(*drawn(seed, 3000, shift=0.5, slope=1), M)
    losses = [log_loss(targets.numpy(), r.probabilities(logits, pattern)[:, 0]) for r in (rectifier, lower)]
    assert losses[0] < losses[1] - 0.005


def test_each_task_gets_its_own_rung_and_the_rest_of_the_fit_is_that_of_the_rung() -> None:
    one, two = drawn(1, 2500), drawn(1, 2500, shift=1)
    assert torch.equal(one[3], two[3])
    logits, targets, labelled = (torch.cat([a, b, c], 1) for a, b, c in zip(one[:3], two[:3], one[:3], strict=True))
    targets[:, 2] = (torch.arange(2500) < 12).double()
    labelled[:, 2] = True
    both = Rectifier(list("abc")).fit_ladder(logits, targets, labelled, one[3], patient_keys(range(2500)), M)
    assert both.rungs == ("global", "intercepts", "global")
    # twelve events: enough to recalibrate, not in each part of the folds
    assert both.reasons == ("", "", "")
    assert both.choices[2].rungs == ()
    assert "fewer than 10 positive" in both.choices[2].reason
    plain = Rectifier(["y"]).fit(*two, M)
    torch.testing.assert_close(both.apply(logits, one[3])[:, 1:2], plain.apply(two[0], two[3]))
    flat = Rectifier(["y"], "global").fit(*one, M)
    torch.testing.assert_close(both.apply(logits, one[3])[:, :1], flat.apply(one[0], one[3]))


def test_patients_stay_together_whatever_the_order_and_the_company() -> None:
    keys = patient_keys([f"patient {i % 700}" for i in range(2000)])
    assert torch.equal(keys[:700], keys[700:1400])
    assert len(torch.unique(keys)) == 700
    assert int(keys.min()) >= 0
    assert int(keys.max()) < 2**62
    folds = fold_of(keys, 5, 0)
    assert torch.equal(folds[:700], folds[700:1400])
    assert torch.equal(fold_of(keys[123:140], 5, 0), folds[123:140])
    assert torch.bincount(folds[:700]).min() > 100
    assert not torch.equal(fold_of(keys, 5, 1), folds)
    data = drawn(5, 2000, shift=1)
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(0))
    a, b, c, d = (column[order] for column in data)
    first = Rectifier(["y"]).fit_ladder(*data, keys, M).choices[0]
    second = Rectifier(["y"]).fit_ladder(a, b, c, d, keys[order], M).choices[0]
    assert first.chosen == second.chosen
    assert first.patients == 700
    np.testing.assert_allclose(np.array(first.fold_loss), np.array(second.fold_loss), atol=1e-9)
    np.testing.assert_allclose([first.difference, first.se], [second.difference, second.se], atol=1e-9)


def test_held_out_losses_equal_fits_on_the_other_folds() -> None:
    data = drawn(6, 1200, shift=1)
    keys = patient_keys([i // 2 for i in range(1200)])
    choice = Rectifier(["y"]).fit_ladder(*data, keys, M, folds=3).choices[0]
    fold = fold_of(keys, 3, 0)
    for held in range(3):
        a, b, c, d = (column[fold != held] for column in data)
        fitted = Rectifier(["y"]).fit(a, b, c, d, M)
        out = fold == held
        p = fitted.probabilities(data[0][out], data[3][out])[:, 0]
        assert choice.fold_loss[1][held] == pytest.approx(log_loss(data[1][out].numpy(), p), abs=1e-9)


def test_the_rule_is_one_standard_error_of_the_paired_difference() -> None:
    g = np.random.default_rng(0)
    patients = 300
    weight = g.integers(1, 4, patients).astype(float)
    # hard patients are hard for every rung: levels vary far more than differences
    level = g.gamma(0.5, 1.0, patients) * weight
    gain = 0.02 + 0.08 * g.standard_normal((2, patients))
    loss = np.stack([level, level - gain[0] * weight, level - (gain[0] + 0.1 * gain[1] - 0.001) * weight])
    found = _choice(
        _Patients(torch.tensor(weight)[:, None], torch.tensor(loss)[:, :, None], torch.arange(patients) % 5),
        0,
        ("global", "intercepts", "slopes"),
        5,
        "",
    )
    mean = loss.sum(1) / weight.sum()
    best = int(mean.argmin())
    d = loss - loss[best]
    away = d.sum(1) / weight.sum()
    # a ratio of sums over patients: its delta-method variance
    se = [
        np.sqrt(patients / (patients - 1) * np.sum((row - a * weight) ** 2)) / weight.sum()
        for row, a in zip(d, away, strict=True)
    ]
    np.testing.assert_allclose(found.loss, mean)
    np.testing.assert_allclose(found.difference, away)
    np.testing.assert_allclose(found.se, se)
    assert found.chosen == ("global", "intercepts", "slopes")[next(r for r in range(3) if away[r] <= se[r])]
    assert found.chosen != "global"
    # companion: with the standard error of the loss itself the real gain would be thrown away
    level_se = (loss[best] / weight).std(ddof=1) / np.sqrt(patients)
    assert away[0] < level_se


def test_the_record_is_plain_and_comes_back() -> None:
    rectifier = laddered(drawn(7, 1500, shift=1))
    state = json.loads(json.dumps(rectifier.to_state(), allow_nan=False))
    again = Rectifier.from_state(state)
    assert again.choices == rectifier.choices
    assert again.rungs == rectifier.rungs
    assert again.to_state() == rectifier.to_state()
    assert rectifier.fit(*drawn(8, 500), M).choices == ()


def test_probability_scale_has_two_rungs() -> None:
    data = drawn(1, 2500, shift=1)
    keys = patient_keys(range(2500))
    rectifier = Rectifier(["y"], scale="probability").fit_ladder(*data, keys, M)
    assert rectifier.choices[0].rungs == ("global", "intercepts")
    assert rectifier.rungs == ("intercepts",)


def test_no_rows_leave_everything_as_it_is() -> None:
    none = torch.zeros(0, 1)
    whole = torch.zeros(0, dtype=torch.int64)
    rectifier = Rectifier(["y"]).fit_ladder(none, none, none.bool(), whole, whole, M)
    logits = torch.randn(4, 1)
    assert torch.equal(rectifier.apply(logits, torch.arange(4)), logits)
    assert rectifier.choices[0].patients == 0


def shrunk_coverage(seeds: range) -> float:
    """Share of 95 % intervals that hold their pattern's shift, drawn anew in each draw, over all patterns and draws."""
    tree = PatternTree.of(torch.arange(2**M))
    inside = []
    for seed in seeds:
        g = torch.Generator().manual_seed(seed)
        truth = 0.6 * torch.randn(2**M, generator=g, dtype=torch.float64)
        node = torch.multinomial(1 / (1 + torch.arange(2.0**M)), 2500, replacement=True, generator=g)
        x = torch.randn(2500, 1, generator=g, dtype=torch.float64) - 0.8
        y = torch.bernoulli((x + truth[node, None]).sigmoid(), generator=g)
        found = fit_intercepts(Rows(x, y, torch.ones_like(x), node, keep), x, tree)
        inside.append(((found.shift[:, 0] - truth).abs() < 1.96 * found.sd[:, 0]).double().mean())
    return float(torch.stack(inside).mean())


def test_intervals_of_shrunk_shifts_cover_on_average_over_patterns() -> None:
    assert 0.93 < shrunk_coverage(range(80)) < 0.97


@pytest.mark.slow
def test_intervals_of_shrunk_shifts_cover_on_average_over_500_draws() -> None:
    assert 0.93 < shrunk_coverage(range(1000, 1500)) < 0.97
