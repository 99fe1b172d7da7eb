"""eICU-CRD as a data source: tables in, samples and elements out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import polars as pl

from mmnar_eicu.codes import infusion_drugs
from mmnar_eicu.cohort import HOSPITAL_STAY, TASKS, Cohort, CohortName, build_cohort
from mmnar_eicu.modalities import BUILDERS, SERIES, TEXTS, Form, NoteForm, Source, care_limits, describe
from mmnar_eicu.structured import categories, groups, structured, with_hospital
from mmnar_eicu.tables import STAY, all_tables, catalogue
from mmnar_lightning.extract import Counts, Extraction, TableSpec
from mmnar_lightning.records import RecordSchema


@dataclass(frozen=True)
class EICUExtractor:
    """What a record store of eICU-CRD 2.0 is made from.

    Args:
        cohort: ``landmark`` (adults alive and in their first ICU episode after `landmark_hours`) or ``unit_discharge``
            (episodes that ended alive).
        landmark_hours: Prediction time of ``landmark``, in hours from the start of the episode.
        include_respiratory: Add the modality ``respiratory`` (respiratoryCare, respiratoryCharting).
        include_micro: Add the modality ``micro`` (microLab: cultures taken; hospitals with the interface are few).
        exclude_care_limits: Leave out samples with limited or comfort care before the prediction time.
        lab_delay: Minutes for which a lab value is held back after its time, for extracts whose offsets were rounded
            down (59 for one that was floored to the hour).
        measurements: Labs and vitals as ``statistics`` of the window, or as ``series`` of the values themselves.
        notes: Notes as ``codes``, what was picked in them, or as ``text``, one document a note.

    Raises:
        ValueError: If an option is out of its range.
    """

    cohort: CohortName = "landmark"
    landmark_hours: float = 24.0
    include_respiratory: bool = False
    include_micro: bool = False
    exclude_care_limits: bool = False
    lab_delay: float = 0.0
    measurements: Form = "statistics"
    notes: NoteForm = "codes"

    dataset = "eicu"
    version = "3"
    data_use = "PhysioNet Credentialed Health Data License 1.5.0 (eICU-CRD), ODbL 1.0 (eICU-CRD Demo)"

    def __post_init__(self) -> None:
        if self.cohort not in get_args(CohortName):
            raise ValueError(f"cohort {self.cohort!r} is not one of {', '.join(get_args(CohortName))}")
        if not 0 < self.landmark_hours < 7 * 24:
            raise ValueError(
                f"landmark_hours must lie between 0 and 168 (the 7 days of los_7d), got {self.landmark_hours:g}"
            )
        if self.lab_delay < 0:
            raise ValueError(f"lab_delay must not be negative, got {self.lab_delay:g} minutes")
        if self.measurements not in get_args(Form):
            raise ValueError(f"measurements {self.measurements!r} is not one of {', '.join(get_args(Form))}")
        if self.notes not in get_args(NoteForm):
            raise ValueError(f"notes {self.notes!r} is not one of {', '.join(get_args(NoteForm))}")

    def options(self) -> dict[str, Any]:
        """Everything that changes what is made, catalogues included."""
        return {
            "landmark_hours": self.landmark_hours if self.cohort == "landmark" else None,
            "include_respiratory": self.include_respiratory,
            "include_micro": self.include_micro,
            "exclude_care_limits": self.exclude_care_limits,
            "lab_delay": self.lab_delay,
            "measurements": self.measurements,
            "notes": self.notes,
            "catalogues": {
                **{name: catalogue(name).sha256 for name in ("labs", "vitals", "respiratory")},
                "infusions": infusion_drugs()[1],
                "structured": categories()[1],
            },
        }

    def tables(self) -> Sequence[TableSpec]:
        """The tables it reads."""
        return all_tables(self.include_respiratory, self.include_micro)

    def extract(self, tables: Mapping[str, pl.LazyFrame], log: Counts) -> Extraction:
        """Find the cohort, and make a step of each modality."""
        patient, outcomes, hospital = (tables[name].collect() for name in ("patient", "outcomes", "hospital"))
        cohort = build_cohort(patient, outcomes, self.cohort, self.landmark_hours, log)
        cohort = Cohort(with_hospital(cohort.samples, hospital), cohort.stays)
        cohort = self._with_care_limits(cohort, tables, log)
        source = Source(tables, cohort.stays, log, self.lab_delay)
        modalities = describe(self.include_respiratory, self.include_micro, self.measurements, self.notes)
        schema = RecordSchema(modalities, TASKS[self.cohort])
        builders = BUILDERS | (SERIES if self.measurements == "series" else {})
        builders |= TEXTS if self.notes == "text" else {}
        steps: dict[str, Callable[[], pl.DataFrame]] = {"structured": partial(structured, cohort, log)}
        steps |= {name: partial(builders[name], source) for name in schema.names if name != "structured"}
        return Extraction(schema, self._samples(cohort), dict(steps))

    def _with_care_limits(self, cohort: Cohort, tables: Mapping[str, pl.LazyFrame], log: Counts) -> Cohort:
        limits = care_limits(Source(tables, cohort.stays, log))
        samples = cohort.samples.join(limits, on="sample", how="left", validate="1:1", maintain_order="left")
        samples = samples.with_columns(pl.col("care_limits").fill_null("not recorded"))
        cohort = Cohort(samples, cohort.stays)
        if not self.exclude_care_limits:
            return cohort
        keep = ~samples["care_limits"].is_in(["comfort", "limited"])
        log.add("episodes", "excluded: care limited before the prediction time", int((~keep).sum()))
        return cohort.restrict(keep)

    def _samples(self, cohort: Cohort) -> pl.DataFrame:
        labels = [pl.col(f"label/{task.name}") for task in TASKS[self.cohort]]
        return cohort.samples.select(
            pl.col("uniquepid").alias("patient"),
            pl.col("hospitalid").cast(pl.String).alias("site"),
            pl.col(STAY).alias(f"id/{STAY}"),
            pl.col(HOSPITAL_STAY).alias(f"id/{HOSPITAL_STAY}"),
            pl.col("episode").alias("id/episode"),
            "prediction_time",
            *labels,
            *groups(),
            pl.col("care_limits").alias("group/care_limits"),
        )
