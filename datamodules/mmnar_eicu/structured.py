"""What is known of a patient at the door: demographics, unit, hospital and the stay so far, and the subgroups."""

from __future__ import annotations

import hashlib
import math
from functools import cache
from importlib.resources import files

import polars as pl

from mmnar_eicu.cohort import Cohort
from mmnar_lightning.extract import Counts

# Outside of these a height in cm or a weight in kg is a slip of the pen (0.3 cm, 600 cm and 0.5 kg occur in the demo).
HEIGHT = (120.0, 230.0)
WEIGHT = (25.0, 400.0)

NUMBERS = (
    "age",
    "height",
    "weight",
    "bmi",
    "hours_in_hospital",
    "hours_in_icu",
    "unit_stays",
    "earlier_icu_episodes",
    "admission_hour_sin",
    "admission_hour_cos",
)
# Attribute in structured.csv → column of the patient or hospital table.
ATTRIBUTES = {
    "sex": "gender",
    "ethnicity": "ethnicity",
    "unit_type": "unittype",
    "source": "unitadmitsource",
    "hospital_source": "hospitaladmitsource",
    "beds": "numbedscategory",
    "teaching": "teachingstatus",
    "region": "region",
}
AGE_BANDS = ((45, "18-44"), (65, "45-64"), (75, "65-74"), (85, "75-84"))


@cache
def categories() -> tuple[pl.DataFrame, str]:
    """Read ``structured.csv`` (attribute, value, item; ``*`` is any other value) and its sha256."""
    raw = files("mmnar_eicu").joinpath("catalogue/structured.csv").read_bytes()
    return pl.read_csv(raw, infer_schema=False), hashlib.sha256(raw).hexdigest()


def structured_items() -> tuple[str, ...]:
    """Names of the structured features, in order."""
    return (*NUMBERS, *dict.fromkeys(categories()[0]["item"]))


def _word(column: str) -> pl.Expr:
    """A category in lower case; blank is null."""
    word = pl.col(column).str.strip_chars().str.to_lowercase()
    return pl.when(word == "").then(None).otherwise(word)


def _one_hot(attribute: str) -> list[pl.Expr]:
    """One column an item of an attribute, 0 or 1; all null where the attribute is unknown."""
    rows = categories()[0].filter(pl.col("attribute") == attribute)
    word = _word(ATTRIBUTES[attribute])
    listed = rows.filter(pl.col("value") != "*")["value"].to_list()
    columns = []
    for item in dict.fromkeys(rows["item"]):
        values = rows.filter(pl.col("item") == item)["value"].to_list()
        hit = word.is_in([v for v in values if v != "*"])
        if "*" in values:
            hit = hit | ~word.is_in(listed)
        columns.append(pl.when(word.is_not_null()).then(hit.cast(pl.Float32)).alias(item))
    return columns


def _within(column: str, low: float, high: float) -> pl.Expr:
    return pl.when(pl.col(column).is_between(low, high)).then(pl.col(column))


def with_hospital(samples: pl.DataFrame, hospital: pl.DataFrame) -> pl.DataFrame:
    """Add the hospital's beds, teaching status and region (null where it isn't listed)."""
    return samples.join(hospital, on="hospitalid", how="left", validate="m:1", maintain_order="left")


def structured(cohort: Cohort, log: Counts) -> pl.DataFrame:
    """The ``structured`` modality: one row a sample; always observed, for age is known of everyone.

    Args:
        cohort: Samples with their hospital's columns.
        log: Takes the counts.

    Returns:
        ``sample``, ``hours_before`` (to the start of the episode) and one Float32 column an item.
    """
    people = cohort.samples
    for column, limits in (("admissionheight", HEIGHT), ("admissionweight", WEIGHT)):
        outside = people.filter(~pl.col(column).is_between(*limits)).height
        log.add("patient", f"{column} outside of {limits[0]:g} to {limits[1]:g}, not used", outside)
    hour = pl.col("unitadmittime24").str.extract(r"^(\d{1,2}):").cast(pl.Float64) * (2 * math.pi / 24)
    numbers = people.with_columns(
        age=pl.col("years"),
        height=_within("admissionheight", *HEIGHT),
        weight=_within("admissionweight", *WEIGHT),
        hours_in_hospital=pl.col("start").clip(lower_bound=0) / 60,
        hours_in_icu=pl.col("prediction_time") / 60,
        unit_stays=people.select("sample").join(cohort.stays.group_by("sample").len(), on="sample", how="left")["len"],
        earlier_icu_episodes=pl.col("episode"),
        admission_hour_sin=hour.sin(),
        admission_hour_cos=hour.cos(),
    ).with_columns(bmi=pl.col("weight") / (pl.col("height") / 100) ** 2)
    return numbers.select(
        "sample",
        (pl.col("prediction_time") / 60).cast(pl.Float32).alias("hours_before"),
        *[pl.col(name).cast(pl.Float32) for name in NUMBERS],
        *[column for attribute in ATTRIBUTES for column in _one_hot(attribute)],
    )


def groups() -> list[pl.Expr]:
    """Subgroup columns ``group/*`` (but ``group/care_limits``); null where unknown."""
    band: pl.Expr = pl.lit("85+")
    for limit, name in reversed(AGE_BANDS):
        band = pl.when(pl.col("years") < limit).then(pl.lit(name)).otherwise(band)
    return [
        _word("gender").alias("group/sex"),
        band.alias("group/age_band"),
        _word("ethnicity").alias("group/race"),
        _word("unittype").alias("group/unit_type"),
        _word("region").alias("group/region"),
        pl.col("hospitaldischargeyear").cast(pl.String).alias("group/year"),
        _word("teachingstatus").replace({"t": "teaching", "f": "not teaching"}).alias("group/teaching"),
        _word("numbedscategory").alias("group/beds"),
    ]
