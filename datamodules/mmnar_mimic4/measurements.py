"""Labs and vitals of a MIMIC-IV sample: what was measured in its window and known by its prediction time.

As statistics of the window, or as a series of the values themselves.

A measurement belongs to a sample by its patient and its time, also where ``hadm_id`` is missing (as it is for most of
what was drawn in the emergency department). Its value is brought to the unit of its variable, and is null outside the
variable's plausible range; both stand in ``catalogue/{labs,vitals,outputs}.csv``. What the laboratory measured is read
from labevents alone: the copies of it in chartevents are in no catalogue.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import polars as pl

from mmnar_lightning.extract import ItemCatalogue, TableSpec, aggregate, items, pivot
from mmnar_mimic4 import tables
from mmnar_mimic4.tables import SUBJECT, catalogue
from mmnar_mimic4.windows import Source

STATS = ("last", "min", "max", "mean", "count")
Form = Literal["statistics", "series"]
# Inspired oxygen is charted as 0.4 and as 40, without a unit that tells: at most 1 is a fraction.
FRACTIONS = (50816, 223835)
# Values that are held at once, some 150 bytes each: memory stays flat in the number of rows.
BATCH = 1_000_000


@dataclass(frozen=True)
class Measurements:
    """The catalogued items of a table.

    Args:
        spec: The table; its items stand in ``itemid``.
        listed: Its catalogue.
        number: Column with the value.
        unit: Column with the unit, or None where the table has none.
    """

    spec: TableSpec
    listed: ItemCatalogue
    number: str
    unit: str | None = None

    @property
    def _catalogued(self) -> pl.Expr:
        return pl.col("itemid").is_in([int(raw_id) for raw_id in self.listed.raw_ids])

    def tally(self, source: Source) -> None:
        """Log what of the table is not used."""
        without = source.frames[self.spec.name].select((self._catalogued & pl.col(self.number).is_null()).sum())
        no_number = without.collect(engine="streaming").item()
        source.log.add(self.spec.name, "rows of catalogued items without a number, not used", no_number)

    def pairs(self, source: Source) -> pl.DataFrame:
        """Items and units that stand in the table, to be looked up once rather than row by row."""
        keys = ["itemid"] if self.unit is None else ["itemid", self.unit]
        found = source.frames[self.spec.name].filter(self._catalogued).select(keys).unique()
        pairs = found.collect(engine="streaming")
        shares = [item for item in FRACTIONS if str(item) in self.listed.raw_ids]
        if self.unit is None or not shares:
            return pairs
        fractions = {"itemid": shares, self.unit: ["fraction"] * len(shares)}
        return pl.concat([pairs, pl.DataFrame(fractions, schema=pairs.schema)])

    def known(self, source: Source, count: bool = False) -> pl.LazyFrame:
        """Rows of catalogued items with a ``number`` that a sample may contain: what is cheap to drop goes first."""
        ends = source.samples[SUBJECT].min(), source.samples[SUBJECT].max()
        # patients in order are a range of ids: of a table in their order, whole row groups are skipped
        theirs = pl.col(SUBJECT).is_between(*ends) if source.samples.height else pl.lit(False)
        frame = source.frames[self.spec.name].filter(theirs, self._catalogued, pl.col(self.number).is_not_null())
        return source.known(self.spec, frame.rename({self.number: "number"}), count)

    def values(self, source: Source, pairs: pl.DataFrame) -> pl.LazyFrame:
        """Values that a sample may contain, one a row.

        Args:
            source: The samples and the tables.
            pairs: What `pairs` found.

        Returns:
            ``sample``, ``itemid``, ``variable``, ``time``, ``hours_before``, ``value`` (null where it is impossible or
            in an unknown unit) and ``strange`` (whether it is the latter).
        """
        frame = self.known(source)
        if self.unit is not None:
            share = pl.col("itemid").is_in(FRACTIONS) & (pl.col("number") <= 1)
            frame = frame.with_columns(pl.when(share).then(pl.lit("fraction")).otherwise(self.unit).alias(self.unit))
        converted = self.listed.apply(frame, "itemid", "number", self.unit, unknown_unit="count", pairs=pairs)
        return converted.select("sample", "itemid", "variable", "time", "hours_before", "value", strange="unknown_unit")


def _batches(source: Source, measurements: tuple[Measurements, ...]) -> Iterator[Source]:
    """Split the samples, in order, into batches of about `BATCH` values; there is at least one."""
    known = [one.known(source, count=True).select("sample") for one in measurements]
    rows = pl.concat(known).group_by("sample").len("rows").collect(engine="streaming")
    sized = source.samples.join(rows, on="sample", how="left", maintain_order="left")
    batch = pl.col("rows").fill_null(0).cast(pl.Int64).cum_sum() // BATCH
    numbered = sized.select(batch=batch)["batch"]
    for number in numbered.unique(maintain_order=True) if len(numbered) else [0]:
        yield replace(source, samples=source.samples.filter(numbered == number))


def _log_nulled(source: Source, measurements: tuple[Measurements, ...], nulled: pl.DataFrame) -> None:
    sums = nulled.group_by("variable").agg(implausible=(~pl.col("strange")).sum(), unit=pl.col("strange").sum())
    found = {row[0]: row[1:] for row in sums.rows()}
    for one in measurements:
        for variable in one.listed.variables:
            implausible, unit = found.get(variable, (0, 0))
            if implausible:
                source.log.add(one.spec.name, f"implausible values of {variable}, nulled", implausible)
            if unit:
                source.log.add(one.spec.name, f"values of {variable} in an unknown unit, nulled", unit)


# The same value of the same item at the same time is one measurement, however often it was filed.
ONCE = ("sample", "itemid", "time", "value")


def _filed(source: Source, measurements: tuple[Measurements, ...]) -> Iterator[pl.LazyFrame]:
    """Values as they were filed, by batches of samples in order; logs what is not used.

    Yields:
        ``sample``, ``itemid``, ``variable``, ``time``, ``hours_before``, ``value``; a measurement may stand twice.
    """
    for one in measurements:
        one.tally(source)
    nulled = []
    pairs = [one.pairs(source) for one in measurements]
    for part in _batches(source, measurements):
        values = [one.values(part, known) for one, known in zip(measurements, pairs, strict=True)]
        rows = pl.concat(values).collect(engine="streaming").lazy()
        nulled.append(rows.filter(pl.col("value").is_null()).select("variable", "strange").collect())
        yield rows.filter(pl.col("value").is_not_null())
    _log_nulled(source, measurements, pl.concat(nulled))


def _variables(measurements: tuple[Measurements, ...]) -> tuple[str, ...]:
    return tuple(variable for one in measurements for variable in one.listed.variables)


def measured(source: Source, measurements: tuple[Measurements, ...]) -> pl.DataFrame:
    """Statistics of measured values. Of several values at the last time the largest is the last.

    Args:
        source: The samples and the tables.
        measurements: What of the tables is read; each variable stands in one catalogue.

    Returns:
        ``sample`` (Int64, ascending; only samples with a value), ``hours_before`` (Float32; hours from the last
        measurement to the prediction time) and one column per variable and statistic (Float32; null = not measured).
    """
    long, since = [], []
    for filed in _filed(source, measurements):
        once = filed.group_by(ONCE).agg(pl.first("variable"))
        long.append(aggregate(once, time="time", stats=STATS).collect(engine="streaming"))
        since.append(filed.group_by("sample").agg(pl.col("hours_before").min().cast(pl.Float32)).collect())
    wide = pivot(pl.concat(long).lazy(), _variables(measurements), STATS)
    wide = wide.join(pl.concat(since), on="sample", how="left", validate="1:1", maintain_order="left")
    return wide.select("sample", "hours_before", pl.exclude("sample", "hours_before"))


def events(source: Source, measurements: tuple[Measurements, ...]) -> pl.DataFrame:
    """Measured values themselves, the ones that `measured` makes statistics of.

    Args:
        source: The samples and the tables.
        measurements: What of the tables is read; each variable stands in one catalogue.

    Returns:
        ``sample`` (Int64), ``hours_before`` (Float32), ``variable`` (one of the catalogues') and ``value`` (Float32),
        by sample, then time (the oldest first), variable and value: the last of a variable is its last statistic.
    """
    listed = pl.Enum(_variables(measurements))
    columns = ("sample", pl.col("hours_before").cast(pl.Float32), "variable", pl.col("value").cast(pl.Float32))
    parts = []
    for filed in _filed(source, measurements):
        once = filed.group_by(ONCE).agg(pl.first("variable", "hours_before"))
        typed = once.with_columns(pl.col("variable").cast(listed))
        # samples come in batches: what is held of each is some 20 bytes a value
        parts.append(typed.sort("sample", "time", "variable", "value").select(columns).collect())
    return pl.concat(parts)


def lab_items() -> tuple[str, ...]:
    """Names of the columns of `labs`, in order."""
    return items(lab_variables(), STATS)


def vital_items() -> tuple[str, ...]:
    """Names of the columns of `vitals`, in order."""
    return items(vital_variables(), STATS)


def lab_variables() -> tuple[str, ...]:
    """Variables of `lab_events`, in order."""
    return catalogue("labs").variables


def vital_variables() -> tuple[str, ...]:
    """Variables of `vital_events`, in order: those of chartevents, then those of outputevents."""
    return (*catalogue("vitals").variables, *catalogue("outputs").variables)


def _labs() -> tuple[Measurements, ...]:
    return (Measurements(tables.labs(), catalogue("labs"), "valuenum", "valueuom"),)


def _vitals() -> tuple[Measurements, ...]:
    charts = Measurements(tables.charts(), catalogue("vitals"), "valuenum", "valueuom")
    return charts, Measurements(tables.outputs(), catalogue("outputs"), "value")


def labs(source: Source) -> pl.DataFrame:
    """``labs``: statistics of labevents in the window, as `measured` has them, with the columns `lab_items`."""
    return measured(source, _labs())


def vitals(source: Source) -> pl.DataFrame:
    """``vitals``: statistics of chartevents, and of the volumes in outputevents, in the window.

    As `measured` has them, with the columns `vital_items`.
    """
    return measured(source, _vitals())


def lab_events(source: Source) -> pl.DataFrame:
    """``labs`` as a series: the results that `labs` makes statistics of, as `events` has them."""
    return events(source, _labs())


def vital_events(source: Source) -> pl.DataFrame:
    """``vitals`` as a series: the values that `vitals` makes statistics of, as `events` has them."""
    return events(source, _vitals())
