"""What was begun and given, as far as it was fixed at the prediction time."""

from __future__ import annotations

import csv
import gzip
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmnar_lightning.extract import Counts, scan
from mmnar_mimic4.tables import ICU_STAYS, INPUTS, PRESCRIPTIONS, PROCEDURES
from mmnar_mimic4.treatments import treatment_items, treatments
from mmnar_mimic4.windows import Source

SPECS = (INPUTS, PROCEDURES, PRESCRIPTIONS)
NOREPINEPHRINE, SALINE, VENTILATION, RED_CELLS, CT = 221906, 225158, 225792, 225168, 221214
SUBJECT = 10_000_001
HOUR = timedelta(hours=1)
Frames = Mapping[str, pl.LazyFrame]


def sample(at: Callable[..., datetime], hours: float = 24, number: int = 0, subject: int = SUBJECT) -> dict[str, Any]:
    """A sample from day 0 to so many hours later."""
    return {
        "sample": number,
        "subject_id": subject,
        "window_start": at(0),
        "prediction_time": at(0, hours=hours),
    }


def made(frames: Frames, *samples: dict[str, Any], log: Counts | None = None) -> pl.DataFrame:
    return treatments(Source(frames, pl.DataFrame(list(samples)), log or Counts()))


def infusion(raw: Any, start: datetime, end: datetime, rate: float | None = 0.1, **columns: Any) -> Any:
    """Add a row of norepinephrine that was stored at its end."""
    row = {"subject_id": SUBJECT, "starttime": start, "endtime": end, "storetime": end, "itemid": NOREPINEPHRINE}
    row |= {"amount": 1.0, "amountuom": "mg", "originalrate": rate, "rateuom": "mcg/kg/min"}
    return raw.add("icu/inputevents", **{**row, **columns})


def fluid(raw: Any, start: datetime, end: datetime, amount: float, rate: float | None = None, **columns: Any) -> Any:
    """Add a row of saline, a bolus if it has no rate."""
    row = {"amount": amount, "amountuom": "ml", "itemid": SALINE, "originalrate": rate}
    row["rateuom"] = None if rate is None else "mL/hour"
    return infusion(raw, start, end, **{**row, **columns})


def test_an_infusion_with_two_changes_of_rate(raw: Any, at: Any) -> None:
    infusion(raw, at(0, 10), at(0, 12), 0.1)
    infusion(raw, at(0, 12), at(0, 20), 0.5)
    infusion(raw, at(0, 20), at(0, 30), 0.2)  # still running
    row = made(raw.lazy(*SPECS), sample(at)).row(0, named=True)
    assert row["norepinephrine_count"] == 3
    assert row["norepinephrine_hours_since_first"] == 14
    assert row["norepinephrine_ongoing"] == 1
    assert row["norepinephrine_rate_last"] == pytest.approx(0.2)
    assert row["norepinephrine_rate_max"] == pytest.approx(0.5)
    assert row["hours_before"] == 4
    assert row["epinephrine_count"] is None


def test_an_infusion_that_ended_runs_no_more(raw: Any, at: Any) -> None:
    infusion(raw, at(0, 10), at(0, 12))
    assert made(raw.lazy(*SPECS), sample(at))["norepinephrine_ongoing"].to_list() == [0]


def test_a_change_of_rate_in_the_last_hour_is_no_end(raw: Any, at: Any) -> None:
    infusion(raw, at(0, 10), at(0, 23.5))
    infusion(raw, at(0, 23.5), at(0, 30), 0.9)  # its start is known at hour 24.5
    row = made(raw.lazy(*SPECS), sample(at)).row(0, named=True)
    assert (row["norepinephrine_ongoing"], row["norepinephrine_count"]) == (1, 1)
    assert row["norepinephrine_rate_last"] == pytest.approx(0.1)


