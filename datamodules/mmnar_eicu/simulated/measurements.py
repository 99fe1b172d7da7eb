"""What is measured: laboratory, vital signs, respiratory charting and cultures of a simulated extract."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from mmnar_eicu.simulated.course import Bools, Course, Ints, Values, standard
from mmnar_eicu.simulated.population import RESPIRATORY, VITALS
from mmnar_eicu.simulated.vocabulary import labs
from mmnar_lightning.simulation import Floats

# panel: share of episodes that get it, minutes between two
_PANELS = {
    "basic": (1.0, 480), "count": (0.98, 720), "bedside": (0.6, 300), "mineral": (0.7, 720),
    "differential": (0.6, 1440), "bands": (0.12, 1440),
    "liver": (0.5, 1440), "gas": (0.4, 420), "lactate": (0.35, 480), "coagulation": (0.5, 1000),
    "cardiac": (0.3, 480), "natriuretic": (0.2, 1440), "ionized": (0.08, 720),
}  # fmt: skip
_CHEMISTRY, _HEMATOLOGY, _MISCELLANEOUS, _BLOOD_GAS = 1, 3, 4, 7
_LAB_TYPES = {
    "count": _HEMATOLOGY, "differential": _HEMATOLOGY, "bands": _HEMATOLOGY, "coagulation": _HEMATOLOGY,
    "gas": _BLOOD_GAS, "bedside": _MISCELLANEOUS,
}  # fmt: skip
_USUAL = {"heartrate": 88.0, "sao2": 97.0, "respiration": 20.0, "temperature": 36.9, "systolic": 122.0,
          "diastolic": 64.0, "cvp": 10.0}  # fmt: skip
_SPREAD = {"heartrate": 17.0, "sao2": 2.4, "respiration": 5.0, "temperature": 0.6, "systolic": 20.0,
           "diastolic": 12.0, "cvp": 4.0}  # fmt: skip
_SITES = ("Blood, Venipuncture", "Urine, Catheter Specimen", "Sputum, Tracheal Specimen", "Nasopharynx")
_ORGANISMS = ("no growth", "Staphylococcus aureus", "Escherichia coli", "Pseudomonas aeruginosa", "yeast")
_ANTIBIOTICS = ("gentamicin", "ceftriaxone", "ciprofloxacin", "cefazolin", "ampicillin/sulbactam")


def lab(course: Course) -> pl.DataFrame:
    """The table ``lab``: panels over time; some results are revised hours after they came, a few are text only."""
    rng = course.generator("lab")
    catalogue = labs()
    hospital, start, span = course.visits("labs")
    parts = list(_panels(course, rng, hospital, start, span))
    row, test = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
    time = np.concatenate([p[2] for p in parts])
    score = standard(course, "labs")[hospital[row], test] + 0.35 * rng.standard_normal(len(row))
    value = catalogue.value(test, score)
    delay = np.where(rng.random(len(row)) < 0.05, rng.integers(120, 3000, len(row)), rng.integers(0, 45, len(row)))
    return lab_rows(course, rng, hospital[row], test, time, time + delay, value, duplicates=0.004)


def lab_rows(
    course: Course,
    rng: np.random.Generator,
    hospital: Ints,
    test: Ints,
    time: Ints,
    revised: Ints,
    value: Floats,
    duplicates: float = 0.0,
) -> pl.DataFrame:
    """Rows of the table ``lab``.

    Args:
        course: The chunk.
        rng: Where chance comes from.
        hospital: Row of the hospital stay, [n].
        test: Index of the test, [n].
        time: Of the result, [n].
        revised: When the result was revised last, [n].
        value: In units of the test, [n].
        duplicates: Share of rows that stand there twice.
    """
    catalogue = labs()
    # at the lower limit of detection some laboratories send text and no number
    text_only = (value <= catalogue.low[test]) & (rng.random(len(test)) < 0.5)
    # a value of 12.0 is written 12 by the interface
    shown = pl.Series("shown", value).cast(pl.String).str.strip_suffix(".0")
    kinds = np.array([_LAB_TYPES.get(panel, _CHEMISTRY) for panel in catalogue.panel])
    columns: dict[str, Values] = {
        "labtypeid": kinds[test],
        "labname": catalogue.name.gather(test),
        "labresult": _null(value, text_only),
        "labresulttext": pl.select(
            pl.when(pl.Series(text_only)).then(pl.format("<{}", shown)).otherwise(shown)
        ).to_series(),
        "labmeasurenamesystem": catalogue.unit.gather(test),
        "labmeasurenameinterface": catalogue.unit.gather(test).str.to_lowercase(),
    }
    times = {"labresultoffset": time, "labresultrevisedoffset": revised}
    return course.table("lab", hospital, time, times, columns, duplicates)


def _panels(
    course: Course, rng: np.random.Generator, hospital: Ints, start: Ints, span: Ints
) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Episode, test and time of every result, panel by panel."""
    lead = np.where(start == 0, np.minimum(course.lead[hospital], 600), 0)
    for panel, (share, every) in _PANELS.items():
        tests = np.flatnonzero(labs().panel == panel)
        has = np.flatnonzero(rng.random(len(hospital)) < share)
        times = 1 + span[has] // every
        row = np.repeat(has, times)
        turn = np.arange(len(row)) - np.repeat(np.cumsum(times) - times, times)
        time = start[row] + turn * every + rng.integers(5, 61, len(row))
        # one panel in three has an earlier draw, before the unit; the first in the unit is never moved
        early = np.flatnonzero((rng.random(len(hospital)) < 0.3) & (lead > 20))
        early = early[np.isin(early, has)]
        row, time = np.append(row, early), np.append(time, start[early] - rng.integers(1, lead[early]))
        row, time = row[time <= (start + span)[row]], time[time <= (start + span)[row]]
        missing = rng.random((len(row), len(tests))) < 0.04
        missing[:, 0] = False
        draw, column = np.nonzero(~missing)
        yield row[draw], tests[column], time[draw]


