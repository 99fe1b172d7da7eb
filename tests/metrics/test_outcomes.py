"""OutcomeMetrics: masking, patterns, missing keys, and two processes against one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score
from torch import Tensor

from mmnar_lightning.metrics import BINARY_METRICS, OutcomeMetrics, frequent_patterns

NAMES = {0: "none", 1: "labs", 3: "labs+notes", 9: "labs+films"}
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def drawn(seed: int, n: int, K: int = 3) -> Batch:
    g = torch.Generator().manual_seed(seed)
    p = torch.rand(n, K, generator=g)
    y = (torch.rand(n, K, generator=g) < p).float()
    labelled = torch.rand(n, K, generator=g) < 0.8
    pattern = torch.tensor([0, 1, 3, 5])[torch.randint(0, 4, (n,), generator=g)]
    return p, torch.where(labelled, y, 5.0), labelled, pattern


def test_values_equal_scikit_learn_on_labelled_rows() -> None:
    p, y, labelled, pattern = drawn(0, 500)
    metric = OutcomeMetrics(["a", "b", "c"], NAMES)
    for rows in torch.split(torch.arange(500), 60):
        metric.update(p[rows], y[rows], labelled[rows], pattern[rows])
    found = metric.compute()
    references = {"auroc": roc_auc_score, "auprc": average_precision_score, "brier": brier_score_loss}
    for name, reference in references.items():
        expected = []
        for k, task in enumerate("abc"):
            known = labelled[:, k]
            expected.append(reference(y[known, k], p[known, k]))
            assert float(found[f"{task}/{name}"]) == pytest.approx(expected[-1], abs=1e-6)
            for identity, word in NAMES.items():
                rows = known & (pattern == identity)
                if rows.any():
                    value = float(found[f"{task}/pattern/{word}/{name}"])
                    assert value == pytest.approx(reference(y[rows, k], p[rows, k]), abs=1e-6)
        assert float(found[name]) == pytest.approx(np.mean(expected), abs=1e-6)
    worst = min(
        roc_auc_score(y[rows, 0], p[rows, 0]) for i in (0, 1, 3, 5) for rows in [labelled[:, 0] & (pattern == i)]
    )
    assert float(found["a/worst_pattern/auroc"]) == pytest.approx(worst, abs=1e-6)
    # pattern 9 never occurs: no key; pattern 5 occurs without a name: counted in the worst only
    assert not any("labs+films" in key for key in found)
    assert {key.split("/")[-1] for key in found} == set(BINARY_METRICS)
    assert all(torch.isfinite(value) and value.dtype == torch.float32 and value.ndim == 0 for value in found.values())


def test_what_is_not_defined_has_no_key() -> None:
    p, y, labelled, pattern = drawn(1, 60)
    y[:, 1], labelled[:, 2] = 0, False
    # ten samples of pattern 0 with a known label are just enough to be reported, nine of pattern 1 are not
    labelled[:, 1], pattern[:] = True, 2
    pattern[:10], pattern[10:19] = 0, 1
    metric = OutcomeMetrics(["a", "b", "c"], {0: "none", 1: "labs"}, metrics=["auroc", "brier", "calibration_slope"])
    metric.update(p, y, labelled, pattern)
    found = metric.compute()
    assert not any(key.startswith("c/") for key in found)
    assert {key for key in found if key.startswith("b/")} == {"b/brier", "b/pattern/none/brier"}
    assert found["auroc"] == found["a/auroc"]
    assert float(found["brier"]) == pytest.approx((float(found["a/brier"]) + float(found["b/brier"])) / 2)


def test_an_empty_batch_and_a_reset() -> None:
    empty = drawn(2, 0)
    metric = OutcomeMetrics(["a", "b", "c"])
    metric.update(*empty)
    assert metric.compute() == {}
    metric.reset()
    metric.update(*drawn(3, 50))
    before = metric.compute()
    metric.update(*empty)
    assert metric.compute() == before
    p, y, labelled, pattern = drawn(3, 50)
    with pytest.raises(ValueError, match=r"targets must be \[50, 3\]"):
        metric.update(p, y[:, :1], labelled, pattern)
    with pytest.raises(ValueError, match="no metric 'accuracy'"):
        OutcomeMetrics(["a"], metrics=["accuracy"])


def test_update_keeps_no_gradient_and_takes_half_precision() -> None:
    p, y, labelled, pattern = drawn(4, 50)
    metric = OutcomeMetrics(["a", "b", "c"], metrics=["brier"])
    metric.update(p.requires_grad_(), y, labelled, pattern)
    metric.update(p.detach().bfloat16(), y.bfloat16(), labelled, pattern)
    assert not metric.probabilities[0].requires_grad
    assert set(metric.compute()) == {"a/brier", "b/brier", "c/brier", "brier"}


def test_frequent_patterns_are_ranked_and_named() -> None:
    pattern = torch.tensor([3] * 5 + [0] * 2 + [1] * 2 + [2**40] * 3)
    names = [f"m{i}" for i in range(41)]
    assert frequent_patterns(pattern, names, most=3) == {3: "m0+m1", 2**40: "m40", 0: "none"}
    assert frequent_patterns(pattern[:0], names) == {}


WORKER = """
import json, sys
import torch
import torch.distributed as dist
from mmnar_lightning.metrics import OutcomeMetrics
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
data = torch.load(f"{folder}/data.pt", weights_only=True)
found = {}
for name, cuts in {"uneven": [0, 130, 200], "empty batch": [0, 0, 200], "no update": [0, 200, 200]}.items():
    metric = OutcomeMetrics(["a", "b", "c"], {0: "none", 3: "labs+notes"})
    rows = slice(cuts[rank], cuts[rank + 1])
    metric.update(*(part[rows] for part in data))
    if name == "no update" and rank == 1:
        metric.probabilities, metric.targets, metric.pattern = [], [], []  # update was called, and held nothing
    found[name] = {key: float(value) for key, value in metric.compute().items()}
    assert len(metric.probabilities) <= 1, "states must be local again after compute"
json.dump(found, open(f"{folder}/{rank}.json", "w"))
dist.destroy_process_group()
"""


def test_two_processes_equal_one(tmp_path: Path) -> None:
    p, y, labelled, pattern = drawn(5, 200)
    p[:, 1] = (p[:, 1] * 5).round() / 5  # ties over the shards
    y[:130, 2] = 0  # one shard has a single class
    torch.save([p, y, labelled, pattern], tmp_path / "data.pt")
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-W", "ignore", str(tmp_path / "worker.py")]
    workers = [subprocess.Popen([*command, str(rank), str(tmp_path)]) for rank in (0, 1)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    metric = OutcomeMetrics(["a", "b", "c"], {0: "none", 3: "labs+notes"})
    metric.update(p, y, labelled, pattern)
    expected = {key: float(value) for key, value in metric.compute().items()}
    for rank in (0, 1):
        for case, found in json.loads((tmp_path / f"{rank}.json").read_text()).items():
            assert list(found) == list(expected), (rank, case)
            np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=0, atol=1e-7)
