"""Labs and vitals as series: the values that the statistics are made of, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from mmnar_eicu import EICUExtractor
from mmnar_eicu.modalities import STATS, Form, describe
from mmnar_eicu.simulate import simulate
from mmnar_eicu.tables import catalogue
from mmnar_lightning.extract import Counts, prepare
from mmnar_lightning.records import RecordDataset, RecordStore, fit_schema

MEASURED = ("vitals", "labs")
COLUMNS = ["sample", "hours_before", "variable", "value"]


@pytest.fixture
def made(tmp_path: Path, opened: Any, extracted: Any) -> Callable[..., Any]:
    """`made(extract, **options)` writes an extract and runs it, with series if nothing else is said."""

    def make(extract: Any, measurements: Form = "series", **options: Any) -> Any:
        extractor = EICUExtractor(measurements=measurements, **options)
        return extracted(extractor, opened(extract.write(tmp_path), extractor))

    return make


def lab(extract: Any, stay: int, at: int, value: float | None, revised: int | None = None, **columns: Any) -> None:
    named = {"labname": "creatinine", "labmeasurenamesystem": "mg/dL"}
    times = {"labresultoffset": at, "labresultrevisedoffset": at if revised is None else revised}
    extract.add("lab", stay, labresult=value, **{**times, **named, **columns})


def listed(frame: pl.DataFrame) -> list[tuple[Any, ...]]:
    return [(sample, round(hours * 60), variable, value) for sample, hours, variable, value in frame.rows()]


def of_series(frame: pl.DataFrame) -> pl.DataFrame:
    """Statistics of each variable of a sample, from the values in their order."""
    value = pl.col("value").cast(pl.Float64)
    grouped = frame.group_by("sample", pl.col("variable").cast(pl.String), maintain_order=True)
    stats = grouped.agg(
        last=value.last(),
        min=value.min(),
        max=value.max(),
        mean=value.mean(),
        count=pl.len().cast(pl.Float64),
        delta=value.last() - value.first(),
    )
    return stats.sort("sample", "variable")


def of_statistics(frame: pl.DataFrame, variables: tuple[str, ...]) -> pl.DataFrame:
    """The statistics as they are made, one row each variable of a sample that has it."""
    parts = [
        frame.select(
            "sample",
            pl.lit(name).alias("variable"),
            *(pl.col(f"{name}_{stat}").cast(pl.Float64).alias(stat) for stat in STATS),
        )
        for name in variables
    ]
    return pl.concat(parts).filter(pl.col("count").is_not_null()).sort("sample", "variable")


def check_same(series: pl.DataFrame, statistics: pl.DataFrame, variables: tuple[str, ...]) -> None:
    got, expected = of_series(series), of_statistics(statistics, variables)
    exact = ["sample", "variable", "last", "min", "max", "count"]
    assert got.select(exact).equals(expected.select(exact))
    # stored as Float32: relative 6e-8 a value, and a difference of two
    for stat, tolerance in (("mean", 0.0), ("delta", 1e-7)):
        size = np.maximum(got["max"].abs().to_numpy(), got["min"].abs().to_numpy())
        error = np.abs(got[stat].to_numpy() - expected[stat].to_numpy())
        assert (error <= 2e-7 * size + tolerance).all()
    latest = series.group_by("sample").agg(pl.col("hours_before").min()).sort("sample")
    assert latest.equals(statistics.select("sample", "hours_before"))


def test_values_in_the_order_of_time(extract: Any, made: Any) -> None:
    extract.stay()
    for at, value in ((1000, 2.5), (-60, 1.0), (100, 4.0), (100, 3.0)):
        lab(extract, 1, at, value)
    lab(extract, 1, 100, 138.0, labname="sodium", labmeasurenamesystem="mmol/L")
    lab(extract, 1, 1000, 2.5)  # the same row again but for its id
    lab(extract, 1, -1561, 9.0)  # over 24 hours before hospital admission
    lab(extract, 1, 1441, 9.0)  # after the prediction time
    lab(extract, 1, 1200, 9.0, revised=1441)  # drawn before it, revised after it
    lab(extract, 1, 1300, 900.0)  # not plausible
    lab(extract, 1, 1300, None)
    for at, rate in ((0, 80.0), (1380, 100.0), (1381, 200.0)):  # the last is known an hour later
        extract.add("vitalPeriodic", 1, observationoffset=at, heartrate=rate, temperature=98.6 if at == 0 else None)
    found = made(extract)
    order = {name: k for k, name in enumerate(catalogue("labs").variables)}
    at_once = sorted([("creatinine", 3.0), ("creatinine", 4.0), ("sodium", 138.0)], key=lambda e: (order[e[0]], e[1]))
    assert listed(found.elements["labs"]) == [
        (0, 1500, "creatinine", 1.0),
        *((0, 1340, name, value) for name, value in at_once),
        (0, 440, "creatinine", 2.5),
    ]
    vitals = sorted(listed(found.elements["vitals"]), key=lambda e: (-e[1], e[2]))
    assert vitals == [(0, 1440, "heart_rate", 80.0), (0, 1440, "temperature", 37.0), (0, 60, "heart_rate", 100.0)]
    assert found.counts["lab", "implausible values of creatinine, nulled"] == 1
    assert found.counts["lab", "not yet known at the prediction time"] == 2


def test_of_values_at_the_same_time_the_one_known_last_comes_last(extract: Any, made: Any) -> None:
    extract.stay()
    lab(extract, 1, 100, 4.0, revised=100)
    lab(extract, 1, 100, 3.0, revised=200)
    found, statistics = made(extract), made(extract, "statistics")
    assert [e[3] for e in listed(found.elements["labs"])] == [4.0, 3.0]
    assert statistics.value("labs", "creatinine_last") == 3.0


def test_schema_and_types(extract: Any, made: Any) -> None:
    extract.stay()
    found = made(extract)
    for modality in describe(measurements="series"):
        assert (modality.kind == "series") == (modality.name in MEASURED)
        if modality.kind == "series":
            assert modality.items == catalogue(modality.name).variables
            frame = found.elements[modality.name]
            assert frame.columns == COLUMNS
            assert frame.schema["sample"] == pl.Int64
            assert frame.schema["hours_before"] == frame.schema["value"] == pl.Float32
            assert frame.height == 0
    assert {m.kind for m in describe() if m.name in MEASURED} == {"vector"}


def test_everything_but_labs_and_vitals_stays_as_it_is(extract: Any, made: Any) -> None:
    extract.stay()
    lab(extract, 1, 100, 1.5)
    extract.add("treatment", 1, treatmentoffset=50, treatmentstring="surgery")
    series, statistics = made(extract), made(extract, "statistics")
    assert series.samples.equals(statistics.samples)
    assert series.elements.keys() == statistics.elements.keys()
    assert all(series.elements[n].equals(statistics.elements[n]) for n in series.elements if n not in MEASURED)
    assert series.counts == statistics.counts


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_raw_rows_changes_no_byte(new_extract: Any, made: Any, seed: int) -> None:
    rng, rows = random.Random(0), []
    for _ in range(200):
        at = rng.randrange(0, 1440, 60)
        rows.append((at, rng.choice((0.0, -0.0, 0.5, 1.5)), at + rng.choice((0, 0, 30))))
    expected = None
    for shuffle in (False, True):
        extract = new_extract().stay()
        if shuffle:
            random.Random(seed).shuffle(rows)
        for at, value, revised in rows:
            lab(extract, 1, at, value, revised)
            extract.add("vitalAperiodic", 1, observationoffset=at, noninvasivesystolic=100 * value)
        found = made(extract)
        written = [found.elements[name].write_ipc(None).getvalue() for name in MEASURED]
        assert expected is None or written == expected
        expected = written


@pytest.mark.shared_data
@pytest.mark.parametrize("options", [{"lab_delay": 59}, {"cohort": "unit_discharge"}])
def test_statistics_of_the_demo_come_from_its_series(options: dict[str, Any], demo_root: Path, opened: Any) -> None:
    compare_forms(demo_root, opened, **options)


def compare_forms(root: Path, opened: Any, **options: Any) -> None:
    forms: tuple[Form, Form] = ("series", "statistics")
    tables = opened(root, EICUExtractor(**options))
    made = [EICUExtractor(measurements=form, **options).extract(tables, Counts()).elements for form in forms]
    for name in MEASURED:
        series, statistics = (step() for step in (elements[name] for elements in made) if callable(step))
        assert series.height > 1000
        check_same(series, statistics, catalogue(name).variables)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "extract"
    simulate(folder, patients=80, seed=4, progress=False)
    return folder


def test_statistics_of_a_simulated_extract_come_from_its_series(simulated: Path, opened: Any) -> None:
    compare_forms(simulated, opened)


def test_a_store_of_series(simulated: Path, tmp_path: Path) -> None:
    extractor = EICUExtractor(measurements="series")
    store = RecordStore(prepare(extractor, simulated, tmp_path / "a", progress=False))
    again = RecordStore(prepare(extractor, simulated, tmp_path / "b", progress=False))
    assert store.manifest["files"] == again.manifest["files"]
    other = RecordStore(prepare(EICUExtractor(), simulated, tmp_path / "a", progress=False))
    assert other.fingerprint != store.fingerprint
    schema = fit_schema(store, store.schema, np.arange(len(store)), 5)
    vitals = schema.modality("vitals")
    assert vitals.kind == "series"
    assert len(vitals.mean) == len(vitals.items) > 3
    batch = RecordDataset(store, schema, np.arange(len(store))).__getitems__(list(range(len(store))))
    elements = batch.elements["vitals"]
    assert elements.variable is not None
    assert isinstance(elements.values, torch.Tensor)
    for item in vitals.items:
        place = vitals.items.index(item)
        value = elements.values[elements.variable == place]
        assert float(value.double().mean()) == pytest.approx(vitals.mean[place])


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="measurements 'events' is not one of statistics, series"):
        EICUExtractor(measurements="events")  # type: ignore[arg-type]