def vitals(course: Course) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The tables ``vitalPeriodic`` and ``vitalAperiodic``: every half hour, then every hour; cuff pressures between."""
    rng = course.generator("vitals")
    hospital, start, span = course.visits("vitals")
    count = np.minimum(48, span // 30) + np.maximum(0, np.minimum(span, 2880) - 1440) // 60
    count = np.maximum(count, 1)
    row = np.repeat(np.arange(len(hospital)), count)
    turn = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    time = (
        start[row] + rng.integers(1, 29, len(hospital))[row] + np.where(turn < 48, 30 * turn, 1440 + 60 * (turn - 48))
    )
    score = standard(course, "vitals")[hospital[row]] + 0.45 * rng.standard_normal((len(row), len(VITALS)))
    value = {name: _USUAL[name] + _SPREAD[name] * score[:, k] for k, name in enumerate(VITALS)}
    value["sao2"] = np.minimum(value["sao2"], 100.0)
    value["diastolic"] = np.minimum(value["diastolic"], value["systolic"] - 12)
    arterial, central = (rng.random(len(hospital)) < 0.25)[row], (rng.random(len(hospital)) < 0.12)[row]
    # a line that is flushed or falls out reads zero
    zero = rng.random(len(row)) < 0.004
    # the first reading is never lost, so that the modality is there whenever δ says so
    lost = (rng.random((len(row), 4)) < (0.02, 0.05, 0.08, 0.85)) & (turn > 0)[:, None]
    periodic = vital_rows(course, hospital[row], time, value, lost, arterial, central, zero)
    cuffed = np.flatnonzero((turn % 2 == 1) & (rng.random(len(row)) < 0.85))
    pressure = {name: value[name][cuffed] for name in ("systolic", "diastolic")}
    zero = rng.random(len(cuffed)) < 0.003
    later = time[cuffed] + rng.integers(0, 10, len(cuffed))
    return periodic, cuff_rows(course, hospital[row][cuffed], later, pressure, zero)


def vital_rows(
    course: Course,
    hospital: Ints,
    time: Ints,
    value: dict[str, Floats],
    lost: Bools,
    arterial: Bools,
    central: Bools,
    zero: Bools,
) -> pl.DataFrame:
    """Rows of the table ``vitalPeriodic``.

    Args:
        course: The chunk.
        hospital: Row of the hospital stay, [n].
        time: Of the reading, [n].
        value: Each vital sign, [n].
        lost: Heart rate, saturation, respiration, temperature not read, [n, 4].
        arterial: Whether there is an arterial line, [n].
        central: Whether there is a central venous line, [n].
        zero: Whether the line reads zero, [n].
    """
    systolic, diastolic = (np.where(zero, 0, np.round(value[name])) for name in ("systolic", "diastolic"))
    columns: dict[str, Values] = {
        "heartrate": _null(_whole(value["heartrate"]), lost[:, 0]),
        "sao2": _null(_whole(value["sao2"]), lost[:, 1]),
        "respiration": _null(_whole(value["respiration"]), lost[:, 2]),
        "temperature": _null(np.round(value["temperature"], 1), lost[:, 3]),
        "cvp": _null(_whole(value["cvp"]), ~central),
        "systemicsystolic": _null(_whole(systolic), ~arterial),
        "systemicdiastolic": _null(_whole(diastolic), ~arterial),
        "systemicmean": _null(_whole((systolic + 2 * diastolic) / 3), ~arterial),
    }
    return course.table("vitalPeriodic", hospital, time, {"observationoffset": time}, columns)


def cuff_rows(course: Course, hospital: Ints, time: Ints, value: dict[str, Floats], zero: Bools) -> pl.DataFrame:
    """Rows of the table ``vitalAperiodic``; arguments as for `vital_rows`."""
    systolic, diastolic = (np.where(zero, 0, np.round(value[name])) for name in ("systolic", "diastolic"))
    columns: dict[str, Values] = {
        "noninvasivesystolic": _whole(systolic),
        "noninvasivediastolic": _whole(diastolic),
        "noninvasivemean": _whole((systolic + 2 * diastolic) / 3),
    }
    return course.table("vitalAperiodic", hospital, time, {"observationoffset": time}, columns, duplicates=0.004)


def respiratory(course: Course) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The tables ``respiratoryCharting`` (values are text, not all of them numbers) and ``respiratoryCare``."""
    rng = course.generator("respiratory")
    hospital, start, span = course.visits("respiratory")
    count = 1 + span // 360
    row = np.repeat(np.arange(len(hospital)), count)
    turn = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    time = start[row] + turn * 360 + rng.integers(5, 61, len(row))
    kept = time <= (start + span)[row]
    row, turn, time = row[kept], turn[kept], time[kept]
    score = standard(course, "respiratory")[hospital[row]] + 0.3 * rng.standard_normal((len(row), len(RESPIRATORY)))
    usual, spread = np.array([44, 6, 20, 450, 11, 3]), np.array([15, 2.5, 5, 70, 3, 1.5])
    value = np.maximum(np.round(usual + spread * score), [21, 0, 5, 150, 3, 1]).astype(np.int64)
    value[:, 0] = np.minimum(value[:, 0], 100)
    ventilated = standard(course, "respiratory")[hospital, 0] + rng.normal(0, 0.6, len(hospital)) > 0.5
    written = rng.random((len(row), len(RESPIRATORY))) < np.where(
        ventilated[row][:, None], 0.8, (0.3, 0, 0.6, 0, 0, 0.7)
    )
    written[:, 0] |= turn == 0
    line, label = np.nonzero(written)
    text = pl.Series(value[line, label]).cast(pl.String)
    odd = rng.random(len(line))
    shown = pl.select(
        pl.when(pl.Series((odd < 0.02) & (label == 0) & (turn[line] > 0))).then(pl.format("{}%", text))
        .when(pl.Series((odd > 0.985) & (turn[line] > 0))).then(pl.lit("see flowsheet")).otherwise(text)
    ).to_series()  # fmt: skip
    kinds = ("respFlowSettings", "respFlowSettings", "respFlowPtVentData", "respFlowSettings", "respFlowPtVentData",
             "respFlowSettings")  # fmt: skip
    times = {"respchartoffset": time[line], "respchartentryoffset": time[line] + rng.integers(0, 4, len(line))}
    charted = {"respcharttypecat": np.array(kinds)[label], "respchartvaluelabel": np.array(RESPIRATORY)[label]}
    charting = course.table(
        "respiratoryCharting", hospital[row][line], time[line], times, {**charted, "respchartvalue": shown}
    )
    return charting, _care(course, rng, hospital, start, span, ventilated)


