"""What is known of a patient at the door and of the stay so far, and the subgroups.

Columns of admissions are those of the episode's first admission, written at its start. Insurance in 2.2 has ``Other``
for private, too; a language of ``?`` in 2.2 is unknown.
"""

from __future__ import annotations

import hashlib
import math
from functools import cache
from importlib.resources import files

import polars as pl

from mmnar_lightning.extract import Counts
from mmnar_mimic4.tables import ADMISSION, ADMISSIONS, ORDER_DETAILS, ORDERS, SERVICES, TRANSFERS
from mmnar_mimic4.windows import Source

NUMBERS = (
    "age",
    "hours_since_admission",
    "admission_hour_sin",
    "admission_hour_cos",
    "ed_entry",
    "ed_hours",
    "episode",
    "admissions",
    "transfers",
    "care_units",
    "icu_transfers",
)
LANDMARK_NUMBERS = ("hours_before_icu",)
# Attribute in structured.csv → column of the samples; ``unit`` is made by `_path` and ``service`` by `_services`.
ATTRIBUTES = {
    "sex": "gender",
    "admission_type": "admission_type",
    "admission_location": "admission_location",
    "insurance": "insurance",
    "language": "language",
    "marital_status": "marital_status",
    "race": "race",
    "unit": "unit",
}
DISCHARGE = "discharge_location"
AGE_BANDS = ((45, "18-44"), (65, "45-64"), (75, "65-74"), (85, "75-84"))
ICU = r"\bicu\b|\bsicu\b|intensive care|coronary care unit"


@cache
def categories() -> tuple[pl.DataFrame, str]:
    """Read ``structured.csv`` (attribute, value, item; ``*`` is any other value) and its sha256."""
    raw = files("mmnar_mimic4").joinpath("catalogue/structured.csv").read_bytes()
    return pl.read_csv(raw, infer_schema=False), hashlib.sha256(raw).hexdigest()


def _numbers(cohort_name: str) -> tuple[str, ...]:
    return (*NUMBERS, *(LANDMARK_NUMBERS if cohort_name == "icu_landmark" else ()))


def _attributes(cohort_name: str) -> dict[str, str]:
    return ATTRIBUTES | ({DISCHARGE: DISCHARGE} if cohort_name == "post_discharge" else {})


def _items_of(attribute: str) -> list[str]:
    return list(dict.fromkeys(categories()[0].filter(pl.col("attribute") == attribute)["item"]))


def structured_items(cohort_name: str) -> tuple[str, ...]:
    """Names of the columns of `structured`, in order."""
    hot = [item for attribute in (*_attributes(cohort_name), "service") for item in _items_of(attribute)]
    return (*_numbers(cohort_name), *hot)


def _word(column: str) -> pl.Expr:
    """A category in lower case; blank is null."""
    word = pl.col(column).str.strip_chars().str.to_lowercase()
    return pl.when(word != "").then(word)


def _is_item(attribute: str, column: str) -> list[pl.Expr]:
    """One truth value an item of an attribute; null where the attribute is unknown."""
    rows = categories()[0].filter(pl.col("attribute") == attribute)
    word = _word(column)
    listed = rows.filter(pl.col("value") != "*")["value"].to_list()
    columns = []
    for item in _items_of(attribute):
        values = rows.filter(pl.col("item") == item)["value"].to_list()
        hit = word.is_in([value for value in values if value != "*"])
        if "*" in values:
            hit = hit | ~word.is_in(listed)
        columns.append(hit.alias(item))
    return columns


def structured(source: Source, samples: pl.DataFrame, cohort_name: str, log: Counts) -> pl.DataFrame:
    """The ``structured`` modality: one row a sample; always observed, for age is known of everyone.

    Where the patient went is only used in ``post_discharge``, where it is in the past. Hours in the ICU are the same
    for everyone in ``icu_landmark``; what differs are the hours before it.

    Args:
        source: The tables ``transfers``, ``services`` and ``admissions``.
        samples: `Cohort.samples`.
        cohort_name: ``post_discharge`` or ``icu_landmark``.
        log: Takes the counts.

    Returns:
        ``sample``, ``hours_before`` (to admission) and `structured_items`, Float32.
    """
    people = samples.join(_path(source), on="sample", how="left", validate="1:1", maintain_order="left")
    people = people.join(_services(source), on="sample", how="left", validate="1:1", maintain_order="left")
    people = people.join(_ed_ends(source), on=ADMISSION, how="left", validate="m:1", maintain_order="left")
    clock = pl.col("admittime").dt.hour() + pl.col("admittime").dt.minute() / 60
    turn = clock * (2 * math.pi / 24)
    people = people.with_columns(
        hours_since_admission=_hours("admittime", "prediction_time"),
        admission_hour_sin=turn.sin(),
        admission_hour_cos=turn.cos(),
        ed_entry=pl.col("edregtime").is_not_null(),
        # who has not left the emergency department by the prediction time has been there until now
        ed_hours=pl.when(pl.col("edouttime").is_not_null())
        .then(_hours("edregtime", pl.min_horizontal("edouttime", "prediction_time")))
        .otherwise(None),
        hours_before_icu=_hours("admittime", "intime"),
        **{name: pl.col(name).fill_null(0) for name in ("transfers", "care_units", "icu_transfers")},
    )
    for attribute, column in _attributes(cohort_name).items():
        unknown = people.select(_word(column).is_null().sum()).item()
        log.add("structured", f"samples without {attribute}", unknown)
    hot = [item for attribute, column in _attributes(cohort_name).items() for item in _is_item(attribute, column)]
    return people.select(
        "sample",
        # at times the ICU is entered before the admission is on record
        pl.col("hours_since_admission").clip(lower_bound=0).cast(pl.Float32).alias("hours_before"),
        *[pl.col(name).cast(pl.Float32) for name in _numbers(cohort_name)],
        *[item.cast(pl.Float32) for item in hot],
        *[pl.col(item).cast(pl.Float32) for item in _items_of("service")],
    ).sort("sample")


