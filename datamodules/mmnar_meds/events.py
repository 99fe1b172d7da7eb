"""From events to elements: cut at the prediction time, a few files at a time, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl

from mmnar_lightning.extract import Clock, TableSpec, aggregate, known_by, pivot, window
from mmnar_meds.selection import BIRTH, DEATH, Selection

FEMALE, MALE = r"(?i)^(gender|sex)/+(f|female)$", r"(?i)^(gender|sex)/+(m|male)$"
HOUR = 3600e6


@dataclass(frozen=True)
class Survey:
    """What one pass over the events of the subjects with labels finds.

    Args:
        people: ``subject_id``, ``birth``, ``death`` and ``female`` (null where unknown or contradictory).
        codes: ``code``, ``rows`` and ``static`` rows with it, and how many ``people``.
        batches: Tables that hold the whole of some subjects, together; mostly one each.
        spread: Subjects that stand in several tables.
    """

    people: pl.DataFrame
    codes: pl.DataFrame
    batches: tuple[tuple[str, ...], ...]
    spread: int


def survey(tables: Mapping[str, pl.LazyFrame], samples: pl.DataFrame) -> Survey:
    """Go over all events of the subjects with labels once, a table at a time.

    Args:
        tables: Events, by the name of their table.
        samples: ``subject_id`` and ``prediction_time``.
    """
    first = samples.group_by("subject_id").agg(pl.col("prediction_time").min().alias("first"))
    subjects, codes = [], []
    for name, table in tables.items():
        rows = table.join(first.lazy(), on="subject_id", how="inner")
        time, code = pl.col("time"), pl.col("code")
        known = time.is_null() | (time <= pl.col("first"))
        asked = [
            rows.group_by("subject_id").agg(
                birth=time.filter(code == BIRTH).min(),
                death=time.filter(code == DEATH).min(),
                is_female=(code.str.contains(FEMALE) & known).any(),
                is_male=(code.str.contains(MALE) & known).any(),
            ),
            rows.group_by("code").agg(
                rows=pl.len(), static=time.is_null().sum(), people=pl.col("subject_id").n_unique()
            ),
        ]
        of_subjects, of_codes = pl.collect_all(asked, engine="streaming")
        subjects.append(of_subjects.with_columns(table=pl.lit(name)))
        codes.append(of_codes)
    found = pl.concat(subjects)
    spread = found.filter(pl.col("subject_id").is_duplicated())
    together = set(spread["table"])
    alone = [(name,) for name in tables if name not in together]
    female, male = pl.col("is_female").any(), pl.col("is_male").any()
    people = found.group_by("subject_id").agg(
        pl.col("birth").min(), pl.col("death").min(), female=pl.when(female != male).then(female)
    )
    return Survey(
        people.sort("subject_id"),
        pl.concat(codes).group_by("code").agg(pl.col("rows", "static", "people").sum()).sort("code"),
        (*alone, *([tuple(name for name in tables if name in together)] if together else [])),
        spread["subject_id"].n_unique(),
    )


@dataclass(frozen=True)
class Events:
    """The events of one modality.

    Args:
        selection: Which, and what is made of them.
        codes: Codes that match, sorted.
        batches: Events, a batch of whole subjects each.
        spec: Any of their tables, for its columns and clock.
        samples: ``sample``, ``subject_id`` and ``prediction_time``.
    """

    selection: Selection
    codes: pl.DataFrame
    batches: Sequence[pl.LazyFrame]
    spec: TableSpec
    samples: pl.DataFrame

    def known(self, batch: pl.LazyFrame, codes: pl.DataFrame) -> pl.LazyFrame:
        """The events of a batch that each sample may know: those of the codes, in the window, known by then.

        Returns:
            ``sample``, ``subject_id``, ``time``, ``code``, ``hours_before`` (null where static) and value columns.
        """
        chosen, time = self.selection, pl.col("time")
        static = chosen.rows == "static"
        rows = batch.filter(time.is_null() if static else time.is_not_null())
        rows = rows.join(codes.lazy().select("code"), on="code", how="semi")
        rows = rows.join(self.samples.lazy(), on="subject_id", how="inner")
        clock = None if static else Clock("time", lag=chosen.lag_hours * 60)
        rows = known_by(rows, replace(self.spec, clock=clock))
        moment = pl.col("prediction_time")
        if chosen.window_hours is not None:
            opens = moment - pl.duration(microseconds=round(chosen.window_hours * HOUR))
            rows = rows.filter(window(opens, "time"))
        hours = (moment - time).dt.total_microseconds() / HOUR
        return rows.with_columns(hours_before=hours.cast(pl.Float32))

    @property
    def usable(self) -> pl.Expr:
        """Whether an event has a value of the modality's kind."""
        column = self.selection.values
        if column is None:
            return pl.lit(True)
        if column == "text_value":
            return (pl.col(column).str.strip_chars() != "").fill_null(False)
        return pl.col(column).is_finite().fill_null(False)

    def count(self) -> pl.DataFrame:
        """Of each code: ``people`` with a usable event, usable ``rows``, and rows ``without`` a value; sorted by code.

        Only events that some sample may know count, so that later ones decide nothing.
        """
        frames = []
        for batch in self.batches:
            rows = self.known(batch, self.codes).with_columns(usable=self.usable)
            counted = rows.group_by("code").agg(
                people=pl.col("subject_id").filter(pl.col("usable")).n_unique(),
                rows=pl.col("usable").sum(),
                without=(~pl.col("usable")).sum(),
            )
            frames.append(counted.collect(engine="streaming"))
        return pl.concat(frames).group_by("code").agg(pl.col("people", "rows", "without").sum()).sort("code")

    def elements(self, items: Sequence[str]) -> pl.DataFrame:
        """The modality's elements, sorted.

        Args:
            items: Codes that are variables of a ``vector`` or ``series``; not looked at otherwise.

        Returns:
            ``sample``, ``hours_before`` and the columns of the kind, as `write_store` asks for.
        """
        make = {"vector": self._vector, "series": self._series, "codes": self._codes, "text": self._texts}
        named = self.selection.values == "numeric_value"
        codes = pl.DataFrame({"code": pl.Series(items, dtype=pl.String)}) if named else self.codes
        made = []
        for batch in self.batches:
            rows = self.known(batch, codes).filter(self.usable)
            made.append(make[self.selection.kind](rows, items))
        order = {"vector": (), "series": ("variable", "value"), "codes": ("code",), "text": ("text",)}
        # the earliest first; whatever ties is the same row
        return pl.concat(made).sort(
            "sample", -pl.col("hours_before"), *order[self.selection.kind], nulls_last=True, maintain_order=True
        )

    def _vector(self, rows: pl.LazyFrame, items: Sequence[str]) -> pl.DataFrame:
        stats = self.selection.statistics
        # static rows are of all times alike: which of several is the last is decided by the value
        values = rows.select(
            "sample",
            "hours_before",
            variable="code",
            value="numeric_value",
            at=pl.col("time").cast(pl.Int64).fill_null(0),
        )
        long = aggregate(values, time="at", stats=stats).collect(engine="streaming")
        last = values.group_by("sample").agg(pl.col("hours_before").min()).collect(engine="streaming")
        wide = pivot(long.lazy(), list(items), stats).join(last, on="sample", how="left", maintain_order="left")
        return wide.select("sample", "hours_before", pl.exclude("sample", "hours_before"))

    def _series(self, rows: pl.LazyFrame, items: Sequence[str]) -> pl.DataFrame:
        columns = ("sample", "hours_before", pl.col("code").alias("variable"), pl.col("numeric_value").alias("value"))
        return rows.select(*columns).unique().collect(engine="streaming")

    def _codes(self, rows: pl.LazyFrame, items: Sequence[str]) -> pl.DataFrame:
        latest = rows.group_by("sample", "code").agg(pl.col("hours_before").min())
        return latest.select("sample", "hours_before", "code").collect(engine="streaming")

    def _texts(self, rows: pl.LazyFrame, items: Sequence[str]) -> pl.DataFrame:
        columns = ("sample", "hours_before", pl.col("text_value").alias("text"))
        return rows.select(*columns).unique().collect(engine="streaming")
