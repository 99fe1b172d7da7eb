"""Reconstruction weighted by who was sent for what: inverse probability weights, handed to the module."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from mmnar_lightning.evaluation.assignment import Learner
from mmnar_lightning.evaluation.covariates import TrainingWeights, training_weights
from mmnar_lightning.evaluation.overlap import OverlapError, OverlapThresholds
from mmnar_lightning.records import RecordDataModule

log = logging.getLogger(__name__)


class AssignmentWeights(Callback):
    """Weighs the reconstruction of x_im in training by min(1 / π_im / mean, clip), π_im = P(δ_im = 1 | w_i).

    Reconstruction is only ever supervised on those for whom a modality was ordered. Weighted, they stand for everyone
    *if ordering is ignorable given w*, what everyone has before the order; under MNAR they don't. Only the fusions'
    reconstruction is weighted, outcomes and their metrics are not.

    π is fitted on train before the first step, cross-fitted by patient, see `training_weights`: by one process, which
    hands it to the others, and again on a resume, with the same result. The weights are in no checkpoint. Logged once,
    by modality: `assignment/ess/…`, the effective sample size as a share of those who have it, and
    `assignment/clipped/…`, the share of them whose weight was cut.

    Args:
        always: Modalities that everyone has before anything is ordered; None takes those that all of train have.
            Samples that lack one keep weight 1.
        groups: `site` or `group/…` columns that ordering may depend on.
        order: Modalities in the order they are asked for, where nobody has a later one without the earlier ones.
        learner: Model of who has a modality.
        folds: Folds of the cross-fitting.
        clip: Greatest weight, ≥ 1, where their mean before clipping is 1.
        min_ess: Least effective sample size of a modality.
        min_ess_share: Least share of it in those who have the modality.
        max_clipped: Highest share of probabilities outside 0.02 to 1.
        refuse: Refuse to train where overlap fails these three; else warn.
        seed: Key of the folds.

    Raises:
        ValueError: If `clip` is less than 1.

    Source: Seaman, White, *Review of inverse probability weighting for dealing with missing data*, 2013.
    """

    def __init__(
        self,
        always: list[str] | None = None,
        groups: list[str] | None = None,
        order: list[str] | None = None,
        learner: Learner = "logistic",
        folds: int = 5,
        clip: float = 10.0,
        min_ess: float = 50.0,
        min_ess_share: float = 0.2,
        max_clipped: float = 0.05,
        refuse: bool = True,
        seed: int = 0,
    ) -> None:
        if not clip >= 1:
            raise ValueError(f"clip must be at least 1, is {clip}")
        self.settings: dict[str, Any] = {
            "always": always,
            "groups": groups or [],
            "order": order or [],
            "learner": learner,
            "folds": folds,
            "cap": clip,
            "seed": seed,
        }
        self.thresholds = OverlapThresholds(min_ess, min_ess_share, max_clipped)
        self.refuse = refuse
        self._resumed: Mapping[str, Any] | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit the assignment models, report, and hand the weights to the module.

        Raises:
            OverlapError: If overlap fails for a modality, with the reason.
            ValueError: If the run that is resumed was weighted otherwise, or w can't be made.
            TypeError: If there is no `RecordDataModule`.
        """
        if self._resumed is not None and self._resumed != self.settings:
            differing = sorted(k for k, v in self.settings.items() if self._resumed.get(k) != v)
            raise ValueError(
                f"the run that is resumed had other assignment weights ({', '.join(differing)}); give the same settings"
            )
        found = self._found(trainer)
        # a resumed run has them in its log already
        if trainer.is_global_zero and trainer.ckpt_path is None:
            _log(found, trainer)
        module: Any = pl_module
        module.reconstruction_weights = torch.from_numpy(found.values).to(pl_module.device, torch.float32)

    def _found(self, trainer: Trainer) -> TrainingWeights:
        """Compute on one process, the same for all: also the reason why not, or the others would wait for it."""
        found: TrainingWeights | Exception | None = None
        if trainer.is_global_zero:
            try:
                found = self._fitted(trainer)
            except (ValueError, TypeError, ImportError) as error:
                found = error
        found = trainer.strategy.broadcast(found)
        if isinstance(found, Exception):
            raise found
        assert found is not None
        return found

    def _fitted(self, trainer: Trainer) -> TrainingWeights:
        data: Any = getattr(trainer, "datamodule", None)
        if not isinstance(data, RecordDataModule):
            raise TypeError("AssignmentWeights needs a RecordDataModule: it fits on train's rows")
        found = training_weights(data, thresholds=self.thresholds, **self.settings)
        poor = "; ".join(f"{row.modality}: {row.reason}" for row in found.overlap if row.reason)
        if poor and self.refuse:
            raise OverlapError(f"assignment weights: {poor}; leave them out, or train all the same with refuse: false")
        if poor:
            log.warning("assignment weights without overlap: %s", poor)
        return found

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the weights from the module: another fit may be on other data."""
        module: Any = pl_module
        module.reconstruction_weights = None

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the settings, by which a resume knows whether it goes on with the same weights."""
        return dict(self.settings)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the settings of the run that goes on."""
        self._resumed = state_dict


def _log(found: TrainingWeights, trainer: Trainer) -> None:
    asked = {row.modality for row in found.overlap}
    numbers = {
        f"assignment/{what}/{name}": float(value)
        for what, values in (("ess", found.ess), ("clipped", found.clipped))
        for name, value in zip(found.names, values, strict=True)
        if name in asked
    }
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=0)