def _hours(start: str, end: str | pl.Expr) -> pl.Expr:
    later = pl.col(end) if isinstance(end, str) else end
    return (later - pl.col(start)).dt.total_microseconds() / 3.6e9


def _ed_ends(source: Source) -> pl.DataFrame:
    return source.frames[ADMISSIONS.name].select(ADMISSION, "edouttime").collect(engine="streaming")


def _path(source: Source) -> pl.DataFrame:
    """Ways through the hospital so far: ``transfers``, ``care_units``, ``icu_transfers`` and the present ``unit``."""
    rows = source.known(TRANSFERS).filter(_word("eventtype") != "discharge")
    unit = _word("careunit")
    counted = (
        rows.with_columns(unit=unit)
        .group_by("sample")
        .agg(
            transfers=(_word("eventtype") == "transfer").sum(),
            care_units=pl.col("unit").drop_nulls().n_unique(),
            icu_transfers=pl.col("unit").str.contains(ICU).sum(),
            unit=pl.col("unit").max_by(pl.struct("time", "unit")),
        )
    )
    return counted.collect(engine="streaming")


def _services(source: Source) -> pl.DataFrame:
    """Services the patient was under so far: 0 or 1 for each, null where none is known."""
    rows = source.known(SERVICES).filter(_word("curr_service").is_not_null())
    items = _is_item("service", "curr_service")
    hit = rows.select("sample", *items)
    return hit.group_by("sample").agg(pl.col(_items_of("service")).any()).collect(engine="streaming")


def groups(cohort_name: str) -> list[pl.Expr]:
    """Subgroup columns ``group/*`` of `Cohort.samples` (but ``group/care_limits``); null where unknown."""
    band: pl.Expr = pl.lit("85+")
    for limit, name in reversed(AGE_BANDS):
        band = pl.when(pl.col("age") < limit).then(pl.lit(name)).otherwise(band)
    columns = [
        _named("sex", "gender").alias("group/sex"),
        pl.when(pl.col("age").is_not_null()).then(band).alias("group/age_band"),
        _named("race", "race").alias("group/race"),
        _named("insurance", "insurance").alias("group/insurance"),
        _named("language", "language").alias("group/language"),
        _named("admission_type", "admission_type").alias("group/admission_type"),
        pl.when(pl.col("edregtime").is_not_null()).then(pl.lit("yes")).otherwise(pl.lit("no")).alias("group/ed_entry"),
        pl.col("anchor_year_group").str.strip_chars().alias("group/year"),
    ]
    if cohort_name == "icu_landmark":
        columns.append(_word("first_careunit").alias("group/unit_type"))
    return columns


def _named(attribute: str, column: str) -> pl.Expr:
    """The name of the group a value belongs to, from structured.csv: ``race_black`` → ``black``."""
    items = _items_of(attribute)
    beginning = items[0].split("_")[0] + "_"
    name: pl.Expr = pl.lit(None, pl.String)
    for item, hit in zip(items, _is_item(attribute, column), strict=True):
        name = pl.when(hit).then(pl.lit(item.removeprefix(beginning))).otherwise(name)
    return name


def care_limits(source: Source) -> pl.DataFrame:
    """Limits of care by the prediction time: ``comfort``, ``limited`` or ``full``, from orders of a code status.

    Any limit ever ordered by then counts, also where full care is ordered after it. The same is charted by nurses
    (chartevents, Code Status), but orders exist on every ward and are an eighth of that table's rows. Order details
    have no time of their own: a change of mind is an order of its own.

    Args:
        source: The tables ``poe`` and ``poe_detail``, and the samples.

    Returns:
        ``sample`` and ``care_limits``, only samples with an order; no rows where the tables are absent.
    """
    details = source.frames[ORDER_DETAILS.name].filter(_word("field_name") == "code status")
    words = details.select("poe_id", word=_word("field_value")).filter(pl.col("word").is_not_null())
    orders = source.frames[ORDERS.name].join(words, on="poe_id", how="inner")
    word = pl.col("word")
    level = (
        pl.when(word.str.contains(r"comfort|\bcmo\b"))
        .then(2)
        .when(word.str.contains("full code") | word.str.starts_with("resuscitate"))
        .then(0)
        .otherwise(1)
    )
    known = source.known(ORDERS, orders, count=False).select("sample", level=level)
    worst = known.group_by("sample").agg(pl.col("level").max()).collect(engine="streaming")
    names = {0: "full", 1: "limited", 2: "comfort"}
    named = pl.col("level").replace_strict(names, return_dtype=pl.String)
    return worst.select("sample", care_limits=named).sort("sample")