@pytest.mark.parametrize(("start", "known"), [(23, True), (23.01, False)])
def test_a_start_is_known_an_hour_after_it(raw: Any, at: Any, start: float, known: bool) -> None:
    infusion(raw, at(0, start), at(0, start, 1))
    raw.add(
        "icu/procedureevents",
        subject_id=SUBJECT,
        starttime=at(0, start),
        endtime=at(9),
        storetime=at(9),
        itemid=VENTILATION,
    )
    raw.add("hosp/prescriptions", subject_id=SUBJECT, starttime=at(0, start), drug_type="MAIN", drug="Furosemide")
    found = made(raw.lazy(*SPECS), sample(at))
    assert found.height == known
    if known:
        row = found.row(0, named=True)
        assert row["invasive_ventilation_ongoing"] == 1
        assert row["rx_loop_diuretic_hours_since_first"] == 1


def test_what_began_before_the_window_is_left_out(raw: Any, at: Any) -> None:
    infusion(raw, at(0, -0.01), at(0, 3))
    assert made(raw.lazy(*SPECS), sample(at)).height == 0


def test_a_rate_in_an_unknown_unit_counts_without_a_rate(raw: Any, at: Any) -> None:
    infusion(raw, at(0, 3), at(0, 4), 12.0, rateuom="mcg/min")
    infusion(raw, at(0, 4), at(0, 5), 99.0)  # over the plausible range
    infusion(raw, at(0, 5), at(0, 5), 7.0, rateuom=None)  # a push: what stands as its rate is none
    log = Counts()
    row = made(raw.lazy(*SPECS), sample(at), log=log).row(0, named=True)
    assert (row["norepinephrine_count"], row["norepinephrine_rate_max"]) == (3, None)
    counts = dict(log.items())
    assert counts["inputevents", "values of norepinephrine in an unknown unit, nulled"] == 1
    assert counts["inputevents", "implausible values of norepinephrine, nulled"] == 1


def test_units_of_rates_are_converted(raw: Any, at: Any) -> None:
    infusion(raw, at(0, 3), at(0, 4), 0.04, rateuom="units/min", itemid=222315)
    row = made(raw.lazy(*SPECS), sample(at)).row(0, named=True)
    assert row["vasopressin_rate_last"] == pytest.approx(2.4)


def test_amounts_are_those_that_were_fixed_or_ran_until_now(raw: Any, at: Any) -> None:
    fluid(raw, at(0, 1), at(0, 3), 200.0, 125.0)  # over: 200, whatever the rate was
    fluid(raw, at(0, 20), at(0, 40), 5000.0, 100.0)  # running: 4 hours at 100
    fluid(raw, at(0, 18), at(0, 19), 70.0, 10.0, storetime=at(2))  # over, but nobody could know: 6 hours at 10
    fluid(raw, at(0, 5), at(0, 5, 1), 500.0)  # a bolus
    fluid(raw, at(0, 6), at(0, 6, 1), 900.0, storetime=at(2))  # a bolus that wasn't fixed
    fluid(raw, at(0, 7), at(0, 8), 0.3, amountuom="L")
    fluid(raw, at(0, 8), at(0, 9), 3.0, itemid=RED_CELLS, storetime=at(2))
    row = made(raw.lazy(*SPECS), sample(at)).row(0, named=True)
    assert row["crystalloid_amount"] == pytest.approx(200 + 400 + 60 + 500 + 300)
    assert row["crystalloid_count"] == 6
    assert (row["red_cells_count"], row["red_cells_amount"]) == (1, None)


def test_millilitres_a_minute(raw: Any, at: Any) -> None:
    fluid(raw, at(0, 22), at(0, 30), 9.0, 2.0, rateuom="mL/min")
    assert made(raw.lazy(*SPECS), sample(at))["crystalloid_amount"].to_list() == [240.0]


def test_a_row_serves_every_sample_in_whose_window_it_lies(raw: Any, at: Any) -> None:
    infusion(raw, at(0, 10), at(0, 12))
    infusion(raw, at(0, 10), at(0, 12), subject_id=SUBJECT + 1)
    found = made(raw.lazy(*SPECS), sample(at, 11), sample(at, 30, number=1), sample(at, 5, number=2))
    assert found["sample"].to_list() == [0, 1]
    assert found["norepinephrine_ongoing"].to_list() == [1, 0]


