"""Records as one flat matrix, and the two plain models that every network has to be measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmnar_lightning.records import PatientBatch, RecordDataset, RecordSchema

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Flat:
    """Flattened samples.

    Args:
        values: float64 [n, F], NaN where not measured.
        targets: float64 [n, K], NaN where unlabelled.
        sample: int64 [n], row in the store.
        names: F names, ``modality/item``; availability is ``observed/modality``.
    """

    values: Array
    targets: Array
    sample: NDArray[np.int64]
    names: tuple[str, ...]


def flatten(dataset: RecordDataset) -> Flat:
    """Flatten the samples of a dataset: the same values and pattern that a fusion sees, as columns.

    `vector` items as they are (the mean over rows where a sample has several), NaN where not measured; `codes` as the
    number of occurrences of each code of the vocabulary, NaN where the modality is unobserved; availability as 0 and 1.
    Raw text, images and series have no flat form and are left to their availability.
    """
    schema, n = dataset.schema, len(dataset)
    batch = dataset.__getitems__(list(range(n)))
    columns: list[Array] = []
    names: list[str] = []
    for modality in schema.modalities:
        if modality.kind in ("vector", "codes"):
            columns.append(_values(schema, modality.name, batch, n))
            names += [f"{modality.name}/{item}" for item in modality.items]
    columns.append(batch.observed.numpy().astype(np.float64))
    names += [f"observed/{name}" for name in schema.names]
    targets = np.where(batch.labelled.numpy(), batch.targets.numpy(), np.nan).astype(np.float64)
    return Flat(np.concatenate(columns, axis=1), targets, batch.sample.numpy(), tuple(names))


def _values(schema: RecordSchema, name: str, batch: PatientBatch, n: int) -> Array:
    modality, elements = schema.modality(name), batch.elements[name]
    row = elements.row.numpy()
    values = np.asarray(elements.values)
    width = len(modality.items)
    if modality.kind == "codes":
        counted = np.bincount(row * width + values, minlength=n * width).reshape(n, width).astype(np.float64)
        counted[~batch.observed[:, schema.names.index(name)].numpy()] = np.nan
        return counted
    known = ~np.isnan(values)
    total, count = np.zeros((n, width)), np.zeros((n, width))
    np.add.at(total, row, np.where(known, values, 0.0))
    np.add.at(count, row, known)
    with np.errstate(invalid="ignore"):
        return total / count


def linear_pipeline(classifier: Any) -> Any:
    """Put what a linear model needs before it: standardised on what was measured, 0 (the mean) where nothing was.

    Indicators of single items are left out: with more items than patients they cost more than they tell (on the eICU
    demo 0.05 to 0.07 of AUROC). Availability of whole modalities is among the columns.
    """
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    zero = SimpleImputer(strategy="constant", fill_value=0.0, keep_empty_features=True)
    return make_pipeline(StandardScaler(), zero, classifier)


def logistic_regression(train: Flat, val: Flat, task: int, seed: int = 0) -> Any:
    """Fit L2-regularised logistic regression; its penalty is the one of seven with the highest AUROC on `val`.

    Returns:
        A scikit-learn classifier; `predict_proba(values)[:, 1]` is P(y = 1).
    """
    from sklearn.linear_model import LogisticRegression

    strengths = 10.0 ** np.arange(-5, 2)
    candidates = [linear_pipeline(LogisticRegression(C=C, max_iter=2000, random_state=seed)) for C in strengths]
    return _best(candidates, train, val, task)


def boosted_trees(train: Flat, val: Flat, task: int, seed: int = 0) -> Any:
    """Fit scikit-learn's histogram gradient boosting, which takes NaN as it is.

    Learning rate, size and number of trees are the ones of twelve settings with the highest AUROC on `val`.

    Returns:
        A scikit-learn classifier; `predict_proba(values)[:, 1]` is P(y = 1).
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    settings = [(r, leaves, n) for r in (0.03, 0.1) for leaves in (4, 15, 31) for n in (50, 150)]
    return _best(
        [
            HistGradientBoostingClassifier(
                learning_rate=rate, max_leaf_nodes=leaves, max_iter=n, early_stopping=False, random_state=seed
            )
            for rate, leaves, n in settings
        ],
        train,
        val,
        task,
    )


def _best(candidates: list[Any], train: Flat, val: Flat, task: int) -> Any:
    from sklearn.metrics import roc_auc_score

    known, seen = ~np.isnan(train.targets[:, task]), ~np.isnan(val.targets[:, task])
    scores = []
    for candidate in candidates:
        candidate.fit(train.values[known], train.targets[known, task])
        scores.append(roc_auc_score(val.targets[seen, task], candidate.predict_proba(val.values[seen])[:, 1]))
    return candidates[int(np.argmax(scores))]
