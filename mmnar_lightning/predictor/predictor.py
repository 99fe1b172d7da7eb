"""Predictions for a table of samples, from a checkpoint alone."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from mmnar_lightning.module import MultimodalOutcomeModule
from mmnar_lightning.predictor.batches import batch_of, frame_of
from mmnar_lightning.predictor.columns import Columns
from mmnar_lightning.records import PatientBatch, RecordDataset, RecordSchema, RecordStore

log = logging.getLogger(__name__)
NAMED = 5


class Predictor:
    """A trained model that reads tables: one row a sample, columns as `Columns` says.

    It predicts E[y | what was observed, which modalities were observed]. A modality without a value is not observed,
    and that is evidence, too: leaving out what was measured describes another patient, it does not say what the
    patient's risk would be had nobody measured it.

    Several threads may predict with one predictor: nothing in it changes.

    Args:
        module: The model, built, with its weights, rectifier and conformal sets.
        device: Where it computes.
    """

    def __init__(self, module: MultimodalOutcomeModule, device: torch.device | str = "cpu") -> None:
        self.module = module.to(device).eval()
        self.columns = Columns(module.schema)
        self._device = torch.device(device)

    @property
    def schema(self) -> RecordSchema:
        """Modalities, items and tasks of the model."""
        return self.module.schema

    def example(self, rows: int = 1) -> pl.DataFrame:
        """Return a table of samples of whom nothing was observed, to fill.

        Args:
            rows: How many.
        """
        return self.columns.empty(rows)

    def hide(self, frame: pl.DataFrame, *modalities: str) -> pl.DataFrame:
        """Return the table without these modalities, as if they had not been observed.

        Raises:
            ValueError: If the model has no such modality; lists those it has.
        """
        return frame.drop(*(name for m in modalities for name in self.columns.of(m)), strict=False)

    def frame_of(
        self, store: RecordStore | Path | str, samples: Sequence[int], folders: Mapping[str, Path] | None = None
    ) -> pl.DataFrame:
        """Return samples of a store as a table, seen through the model's schema; values stay under the source's terms.

        Args:
            store: The store, or its folder.
            samples: Rows of the store.
            folders: Where relative file names of an `image` modality lie, by modality.
        """
        records = store if isinstance(store, RecordStore) else RecordStore(store)
        rows = np.asarray(samples, dtype=np.int64)
        dataset = RecordDataset(records, self.schema, rows, folders=folders)
        return frame_of(dataset.__getitems__(range(len(rows))), self.schema)

    def predict(self, frame: pl.DataFrame, *, keep: Sequence[str] = (), batch_size: int = 512) -> pl.DataFrame:
        """Predict.

        Encoders of numbers cut what is further than `clip` (5) standard deviations from the training mean; `cut` counts
        these values. A column of which more than half is cut is warned of: mostly its unit is not that of training.

        Args:
            frame: B rows, see `Columns`.
            keep: Columns that are no input, handed through (ids, sites).
            batch_size: Rows at once; memory beside table and predictions grows with it alone.

        Returns:
            `sample` (that of the table, or the row's number), what was kept, `pattern` (bit m is modality m of
            `schema`), `cut`, `uncertainty` where the fusion has one, and for each task `{task}/raw`,
            `{task}/rectified` and, where conformal sets were fitted, `{task}/set`: the labels it holds.

        Raises:
            ValueError: If it is no DataFrame, or a column is unknown, of a wrong type or holds what cannot be; names
                it, never a value.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, is {batch_size}")
        if not isinstance(frame, pl.DataFrame):
            raise ValueError(
                f"predict takes a polars DataFrame, not {type(frame).__name__}; collect or convert it first"
            )
        self.columns.check(frame.schema, keep)
        parts: list[pl.DataFrame] = []
        seen: dict[str, Tensor] = {}
        for first in range(0, max(frame.height, 1), batch_size):
            batch = batch_of(frame.slice(first, batch_size), self.schema, first)
            cut = self._cut(batch, seen)
            with torch.inference_mode():
                parts.append(self._named(self.module.predict_step(batch.to(self._device), 0), cut))
        _warn(seen, self.schema)
        predicted = pl.concat(parts)
        front = [frame["sample"]] if "sample" in frame.columns else [predicted["sample"]]
        return pl.DataFrame([*front, *(frame[name] for name in keep if name != "sample")]).hstack(
            predicted.drop("sample")
        )

    def _named(self, outputs: Mapping[str, Tensor], cut: Tensor) -> pl.DataFrame:
        rows = {name: value.detach().cpu() for name, value in outputs.items()} | {"cut": cut}
        columns: dict[str, Any] = {name: rows[name].numpy() for name in ("sample", "pattern", "cut")}
        if "uncertainty" in rows:
            columns["uncertainty"] = rows["uncertainty"].float().numpy()
        conformal = self.module.conformal
        held = conformal.sets(rows["rectified"], rows["pattern"]) if conformal.fitted else None
        for k, task in enumerate(self.schema.task_names):
            for kind in ("raw", "rectified"):
                columns[f"{task}/{kind}"] = rows[kind][:, k].float().numpy()
            if held is not None:
                columns[f"{task}/set"] = _labels(held[:, k])
        return pl.DataFrame(columns)

    def _cut(self, batch: PatientBatch, seen: dict[str, Tensor]) -> Tensor:
        """Count the values of each row that an encoder cuts, int64 [B].

        Args:
            batch: B samples.
            seen: Gets, by modality, how many values of each item were measured and how many cut, int64 [2, F].
        """
        cut = torch.zeros(len(batch), dtype=torch.int64)
        for modality in self.schema.modalities:
            clip = getattr(self.module.encoders[modality.name], "clip", None)
            elements = batch.elements[modality.name]
            if clip is None or modality.kind not in ("vector", "series") or not isinstance(elements.values, Tensor):
                continue
            mean, std = torch.tensor(modality.mean), torch.tensor(modality.std)
            # a rare category is far from the mean, and nothing is wrong with it
            flag = (std**2 - mean * (1 - mean)).abs() <= 1e-3 * std**2
            values, variable = elements.values, elements.variable
            mean, std, flag = (x if variable is None else x[variable] for x in (mean, std, flag))
            far = ((values - mean) / std).abs() > clip
            beyond = far & ~(flag & ((values == 0) | (values == 1)))
            cut.index_add_(0, elements.row, (beyond if variable is not None else beyond.sum(1)).long())
            if variable is None:
                counts = torch.stack([(~values.isnan()).sum(0), beyond.sum(0)])
            else:
                F = len(modality.items)
                counts = torch.stack([torch.bincount(v, minlength=F) for v in (variable, variable[beyond])])
            seen[modality.name] = seen.get(modality.name, 0) + counts
        return cut


