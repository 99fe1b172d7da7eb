"""The linear evidence: a ridge regression beside the network, over what was measured only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mmnar_lightning._heads import LinearEvidence
from mmnar_lightning.encoders import default_encoder, encode
from mmnar_lightning.module import MultimodalOutcomeModule
from mmnar_lightning.objectives import binary_cross_entropy, masked_mean
from mmnar_lightning.records import Encoded, PatientBatch, RecordDataModule, RecordSchema

MakeDataModule = Callable[..., RecordDataModule]


@pytest.fixture(scope="module")
def data(make_datamodule: MakeDataModule, tmp_path_factory: pytest.TempPathFactory) -> RecordDataModule:
    parent = tmp_path_factory.mktemp("stores")
    made = make_datamodule(parent, n_patients=300, modalities=["vitals", "labs", "diagnoses"], tasks=["death"])
    made.setup("fit")
    return made


@pytest.fixture(scope="module")
def batch(data: RecordDataModule) -> PatientBatch:
    dataset = data.train_dataloader().dataset
    return dataset.__getitems__(list(range(len(dataset))))


@pytest.fixture(scope="module")
def encoded(data: RecordDataModule, batch: PatientBatch) -> Encoded:
    schema = RecordSchema.from_dict(data.schema)
    with torch.no_grad():
        return encode({m.name: default_encoder(m, 8) for m in schema.modalities}, batch)


def build(data: RecordDataModule, encoded: Encoded, precision: float = 50.0) -> LinearEvidence:
    widths = [0 if inputs is None else inputs.values.shape[1] for inputs in encoded.inputs]
    return LinearEvidence(widths, RecordSchema.from_dict(data.schema), precision)


def flat(encoded: Encoded) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """The standardised inputs as one matrix, 0 where a modality is unobserved: written row by row."""
    blocks = []
    for m, inputs in enumerate(encoded.inputs):
        assert inputs is not None
        block = np.zeros((len(encoded.observed), inputs.values.shape[1]))
        rows = [i for i, there in enumerate(encoded.observed[:, m].tolist()) if there]
        for place, row in enumerate(rows):
            block[row] = inputs.values[place].numpy()
        blocks.append(block)
    return np.concatenate(blocks, axis=1)


def test_it_starts_at_the_log_odds_of_train_and_lets_the_network_earn_its_share(
    data: RecordDataModule, encoded: Encoded
) -> None:
    linear = build(data, encoded)
    rate = RecordSchema.from_dict(data.schema).tasks[0].prevalence
    assert rate is not None
    logits = torch.randn(len(encoded.observed), 1)
    torch.testing.assert_close(linear(encoded, logits).sigmoid(), torch.full_like(logits, rate))
    with torch.no_grad():
        linear.share.fill_(1.0)
    torch.testing.assert_close(linear(encoded, logits), logits)


def test_fitted_alone_it_is_the_ridge_regression_of_scikit_learn(
    data: RecordDataModule, batch: PatientBatch, encoded: Encoded
) -> None:
    precision = 50.0
    linear = build(data, encoded, precision)
    known = batch.labelled[:, 0].numpy()
    n, x, y = known.sum(), flat(encoded)[known], batch.targets[:, 0].numpy()[known]
    # its penalty is per training sample, whether or not its label is known
    reference = LogisticRegression(C=len(known) / (precision * n), tol=1e-8, max_iter=5000).fit(x, y)
    free = torch.nn.Parameter(torch.zeros(1))
    parameters = [*linear.weights, free]
    optimizer = torch.optim.LBFGS(parameters, max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")
    nothing = torch.zeros(len(known), 1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = linear(encoded, nothing) - linear.prior + free
        loss = masked_mean(binary_cross_entropy(logits, batch.targets), batch.labelled) + linear.penalty()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    ours = np.concatenate([w.detach().numpy()[:, 0] for w in linear.weights])
    np.testing.assert_allclose(ours, reference.coef_[0], atol=2e-3)


def test_no_decay_but_its_own_prior_pulls_at_it(data: RecordDataModule, tmp_path: Path) -> None:
    module = MultimodalOutcomeModule(data.schema, linear_precision=50.0, width=16)
    module.configure_model()
    assert module.linear is not None
    schema = RecordSchema.from_dict(data.schema)
    assert module.linear.samples == schema.samples == len(data.samples_of("train"))
    with torch.no_grad():
        for weight in module.linear.weights:
            weight.fill_(0.1)
    count = sum(weight.numel() for weight in module.linear.weights)
    torch.testing.assert_close(module.linear.penalty(), torch.tensor(50.0 / 2 / schema.samples * 0.01 * count))
