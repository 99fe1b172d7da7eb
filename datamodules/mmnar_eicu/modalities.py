"""The modalities of an eICU sample, each a function from tables to elements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import polars as pl

from mmnar_eicu import codes, tables
from mmnar_eicu.documents import documents
from mmnar_eicu.structured import structured_items
from mmnar_eicu.tables import STAY, catalogue
from mmnar_eicu.windows import known, tally
from mmnar_lightning.extract import Clock, Counts, TableSpec, aggregate, items, pivot
from mmnar_lightning.records import Modality

STATS = ("last", "min", "max", "mean", "count", "delta")
MODALITIES = ("structured", "vitals", "labs", "medication", "infusion", "home_drugs", "treatment", "diagnosis", "notes")
AIRWAY = "artificial_airway"
# how labs and vitals are given: as statistics of a window, or as the values themselves
Form = Literal["statistics", "series"]
# how notes are given: as what was picked in all of them, or each as a document
NoteForm = Literal["codes", "text"]


def describe(
    respiratory: bool = False, micro: bool = False, measurements: Form = "statistics", notes: NoteForm = "codes"
) -> tuple[Modality, ...]:
    """Modalities in order, with all catalogue items and nothing fitted."""
    series = {name: catalogue(name).variables for name in SERIES} if measurements == "series" else {}
    vectors = {
        "structured": structured_items(),
        "vitals": items(catalogue("vitals").variables, STATS),
        "labs": items(catalogue("labs").variables, STATS),
        "respiratory": (*items(catalogue("respiratory").variables, STATS), f"{AIRWAY}_last"),
    }
    names = [*MODALITIES, *(["respiratory"] if respiratory else []), *(["micro"] if micro else [])]
    described = {name: Modality(name, "vector", listed) for name, listed in vectors.items()}
    described |= {name: Modality(name, "series", listed) for name, listed in series.items()}
    described["notes"] = Modality("notes", notes)
    return tuple(described.get(name) or Modality(name, "codes") for name in names)


@dataclass(frozen=True)
class Source:
    """The tables of an extract, seen from the samples of a cohort.

    Args:
        frames: Tables by name.
        stays: `Cohort.stays`.
        log: Takes the counts.
        lab_delay: Minutes a lab value becomes known later than its clock says.
    """

    frames: Mapping[str, pl.LazyFrame]
    stays: pl.DataFrame
    log: Counts
    lab_delay: float = 0.0

    def known(self, spec: TableSpec, whole_life: bool = False) -> pl.LazyFrame:
        """Rows of a table that were known by the prediction time; counts those that were not."""
        table = self.frames[spec.name]
        row = tally(table, spec, self.stays).collect(engine="streaming").row(0, named=True)
        self.log.add(spec.name, "rows of the samples' unit stays", row["stays"])
        self.log.add(spec.name, "not yet known at the prediction time", row["late"])
        if not whole_life:
            self.log.add(spec.name, "about a time over 24 hours before hospital admission", row["outside"])
        return known(table, spec, self.stays, whole_life)

    def codes(self, table: str, *coded: pl.LazyFrame) -> pl.DataFrame:
        """Collect code occurrences, one row a code of a sample; counts rows that carry none."""
        both = pl.concat([frame.select("sample", "hours_before", "code") for frame in coded])
        none = both.select(pl.col("code").is_null().sum())
        found, without = pl.collect_all([codes.latest(both), none], engine="streaming")
        self.log.add(table, "rows without a code, not used", without.item())
        return found


def _once(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Measured values, one row each: the same value at the same time was filed twice or under two unit stays."""
    values = frame.filter(pl.col("value").is_not_null()).select(
        "sample", "variable", "value", "time", "available", "hours_before"
    )
    return values.group_by("sample", "variable", "time", "value").agg(pl.col("available", "hours_before").min())


def measured(frame: pl.LazyFrame, variables: tuple[str, ...]) -> pl.DataFrame:
    """Statistics of measured values: one row a sample that has any.

    Args:
        frame: ``sample``, ``variable``, ``value``, ``time`` and ``available`` in minutes, ``hours_before``.
        variables: All variables, in order.

    Returns:
        ``sample``, ``hours_before`` (of the last value) and `items`, Float32; null where never measured.
    """
    once = _once(frame)
    wide = pivot(aggregate(once, time="time", tie=("available",), stats=STATS), variables, STATS)
    last = once.group_by("sample").agg(pl.col("hours_before").min().cast(pl.Float32)).collect(engine="streaming")
    wide = wide.join(last, on="sample", how="left", validate="1:1", maintain_order="left")
    return wide.select("sample", "hours_before", pl.exclude("sample", "hours_before"))


