"""What was done to a patient by the prediction time: infusions, fluids, blood, ventilation, lines, procedures, drugs.

Three tables: inputevents and procedureevents of the ICU (``catalogue/treatments.csv``: raw itemid → variable, kind) and
prescriptions of the hospital (``catalogue/drugs.csv``: a class is a beginning of a word in the drug's name). The kind
of a variable decides what is said of it; each says only what was fixed by the prediction time:

* all: ``count`` (starts in the window; a change of rate is a start) and ``hours_since_first``;
* ``given`` (doses, events): ``hours_since_last``;
* ``running`` (ventilation, lines, infusions without a common unit) and ``infusion``: ``ongoing``;
* ``infusion`` (one drug at a rate): ``rate_last``, ``rate_max``, the rates that were set, in the catalogue's unit;
* ``volume`` (fluids, blood, feeds): ``amount`` in ml: that of a row which had ended, or the rate that was set × the
  time since its start for one which had not. A bolus counts only when it is fixed. Doses of drugs are not summed:
  their units differ from row to row, and often are only ``dose``.

Null is "nothing of the kind is recorded", also where another treatment is: outside of an ICU nobody records infusions.

**What is known when.** A start is known an hour after it. In the demo, ``storetime`` lies at most an hour after the
start in two of three rated rows and before ``endtime`` in 64 % of all rows: it is the time of an entry, and the end was
written into the row later. So end and amount count as known from the later of ``endtime`` and ``storetime``. The
column ``rate`` is ``amount`` / (``endtime`` − ``starttime``) to the eighth digit, thus known no sooner than the end,
and never read; ``originalrate`` is what was set at the start (within 2 % of it in 94 % of rows).
``ongoing`` looks at one hour before the prediction time: until then every start is known, so that a change of rate,
which ends one row and starts another, does not look like the end of an infusion.

emar is not read: it was introduced ward by ward and covers two thirds of the patients, so that its presence tells the
year and the ward. ``stoptime`` of prescriptions is an intention that changes after the fact, at times before the start.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files

import polars as pl

from mmnar_lightning.extract import ItemCatalogue, aggregate, items, pivot
from mmnar_mimic4.tables import INPUTS, PRESCRIPTIONS, PROCEDURES
from mmnar_mimic4.windows import Source

# Kind of a variable → what is said of it.
KINDS: dict[str, tuple[str, ...]] = {
    "infusion": ("count", "hours_since_first", "ongoing", "rate_last", "rate_max"),
    "running": ("count", "hours_since_first", "ongoing"),
    "given": ("count", "hours_since_first", "hours_since_last"),
    "volume": ("count", "hours_since_first", "amount"),
    "ordered": ("count", "hours_since_first"),
}
ORDERED = "rx_"  # begins the names of prescribed classes, of which some are given in the ICU, too
MILLILITRES = {"ml/hour": 1.0, "ml/min": 60.0}  # rate units of volumes, per hour

COLUMNS = ("sample", "variable", "time", "hours_before", "value", "ongoing")


@cache
def treatment_table() -> tuple[pl.DataFrame, str]:
    """Read ``treatments.csv`` (table, raw_id, variable, kind, and what an `ItemCatalogue` has) and its sha256."""
    raw = files("mmnar_mimic4").joinpath("catalogue/treatments.csv").read_bytes()
    return pl.read_csv(raw, infer_schema=False), hashlib.sha256(raw).hexdigest()


@cache
def drug_table() -> tuple[pl.DataFrame, str]:
    """Read ``drugs.csv`` (class, stem, unless: words in the name that make it none) and its sha256."""
    raw = files("mmnar_mimic4").joinpath("catalogue/drugs.csv").read_bytes()
    return pl.read_csv(raw, infer_schema=False), hashlib.sha256(raw).hexdigest()


@cache
def items_of(table: str) -> ItemCatalogue:
    """Catalogue of ``inputevents`` or ``procedureevents``."""
    lines = treatment_table()[0].filter(pl.col("table") == table)
    text = lines.drop("table", "kind").write_csv()
    return ItemCatalogue.from_text(text, "treatments.csv")


@cache
def variables() -> dict[str, tuple[str, ...]]:
    """Variables of each kind, in the order of the catalogues."""
    table = treatment_table()[0]
    found = {
        kind: tuple(dict.fromkeys(table.filter(pl.col("kind") == kind)["variable"]))
        for kind in KINDS
        if kind != "ordered"
    }
    return {**found, "ordered": tuple(ORDERED + name for name in dict.fromkeys(drug_table()[0]["class"]))}


def treatment_items() -> tuple[str, ...]:
    """Names of the columns of `treatments`, in order."""
    return tuple(item for kind, stats in KINDS.items() for item in items(variables()[kind], stats))


def treatments(source: Source) -> pl.DataFrame:
    """The ``treatments`` modality.

    Args:
        source: The tables ``inputevents``, ``procedureevents`` and ``prescriptions``, and the samples.

    Returns:
        ``sample``, ``hours_before`` (of the last start) and `treatment_items`, Float32; one row a sample that has any.
    """
    long = pl.concat([part.select(COLUMNS) for part in (_inputs(source), _procedures(source), _prescriptions(source))])
    starts = long.group_by("sample", "variable").agg(
        count=pl.len(),
        hours_since_first=pl.col("hours_before").max(),
        hours_since_last=pl.col("hours_before").min(),
        ongoing=pl.col("ongoing").any().cast(pl.Int64),
    )
    values = aggregate(long, time="time", stats=("last", "max", "mean", "count")).select(
        "sample",
        "variable",
        rate_last="last",
        rate_max="max",
        # the mean is an exact sum, divided once: the same bytes in any order of the rows
        amount=pl.col("mean") * pl.col("count"),
    )
    found = starts.join(values, on=["sample", "variable"], how="left").collect(engine="streaming")
    last = found.group_by("sample").agg(pl.col("hours_since_last").min().cast(pl.Float32).alias("hours_before"))
    wide = last.sort("sample")
    for kind, stats in KINDS.items():
        part = found.filter(pl.col("variable").is_in(variables()[kind]))
        columns = pivot(part.lazy(), variables()[kind], stats)
        wide = wide.join(columns, on="sample", how="left", validate="1:1", maintain_order="left")
    return wide


def _state(source: Source, frame: pl.LazyFrame) -> pl.LazyFrame:
    """Add ``prediction_time``, and ``open``: whether a row ran an hour before it, as far as known at it."""
    moments = source.samples.lazy().select("sample", "prediction_time")
    clock = INPUTS.clock
    assert clock is not None
    moment = pl.col("prediction_time") - pl.duration(microseconds=round(clock.lag * 60e6))
    joined = frame.join(moments, on="sample", how="inner")
    return joined.with_columns(open=pl.col("endtime").is_null() | (pl.col("endtime") > moment))


def _ids(kind: str) -> list[int]:
    return treatment_table()[0].filter(pl.col("kind") == kind)["raw_id"].unique().cast(pl.Int64).to_list()


def _catalogued(source: Source, table: str) -> pl.LazyFrame:
    """Rows of catalogued items, before any join; counts the others."""
    frame = source.frames[table]
    wanted = pl.col("itemid").is_in([int(raw_id) for raw_id in items_of(table).raw_ids])
    strange = frame.select((~wanted).sum()).collect(engine="streaming").item()
    source.log.add(table, "rows of items not in the catalogue", strange)
    return frame.filter(wanted)


def _inputs(source: Source) -> pl.LazyFrame:
    """Starts of inputevents; ``value`` is the rate that was set (`infusion`) or the ml given by then (`volume`)."""
    rows = _state(source, source.known(INPUTS, _catalogued(source, INPUTS.name)))
    unit = pl.col("rateuom").str.strip_chars().str.to_lowercase()
    hours = (pl.col("prediction_time") - pl.col("starttime")).dt.total_microseconds() / 3.6e9
    # a row without a known end ran until now, at the rate that was set
    per_hour: pl.Expr = pl.lit(None, pl.Float64)
    for name, factor in MILLILITRES.items():
        per_hour = pl.when(unit == name).then(pl.col("originalrate") * factor).otherwise(per_hour)
    ended = pl.col("endtime").is_not_null()
    volume, infusion = (pl.col("itemid").is_in(_ids(kind)) for kind in ("volume", "infusion"))
    rows = rows.with_columns(
        raw=pl.when(volume & ended)
        .then("amount")
        .when(volume)
        .then(per_hour * hours)
        .when(infusion & unit.is_not_null())
        .then("originalrate"),
        raw_unit=pl.when(volume & ended).then("amountuom").when(infusion).then("rateuom"),
        # a push has no rate: it never runs
        ongoing=pl.col("open") & unit.is_not_null(),
    )
    return items_of(INPUTS.name).apply(rows, "itemid", "raw", "raw_unit", source.log, INPUTS.name, "count")


def _procedures(source: Source) -> pl.LazyFrame:
    """Starts of procedureevents."""
    rows = _state(source, source.known(PROCEDURES, _catalogued(source, PROCEDURES.name)))
    rows = rows.with_columns(ongoing=pl.col("open"), raw=pl.lit(None, pl.Float64))
    return items_of(PROCEDURES.name).apply(rows, "itemid", "raw")


def _prescriptions(source: Source) -> pl.LazyFrame:
    """Starts of prescriptions of a drug (not of what it is dissolved in), one row a class of the drug."""
    frame, log = source.frames[PRESCRIPTIONS.name], source.log
    main = pl.col("drug_type").str.strip_chars().str.to_lowercase() == "main"
    other = frame.select((~main.fill_null(False)).sum()).collect(engine="streaming").item()
    log.add(PRESCRIPTIONS.name, "bases and additives, not used", other)
    rows = source.known(PRESCRIPTIONS, frame.filter(main))
    names = rows.select("drug").unique().collect(engine="streaming")["drug"].drop_nulls().sort()
    classes = drug_classes(names)
    without = rows.select((~pl.col("drug").is_in(classes["drug"].unique().to_list())).fill_null(True).sum())
    log.add(PRESCRIPTIONS.name, "starts of drugs of no class, not used", without.collect(engine="streaming").item())
    classed = rows.join(classes.lazy(), on="drug", how="inner")
    nothing = {"value": pl.lit(None, pl.Float64), "ongoing": pl.lit(None, pl.Boolean)}
    return classed.with_columns(**nothing)


def drug_classes(names: pl.Series) -> pl.DataFrame:
    """Find the classes of drugs by ``drugs.csv``.

    A drug is of a class if a word of its name begins with a stem of the class, and none with a word that makes it none
    (``heparin flush`` is no heparin); of several if it is a mixture.

    Args:
        names: Names of drugs, each once.

    Returns:
        ``drug`` and ``variable``, one row a class of a drug, in order.
    """
    name = names.str.to_lowercase()
    parts = []
    for (group, unless), lines in drug_table()[0].group_by("class", "unless", maintain_order=True):
        hit = name.str.contains(_begins(lines["stem"].to_list()))
        if unless:
            hit = hit & ~name.str.contains(_begins(str(unless).split("|")))
        parts.append(pl.DataFrame({"drug": names.filter(hit)}).with_columns(variable=pl.lit(f"{ORDERED}{group}")))
    return pl.concat(parts).unique().sort("drug", "variable")


def _begins(words: list[str]) -> str:
    return r"\b(?:" + "|".join(re.escape(word) for word in words) + ")"
