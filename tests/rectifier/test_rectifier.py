"""The rectifier as the module uses it: what it recovers, what it must not invent, and what it carries along."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score
from torch import Tensor

from mmnar_lightning.rectifier import Rectifier

Rows = tuple[Tensor, Tensor, Tensor, Tensor]
M = 6


def drawn(seed: int, n: int, K: int = 1, shift: Tensor | None = None, prevalence: float = 0.3) -> Rows:
    """Logits, targets, labelled and pattern; `shift` [2^M] moves the true logit. Frequencies of patterns fall off."""
    g = torch.Generator().manual_seed(seed)
    frequency = 1 / (1 + torch.arange(2**M).double())
    pattern = torch.multinomial(frequency, n, replacement=True, generator=g) * 37 % 2**M
    logits = torch.randn(n, K, generator=g, dtype=torch.float64) + np.log(prevalence / (1 - prevalence))
    truth = logits if shift is None else logits + shift[pattern, None]
    targets = (torch.rand(n, K, generator=g, dtype=torch.float64) < torch.sigmoid(truth)).double()
    return logits, targets, torch.ones(n, K, dtype=torch.bool), pattern


def test_planted_bias_is_recovered_and_scores_fall() -> None:
    shift = 0.8 * torch.randn(2**M, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    calibration, test = drawn(1, 6000, shift=shift), drawn(2, 20000, shift=shift)
    raw, plain, full = (
        torch.sigmoid(test[0])[:, 0].numpy(),
        Rectifier(["y"], "global").fit(*calibration, M).probabilities(test[0], test[3])[:, 0].numpy(),
        Rectifier(["y"]).fit(*calibration, M).probabilities(test[0], test[3])[:, 0].numpy(),
    )
    y = test[1][:, 0].numpy()
    best = torch.sigmoid(test[0][:, 0] + shift[test[3]]).numpy()
    for score in (log_loss, brier_score_loss):
        assert score(y, full) < score(y, plain) <= score(y, raw) + 1e-4
        assert score(y, plain) - score(y, full) > 0.8 * (score(y, plain) - score(y, best))


def test_nothing_planted_changes_nothing() -> None:
    calibration, test = drawn(3, 6000), drawn(4, 20000)
    rectifier = Rectifier(["y"]).fit(*calibration, M)
    shifts = rectifier.shifts()
    assert shifts["y/temperature"] == pytest.approx(1, abs=0.1)  # SE of the slope at n = 6,000 is 0.03
    assert all(abs(v) < 0.15 for k, v in shifts.items() if "/pattern/" in k)
    y = test[1][:, 0].numpy()
    difference = log_loss(y, rectifier.probabilities(test[0], test[3])[:, 0]) - log_loss(
        y, torch.sigmoid(test[0])[:, 0]
    )
    assert abs(difference) < 0.001


def test_bias_and_temperature_equal_scikit_learn_and_scipy() -> None:
    logits, targets, labelled, pattern = drawn(5, 3000)
    stretched = 2.5 * logits + 1.0
    state = Rectifier(["y"], "global").fit(stretched, targets, labelled, pattern, M).to_state()
    bias, temperature = state["bias"][0], state["temperature"][0]
    x, y = stretched.numpy(), targets[:, 0].numpy()
    reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x, y)
    # the reference has no penalty; ours is worth a quarter of a sample's information at most, of 3,000
    assert 1 / temperature == pytest.approx(reference.coef_[0, 0], abs=5e-3)
    assert bias == pytest.approx(reference.intercept_[0], abs=5e-3)

    def penalised(v: np.ndarray) -> float:
        eta = v[0] + v[1] * x[:, 0]
        return float(np.sum(np.logaddexp(0, eta) - y * eta) + v[0] ** 2 / 200 + (v[1] - 1) ** 2 / 8)

    found = minimize(penalised, [0.0, 1.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-10}).x
    np.testing.assert_allclose([bias, 1 / temperature], found, atol=1e-5)


def test_separable_labels_stay_finite_and_inverted_scores_keep_a_positive_temperature() -> None:
    x = torch.linspace(-3, 3, 200, dtype=torch.float64)[:, None]
    labelled, pattern = torch.ones_like(x, dtype=torch.bool), torch.arange(200) % 8
    for sign in (1, -1):
        y = (sign * x > 0).double()
        state = Rectifier(["y"]).fit(x, y, labelled, pattern, 3).to_state()
        assert 0 < state["temperature"][0] <= 100
        assert np.isfinite([v for row in state["shift"] for v in row]).all()
        assert (state["temperature"][0] == pytest.approx(100)) == (sign == -1)


def test_unseen_pattern_gets_its_count_and_unseen_count_the_global_shift() -> None:
    shift = torch.tensor([0.9 if int(i).bit_count() == 2 else -0.3 for i in range(2**M)], dtype=torch.float64)
    shift += 0.2 * torch.randn(2**M, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits, targets, labelled, pattern = drawn(6, 6000, shift=shift)
    seen = (pattern != 0b11) & (pattern != 2**M - 1)
    rectifier = Rectifier(["y"]).fit(logits[seen], targets[seen], labelled[seen], pattern[seen], M)
    state = rectifier.to_state()
    assert 0b11 not in state["patterns"]
    # at the logit where a slope moves nothing
    centre = (state["centre"][0] - state["bias"][0]) * state["temperature"][0]
    at = torch.full((2, 1), centre, dtype=torch.float64)
    out = rectifier.apply(at, torch.tensor([0b11, 2**M - 1]))[:, 0] - state["centre"][0]
    assert float(out[0]) == pytest.approx(state["count_shift"][state["counts"].index(2)][0])
    assert float(out[0]) > 0.3
    assert float(out[1]) == pytest.approx(state["global_shift"][0])


def test_tasks_are_independent_and_missing_labels_do_not_count() -> None:
    shift = 0.7 * torch.randn(2**M, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    logits, targets, labelled, pattern = drawn(7, 1500, K=4, shift=shift)
    labelled = torch.rand(labelled.shape, generator=torch.Generator().manual_seed(0)) < 0.7
    labelled[:, 2] = False
    targets[:, 3] = 0
    noise = torch.where(labelled, targets, 7.0)
    spoilt = torch.where(labelled, logits, torch.nan)
    joint = Rectifier(list("abcd")).fit(spoilt, noise, labelled, pattern, M)
    out = joint.apply(logits, pattern)
    for k in (0, 1):
        rows = labelled[:, k]
        alone = Rectifier(["a"]).fit(
            logits[rows, k : k + 1], targets[rows, k : k + 1], rows[rows, None], pattern[rows], M
        )
        torch.testing.assert_close(alone.apply(logits[rows, k : k + 1], pattern[rows]), out[rows, k : k + 1])
    assert torch.equal(out[:, 2:], logits[:, 2:])
    assert joint.reasons[:2] == ("", "")
    assert joint.reasons[2] == "no labelled calibration rows"
    assert joint.reasons[3] == "fewer than 10 positive labels in the calibration rows"
    assert not any(name.startswith(("c/", "d/")) for name in joint.shifts())


def test_no_calibration_rows_leave_everything_as_it_is() -> None:
    empty = (
        torch.zeros(0, 2),
        torch.zeros(0, 2),
        torch.zeros(0, 2, dtype=torch.bool),
        torch.zeros(0, dtype=torch.int64),
    )
    rectifier = Rectifier(["a", "b"]).fit(*empty, 9)
    logits = torch.randn(5, 2)
    assert torch.equal(rectifier.apply(logits, torch.arange(5)), logits)
    again = Rectifier.from_state(json.loads(json.dumps(rectifier.to_state())))
    assert torch.equal(again.apply(logits, torch.arange(5)), logits)
    assert again.reasons == ("no labelled calibration rows",) * 2
    unfitted = Rectifier(["a", "b"])
    assert not unfitted.fitted
    assert unfitted.shifts() == {}
    assert torch.equal(Rectifier.from_state(unfitted.to_state()).apply(logits, torch.arange(5)), logits)


def test_state_is_json_and_loads_with_weights_only(tmp_path: Path) -> None:
    shift = 0.7 * torch.randn(2**M, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    logits, targets, labelled, pattern = drawn(9, 1500, K=2, shift=shift)
    rectifier = Rectifier(["a", "b"]).fit(logits, targets, labelled, pattern, M)
    torch.save({"extra": rectifier.to_state()}, tmp_path / "state.ckpt")
    loaded = torch.load(tmp_path / "state.ckpt", weights_only=True)["extra"]
    for state in (loaded, json.loads(json.dumps(rectifier.to_state(), allow_nan=False))):
        again = Rectifier.from_state(state)
        assert again.to_state() == rectifier.to_state()
        torch.testing.assert_close(again.apply(logits, pattern), rectifier.apply(logits, pattern), atol=0, rtol=0)
    with pytest.raises(ValueError, match="version 9"):
        Rectifier.from_state(loaded | {"version": 9})
    with pytest.raises(ValueError, match="shift"):
        Rectifier.from_state({k: v for k, v in loaded.items() if k != "shift"})


def test_sixty_two_modalities_need_no_table_of_patterns() -> None:
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 2**62 - 1, (40,), generator=g)
    pattern = ids[torch.randint(0, 40, (2000,), generator=g)]
    logits = torch.randn(2000, 1, generator=g)
    targets = (torch.rand(2000, 1, generator=g) < torch.sigmoid(logits)).float()
    rectifier = Rectifier(["y"]).fit(logits, targets, torch.ones_like(logits, dtype=torch.bool), pattern, 62)
    assert rectifier.to_state()["patterns"] == sorted(set(pattern.tolist()))
    out = rectifier.apply(logits, pattern)
    assert out.dtype == torch.float32
    assert torch.isfinite(out).all()


def test_a_shift_never_reorders_inside_a_pattern() -> None:
    shift = torch.randn(2**M, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    calibration, test = drawn(10, 1000, shift=shift), drawn(11, 500)
    out = Rectifier(["y"]).fit(*calibration, M).apply(test[0], test[3])[:, 0]
    for p in torch.unique(test[3]):
        rows = test[3] == p
        assert torch.equal(torch.argsort(out[rows]), torch.argsort(test[0][rows, 0]))


def test_names_choose_the_shifts_that_are_shown() -> None:
    rectifier = Rectifier(["y"]).fit(*drawn(12, 800), M)
    shown = {name for name in rectifier.shifts({0: "none", 37: "labs+notes"}) if "/pattern/" in name}
    assert shown == {"y/pattern/none", "y/pattern/labs+notes"}
    assert "y/tau_pattern" not in Rectifier(["y"], "global").fit(*drawn(12, 800), M).shifts()


def test_wrong_input_is_counted_in_one_error() -> None:
    logits, targets, labelled, pattern = drawn(13, 50)
    spoilt = logits.clone()
    spoilt[:3] = torch.nan
    with pytest.raises(ValueError, match=r"3 labelled logits that are NaN; 50 pattern ids outside 0 … 2\^6"):
        Rectifier(["y"]).fit(spoilt, targets, labelled, pattern + 2**M, M)
    with pytest.raises(ValueError, match="50 labelled targets other than 0 and 1"):
        Rectifier(["y"]).fit(logits, targets + 0.5, labelled, pattern, M)
    with pytest.raises(ValueError, match="1 weights that are negative"):
        Rectifier(["y"]).fit(logits, targets, labelled, pattern, M, weights=torch.tensor([-1.0] + [1.0] * 49))
    with pytest.raises(ValueError, match=r"targets must be \[50, 1\]"):
        Rectifier(["y"]).fit(logits, targets[:, 0], labelled, pattern, M)
    with pytest.raises(ValueError, match="global, intercepts, slopes"):
        Rectifier(["y"], "slopes of hope")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="logit, probability"):
        Rectifier(["y"], scale="odds")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no slopes"):
        Rectifier(["y"], "slopes", "probability")
    keys = torch.arange(50)
    with pytest.raises(ValueError, match="1 patient keys outside"):
        Rectifier(["y"]).fit_ladder(logits, targets, labelled, pattern, keys - 1, M)
    with pytest.raises(ValueError, match=r"patient must be \[50\], not \[49\]"):
        Rectifier(["y"]).fit_ladder(logits, targets, labelled, pattern, keys[1:], M)
    with pytest.raises(ValueError, match="1 folds"):
        Rectifier(["y"]).fit_ladder(logits, targets, labelled, pattern, keys, M, folds=1)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_calibration_set_gives_finite_shifts(data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 30))
    number = st.one_of(st.floats(-60, 60), st.sampled_from([np.inf, -np.inf, 0.0]))
    logits = torch.tensor(data.draw(st.lists(number, min_size=n, max_size=n)), dtype=torch.float64)[:, None]
    bits = st.lists(st.booleans(), min_size=n, max_size=n)
    targets = torch.tensor(data.draw(bits), dtype=torch.float32)[:, None]
    labelled = torch.tensor(data.draw(bits), dtype=torch.bool)[:, None]
    pattern = torch.tensor(data.draw(st.lists(st.integers(0, 2**62 - 1), min_size=n, max_size=n)), dtype=torch.int64)
    state = Rectifier(["y"]).fit(logits, targets, labelled, pattern, 62).to_state()
    json.dumps(state, allow_nan=False)
    assert 0 < state["temperature"][0] <= 100.001


def test_a_handful_of_events_corrects_nothing_and_a_dozen_does_no_harm() -> None:
    # as on a small cohort: a calibrated model, patterns that mean nothing. Without a floor on the events and priors on
    # slope and variances, one draw in five lost 0.1 of AUROC and more
    losses = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        x = 1.5 * torch.randn(2060, 1, generator=generator, dtype=torch.float64) - 2.0
        y = torch.bernoulli(x.sigmoid(), generator=generator)
        pattern = torch.randint(2**M, (2060,), generator=generator)
        known = torch.ones_like(y, dtype=torch.bool)
        few = Rectifier(["y"]).fit(x[:20], y[:20], known[:20], pattern[:20], M)
        assert few.reasons[0].startswith("fewer than 10 positive")
        assert torch.equal(few.apply(x, pattern), x)
        fitted = Rectifier(["y"]).fit(x[:60], y[:60], known[:60], pattern[:60], M)
        out = fitted.apply(x[60:], pattern[60:])
        losses.append(roc_auc_score(y[60:], x[60:]) - roc_auc_score(y[60:], out))
    assert np.mean(losses) < 0.01
    assert max(losses) < 0.06