def test_columns_are_the_items_even_without_any_row(raw: Any, at: Any) -> None:
    found = made(raw.lazy(*SPECS), sample(at))
    assert found.columns == ["sample", "hours_before", *treatment_items()]
    assert set(found.schema.values()) == {pl.Int64(), pl.Float32()}
    assert len(set(treatment_items())) == len(treatment_items())


def test_prescriptions_that_stop_before_they_start_count(raw: Any, at: Any, tmp_path: Path) -> None:
    """Neither ``stoptime`` nor any other column off the list changes a byte; bases are no drugs."""
    raw.patient()
    for name, start in (("Furosemide", at(0, 2)), ("Furosemide 10 mg", at(0, 4)), ("Unheard-of", at(0, 5))):
        raw.add("hosp/prescriptions", subject_id=SUBJECT, starttime=start, stoptime=at(-1), drug_type="MAIN", drug=name)
    raw.add("hosp/prescriptions", subject_id=SUBJECT, starttime=at(0, 5), drug_type="BASE", drug="Furosemide")
    infusion(raw, at(0, 2), at(0, 3), rate=0.3)
    raw.add("icu/procedureevents", subject_id=SUBJECT, starttime=at(0, 5), endtime=at(0, 5), itemid=CT)
    log = Counts()
    before = made(read(raw.write(tmp_path / "a")), sample(at), log=log)
    row = before.row(0, named=True)
    assert (row["rx_loop_diuretic_count"], row["rx_loop_diuretic_hours_since_first"]) == (2, 22)
    assert row["ct_count"] == 1
    assert dict(log.items())["prescriptions", "starts of drugs of no class, not used"] == 1
    assert dict(log.items())["prescriptions", "bases and additives, not used"] == 1
    for spec in SPECS:
        for columns in raw.rows[spec.file]:
            header = raw_header(tmp_path / "a" / f"{spec.file}.csv.gz")
            columns.update({name: "4711" for name in header if name not in spec.columns})
    assert raw.rows["icu/procedureevents"][0]["ORIGINALRATE"] == "4711"
    assert raw.rows["icu/inputevents"][0]["rate"] == "4711"
    assert made(read(raw.write(tmp_path / "b")), sample(at)).equals(before)


def read(folder: Path) -> Frames:
    return {spec.name: scan(folder, spec) for spec in SPECS}


def raw_header(file: Path) -> list[str]:
    with gzip.open(file, "rt") as lines:
        return next(csv.reader(lines))


# The small cohort of the leak tests: rows of every kind, known and unfinished at hour 24.
def course(raw: Any, at: Any) -> Any:
    infusion(raw, at(0, 2), at(0, 4), 0.2)
    infusion(raw, at(0, 4), at(0, 40), 0.4)
    fluid(raw, at(0, 3), at(0, 5), 200.0, 100.0)
    fluid(raw, at(0, 20), at(0, 33), 999.0, 100.0)
    fluid(raw, at(0, 9), at(0, 9, 1), 250.0, storetime=at(0, 30))
    for start, end in ((1, 4), (8, 60)):
        raw.add(
            "icu/procedureevents",
            subject_id=SUBJECT,
            starttime=at(0, start),
            endtime=at(0, end),
            storetime=at(0, end),
            itemid=VENTILATION,
        )
    raw.add("hosp/prescriptions", subject_id=SUBJECT, starttime=at(0, 5), drug_type="MAIN", drug="Warfarin")
    return raw