def events(frame: pl.LazyFrame, variables: tuple[str, ...]) -> pl.DataFrame:
    """Measured values themselves, the ones that `measured` makes statistics of.

    Args:
        frame: As for `measured`.
        variables: All variables, in order.

    Returns:
        ``sample``, ``hours_before`` (Float32), ``variable`` (one of `variables`) and ``value`` (Float32), by sample,
        then time (the oldest first), then variable. The last of a variable is what `measured` takes as its last.
    """
    order = ["sample", "time", "variable", "available", "value"]
    listed = _once(frame).with_columns(pl.col("variable").cast(pl.Enum(variables)))
    columns = ("sample", pl.col("hours_before").cast(pl.Float32), "variable", pl.col("value").cast(pl.Float32))
    return listed.sort(order).select(columns).collect(engine="streaming")


def _vital_values(source: Source) -> pl.LazyFrame:
    """Values of vitalPeriodic and vitalAperiodic in the window."""
    long = []
    for spec, columns in ((tables.VITAL_PERIODIC, tables.PERIODIC), (tables.VITAL_APERIODIC, tables.APERIODIC)):
        wide = source.known(spec).select("sample", "time", "available", "hours_before", *columns)
        index = ["sample", "time", "available", "hours_before"]
        long.append(wide.unpivot(on=columns, index=index, variable_name="raw_id", value_name="raw"))
    rows = pl.concat(long).filter(pl.col("raw").is_not_null())
    # Temperature is in Celsius by the documentation, and in Fahrenheit where it can't be.
    hot = (pl.col("raw_id") == "temperature") & (pl.col("raw") > 50)
    rows = rows.with_columns(unit=pl.when(hot).then(pl.lit("°F")))
    listed = catalogue("vitals")
    return listed.apply(rows, "raw_id", "raw", "unit", source.log, "vitals", "count")


def vitals(source: Source) -> pl.DataFrame:
    """``vitals``: statistics of vitalPeriodic and vitalAperiodic in the window."""
    return measured(_vital_values(source), catalogue("vitals").variables)


def vital_events(source: Source) -> pl.DataFrame:
    """``vitals`` as a series: the values that `vitals` makes statistics of."""
    return events(_vital_values(source), catalogue("vitals").variables)


def _lab_values(source: Source) -> pl.LazyFrame:
    """Lab results in the window."""
    spec, listed = tables.lab(), catalogue("labs")
    # whole minutes from becoming known to the prediction time: the later of both offsets was rounded down, too
    since_known = (pl.col("hours_before") * 60).round() - (pl.col("available") - pl.col("labresultoffset"))
    frame = source.known(spec)
    if source.lab_delay:
        held = frame.select((since_known < source.lab_delay).sum()).collect(engine="streaming").item()
        source.log.add(spec.name, "held back beyond the prediction time by lab_delay", held)
    frame = frame.filter(since_known >= source.lab_delay, pl.col("labresult").is_not_null())
    # Units were checked when the table was scanned.
    return listed.apply(frame, "labname", "labresult", "labmeasurenamesystem", source.log, "lab", "count")


def labs(source: Source) -> pl.DataFrame:
    """``labs``: statistics of lab results in the window."""
    return measured(_lab_values(source), catalogue("labs").variables)


def lab_events(source: Source) -> pl.DataFrame:
    """``labs`` as a series: the results that `labs` makes statistics of."""
    return events(_lab_values(source), catalogue("labs").variables)


def medication(source: Source) -> pl.DataFrame:
    """``medication``: drugs ordered."""
    return source.codes("medication", codes.drugs(source.known(tables.MEDICATION)))


def infusion(source: Source) -> pl.DataFrame:
    """``infusion``: drugs that run into a vein."""
    return source.codes("infusion", codes.infusions(source.known(tables.INFUSION)))


def home_drugs(source: Source) -> pl.DataFrame:
    """``home_drugs``: drugs taken before admission, as entered by then."""
    return source.codes("home_drugs", codes.drugs(source.known(tables.ADMISSION_DRUG, whole_life=True)))


def treatment(source: Source) -> pl.DataFrame:
    """``treatment``: active treatments, each with its place in the tree."""
    return source.codes("treatment", codes.tree(source.known(tables.TREATMENT), "treatmentstring"))


def diagnosis(source: Source) -> pl.DataFrame:
    """``diagnosis``: active (``dx:``), admission (``adm:``) and past (``hx:``) diagnoses."""
    return source.codes(
        "diagnosis",
        codes.tree(source.known(tables.DIAGNOSIS), "diagnosisstring", "dx:"),
        codes.admission_diagnoses(source.known(tables.ADMISSION_DX)),
        codes.past_history(source.known(tables.PAST_HISTORY, whole_life=True)),
    )


def exam_rows(source: Source) -> pl.LazyFrame:
    """Physical exams known by the prediction time; counts the others.

    An exam has the time of its note but not the note's time of entry, so that it counts as known with a known note
    about the same minute, or `tables.EXAM_LAG` later. A note that is entered late changes neither.
    """
    spec, table = tables.PHYSICAL_EXAM, source.frames["physicalexam"]
    entered = known(source.frames["note"], tables.NOTE, source.stays).select("sample", "time").unique()
    at_once = replace(spec, clock=Clock("physicalexamoffset", lag=0.0))
    with_note = known(table, at_once, source.stays).join(entered, on=["sample", "time"], how="semi")
    without = known(table, spec, source.stays).join(entered, on=["sample", "time"], how="anti")
    columns = ["sample", "time", "hours_before", "physicalexampath"]
    rows = pl.concat([with_note.select(columns), without.select(columns)])
    all_rows = table.join(source.stays.lazy(), on=STAY, how="semi").select(pl.len())
    every, kept = pl.collect_all([all_rows, rows.select(pl.len())], engine="streaming")
    source.log.add(spec.name, "rows of the samples' unit stays", every.item())
    left_out = "not yet known at the prediction time, or about a time over 24 hours before hospital admission"
    source.log.add(spec.name, left_out, every.item() - kept.item())
    return rows