def _labels(held: Tensor) -> pl.Series:
    """The labels in each set, held bool [n, 2], as lists."""
    sets = pl.Series([[], [0], [1], [0, 1]], dtype=pl.List(pl.Int8))
    return sets.gather((held[:, 0].long() + 2 * held[:, 1].long()).numpy())


def _warn(seen: Mapping[str, Tensor], schema: RecordSchema) -> None:
    told = [
        f"{name}/{item} ({cut} of {measured})"
        for name, counts in seen.items()
        for item, measured, cut in zip(schema.modality(name).items, *counts.tolist(), strict=True)
        if 2 * cut > measured
    ]
    if told:
        more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
        log.warning(
            "most values are far from those of training, and cut by the encoder (another unit?): %s%s",
            ", ".join(told[:NAMED]),
            more,
        )


def load_predictor(path: Path | str, device: torch.device | str = "cpu") -> Predictor:
    """Load the model of a checkpoint, or of a run's best checkpoint, for prediction.

    The checkpoint holds all that is needed: schema, statistics, vocabularies, weights, rectifier, conformal sets. A
    part of the model that is no part of this library (your own fusion) must be importable.

    Args:
        path: A checkpoint, or the folder of a run.
        device: Where it computes.

    Raises:
        ValueError: If there is no checkpoint, or it is none of this library or of an older release.
    """
    checkpoint = _checkpoint(Path(path))
    try:
        described = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["hyper_parameters"]
    except (RuntimeError, KeyError, EOFError) as error:
        raise ValueError(f"{checkpoint} is no checkpoint of mmnar") from error
    cls = _class(described.get("_class_path"))
    try:
        # the weights drawn in building are replaced; the caller's random numbers must not depend on them
        with torch.random.fork_rng(devices=[]):
            module = cls.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{checkpoint} was written by another release and can't be read: {error}") from error
    if not module.rectifier.choices:
        log.warning("the fit has not come to its end: the rectifier is that of an epoch, without conformal sets")
    return Predictor(module, device)


def _checkpoint(path: Path) -> Path:
    if path.is_file():
        return path
    for folder in (path / "checkpoints", path):
        for name in ("best.ckpt", "last.ckpt"):
            if (folder / name).is_file():
                return folder / name
    raise ValueError(f"no checkpoint in {path}; fit first, or give the .ckpt file")


def _class(path: str | None) -> type[MultimodalOutcomeModule]:
    if path is None:
        return MultimodalOutcomeModule
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module or MultimodalOutcomeModule.__module__), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the checkpoint's model {path!r} cannot be found: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, MultimodalOutcomeModule)):
        raise ValueError(f"the checkpoint's model {path!r} is no MultimodalOutcomeModule")
    return cls


__all__ = ["Predictor", "load_predictor"]
