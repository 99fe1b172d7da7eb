"""MIMIC-IV as a data source: tables in, samples and elements out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import polars as pl

from mmnar_lightning.extract import Counts, Elements, ExtractError, Extraction, TableSpec
from mmnar_lightning.records import Modality, RecordSchema
from mmnar_mimic4 import films, notes, tables
from mmnar_mimic4.billing import billing
from mmnar_mimic4.cohort import TASKS, Cohort, CohortName, CohortSettings, Episodes, build_cohort
from mmnar_mimic4.embeddings import SUFFIX, OwnEmbeddings, cxr_embeddings, embedding_items, release_width
from mmnar_mimic4.measurements import (
    Form,
    lab_events,
    lab_items,
    lab_variables,
    labs,
    vital_events,
    vital_items,
    vital_variables,
    vitals,
)
from mmnar_mimic4.merged import merged, merged_items
from mmnar_mimic4.micro import micro
from mmnar_mimic4.structured import care_limits, categories, groups, structured, structured_items
from mmnar_mimic4.tables import ADMISSION, STAY, SUBJECT, catalogue
from mmnar_mimic4.treatments import drug_table, treatment_items, treatment_table, treatments
from mmnar_mimic4.versions import Version, last_year
from mmnar_mimic4.windows import Source
from mmnar_mimic4.years import collection

Films = Literal["images", "embeddings"]
Make = Callable[[], pl.DataFrame]
Made = tuple[Modality, Make]
COHORT_TABLES = ("patients", "deaths", "admissions", "discharges", "icustays", "icu_ends")
CHOICES = {
    "release": Version,
    "cxr": Films,
    "views": films.Views,
    "check_films": films.Check,
    "absent_films": films.Absent,
    "blanks": notes.Blanks,
}
EVENT_TABLES = ("labevents", "chartevents", "outputevents", "inputevents", "procedureevents", "prescriptions")
COLLECTED = ("cxr", "radiology", "discharge")


@dataclass(frozen=True)
class MIMIC4Extractor:
    """What a record store of MIMIC-IV 2.2 or 3.1 is made from.

    Args:
        cohort: ``post_discharge`` (adults who left the hospital alive) or ``icu_landmark`` (adults alive and in their
            first ICU stay after `landmark_hours`).
        episodes: Which hospital episodes of a patient ``post_discharge`` takes: ``first``, a ``random`` one, ``all``.
        note_grace_hours: Hours from the end of the episode to the prediction time of ``post_discharge``.
        landmark_hours: Hours from the start of the ICU stay to the prediction time of ``icu_landmark``.
        prospective: False predicts at the end of the episode and takes notes by the time they are about, as the paper
            did: not a model that could be used, and the manifest says so.
        max_patients: Keep that many patients, drawn by a keyed hash; None keeps all.
        draw_seed: Key of the draws.
        release: ``auto`` tells 2.2 and 3.1 apart by what is in the files.
        note_root: Folder above ``note/`` where it is not the extract's.
        cxr_root: Folder of MIMIC-CXR-JPG, or of its embeddings; None takes no films.
        cxr: What is read there: ``images``, or ``embeddings`` (TFRecords).
        views: ``frontal`` films, or ``all``.
        check_films: ``decode`` reads each film once, so that an unreadable one is none; ``open`` reads its header.
        absent_films: Whether a film that is listed but not there, or a damaged embedding, is counted (``count``) or an
            ``error``.
        blanks: Whether the de-identification blanks ``___`` stay in the notes (``keep``) or not (``drop``).
        embeddings: Parquet files with vectors made elsewhere, by modality (``radiology``, ``discharge``, ``cxr``).
        measurements: Labs and vitals as ``statistics`` of the window, or as ``series`` of the values themselves.
        merge_structured: One modality ``structured`` in place of structured, labs, vitals and treatments.
        include_micro: Add the modality ``micro`` (cultures, and organisms known by then).
        include_billing: Add the modality ``billing``: codes assigned after discharge, for the paper's preset alone.
        exclude_care_limits: Leave out samples with limited or comfort care before the prediction time.

    Raises:
        ValueError: If an option is out of its range, or contradicts another.
    """

    cohort: CohortName = "post_discharge"
    episodes: Episodes = "first"
    note_grace_hours: float = 24.0
    landmark_hours: float = 24.0
    prospective: bool = True
    max_patients: int | None = None
    draw_seed: int = 0
    release: Version = "auto"
    note_root: Path | None = None
    cxr_root: Path | None = None
    cxr: Films = "images"
    views: films.Views = "frontal"
    check_films: films.Check = "decode"
    absent_films: films.Absent = "count"
    blanks: notes.Blanks = "keep"
    embeddings: Mapping[str, Path] | None = None
    measurements: Form = "statistics"
    merge_structured: bool = False
    include_micro: bool = False
    include_billing: bool = False
    exclude_care_limits: bool = False

    dataset = "mimic4"
    version = "1"
    data_use = "PhysioNet Credentialed Health Data License 1.5.0 (MIMIC-IV, -Note, -CXR-JPG), ODbL 1.0 (the demo)"

    def __post_init__(self) -> None:
        if self.cohort not in get_args(CohortName):
            raise ValueError(f"cohort {self.cohort!r} is not one of {', '.join(get_args(CohortName))}")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {', '.join(get_args(allowed))}")
        self._settings(2019)  # refuses what is out of its range
        if not self.prospective and self.cohort != "post_discharge":
            raise ValueError("prospective: only post_discharge has a variant that is not")
        if self.include_billing and self.cohort != "post_discharge":
            raise ValueError("include_billing: at a landmark inside the stay no code has been assigned yet")
        if self.measurements not in get_args(Form):
            raise ValueError(f"measurements {self.measurements!r} is not one of {', '.join(get_args(Form))}")
        if self.merge_structured and self.measurements == "series":
            raise ValueError(
                "merge_structured: series can't be merged into a vector; it takes measurements: statistics"
            )
        strange = sorted(set(self.embeddings or {}) - {"radiology", "discharge", "cxr"})
        if strange:
            raise ValueError(f"embeddings: no modality {', '.join(strange)}; there are: radiology, discharge, cxr")
        if "cxr" in (self.embeddings or {}) and self.cxr_root is None:
            raise ValueError("embeddings: cxr needs cxr_root, whose metadata say when each film was taken")
        if self.cohort == "icu_landmark" and "discharge" in (self.embeddings or {}):
            raise ValueError("embeddings: icu_landmark has no discharge summaries, they don't exist yet")

    def _settings(self, last: int) -> CohortSettings:
        return CohortSettings(
            episodes=self.episodes,
            note_grace_hours=self.note_grace_hours,
            landmark_hours=self.landmark_hours,
            prospective=self.prospective,
            max_patients=self.max_patients,
            draw_seed=self.draw_seed,
            last_year=last,
        )

    @property
    def notice(self) -> str | None:
        """What a user of the store must know, repeated in its manifest."""
        why = [] if self.prospective else ["notes count by the time they are about, whenever they were written"]
        why += ["billing codes are assigned after discharge"] if self.include_billing else []
        if not why:
            return None
        return f"Not prospective: {', and '.join(why)}. No figure from this store says how a model would do in use."

    def options(self) -> dict[str, Any]:
        """Everything that changes what is made, catalogues and embeddings included."""
        after = self.cohort == "post_discharge"
        with_films = self.cxr_root is not None
        return {
            "episodes": self.episodes if after else None,
            "note_grace_hours": self.note_grace_hours if after and self.prospective else None,
            "landmark_hours": None if after else self.landmark_hours,
            "prospective": self.prospective if after else None,
            "max_patients": self.max_patients,
            "draw_seed": self.draw_seed if self.max_patients or (after and self.episodes == "random") else None,
            "release": self.release,
            "cxr": self.cxr if with_films else None,
            "views": self.views if with_films else None,
            "check_films": self.check_films if with_films else None,
            "absent_films": self.absent_films if with_films else None,
            "films": self._film_state if with_films else None,
            "blanks": self.blanks,
            "embeddings": {name: own.sha256 for name, own in self._own.items()},
            "measurements": self.measurements,
            "merge_structured": self.merge_structured,
            "include_micro": self.include_micro,
            "include_billing": self.include_billing,
            "exclude_care_limits": self.exclude_care_limits,
            "catalogues": {
                **{name: catalogue(name).sha256 for name in ("labs", "vitals", "outputs")},
                "treatments": treatment_table()[1],
                "drugs": drug_table()[1],
                "structured": categories()[1],
            },
        }

    @cached_property
    def _film_state(self) -> str:
        assert self.cxr_root is not None
        suffixes = films.SUFFIXES if self.cxr == "images" else (SUFFIX,)
        return films.film_state(self.cxr_root, suffixes)

    @cached_property
    def _own(self) -> dict[str, OwnEmbeddings]:
        keys = {"cxr": films.FILM}
        return {
            name: OwnEmbeddings(Path(path).expanduser(), keys.get(name, notes.NOTE))
            for name, path in self._vectors.items()
        }

    @property
    def _vectors(self) -> Mapping[str, Path]:
        return self.embeddings or {}

    def tables(self) -> Sequence[TableSpec]:
        """The tables it reads."""
        specs = [tables.PATIENTS, tables.DEATHS, tables.ADMISSIONS, tables.DISCHARGES, tables.ICU_STAYS]
        specs += [tables.ICU_ENDS, tables.TRANSFERS, tables.SERVICES, tables.labs(), tables.charts(), tables.outputs()]
        specs += [tables.INPUTS, tables.PROCEDURES, tables.PRESCRIPTIONS, tables.ORDERS, tables.ORDER_DETAILS]
        specs.append(replace(tables.RADIOLOGY_NOTES, folder=self.note_root))
        if self.cohort == "post_discharge":
            specs.append(replace(tables.DISCHARGE_NOTES, folder=self.note_root))
        if self.cxr_root is not None:
            specs.append(films.metadata(self.cxr_root))
        specs += [tables.MICRO] if self.include_micro else []
        specs += [tables.DIAGNOSES, tables.PROCEDURE_CODES] if self.include_billing else []
        return specs

    def extract(self, tables: Mapping[str, pl.LazyFrame], log: Counts) -> Extraction:
        """Find the cohort, and make a step of each modality."""
        frames = {name: tables[name].collect() for name in COHORT_TABLES}
        last = last_year(self.release, frames["admissions"], frames["patients"])
        cohort = build_cohort(frames, self.cohort, self._settings(last), log)
        cohort = self._with_ed_visits(cohort, tables["transfers"])
        cohort = self._with_care_limits(cohort, tables, log)
        source = Source(tables, cohort.samples, log)
        self._count_strangers(tables, frames["patients"], log)
        made = self._structured(source, cohort, log) | self._notes(source, cohort) | self._films(source)
        if self.include_micro:
            made["micro"] = Modality("micro", "codes"), partial(micro, source)
        if self.include_billing:
            made["billing"] = Modality("billing", "codes"), partial(billing, source, cohort.admissions)
        schema = RecordSchema(tuple(modality for modality, _ in made.values()), TASKS[self.cohort])
        steps: dict[str, Elements] = {name: make for name, (_, make) in made.items()}
        return Extraction(schema, self._samples(cohort, schema), steps)

    def _structured(self, source: Source, cohort: Cohort, log: Counts) -> dict[str, Made]:
        steps: dict[str, Make] = {
            "structured": partial(structured, source, cohort.samples, self.cohort, log),
            "labs": partial(labs, source),
            "vitals": partial(vitals, source),
            "treatments": partial(treatments, source),
        }
        items = {
            "structured": structured_items(self.cohort),
            "labs": lab_items(),
            "vitals": vital_items(),
            "treatments": treatment_items(),
        }
        if self.merge_structured:
            return {"structured": (Modality("structured", "vector", merged_items(items)), partial(merged, steps))}
        made: dict[str, Made] = {name: (Modality(name, "vector", items[name]), steps[name]) for name in steps}
        if self.measurements == "series":
            made["labs"] = Modality("labs", "series", lab_variables()), partial(lab_events, source)
            made["vitals"] = Modality("vitals", "series", vital_variables()), partial(vital_events, source)
        return made

    def _notes(self, source: Source, cohort: Cohort) -> dict[str, Made]:
        listed = {"radiology": (tables.RADIOLOGY_NOTES, notes.radiology_rows)}
        if self.cohort == "post_discharge":
            listed["discharge"] = (tables.DISCHARGE_NOTES, notes.discharge_rows)
        made: dict[str, Made] = {}
        for name, (spec, rows) in listed.items():
            if source.frames[spec.name].head(1).collect().is_empty():
                # without the files there is no such modality, rather than one that nobody has
                if name in self._vectors:
                    raise ExtractError(f"{spec.file}: is absent or empty, so that the embeddings of {name} fit no note")
                continue
            link = partial(rows, source, cohort.admissions, self.prospective)
            if name in self._own:
                made[name] = self._vector(name, link, source.log)
            else:
                make = partial(_texts, source, spec, link, self.blanks)
                made[name] = Modality(name, "text"), make
        return made

    def _films(self, source: Source) -> dict[str, Made]:
        if self.cxr_root is None:
            return {}
        if "cxr" in self._own:
            link = partial(films.linked, source, self.views, self.prospective)
            return {"cxr": self._vector("cxr", link, source.log)}
        if self.cxr == "images":
            make = partial(
                films.cxr, source, self.cxr_root, self.views, self.check_films, self.absent_films, self.prospective
            )
            return {"cxr": (Modality("cxr", "image"), make)}
        modality = Modality("cxr", "vector", embedding_items(release_width(self.cxr_root)))
        make = partial(
            cxr_embeddings,
            source,
            self.cxr_root,
            self.views,
            absent=self.absent_films,
            corrupt=self.absent_films,
            prospective=self.prospective,
        )
        return {"cxr": (modality, make)}

    def _vector(self, name: str, link: Make, log: Counts) -> Made:
        own = self._own[name]
        return Modality(name, "vector", embedding_items(own.width)), lambda: own.of(link(), log, name)

    def _count_strangers(self, tables: Mapping[str, pl.LazyFrame], patients: pl.DataFrame, log: Counts) -> None:
        """Count rows of the event tables whose subject is not in patients: they serve no sample."""
        known = patients[SUBJECT].implode()
        for name in EVENT_TABLES:
            strangers = tables[name].select((~pl.col(SUBJECT).is_in(known)).sum()).collect(engine="streaming").item()
            log.add(name, "rows of subjects that are not in patients, not used", strangers)

    @staticmethod
    def _with_ed_visits(cohort: Cohort, transfers: pl.LazyFrame) -> Cohort:
        """Count visits of the emergency department without an admission, too: films were collected of both."""
        visits = transfers.filter(pl.col("eventtype").str.strip_chars().str.to_uppercase() == "ED")
        first = visits.group_by(SUBJECT).agg(_visit=pl.col("intime").min()).collect(engine="streaming")
        samples = cohort.samples.join(first, on=SUBJECT, how="left", validate="m:1", maintain_order="left")
        visited = (pl.col("_visit") <= pl.col("prediction_time")).fill_null(False)
        samples = samples.with_columns(ed_by_then=pl.col("ed_by_then") | visited).drop("_visit")
        return Cohort(samples, cohort.admissions)

    def _with_care_limits(self, cohort: Cohort, tables: Mapping[str, pl.LazyFrame], log: Counts) -> Cohort:
        limits = care_limits(Source(tables, cohort.samples, log))
        samples = cohort.samples.join(limits, on="sample", how="left", validate="1:1", maintain_order="left")
        samples = samples.with_columns(pl.col("care_limits").fill_null("not recorded"))
        cohort = Cohort(samples, cohort.admissions)
        if not self.exclude_care_limits:
            return cohort
        keep = ~samples["care_limits"].is_in(["comfort", "limited"])
        log.add("samples", "excluded: care limited before the prediction time", int((~keep).sum()))
        return cohort.restrict(keep)

    def _samples(self, cohort: Cohort, schema: RecordSchema) -> pl.DataFrame:
        labels = [pl.col(f"label/{task.name}") for task in TASKS[self.cohort]]
        reasons = [
            (collection(name) if name in COLLECTED else pl.lit("not_ordered")).alias(f"reason/{name}")  # type: ignore[arg-type]
            for name in schema.names
        ]
        return cohort.samples.select(
            pl.col(SUBJECT).cast(pl.String).alias("patient"),
            pl.lit(None, pl.String).alias("site"),
            pl.col(SUBJECT).alias(f"id/{SUBJECT}"),
            pl.col(ADMISSION).alias(f"id/{ADMISSION}"),
            pl.col(STAY).alias(f"id/{STAY}"),
            "prediction_time",
            *labels,
            *groups(self.cohort),
            pl.col("care_limits").alias("group/care_limits"),
            *reasons,
        )


def _texts(source: Source, spec: TableSpec, link: Make, blanks: notes.Blanks) -> pl.DataFrame:
    return notes.texts(source, spec, link(), blanks)
