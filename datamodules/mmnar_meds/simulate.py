"""A MEDS dataset with labels, drawn from a causal model whose missingness mechanism is known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmnar_lightning.simulation import Draw, ExtractWriter, Floats, MechanismKind, write_extract
from mmnar_meds.population import DIAGNOSES, LABS, MEDICATIONS, PROCEDURES, VITALS, Measured, population
from mmnar_meds.selection import BIRTH, DEATH

VERSION = "1"  # raise it with every change that changes a byte of a dataset
_ABOUT = (
    "Simulated records in the layout of MEDS 0.4: no real patient is in them, and no clinical conclusion can be drawn "
    "from them. truth/ holds what no real dataset tells (latent health, availability, outcome probabilities)."
)
FIRST = 1_000_000  # subject_id of the first person
DAY = 1440
EPOCH = pl.datetime(2150, 1, 1, time_unit="us")
TIME = pl.Datetime("us")
SCHEMA = pl.Schema(
    {
        "subject_id": pl.Int64(),
        "time": TIME,
        "code": pl.String(),
        "numeric_value": pl.Float32(),
        "text_value": pl.String(),
    }
)
Ints = NDArray[np.int64]


def simulate(
    folder: Path,
    patients: int = 1000,
    seed: int = 0,
    mechanism: MechanismKind = "mnar",
    strength: float = 1.0,
    progress: bool = True,
) -> None:
    """Write a simulated MEDS dataset with labels in `tasks/`, and the truth behind it in `truth/`.

    The same arguments give the same bytes, and the first subjects are the same however many follow. Where the same
    dataset is already complete, nothing is done. It is written beside the folder and put in its place when complete.

    Args:
        folder: Where to write it: a folder that doesn't exist yet, or an empty one.
        patients: How many subjects, each with one hospital stay and one prediction time, a day after admission.
        seed: Decides about everything that is drawn.
        mechanism: What availability of a modality depends on: nothing (mcar), age and sex, which are always known
            (mar), or the latent health (mnar).
        strength: How much it depends, in log odds per standard deviation.
        progress: Show a progress bar.

    Raises:
        ValueError: If `patients` is below 1 or another argument is out of range.
        FileExistsError: If the folder holds anything but this very dataset.
    """
    if patients < 1:
        raise ValueError(f"patients is {patients}; at least 1 is needed")
    population(seed, mechanism, strength)  # refuses bad arguments before anything is touched
    settings: dict[str, Any] = {
        "simulator": "meds",
        "version": VERSION,
        "patients": patients,
        "seed": seed,
        "mechanism": mechanism,
        "strength": float(strength),
    }
    write_extract(folder, settings, _ABOUT, {}, partial(_write, settings), progress)


def _write(settings: dict[str, Any], extract: ExtractWriter) -> None:
    patients, seed = settings["patients"], settings["seed"]
    model = population(seed, settings["mechanism"], settings["strength"])
    splits, codes = [], set()
    for number in range(-(-patients // model.chunk_size)):
        stays = Stays(model.chunk(number), seed, number)
        # drawn for whole chunks and cut afterwards: who comes later moves nobody
        asked = pl.col("subject_id") < FIRST + patients
        extract.append_truth(f"subjects-{number:06d}", stays.truth().filter(asked))
        events = pl.concat(stays.events()).sort("subject_id", "time", "code", "numeric_value", nulls_last=False)
        split = stays.splits().filter(asked)
        labels = stays.labels()
        for name in ("train", "tuning", "held_out"):
            inside = split.filter(pl.col("split") == name)
            for place, frame in (("data", events), *((f"tasks/{task}", rows) for task, rows in labels.items())):
                rows = frame.join(inside.select("subject_id"), on="subject_id", how="semi", maintain_order="left")
                _parquet(extract, f"{place}/{name}/{number}", rows)
        splits.append(split)
        codes |= set(events.filter(asked)["code"].unique())
        extract.advance(min(patients, (number + 1) * model.chunk_size))
    _parquet(extract, "metadata/subject_splits", pl.concat(splits))
    listed = pl.DataFrame({"code": sorted(codes)})
    none = {"description": pl.lit(None, pl.String), "parent_codes": pl.lit(None, pl.List(pl.String))}
    _parquet(extract, "metadata/codes", listed.with_columns(**none))
    about = {"dataset_name": "simulated", "etl_name": "mmnar simulate meds", "etl_version": VERSION}
    text = json.dumps(about | {"meds_version": "0.4.1"}, indent=2)
    (extract.folder / "metadata/dataset.json").write_text(text + "\n", encoding="utf-8")


def _parquet(extract: ExtractWriter, name: str, frame: pl.DataFrame) -> None:
    path = extract.folder / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(path)
    table = "/".join(name.split("/")[:2] if name.startswith("tasks/") else name.split("/")[:1])
    extract.rows[table] = extract.rows.get(table, 0) + frame.height


class Stays:
    """One chunk of subjects, each with a hospital stay. Times are minutes from its admission.

    Args:
        draw: The subjects.
        seed: Of the dataset.
        number: Of the chunk.
    """

    def __init__(self, draw: Draw, seed: int, number: int) -> None:
        self.draw = draw
        self.subject: Ints = draw.index + FIRST
        self.death, self.readmission = draw.outcomes[:, 0], draw.outcomes[:, 1] & ~draw.outcomes[:, 0]
        self._seed, self._number = seed, number
        rng = self._generator(0)
        n = len(draw)
        # minutes from 2150-01-01 to the admission, and from there to the end of the stay
        self.admission: Ints = rng.integers(0, 3650 * DAY, n)
        self.end: Ints = DAY + 60 + np.exp(rng.normal(np.log(3.0 * DAY), 0.6, n)).astype(np.int64)
        self.years = np.clip(62.0 + 15.0 * draw.values["structured"][:, 0] / np.sqrt(3.25), 18.0, 100.0)
        self.female = draw.values["structured"][:, 1] > 0

    def _generator(self, purpose: int) -> np.random.Generator:
        sequence = np.random.SeedSequence(self._seed, spawn_key=(11, self._number, purpose))
        return np.random.Generator(np.random.Philox(sequence))

    def events(self) -> Iterator[pl.DataFrame]:
        """All events, table by table; also those after the prediction time, which tell the outcome."""
        n = len(self.draw)
        everyone, zero = np.arange(n), np.zeros(n, np.int64)
        born = -(self.years * 365.25 * DAY).astype(np.int64)
        yield self._rows(everyone, born, np.full(n, BIRTH))
        yield self._rows(everyone, None, np.where(self.female, "GENDER//F", "GENDER//M"))
        races = np.array(["RACE//WHITE", "RACE//BLACK", "RACE//ASIAN", "RACE//OTHER"])
        yield self._rows(everyone, None, races[self.draw.index % 10 % 4])
        yield self._rows(everyone, zero, np.full(n, "HOSPITAL_ADMISSION//EMERGENCY"))
        yield self._rows(
            everyone, self.end, np.where(self.death, "HOSPITAL_DISCHARGE//DIED", "HOSPITAL_DISCHARGE//HOME")
        )
        died = np.flatnonzero(self.death)
        yield self._rows(died, self.end[died], np.full(len(died), DEATH))
        back = np.flatnonzero(self.readmission)
        yield self._rows(back, self.end[back] + 7 * DAY, np.full(len(back), "HOSPITAL_ADMISSION//EMERGENCY"))
        yield self._measured("labs", LABS, 2, 1)
        yield self._measured("vitals", VITALS, 6, 2)
        yield self._coded("diagnoses", DIAGNOSES, 3)
        yield self._coded("procedures", PROCEDURES, 4)
        yield self._coded("medications", MEDICATIONS, 5)

    def _measured(self, view: str, measured: tuple[Measured, ...], times: int, purpose: int) -> pl.DataFrame:
        """Values on the first day, of those that have the modality, and one on the last, of everyone."""
        n, width = len(self.draw), len(measured)
        scaled = self._scaled(view)
        generators = [self._generator(100 * purpose + k) for k in range(width * (times + 1))]
        frames = []
        has = self._available(view)
        for f, one in enumerate(measured):
            for k in range(times + 1):
                rng = generators[f * (times + 1) + k]
                at, noise, drawn = rng.random((n, 3)).T
                late = k == times
                # a fifth of the values is not asked for; the last ones say how the stay ends
                kept = np.flatnonzero(np.ones(n, bool) if late else has & (drawn < 0.8))
                time = np.where(late, self.end - 30, (at * DAY).astype(np.int64))
                shift = np.where(late, 4.0 * np.sign(one.severity) * self.death, 0.0)
                value = one.mean + one.deviation * (scaled[:, f] + 0.4 * (noise - 0.5) + shift)
                frames.append(self._rows(kept, time[kept], np.full(len(kept), one.code), value[kept]))
        return pl.concat(frames)

    def _coded(self, view: str, codes: tuple[str, ...], purpose: int) -> pl.DataFrame:
        """Codes on the first day of those that have the modality: the more of a number, the sooner its code."""
        scaled, has = self._scaled(view), self._available(view)
        frames = []
        for f, code in enumerate(codes):
            at = self._generator(100 * purpose + f).random(len(self.draw))
            # whoever has the modality has at least its first code
            kept = np.flatnonzero(has & ((scaled[:, f] > 0.6) | (f == 0)))
            frames.append(self._rows(kept, (at * DAY).astype(np.int64)[kept], np.full(len(kept), code)))
        return pl.concat(frames)

    def _available(self, view: str) -> NDArray[np.bool_]:
        names = tuple(self.draw.values)
        return self.draw.available[:, names.index(view)]

    def _scaled(self, view: str) -> Floats:
        """Values of a view in standard deviations."""
        values = self.draw.values[view]
        scaled: Floats = values / np.sqrt(1.0 + _NOISE[view] ** 2)
        return scaled

    def _time(self, person: Ints, minutes: Ints) -> pl.Series:
        passed = pl.DataFrame({"minutes": self.admission[person] + minutes})
        return passed.select(EPOCH + pl.duration(minutes="minutes")).to_series()

    def _rows(
        self, person: Ints, minutes: Ints | None, codes: NDArray[np.str_], values: Floats | None = None
    ) -> pl.DataFrame:
        when = pl.Series([None] * len(person), dtype=TIME) if minutes is None else self._time(person, minutes)
        numbers = pl.Series([None] * len(person) if values is None else values, dtype=pl.Float32)
        frame = {"subject_id": self.subject[person], "time": when, "code": codes.astype(str), "numeric_value": numbers}
        return pl.DataFrame(frame | {"text_value": pl.Series([None] * len(person), dtype=pl.String)}, schema=SCHEMA)

    def labels(self) -> dict[str, pl.DataFrame]:
        """Label rows by task: death of everyone, readmission of those who left alive."""
        everyone = np.arange(len(self.draw))
        alive = np.flatnonzero(~self.death)
        made = {}
        for name, person, outcome in (
            ("death_in_hospital", everyone, self.death),
            ("readmission_30d", alive, self.readmission),
        ):
            moment = self._time(person, np.full(len(person), DAY))
            frame = {"subject_id": self.subject[person], "prediction_time": moment, "boolean_value": outcome[person]}
            made[name] = pl.DataFrame(frame, schema_overrides={"prediction_time": TIME})
        return made

    def splits(self) -> pl.DataFrame:
        """Eight of ten subjects are train, one tuning, one held out."""
        names = np.array([*["train"] * 8, "tuning", "held_out"])
        return pl.DataFrame({"subject_id": self.subject, "split": names[self.draw.index % 10]})

    def truth(self) -> pl.DataFrame:
        """What no real dataset tells."""
        draw = self.draw
        columns: dict[str, NDArray[Any]] = {"subject_id": self.subject}
        columns |= {f"latent/{k}": draw.latent[:, k] for k in range(draw.latent.shape[1])}
        for m, name in enumerate(draw.values):
            columns |= {f"available/{name}": draw.available[:, m], f"propensity/{name}": draw.propensity[:, m]}
        columns |= {f"risk/{name}": draw.risk[:, k] for k, name in enumerate(("death_in_hospital", "readmission_30d"))}
        return pl.DataFrame(columns)


_NOISE = {view.name: view.noise for view in population(0, "mcar", 0.0).views}