def _care(
    course: Course, rng: np.random.Generator, hospital: Ints, start: Ints, span: Ints, ventilated: Bools
) -> pl.DataFrame:
    """The table ``respiratoryCare`` of those who are ventilated. An offset of 0 means that there is none."""
    v = np.flatnonzero(ventilated)
    begun, turns = start[v] + rng.integers(5, 90, len(v)), rng.integers(1, 6, len(v))
    row = np.repeat(np.arange(len(v)), turns)
    turn = np.arange(len(row)) - np.repeat(np.cumsum(turns) - turns, turns)
    time = begun[row] + turn * np.maximum(1, (span[v][row] - 100) // 6) + rng.integers(0, 20, len(row))
    over = np.minimum(start[v] + span[v], begun + rng.integers(600, 4000, len(v)))
    zero = np.zeros(len(row), np.int64)
    columns: dict[str, Values] = {
        "currenthistoryseqnum": turn + 1,
        "airwaytype": rng.choice(["Oral ETT", "No Artificial Airway", "Tracheostomy"], len(row), p=[0.75, 0.22, 0.03]),
        "airwaysize": rng.choice(["7.0", "7.5", "8.0"], len(v))[row],
        "airwayposition": rng.choice(["Left", "Center", "Right", "23"], len(row)),
        "priorventstartoffset": zero,
        "priorventendoffset": zero,
        "hirespratelimit": np.full(len(row), 40),
        "setapneafio2": np.full(len(row), 100),
    }
    ended = (rng.random(len(v)) < 0.6)[row]
    # "none" is written as an offset of 0: the admission of the unit stay that the row is filed under
    admission = course.stays.start[course.locate(hospital[v][row], time)]
    times = {
        "respcarestatusoffset": time,
        "ventstartoffset": begun[row],
        "ventendoffset": np.where(ended, over[row], admission),
    }
    return course.table("respiratoryCare", hospital[v][row], time, times, columns)


def micro(course: Course) -> pl.DataFrame:
    """The table ``microLab``: cultures by the time they were taken; what grew was known days later."""
    rng = course.generator("micro")
    hospital, start, span = course.visits("micro")
    count = rng.integers(1, 5, len(hospital))
    row = np.repeat(np.arange(len(hospital)), count)
    first = np.append(True, row[1:] != row[:-1])
    latest = np.maximum(61, span[row] - 60)
    time = start[row] + np.where(first, rng.integers(5, 61, len(row)), rng.integers(5, latest))
    score = standard(course, "micro")[hospital[row]]
    site = (score + rng.gumbel(size=score.shape)).argmax(axis=1)
    organism = np.where(rng.random(len(row)) < 0.45, 0, rng.integers(1, len(_ORGANISMS), len(row)))
    tested = (organism > 0) & (rng.random(len(row)) < 0.7)
    columns: dict[str, Values] = {
        "culturesite": np.array(_SITES)[site],
        "organism": np.array(_ORGANISMS)[organism],
        "antibiotic": _null(np.array(_ANTIBIOTICS)[rng.integers(0, len(_ANTIBIOTICS), len(row))], ~tested),
        "sensitivitylevel": _null(np.where(rng.random(len(row)) < 0.9, "Sensitive", "Resistant"), ~tested),
    }
    return course.table("microLab", hospital[row], time, {"culturetakenoffset": time}, columns)


def _whole(values: Floats) -> Ints:
    return np.maximum(np.round(values), 0).astype(np.int64)


def _null(values: Values, hidden: Bools) -> pl.Series:
    return pl.select(pl.when(pl.Series(~hidden)).then(pl.Series(values))).to_series()