def notes(source: Source) -> pl.DataFrame:
    """``notes``: what was picked in notes and physical exams; typed text and numbers are not stored."""
    exams = exam_rows(source)
    written = codes.notes(source.known(tables.NOTE, whole_life=True))
    return source.codes("notes", written, codes.exams(exams), codes.coma_scores(exams))


def note_texts(source: Source) -> pl.DataFrame:
    """``notes`` as text: the rows that `notes` makes codes of, one document a note, see `documents`."""
    written, exams = source.known(tables.NOTE, whole_life=True), exam_rows(source)
    empty = [
        written.select((pl.col("notetype").is_null() & pl.col("notepath").is_null()).sum()),
        exams.select(pl.col("physicalexampath").is_null().sum()),
    ]
    made, *none = pl.collect_all([documents(written, exams), *empty], engine="streaming")
    source.log.add("notes", "rows that say nothing, not used", sum(count.item() for count in none))
    return made


def respiratory(source: Source) -> pl.DataFrame:
    """``respiratory``: statistics of ventilator and oxygen settings, and whether the last airway was artificial."""
    listed = catalogue("respiratory")
    frame = source.known(tables.RESPIRATORY_CHARTING)
    raw = pl.col("respchartvalue").str.strip_chars().cast(pl.Float64, strict=False)
    rows = frame.with_columns(raw=raw).filter(pl.col("raw").is_not_null())
    share = (pl.col("respchartvaluelabel") == "FiO2") & (pl.col("raw") <= 1)
    rows = rows.with_columns(unit=pl.when(share).then(pl.lit("fraction")))
    rows = listed.apply(rows, "respchartvaluelabel", "raw", "unit", source.log, "respiratorycharting", "count")
    airway = source.known(tables.RESPIRATORY_CARE).filter(pl.col("airwaytype").is_not_null())
    none = pl.col("airwaytype").str.to_lowercase().str.contains("no artificial")
    held = airway.with_columns(variable=pl.lit(AIRWAY), value=pl.when(none).then(0.0).otherwise(1.0))
    wide = measured(pl.concat([rows, held], how="diagonal"), (*listed.variables, AIRWAY))
    unused = [name for name in items((AIRWAY,), STATS) if name != f"{AIRWAY}_last"]
    return wide.drop(unused)


def micro(source: Source) -> pl.DataFrame:
    """``micro``: sites of cultures taken, without their results."""
    return source.codes("micro", codes.cultures(source.known(tables.MICRO)))


BUILDERS: dict[str, Callable[[Source], pl.DataFrame]] = {
    "vitals": vitals,
    "labs": labs,
    "medication": medication,
    "infusion": infusion,
    "home_drugs": home_drugs,
    "treatment": treatment,
    "diagnosis": diagnosis,
    "notes": notes,
    "respiratory": respiratory,
    "micro": micro,
}
# in place of those above where measurements are series
SERIES: dict[str, Callable[[Source], pl.DataFrame]] = {"vitals": vital_events, "labs": lab_events}
# in place of those above where notes are text
TEXTS: dict[str, Callable[[Source], pl.DataFrame]] = {"notes": note_texts}


def care_limits(source: Source) -> pl.DataFrame:
    """Limits of care by the prediction time: ``comfort``, ``limited``, ``full``, or ``not recorded``.

    Any limit ever recorded by then counts, also where full therapy is recorded after it.

    Returns:
        ``sample`` and ``care_limits``, only samples with a record.
    """
    plan = source.known(tables.CARE_PLAN).filter(pl.col("cplgroup").str.to_lowercase() == "care limitation")
    item = pl.col("cplitemvalue").str.strip_chars().str.to_lowercase()
    level = (
        pl.when(item.is_null())
        .then(None)
        .when(item == "full therapy")
        .then(0)
        .when(item == "comfort measures only")
        .then(2)
    )
    planned = plan.select("sample", level=level.otherwise(1))
    # A talk about the end of life was saved; what was agreed isn't.
    talked = source.known(tables.CARE_PLAN_EOL).select("sample", level=pl.lit(1))
    worst = pl.concat([planned, talked]).group_by("sample").agg(pl.col("level").max())
    words = {0: "full", 1: "limited", 2: "comfort"}
    named = worst.filter(pl.col("level").is_not_null()).select(
        "sample", care_limits=pl.col("level").replace_strict(words, return_dtype=pl.String)
    )
    return named.sort("sample").collect(engine="streaming")
