from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from mmnar_lightning.objectives import effective_share, inverse_probability_weights


def test_weights_bring_the_mean_of_the_selected_to_that_of_everyone() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=200_000)
    pi = expit(1.5 * x)
    seen = rng.random(len(x)) < pi
    weight = inverse_probability_weights(torch.tensor(pi), torch.tensor(seen.mean()), clip=100.0).numpy()
    # the standard error of either mean is below 0.01
    assert np.average(x[seen], weights=weight[seen]) == pytest.approx(x.mean(), abs=0.03)
    assert x[seen].mean() > 0.4, "unweighted it is another population's"
    clipped = inverse_probability_weights(torch.tensor(pi), torch.tensor(seen.mean()), clip=1.5).numpy()
    assert 0.05 < np.average(x[seen], weights=clipped[seen]) < x[seen].mean(), "clipping gives some of the bias back"
    assert clipped.max() == 1.5


@given(st.lists(st.tuples(st.floats(0.01, 10), st.booleans()), min_size=1, max_size=20))
def test_the_effective_share_is_its_formula(rows: list[tuple[float, bool]]) -> None:
    weight, mask = torch.tensor([w for w, _ in rows]), torch.tensor([m for _, m in rows])
    kept = [w for w, m in rows if m]
    share = float(effective_share(weight, mask))
    if kept:
        assert share == pytest.approx(sum(kept) ** 2 / sum(w * w for w in kept) / len(kept), rel=1e-4)
        assert share <= 1 + 1e-5
    else:
        assert np.isnan(share)


def test_a_clip_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="ipw_clip must be at least 1"):
        inverse_probability_weights(torch.ones(1), torch.ones(1), 0.5)
