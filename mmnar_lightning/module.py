"""The one LightningModule: encoders, a fusion and heads, its losses, and the rectifier it owns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from mmnar_lightning._evaluated import Collector, EvaluatedRows, pattern_words
from mmnar_lightning._heads import LinearEvidence, OutcomeHeads
from mmnar_lightning._losses import Loss, OutcomeLoss, Weighting
from mmnar_lightning._parameters import check_part_rates, parameter_groups, warmup_cosine
from mmnar_lightning._parts import as_part, build_part
from mmnar_lightning._watch import spread
from mmnar_lightning.encoders import Encoder, default_encoder, encode
from mmnar_lightning.fusion import Fused, Fusion, MMNARFusion
from mmnar_lightning.objectives import global_count, join_unused
from mmnar_lightning.records import (
    KINDS,
    Encoded,
    FusionShape,
    Modality,
    PatientBatch,
    Reader,
    RecordSchema,
    RecordStore,
    pattern_id,
    read,
)
from mmnar_lightning.rectifier import Conformal, Rectifier, Scale, patient_keys

EncoderFactory = Callable[[Modality, int], Encoder]
FusionFactory = Callable[[FusionShape], Fusion]
VALIDATION_METRICS = ("auroc", "auprc", "brier", "log_loss")
VALIDATED = ("val", "calibration", "conformal")  # loaders of a validation, the last outside `fit` only
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


@dataclass(frozen=True)
class StepResult:
    """What a step yields: nothing is logged or written in the making.

    Args:
        logits: float [B, K].
        loss: Scalar to minimise.
        terms: Named parts of the loss, unweighted, and what else is watched, detached.
        fused: What the fusion made.
    """

    logits: Tensor
    loss: Tensor
    terms: dict[str, Tensor]
    fused: Fused


class MultimodalOutcomeModule(LightningModule):
    """Predicts K binary outcomes of a patient from whichever modalities were observed.

    Loss: Σ_k w_k L_k + a(epoch) · Σ_t λ_t A_t, with L_k the labelled mean of task k's loss over all devices and A_t the
    fusion's auxiliary terms. During the first `pretrain_epochs` the auxiliary part is minimised alone (a = 1); then a
    falls linearly from 1 to 0 over `anneal_epochs`, or stays 1 where that is None. After each validation epoch the
    rectifier is fitted on calibration A, whose samples are used for nothing else.

    Args:
        schema: What the data hold, as `RecordSchema.to_dict()`; linked from the datamodule under the CLI.
        fusion: Combines the observed modalities.
        encoders: Encoder by modality name or kind, where it is not the default of its kind.
        width: D, width of tokens and patient vectors.
        dropout: In the heads' adapters.
        loss: `bce`, or `focal` with α from the training prevalence (miscalibrated by construction).
        focal_gamma: γ of the focal loss.
        label_smoothing: ε; 0 keeps probabilities honest.
        task_weights: w_k by task, 1 where not given.
        task_weighting: `fixed`, or `uncertainty`: weights are learned beside w_k, see `OutcomeLoss`.
        auxiliary_weights: λ_t by term of the fusion, 0 where not given.
        pretrain_epochs: Epochs on the auxiliary part alone.
        anneal_epochs: Epochs over which a falls to 0; None keeps a = 1.
        linear_precision: Precision of the prior of `LinearEvidence`, in samples; None leaves it out.
        lr: Learning rate of AdamW at its highest.
        weight_decay: Of matrices; biases, norms, single vectors and the linear evidence are not decayed.
        part_rates: `lr` and `weight_decay` of a part where they differ: `backbones` (pretrained models inside
            encoders), `encoders`, `fusion`, `heads`.
        warmup: Share of the steps over which the learning rate rises from 0.
        lr_floor: Share of `lr` at which the cosine ends.
        rectifier_scale: `logit`, or `probability` as in the paper, see `Rectifier`.
        conformal_alpha: α, share of conformal sets that may miss, see `Conformal`.

    Attributes:
        finishing: Whether a validation fits what is fitted once after training, see `mmnar_lightning.callbacks.finish`.
        reconstruction_weights: float32 [samples of the store, M], weights of the reconstruction in training, from
            `AssignmentWeights`; None weighs all alike.
        sample_weights: float32 [samples of the store], weights of the outcomes' loss in training, from `SampleWeights`.

    Raises:
        ValueError: If a name in `encoders`, `task_weights` or `auxiliary_weights` is unknown, or a part can't be built.

    Source: Liang, Pan, Xiong, *Causal Representation Learning from Multimodal Clinical Records under Non-Random
    Modality Missingness*, EMNLP 2025. `docs/method.md` lists what differs.
    """

    def __init__(
        self,
        schema: dict[str, Any],
        fusion: FusionFactory = MMNARFusion,
        encoders: dict[str, EncoderFactory] | None = None,
        width: int = 64,
        dropout: float = 0.2,
        loss: Loss = "bce",
        focal_gamma: float = 2.0,
        label_smoothing: float = 0.0,
        task_weights: dict[str, float] | None = None,
        task_weighting: Weighting = "fixed",
        auxiliary_weights: dict[str, float] | None = None,
        pretrain_epochs: int = 0,
        anneal_epochs: int | None = None,
        linear_precision: float | None = None,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        part_rates: dict[str, dict[str, float]] | None = None,
        warmup: float = 0.05,
        lr_floor: float = 0.05,
        rectifier_scale: Scale = "logit",
        conformal_alpha: float = 0.1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        # by it Lightning would have jsonargparse build the parts; they are plain types, which `__init__` takes
        self.hparams.pop("_instantiator", None)
        # from Python these are classes or partials, which a checkpoint must not hold
        self.hparams["fusion"] = as_part(self.hparams["fusion"])
        self.hparams["encoders"] = {name: as_part(part) for name, part in (self.hparams["encoders"] or {}).items()}
        self.schema = RecordSchema.from_dict(schema)
        _check_names("task_weights", task_weights or {}, self.schema.task_names)
        check_part_rates(part_rates or {})
        # a kind that no modality has is no mistake: a config serves also where modalities are left out
        _check_names("encoders", self.hparams["encoders"], [*self.schema.names, *KINDS])
        self.auxiliary_weights = dict(auxiliary_weights or {})
        self.rectifier = Rectifier(self.schema.task_names, scale=rectifier_scale)
        self.conformal = Conformal(self.schema.task_names, conformal_alpha)
        self.finishing = False
        # no buffers: DDP would send them around at each step, and they are no part of the model
        self.reconstruction_weights: Tensor | None = None
        self.sample_weights: Tensor | None = None
        self.heads: OutcomeHeads | None = None
        self.linear: LinearEvidence | None = None
        self.outcome_loss = OutcomeLoss(self.schema, loss, focal_gamma, label_smoothing, task_weights, task_weighting)
        self.evaluated: dict[str, EvaluatedRows] = {}
        self._collected: dict[str, Collector] = {}

    def configure_model(self) -> None:
        """Build encoders, fusion and heads; does nothing the second time."""
        if self.heads is not None:
            return
        hparams = self.hparams
        self.encoders = nn.ModuleDict({m.name: self._encoder(m) for m in self.schema.modalities})
        inputs = tuple(int(self.encoders[name].input_width) for name in self.schema.names)  # type: ignore[arg-type]
        shape = FusionShape(hparams["width"], self.schema.names, inputs, len(self.schema.tasks))
        self.fusion: Fusion = build_part(hparams["fusion"], Fusion, shape)
        self.heads = OutcomeHeads(hparams["width"], self.schema, hparams["dropout"])
        if hparams["linear_precision"] is not None:
            self.linear = LinearEvidence(inputs, self.schema, hparams["linear_precision"])

    def _encoder(self, modality: Modality) -> Encoder:
        chosen = self.hparams["encoders"]
        part = chosen.get(modality.name) or chosen.get(modality.kind)
        width = self.hparams["width"]
        return default_encoder(modality, width) if part is None else build_part(part, Encoder, modality, width)

    def readers(self) -> dict[str, Reader]:
        """Return what opens the files of each modality that has some; the datamodule gives it to its loaders."""
        if self.heads is None:
            return {}
        # loaders are made before any of these hooks
        self.on_fit_start()
        return self._readers()

    def _readers(self) -> dict[str, Reader]:
        readers = {name: self.encoders[name].reader() for name in self.schema.names}  # type: ignore[operator]
        return {name: reader for name, reader in readers.items() if reader is not None}

    def _opened(self, batch: PatientBatch, stage: str | None = None) -> PatientBatch:
        """Open what no loader has opened, and log how many files could not be read, where an encoder counts them."""
        batch = read(batch, self._readers())
        for name, elements in batch.elements.items():
            if elements.unreadable is not None and stage is not None:
                how: dict[str, Any] = {"on_step": False, "on_epoch": True, "reduce_fx": "sum", "sync_dist": True}
                count = elements.unreadable.float()
                self.log(f"{stage}/unreadable_{name}", count, batch_size=1, add_dataloader_idx=False, **how)
        return batch

    def forward(self, batch: PatientBatch) -> Tensor:
        """Return logits [B, K], not rectified."""
        return self._outcome(batch)[2]

    def _outcome(self, batch: PatientBatch) -> tuple[Encoded, Fused, Tensor]:
        assert self.heads is not None, "configure_model() was not called"
        encoded = encode(self.encoders, batch)
        fused = self.fusion(encoded)
        if fused.logits is None:
            logits = self.heads(fused.patient)
        else:
            logits = join_unused(fused.logits, self.heads.parameters())
        if self.linear is not None:
            logits = self.linear(encoded, logits)
        return encoded, fused, logits

    @property
    def pretraining(self) -> bool:
        """Whether this epoch minimises the auxiliary part alone."""
        return self.current_epoch < int(self.hparams["pretrain_epochs"])

    @property
    def auxiliary_share(self) -> float:
        """a(epoch), the weight of the auxiliary part."""
        since = self.current_epoch - int(self.hparams["pretrain_epochs"])
        over = self.hparams["anneal_epochs"]
        if since < 0 or over is None:
            return 1.0
        return max(0.0, 1.0 - since / over) if over else 0.0

    def _shared_step(self, batch: PatientBatch) -> StepResult:
        encoded, fused, logits = self._outcome(batch)
        encoded = replace(encoded, weights=_rows_of(self.reconstruction_weights, batch))
        weight = _rows_of(self.sample_weights, batch)
        losses = self.outcome_loss(logits, batch, weight)
        outcome = self.outcome_loss.total(losses, batch, weight)
        terms = {f"loss_{task}": losses[k].detach() for k, task in enumerate(self.schema.task_names)}
        if self.linear is not None:
            outcome = outcome + self.linear.penalty()
        share = self.auxiliary_share
        wanted = {name: factor for name, factor in self.auxiliary_weights.items() if factor and share}
        loss = join_unused(outcome.new_zeros(()), [outcome]) if self.pretraining else outcome
        if wanted:
            named = self.fusion.auxiliary(encoded, fused, batch.targets, batch.labelled, global_count)
            _check_names("auxiliary_weights", wanted, list(named))
            loss = loss + share * sum(factor * named[name] for name, factor in wanted.items())
            loss = join_unused(loss, [term for name, term in named.items() if name not in wanted])
            terms |= {name: term.detach() for name, term in named.items()}
        else:
            loss = join_unused(loss, self.fusion.parameters())
        return StepResult(logits, loss, terms | spread(encoded, fused.patient, self.schema.names), fused)

    def training_step(self, batch: PatientBatch, batch_idx: int) -> Tensor:
        """Minimise the loss on a batch; log it by term."""
        batch = self._opened(batch, "train")
        result = self._shared_step(batch)
        logged = {"train/loss": result.loss.detach()} | {f"train/{name}": v for name, v in result.terms.items()}
        self.log_dict(logged, on_step=True, on_epoch=False, batch_size=len(batch))
        return result.loss

    def setup(self, stage: str) -> None:
        """Refuse weights of another precision than 32 bits.

        Raises:
            ValueError: If the trainer's precision is none of `PRECISIONS`.
        """
        if (precision := str(self.trainer.precision)) not in PRECISIONS:
            raise ValueError(
                f"precision {precision!r} would round what values are standardised with; "
                f"choose one of {', '.join(PRECISIONS)}"
            )

    def on_fit_start(self) -> None:
        """Let the encoders find, or make once, what is derived from the store."""
        # where the model is used without a datamodule, encoders work from the values themselves
        records = getattr(getattr(self._trainer, "datamodule", None), "records", None)
        if isinstance(records, RecordStore):
            for name in self.schema.names:
                self.encoders[name].prepare(records, str(self.trainer.precision))  # type: ignore[operator]

    on_validation_start = on_test_start = on_predict_start = on_fit_start

    def on_train_epoch_start(self) -> None:
        """Log the weight of the auxiliary part."""
        self.log("train/auxiliary_share", self.auxiliary_share, on_step=False, on_epoch=True, batch_size=1)

    def validation_step(self, batch: PatientBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collect the rows of val (loader 0), calibration A (1) and, where there is one, calibration B (2)."""
        self._collect(VALIDATED[dataloader_idx], batch)

    def test_step(self, batch: PatientBatch, batch_idx: int) -> None:
        """Collect the rows of test."""
        self._collect("test", batch)

    def predict_step(self, batch: PatientBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return `raw` and `rectified` probabilities [B, K] with `sample`, `pattern`, `targets` and `labelled`.

        And `uncertainty` [B], where the fusion has such a view.
        """
        batch = self._opened(batch)
        _, fused, logits = self._outcome(batch)
        logits, pattern = logits.float(), pattern_id(batch.observed)
        own = {name: view for name, view in fused.views.items() if name == "uncertainty"}
        return {
            **own,
            "sample": batch.sample,
            "pattern": pattern,
            "raw": self._coherent(logits.sigmoid()),
            "rectified": self.rectify(logits, pattern),
            "targets": batch.targets,
            "labelled": batch.labelled,
        }

    def rectify(self, logits: Tensor, pattern: Tensor) -> Tensor:
        """Return corrected probabilities [B, K]; the raw ones where no rectifier was fitted yet.

        Tasks are corrected one by one, so a child is cut to its parent's probability afterwards.
        """
        return self._coherent(self.rectifier.probabilities(logits, pattern))

    def versions(self, logits: Tensor, pattern: Tensor) -> dict[str, Tensor]:
        """Return `raw`, globally `recalibrated` and `rectified` probabilities [B, K] of logits [B, K]."""
        return {
            "raw": self._coherent(logits.sigmoid()),
            "recalibrated": self._coherent(self.rectifier.recalibrate(logits).sigmoid()),
            "rectified": self.rectify(logits, pattern),
        }

    def _coherent(self, probabilities: Tensor) -> Tensor:
        columns: list[Tensor] = []
        for k, parent in enumerate(self.schema.parents):
            own = probabilities[:, k]
            columns.append(own if parent is None else torch.minimum(own, columns[parent]))
        return torch.stack(columns, dim=1)

    def _collect(self, stage: str, batch: PatientBatch) -> None:
        batch = self._opened(batch, stage)
        # no loss here: its counts are all-reduced, and devices may have different numbers of batches
        self._collected.setdefault(stage, Collector()).add(self(batch), batch)

    def _gather(self, stage: str) -> EvaluatedRows | None:
        """Close a pass: its rows are now in `evaluated`, until the next one of that stage starts."""
        rows = self._collected.pop(stage, Collector()).gathered()
        if rows is not None:
            self.evaluated[stage] = rows
        return rows

    def on_validation_epoch_start(self) -> None:
        """Let go of the rows of the last pass."""
        self.evaluated = {stage: rows for stage, rows in self.evaluated.items() if stage not in VALIDATED}

    def on_test_epoch_start(self) -> None:
        """Let go of the rows of the last pass."""
        self.evaluated.pop("test", None)

    def on_validation_epoch_end(self) -> None:
        """Fit the rectifier on calibration A, then log metrics of val, raw and rectified."""
        conformal, calibration = self._gather("conformal"), self._gather("calibration")
        # validating a checkpoint must not change it
        if self.finishing:
            self._finish(calibration, conformal)
        elif calibration is not None and self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._fit_rectifier(calibration)
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log metrics of test, raw and rectified."""
        self._log_metrics("test")

    def _fit_rectifier(self, rows: EvaluatedRows) -> None:
        self.rectifier = Rectifier(self.schema.task_names, scale=self.rectifier.scale).fit(
            rows.logits, rows.targets, rows.labelled, rows.pattern, len(self.schema.names)
        )
        # sets are about the probabilities of one rectifier
        self.conformal = Conformal(self.schema.task_names, float(self.hparams["conformal_alpha"]))
        shifts = self.rectifier.shifts(pattern_words(self.schema))
        self.log_dict({f"rectifier/{name}": value for name, value in shifts.items()}, batch_size=1)

    def _finish(self, a: EvaluatedRows | None, b: EvaluatedRows | None) -> None:
        """Choose the rectifier's rungs on calibration A, then fit the conformal sets on calibration B."""
        modalities = len(self.schema.names)
        if a is not None:
            patient = self.trainer.datamodule.records.samples["patient"].gather(a.sample.numpy())  # type: ignore[attr-defined]
            self.rectifier = Rectifier(self.schema.task_names, scale=self.rectifier.scale).fit_ladder(
                a.logits, a.targets, a.labelled, a.pattern, patient_keys(patient), modalities
            )
        if b is not None:
            p = self.rectify(b.logits, b.pattern)
            self.conformal = Conformal(self.schema.task_names, float(self.hparams["conformal_alpha"])).fit(
                p, b.targets, b.labelled, b.pattern, modalities
            )

    def _log_metrics(self, stage: str) -> None:
        rows = self._gather(stage)
        if rows is None:
            return
        versions = self.versions(rows.logits, rows.pattern)
        # exact but not cheap: what chooses the checkpoint and a few curves while training, everything in the end
        chosen = VALIDATION_METRICS if self.trainer.state.fn == "fit" else None
        if chosen is not None:
            del versions["recalibrated"]
        found = rows.metrics(versions, self.schema, chosen)
        self.log_dict({f"{stage}/{name}": value for name, value in found.items()}, batch_size=1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with a linear warm-up and a cosine down to `lr_floor`, per step."""
        hparams = self.hparams
        rates = hparams["part_rates"] or {}
        groups = parameter_groups(self, hparams["lr"], hparams["weight_decay"], rates)
        optimizer = torch.optim.AdamW(groups, lr=hparams["lr"])
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = warmup_cosine(round(hparams["warmup"] * steps), steps, hparams["lr_floor"])
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def get_extra_state(self) -> dict[str, Any]:
        """Return the rectifier and the conformal sets, as plain lists."""
        return {"rectifier": self.rectifier.to_state(), "conformal": self.conformal.to_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the rectifier and the conformal sets from a checkpoint."""
        self.rectifier = Rectifier.from_state(state["rectifier"])
        self.conformal = Conformal.from_state(state["conformal"])


def _rows_of(weights: Tensor | None, batch: PatientBatch) -> Tensor | None:
    return None if weights is None else weights[batch.sample]


def _check_names(what: str, given: Iterable[str], known: Sequence[str]) -> None:
    strange = [name for name in given if name not in known]
    if strange:
        raise ValueError(f"{what}: {', '.join(map(repr, strange))} unknown; there are: {', '.join(known)}")