@pytest.fixture(scope="module")
def before(new_raw: Any, at: Any) -> pl.DataFrame:
    """What is made of `course`."""
    return made(course(new_raw(), at).lazy(*SPECS), sample(at))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_end_of_what_still_runs_changes_nothing(
    new_raw: Any, at: Any, before: pl.DataFrame, data: st.DataObject
) -> None:
    """Whatever later end, later entry or amount a row gets that was unfinished at the prediction time."""
    raw = course(new_raw(), at)
    later = st.one_of(st.just(at(0, 24, 1)), st.floats(24.02, 9000).map(lambda hours: at(0, hours)))
    for table in ("icu/inputevents", "icu/procedureevents"):
        for row in raw.rows[table]:
            if max(row["endtime"], row["storetime"]) <= at(0, 24):
                continue
            which = data.draw(st.sampled_from(["endtime", "storetime", "both"]))
            for name in ("endtime", "storetime"):
                if which in (name, "both"):
                    row[name] = data.draw(later)
                else:
                    row[name] = data.draw(st.sampled_from([at(0, 23), at(0, 9, 5), at(5)]))
            if data.draw(st.booleans()):
                row["endtime"] = None
            if "amount" in row:
                row["amount"] = data.draw(st.one_of(st.none(), st.floats(-1e6, 1e6)))
    assert made(raw.lazy(*SPECS), sample(at)).equals(before)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_starts_that_become_known_later_change_nothing(
    new_raw: Any, at: Any, before: pl.DataFrame, data: st.DataObject
) -> None:
    raw = course(new_raw(), at)
    for _ in range(4):
        start = at(0, data.draw(st.one_of(st.just(23.001), st.floats(23.001, 5000))))
        when = {"subject_id": SUBJECT, "starttime": start}
        end = data.draw(st.sampled_from([start, start + HOUR, at(0, 12)]))
        match data.draw(st.integers(0, 2)):
            case 0:
                item = data.draw(st.sampled_from([NOREPINEPHRINE, SALINE, RED_CELLS]))
                infusion(raw, start, end, data.draw(st.floats(0, 5)), itemid=item, amount=data.draw(st.floats(0, 900)))
            case 1:
                raw.add("icu/procedureevents", **when, endtime=end, storetime=end, itemid=VENTILATION)
            case _:
                drug = data.draw(st.sampled_from(["Warfarin", "Heparin", "Vancomycin"]))
                raw.add("hosp/prescriptions", **when, drug_type="MAIN", drug=drug)
    assert made(raw.lazy(*SPECS), sample(at)).equals(before)


def test_the_leak_tests_can_fail(new_raw: Any, at: Any, before: pl.DataFrame) -> None:
    """An end or start that was known does change something."""
    ended = course(new_raw(), at)
    ended.rows["icu/inputevents"][1] |= {"endtime": at(0, 10), "storetime": at(0, 10)}
    assert not made(ended.lazy(*SPECS), sample(at)).equals(before)
    begun = infusion(course(new_raw(), at), at(0, 22), at(0, 30), 0.4)
    assert not made(begun.lazy(*SPECS), sample(at)).equals(before)


@pytest.fixture(scope="module")
def demo(demo_root: Path) -> tuple[dict[str, pl.DataFrame], list[dict[str, Any]]]:
    """Tables of the demo, and a sample 24 hours into the first ICU stay of each patient."""
    frames = {spec.name: scan(demo_root, spec).collect() for spec in SPECS}
    stays = scan(demo_root, ICU_STAYS).collect().sort("subject_id", "intime").unique("subject_id", keep="first")
    samples = [
        {
            "sample": k,
            "subject_id": row["subject_id"],
            "window_start": row["intime"] - timedelta(days=2),
            "prediction_time": row["intime"] + timedelta(days=1),
        }
        for k, row in enumerate(stays.sort("subject_id").iter_rows(named=True))
    ]
    return frames, samples


def lazy(frames: Mapping[str, pl.DataFrame]) -> Frames:
    return {name: frame.lazy() for name, frame in frames.items()}


def test_permuted_rows_give_the_same_bytes(demo: Any) -> None:
    frames, samples = demo
    before = made(lazy(frames), *samples)
    assert before.height > 60
    assert before["norepinephrine_rate_max"].count() > 5
    for seed in (1, 2):
        shuffled = {name: frame.sample(fraction=1, shuffle=True, seed=seed) for name, frame in frames.items()}
        assert made(lazy(shuffled), *samples).equals(before)


