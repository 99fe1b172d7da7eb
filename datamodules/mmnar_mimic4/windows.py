"""Rows that a sample may contain: of its patient, known by its prediction time, in its window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from mmnar_lightning.extract import Counts, TableSpec, known_by, window
from mmnar_mimic4.tables import SUBJECT


@dataclass(frozen=True)
class Source:
    """The tables of an extract, seen from the samples of a cohort.

    Args:
        frames: Tables by name.
        samples: `Cohort.samples`: at least ``sample``, ``subject_id``, ``window_start`` and ``prediction_time``.
        log: Takes the counts.
    """

    frames: Mapping[str, pl.LazyFrame]
    samples: pl.DataFrame
    log: Counts

    def known(self, spec: TableSpec, frame: pl.LazyFrame | None = None, count: bool = True) -> pl.LazyFrame:
        """Rows of a table that were known by the prediction time and are about a time in the window.

        A table is linked by its patient and time, never by ``hadm_id``, which is missing where it matters. A row that
        lies in the windows of several samples serves each.

        Args:
            spec: The table.
            frame: Its rows; None takes all of them.
            count: Whether to log what was left out; takes a further pass over the table's times.

        Returns:
            The table's columns but the patient's, with ``sample`` (Int64), ``available`` and ``time`` (Datetime: known,
            happened) and ``hours_before`` (Float64, from happening to the prediction time).
        """
        assert spec.clock is not None
        frame = self.frames[spec.name] if frame is None else frame
        if count:
            self._count(spec, frame)
        kept = known_by(self._joined(frame), spec).filter(window("window_start", time=spec.clock.event))
        event = pl.col(spec.clock.event)
        since = (pl.col("prediction_time") - event).dt.total_microseconds() / 3.6e9
        return kept.with_columns(time=event, hours_before=since).drop(SUBJECT, "prediction_time", "window_start")

    def _joined(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        people = self.samples.lazy().select("sample", SUBJECT, "window_start", "prediction_time")
        return frame.join(people, on=SUBJECT, how="inner")

    def _count(self, spec: TableSpec, frame: pl.LazyFrame) -> None:
        assert spec.clock is not None
        clocks = (spec.clock, *spec.clocks.values())
        times = dict.fromkeys((SUBJECT, *(name for clock in clocks for name in clock.columns)))
        event = pl.col(spec.clock.event)
        begun = (event >= pl.col("window_start")) & (event <= pl.col("prediction_time"))
        rows = self._joined(frame.select(*times, *(c for c in spec.columns if c in spec.clocks and c not in times)))
        kept = known_by(rows.with_columns(_begun=begun), spec).filter("_begun").select(kept=pl.len())
        sums = pl.concat([rows.select(all=begun.sum()), kept], how="horizontal").collect(engine="streaming")
        began, known = sums.row(0)
        self.log.add(spec.name, "rows in the samples' windows", began)
        self.log.add(spec.name, "not yet known at the prediction time", began - known)
