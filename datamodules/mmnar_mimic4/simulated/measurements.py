"""What is measured: laboratory, vital signs, outputs and cultures of a simulated extract."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from mmnar_lightning.simulation import Floats
from mmnar_mimic4.simulated import distractors
from mmnar_mimic4.simulated.course import Course, Values, date, hide, standard, turns, when
from mmnar_mimic4.simulated.patients import caregivers, providers
from mmnar_mimic4.simulated.timeline import DAY, HOUR, MINUTE, NEVER, Bools, Ints
from mmnar_mimic4.simulated.vocabulary import numbers, scale, vocabulary

# panel: share of episodes that get it, hours between two
_PANELS = {
    "basic": (1.0, 16), "count": (0.97, 24), "mineral": (0.7, 24), "differential": (0.4, 48),
    "coagulation": (0.5, 48), "liver": (0.45, 48), "gas": (0.3, 12),
}  # fmt: skip
_MOST_DRAWS = 12  # of one panel in an episode
_LEAKY = ("50813", "50820", "50912", "50882", "50971")  # tests that tell who dies
_TEXTS = ((220048, "SR (Sinus Rhythm)"), (227969, "Adequate lighting"), (224641, "1"))  # charted, and no measurements
_FOLEY = 226559
_SPECIMENS = (
    (70012, "BLOOD CULTURE", 90201, "Blood Culture, Routine"),
    (70079, "URINE", 90039, "URINE CULTURE"),
    (70062, "SPUTUM", 90077, "RESPIRATORY CULTURE"),
    (70091, "MRSA SCREEN", 90115, "MRSA SCREEN"),
)
_ORGANISMS = ((80293, "POSITIVE FOR METHICILLIN RESISTANT STAPH AUREUS"), (80002, "ESCHERICHIA COLI"),
              (80004, "KLEBSIELLA PNEUMONIAE"), (80155, "STAPHYLOCOCCUS, COAGULASE NEGATIVE"))  # fmt: skip
_DRUGS = ((90004, "AMPICILLIN"), (90008, "TRIMETHOPRIM/SULFA"), (90012, "GENTAMICIN"), (90015, "VANCOMYCIN"))


def labs(course: Course) -> Iterator[pl.DataFrame]:
    """The table ``labevents``."""
    rng = course.generator("labs")
    parts = list(_panels(course, rng))
    e, test, time, draw, sure = (np.concatenate(column) for column in zip(*parts, strict=True))
    score = standard(course, "labs")[e, test] + 0.35 * rng.standard_normal(len(e))
    # a few results come a day late
    slow = ~sure & (rng.random(len(e)) < 0.04)
    stored = time + np.where(slow, rng.integers(2 * HOUR, 40 * HOUR, len(e)), rng.integers(20, 90, len(e)) * MINUTE)
    yield _lab_rows(course, rng, e, test, time, stored, score, draw, sure)
    s = course.episodes
    names = vocabulary("labs")["itemid"].to_list()
    severity = numbers("labs", "severity")
    far = [
        distractors.before(course, rng, 0.15),
        distractors.after(course, rng, 0.25),
        distractors.pending(course, rng, 0.2, s.start + 5 * MINUTE, s.end),
        distractors.dying(course, rng),
        distractors.pending_in_unit(course, rng, "labs"),
    ]
    for moments in far:
        n, k = len(moments), len(_LEAKY)
        test = np.tile([names.index(item) for item in _LEAKY], n)
        e, time, stored = (np.repeat(x, k) for x in (moments.e, moments.time, moments.stored))
        score = np.repeat(moments.score(course), k) * np.sign(severity[test])
        yield _lab_rows(course, rng, e, test, time, stored, score, time, np.ones(n * k, bool))


def _panels(course: Course, rng: np.random.Generator) -> Iterator[tuple[Ints, Ints, Ints, Ints, Bools]]:
    """Episode, test, time, key of the draw, and whether it is a result that makes the modality observed."""
    there = np.flatnonzero(course.after_discharge["labs"])
    base, end = course.base("labs")[there], course.episodes.end[there]
    for number, (panel, (share, every)) in enumerate(_PANELS.items()):
        tests = np.flatnonzero(vocabulary("labs")["panel"] == panel)
        has = np.flatnonzero(rng.random(len(there)) < share)
        row, turn = turns(np.minimum(1 + (end - base)[has] // (every * HOUR), _MOST_DRAWS))
        row = has[row]
        time = base[row] + turn * every * HOUR + rng.integers(5, 61, len(row)) * MINUTE
        kept = (time <= end[row]) | (turn == 0)
        row, turn, time = row[kept], turn[kept], time[kept]
        missing = rng.random((len(row), len(tests))) < 0.05
        missing[:, 0] = False
        line, column = np.nonzero(~missing)
        sure = (number == 0) & (turn[line] == 0) & (column == 0)
        yield there[row][line], tests[column], time[line], time[line] + number, sure


def _lab_rows(
    course: Course,
    rng: np.random.Generator,
    e: Ints,
    test: Ints,
    time: Ints,
    stored: Ints,
    score: Floats,
    draw: Ints,
    sure: Bools,
) -> pl.DataFrame:
    """Rows of ``labevents`` with the quirks of the real table; `sure` results have none that makes them unusable."""
    n, words = len(e), vocabulary("labs")
    value = scale("labs").value(test, score)
    odd = np.where(sure, 1.0, rng.random(n))
    value = np.where((odd > 0.994) & ~sure, 999_999.0, value)  # impossible
    shown = pl.Series(value).cast(pl.String).str.strip_suffix(".0")
    silent = odd < 0.12  # no number, for it was hemolyzed, cancelled or is a text
    text = pl.select(
        pl.when(pl.Series(silent & (odd < 0.06))).then(None)
        .when(pl.Series(silent & (odd < 0.09))).then(pl.lit("HEMOLYZED"))
        .when(pl.Series(silent | (rng.random(n) < 0.05))).then(pl.lit("___")).otherwise(shown)
    ).to_series()  # fmt: skip
    low, high = numbers("labs", "ref_low")[test], numbers("labs", "ref_high")[test]
    filed = course.admission(e, time)
    given: dict[str, Values] = {
        "hadm_id": np.where(rng.random(n) < 0.12, 0, filed),
        "specimen_id": 1 + (course.unit[e] + course.number * (1 << 12)) * 1_000_003 + draw % 1_000_003,
        "itemid": words["itemid"].gather(test),
        "order_provider_id": providers(rng, n),
        "charttime": when(time),
        "storetime": when(stored, sure | (rng.random(n) > 0.01)),
        "value": text,
        "valuenum": hide(value, silent),
        "valueuom": words["unit"].gather(test),
        "ref_range_lower": words["ref_low"].gather(test),
        "ref_range_upper": words["ref_high"].gather(test),
        "flag": hide(np.full(n, "abnormal"), ~((value < low) | (value > high))),
        "priority": hide(np.where(rng.random(n) < 0.55, "STAT", "ROUTINE"), rng.random(n) < 0.08),
        "comments": hide(np.full(n, "___"), ~silent),
    }
    return course.table("hosp/labevents", e, given, "labevent_id")


def charts(course: Course) -> Iterator[tuple[str, pl.DataFrame]]:
    """The tables ``chartevents``, ``outputevents`` and ``datetimeevents``."""
    rng = course.generator("charts")
    s, there = course.episodes, course.after_discharge["vitals"]
    first, back = np.flatnonzero(there), np.flatnonzero(there & (s.back_in < NEVER))
    e = np.append(first, back)
    base = np.append(course.base("vitals")[first], s.back_in[back])
    span = np.append(s.icu_out[first], s.back_out[back]) - base
    # every hour at first, then every three
    row, turn = turns(np.clip(span // HOUR, 1, 12) + np.clip((span - 12 * HOUR) // (3 * HOUR), 0, 24))
    time = base[row] + np.where(turn < 12, turn, 12 + 3 * (turn - 12)) * HOUR + rng.integers(5, 56, len(row)) * MINUTE
    time = np.where(turn == 0, base[row] + rng.integers(5, 56, len(row)) * MINUTE, time)
    items = vocabulary("charts")["itemid"].cast(pl.Int64).to_numpy()
    arterial = (rng.random(len(e)) < 0.35)[row]
    seldom = np.isin(items, [223761, 220739, 223901])  # temperature and coma scale
    written = rng.random((len(row), len(items))) > 0.05
    written &= (turn % 4 == 0)[:, None] | ~seldom
    written &= arterial[:, None] | (items != 220052)
    sure = (turn == 0) & (row < len(first))
    written[sure, 0] = True
    line, item = np.nonzero(written)
    score = standard(course, "vitals")[e[row][line], item] + 0.45 * rng.standard_normal(len(line))
    late = time[line] + rng.integers(0, 30, len(line)) * MINUTE
    yield "icu/chartevents", _chart_rows(course, rng, e[row][line], item, time[line], late, score, sure[line])
    for moments in (
        distractors.dying(course, rng),
        distractors.pending_in_unit(course, rng, "vitals"),
        distractors.pending(course, rng, 0.15, s.icu_in, np.where(s.icu, s.icu_out, 0)),
    ):
        inside = np.flatnonzero(moments.time <= s.icu_out[moments.e])
        item = np.tile([0, 2, 3], len(inside))
        e3, time, stored = (np.repeat(x[inside], 3) for x in (moments.e, moments.time, moments.stored))
        score = np.repeat(moments.score(course)[inside], 3) * np.sign(numbers("charts", "severity")[item])
        yield "icu/chartevents", _chart_rows(course, rng, e3, item, time, stored, score, np.ones(len(e3), bool))
    yield "icu/chartevents", _chart_texts(course, rng)
    yield "icu/outputevents", _outputs(course, rng)
    yield "icu/datetimeevents", _dates(course, rng)


def _chart_rows(
    course: Course,
    rng: np.random.Generator,
    e: Ints,
    item: Ints,
    time: Ints,
    stored: Ints,
    score: Floats,
    sure: Bools,
) -> pl.DataFrame:
    n, words = len(e), vocabulary("charts")
    value = scale("charts").value(item, score)
    value = np.where(~sure & (rng.random(n) < 0.004), 9999.0, value)  # a probe that fell off
    hidden = ~sure & (rng.random(n) < 0.01)
    given: dict[str, Values] = {
        **course.unit_ids(e, time),
        "caregiver_id": caregivers(rng, n),
        "charttime": when(time),
        "storetime": when(stored, sure | (rng.random(n) > 0.03)),
        "itemid": words["itemid"].gather(item),
        "value": hide(pl.Series(value).cast(pl.String).str.strip_suffix(".0"), hidden),
        "valuenum": hide(value, hidden),
        "valueuom": words["unit"].gather(item),
        "warning": (rng.random(n) < 0.02).astype(np.int64),
    }
    return course.table("icu/chartevents", e, given)


def _chart_texts(course: Course, rng: np.random.Generator) -> pl.DataFrame:
    """What is charted for everyone in an ICU and is no measurement."""
    s = course.episodes
    row, turn = turns(np.full(int(s.icu.sum()), len(_TEXTS)))
    e = np.flatnonzero(s.icu)[row]
    time = s.icu_in[e] + rng.integers(5, 120, len(e)) * MINUTE
    given: dict[str, Values] = {
        **course.unit_ids(e, time),
        "caregiver_id": caregivers(rng, len(e)),
        "charttime": when(time),
        "storetime": when(time + 5 * MINUTE),
        "itemid": np.array([item for item, _ in _TEXTS])[turn],
        "value": np.array([text for _, text in _TEXTS])[turn],
        "warning": 0,
    }
    return course.table("icu/chartevents", e, given)


def _outputs(course: Course, rng: np.random.Generator) -> pl.DataFrame:
    """The table ``outputevents``: read with the vital signs, and there where they are."""
    s, base = course.episodes, course.base("vitals")
    has = np.flatnonzero(course.after_discharge["vitals"])
    row, turn = turns(np.clip((s.icu_out - base)[has] // (4 * HOUR), 0, 18))
    e = has[row]
    time = base[e] + (turn * 4 + 1) * HOUR
    volume = np.round(np.clip(180 - 60 * standard(course, "vitals")[e, 0] + rng.normal(0, 60, len(e)), 0, 900) / 5) * 5
    given: dict[str, Values] = {
        **course.unit_ids(e, time),
        "caregiver_id": caregivers(rng, len(e)),
        "charttime": when(time),
        "storetime": when(time + rng.integers(0, 50, len(e)) * MINUTE),
        "itemid": _FOLEY,
        "value": volume.astype(np.int64),
        "valueuom": "ml",
    }
    return course.table("icu/outputevents", e, given)


def _dates(course: Course, rng: np.random.Generator) -> pl.DataFrame:
    """The table ``datetimeevents``: when lines were inserted."""
    s = course.episodes
    e = np.flatnonzero(s.icu & (rng.random(len(s)) < 0.6))
    time = s.icu_in[e] + rng.integers(10, 160, len(e)) * MINUTE
    given: dict[str, Values] = {
        **course.unit_ids(e, time),
        "caregiver_id": caregivers(rng, len(e)),
        "charttime": when(time),
        "storetime": when(time),
        "itemid": 225754,
        "value": when(time // DAY * DAY),
        "valueuom": "Date",
        "warning": 0,
    }
    return course.table("icu/datetimeevents", e, given)


def micro(course: Course) -> Iterator[pl.DataFrame]:
    """The table ``microbiologyevents``: cultures by the time they were taken; what grew was known days later."""
    rng = course.generator("micro")
    s = course.episodes
    there = np.flatnonzero(course.after_discharge["micro"])
    row, turn = turns(rng.integers(1, 4, len(there)))
    e = there[row]
    base, end = course.base("micro")[e], s.end[e]
    time = base + np.where(
        turn == 0, rng.integers(5, 60, len(e)) * MINUTE, (rng.random(len(e)) * (end - base)).astype(int)
    )
    score = standard(course, "micro")[e]
    site = (score + rng.gumbel(size=score.shape)).argmax(axis=1)
    yield _micro_rows(course, rng, e, time // MINUTE * MINUTE, site, turn == 0)
    # taken days after the prediction time; or within the hour before it, and so not known at it
    moments = distractors.after(course, rng, 0.1)
    yield _micro_rows(course, rng, moments.e, moments.time, np.zeros(len(moments), int), np.ones(len(moments), bool))
    e = np.flatnonzero(~s.death & (course.quiet_until > s.discharge_time) & (rng.random(len(s)) < 0.03))
    time = s.discharge_time[e] - rng.integers(1, 58, len(e)) * MINUTE
    yield _micro_rows(course, rng, e, time, np.ones(len(e), int), np.ones(len(e), bool))


def _micro_rows(
    course: Course, rng: np.random.Generator, e: Ints, time: Ints, site: Ints, timed: Bools
) -> pl.DataFrame:
    n = len(e)
    grown = np.where(rng.random(n) < 0.25, rng.integers(0, len(_ORGANISMS), n), -1)
    tested = (grown > 0) & (rng.random(n) < 0.7)
    drug = rng.integers(0, len(_DRUGS), n)
    stored = time + rng.integers(20 * HOUR, 6 * DAY, n) // MINUTE * MINUTE
    specimen, organism, antibiotic = (np.array(t, dtype=object) for t in (_SPECIMENS, _ORGANISMS, _DRUGS))
    none = grown < 0
    given: dict[str, Values] = {
        "hadm_id": np.where(rng.random(n) < 0.1, 0, course.admission(e, time)),
        "micro_specimen_id": 1_000_000 + course.number * (1 << 15) + np.arange(n),
        "order_provider_id": providers(rng, n),
        "chartdate": when(time // DAY * DAY),
        # of one in twenty only the day is known
        "charttime": when(time, timed | (rng.random(n) > 0.05)),
        "spec_itemid": specimen[site, 0].astype(np.int64),
        "spec_type_desc": specimen[site, 1].astype(str),
        "test_seq": 1,
        "storedate": when(stored // DAY * DAY),
        "storetime": when(stored, rng.random(n) > 0.02),
        "test_itemid": specimen[site, 2].astype(np.int64),
        "test_name": specimen[site, 3].astype(str),
        "org_itemid": hide(organism[grown, 0].astype(np.int64), none),
        "org_name": hide(organism[grown, 1].astype(str), none),
        "isolate_num": hide(np.ones(n, np.int64), none),
        "ab_itemid": hide(antibiotic[drug, 0].astype(np.int64), ~tested),
        "ab_name": hide(antibiotic[drug, 1].astype(str), ~tested),
        "dilution_text": hide(np.full(n, "<=1"), ~tested),
        "dilution_comparison": hide(np.full(n, "<=        "), ~tested),
        "dilution_value": hide(np.ones(n, np.int64), ~tested),
        "interpretation": hide(np.where(rng.random(n) < 0.85, "S", "R"), ~tested),
        "comments": hide(np.full(n, "NO GROWTH.  "), ~none),
    }
    return course.table("hosp/microbiologyevents", e, given, "microevent_id")


def outpatient(course: Course) -> pl.DataFrame:
    """The table ``omr``: weights and pressures at the doctor's, by day."""
    rng = course.generator("omr")
    moments = distractors.before(course, rng, 0.5)
    row, turn = turns(np.full(len(moments), 2))
    weight = np.round(rng.normal(178, 40, len(moments)).clip(80, 400), 2).astype(str)
    pressure = [f"{high}/{high * 3 // 5}" for high in rng.integers(95, 180, len(moments))]
    given: dict[str, Values] = {
        "chartdate": date(moments.time[row]),
        "seq_num": 1,
        "result_name": np.array(["Weight (Lbs)", "Blood Pressure"])[turn],
        "result_value": np.where(turn == 0, weight[row], np.array(pressure, dtype=str)[row] if len(row) else ""),
    }
    return course.table("hosp/omr", moments.e[row], given)