def test_unfinished_rows_of_the_demo_may_end_at_any_later_time(demo: Any) -> None:
    frames, samples = demo
    before = made(lazy(frames), *samples)
    moments = pl.DataFrame(samples).select("subject_id", "prediction_time")
    changed = dict(frames)
    for spec in (INPUTS, PROCEDURES):
        rows = frames[spec.name].join(moments, on="subject_id", how="left", maintain_order="left")
        open_ = pl.max_horizontal("endtime", "storetime") > pl.col("prediction_time")
        assert rows.filter(open_, pl.col("starttime") < pl.col("prediction_time")).height > 50
        later = pl.col("prediction_time") + pl.duration(days=400)
        new = [pl.when(open_).then(later).otherwise(pl.col(name)).alias(name) for name in ("endtime", "storetime")]
        if spec is INPUTS:
            new.append(pl.when(open_).then(pl.lit(31.0)).otherwise(pl.col("amount")).alias("amount"))
        changed[spec.name] = rows.with_columns(new).drop("prediction_time")
    assert made(lazy(changed), *samples).equals(before)


def test_counts_and_amounts_of_the_demo_by_hand(demo: Any, demo_root: Path) -> None:
    """The same from the raw file, row by row in plain Python, over the items of three variables."""
    frames, samples = demo
    kinds = {"norepinephrine": {"221906"}, "crystalloid": set(), "red_cells": {"225168", "226368", "227070"}}
    kinds["crystalloid"] = {"225158", "225828", "225159", "225823", "225825", "225827", "225941", "226364", "226375"}
    of = {item: name for name, items in kinds.items() for item in items}
    window = {s["subject_id"]: s for s in samples}
    count: dict[tuple[int, str], int] = defaultdict(int)
    ml: dict[tuple[int, str], float] = defaultdict(float)
    rates: dict[int, list[tuple[datetime, float]]] = defaultdict(list)
    with gzip.open(demo_root / "icu/inputevents.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            who = window.get(int(row["subject_id"]))
            start, end, stored = (datetime.fromisoformat(row[c]) for c in ("starttime", "endtime", "storetime"))
            if row["itemid"] not in of or who is None or start < who["window_start"]:
                continue
            now = who["prediction_time"]
            if start + HOUR > now:
                continue
            key = (who["sample"], of[row["itemid"]])
            count[key] += 1
            if key[1] == "norepinephrine":
                rates[who["sample"]].append((start, float(row["originalrate"])))
            elif max(end, stored) <= now:
                ml[key] += float(row["amount"])
            elif row["rateuom"]:
                ml[key] += float(row["originalrate"]) * (now - start) / HOUR
    found = {row["sample"]: row for row in made(lazy(frames), *samples).iter_rows(named=True)}
    assert len(rates) > 5
    for name in kinds:
        wanted = {s: n for (s, variable), n in count.items() if variable == name}
        assert {s: r[f"{name}_count"] for s, r in found.items() if r[f"{name}_count"] is not None} == wanted
    for (s, name), amount in ml.items():
        assert found[s][f"{name}_amount"] == pytest.approx(amount, rel=1e-5)
    for s, given_ in rates.items():
        assert found[s]["norepinephrine_rate_max"] == pytest.approx(max(rate for _, rate in given_))
        assert found[s]["norepinephrine_rate_last"] == pytest.approx(max(given_)[1])


def test_rate_is_the_amount_over_the_time(demo_root: Path) -> None:
    """Why ``rate`` is not read: it is made from the end. ``originalrate`` is near it, but not made from it."""
    exact, near, rows = 0, 0, 0
    with gzip.open(demo_root / "icu/inputevents.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            if row["rateuom"] != "mL/hour":
                continue
            hours = (datetime.fromisoformat(row["endtime"]) - datetime.fromisoformat(row["starttime"])) / HOUR
            rate = float(row["amount"]) / hours
            rows += 1
            exact += math.isclose(rate, float(row["rate"]), rel_tol=1e-5, abs_tol=1e-5)
            near += math.isclose(float(row["originalrate"]), float(row["rate"]), rel_tol=1e-5)
    assert rows > 1000
    assert exact / rows > 0.999
    assert near / rows < 0.9
    assert "rate" not in INPUTS.columns
