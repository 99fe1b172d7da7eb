"""What is ordered and given: prescriptions and their trail through pharmacy and ward, infusions and procedures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from mmnar_lightning.simulation import Floats
from mmnar_mimic4.simulated import distractors
from mmnar_mimic4.simulated.course import Course, Values, hide, standard, turns, when
from mmnar_mimic4.simulated.patients import caregivers, providers
from mmnar_mimic4.simulated.population import treatment_columns
from mmnar_mimic4.simulated.timeline import DAY, HOUR, MINUTE, Bools, Ints
from mmnar_mimic4.simulated.vocabulary import numbers, vocabulary

_SLOPE = 1.3  # log odds of an item per standard deviation of its latent value
_SALINE = 225158
_VENTILATION = 225792
_ORDERS = 64  # room for the orders of an episode in the numbering of orders
_WATER = ((220490, "Water"), (227074, "IVF ingredient"))


@dataclass(frozen=True)
class Orders:
    """Prescriptions; all [n].

    Args:
        e: Row of the episode, ascending.
        drug: Index in the vocabulary.
        start: First dose.
        main: Whether it is a drug, and not what it is dissolved in.
    """

    e: Ints
    drug: Ints
    start: Ints
    main: Bools


def _chosen(course: Course, rng: np.random.Generator, name: str, e: Ints, one: bool) -> tuple[Ints, Ints, Bools]:
    """Which items of a vocabulary each of some episodes gets: index into `e`, item, whether the likeliest.

    An item is there where logit(frequency) + slope · x + logistic noise > 0; with `one`, the likeliest always is.
    """
    score = standard(course, "treatments")[e][:, treatment_columns(name)]
    frequency = numbers(name, "frequency")
    latent = np.log(frequency / (1 - frequency)) + _SLOPE * score + rng.logistic(size=score.shape)
    likeliest = latent.argmax(axis=1) if len(e) else np.zeros(0, np.int64)
    present = latent > 0
    if one:
        present[np.arange(len(e)), likeliest] = True
    row, item = np.nonzero(present)
    return row, item, item == likeliest[row]


def prescriptions(course: Course) -> Iterator[tuple[str, pl.DataFrame]]:
    """The tables ``prescriptions``, ``pharmacy``, ``poe``, ``poe_detail``, ``emar`` and ``emar_detail``."""
    rng = course.generator("prescriptions")
    orders = _orders(course, rng)
    n = len(orders.e)
    seq = 1 + _place(orders.e) + _ORDERS * (course.unit[orders.e] % 2)
    whole = course.number * (1 << 20)
    subject = course.subject[course.person[orders.e]]
    poe = pl.select(pl.format("{}-{}", pl.Series(subject), pl.Series(seq))).to_series()
    # who gave a drug before the pharmacy's system knew it has no number
    pharmacy = pl.Series(1_000_000 + whole + np.arange(n))
    hadm = course.admission(orders.e, orders.start)
    hadm = np.where(hadm == 0, course.first_hadm[orders.e], hadm)
    yield "hosp/prescriptions", _prescription_rows(course, rng, orders, hadm, poe, seq, pharmacy)
    kept = np.flatnonzero(orders.main & (rng.random(n) < 0.95))
    yield "hosp/pharmacy", _pharmacy_rows(course, rng, orders, kept, hadm, poe, pharmacy)
    given: dict[str, Values] = {
        "poe_id": poe,
        "poe_seq": seq,
        "hadm_id": hadm,
        "ordertime": when(orders.start - rng.integers(60, 5 * HOUR, n)),
        "order_type": "Medications",
        "transaction_type": "New",
        "order_provider_id": providers(rng, n),
        "order_status": "Inactive",
    }
    yield "hosp/poe", course.table("hosp/poe", orders.e, given)
    last = np.flatnonzero(np.append(orders.e[1:] != orders.e[:-1], True)) if n else np.zeros(0, int)
    given = {
        "poe_id": poe.gather(last),
        "poe_seq": seq[last],
        "field_name": "Discharge When",
        "field_value": "Discharge Today",
    }
    yield "hosp/poe_detail", course.table("hosp/poe_detail", orders.e[last], given)
    # two patients of three were on wards with electronic records of administration
    kept = kept[(course.subject % 3 > 0)[course.person[orders.e[kept]]]]
    yield from _emar(course, rng, orders, kept, hadm, poe, pharmacy)


def _place(e: Ints) -> Ints:
    """How manieth of its episode each row is, for ascending episodes."""
    return np.arange(len(e)) - np.searchsorted(e, e)


def _orders(course: Course, rng: np.random.Generator) -> Orders:
    s = course.episodes
    there = np.flatnonzero(course.after_discharge["treatments"])
    row, drug, sure = _chosen(course, rng, "drugs", there, one=True)
    e = there[row]
    base = course.base("treatments")[e]
    # most starts stand on the hour
    later = (base + (np.maximum(s.end[e] - base, HOUR) * rng.random(len(e)) ** 2).astype(np.int64)) // HOUR * HOUR
    start = np.where(sure | (later < base), base + rng.integers(10, 61, len(e)) * MINUTE, later)
    # what was ordered anew; what the drug is dissolved in
    again = np.flatnonzero(rng.random(len(e)) < 0.25)
    dissolved = np.flatnonzero(rng.random(len(e)) < 0.2)
    # only that, of patients who have nothing else
    only = np.flatnonzero(~course.after_discharge["treatments"] & (rng.random(len(s)) < 0.3))
    # within the hour before the landmark or the prediction time after discharge: not known at it
    late = np.flatnonzero(course.late["treatments"] & course.after_discharge["treatments"])
    home = np.flatnonzero(~s.death & (course.quiet_until > s.discharge_time) & (rng.random(len(s)) < 0.05))
    far = distractors.after(course, rng, 0.1)
    drugs = len(vocabulary("drugs"))
    parts = [
        (e, drug, start, True),
        (e[again], drug[again], np.maximum(start, s.end[e] - HOUR)[again], True),
        (e[dissolved], drug[dissolved], start[dissolved], False),
        (only, rng.integers(0, drugs, len(only)), s.start[only] + 2 * HOUR, False),
        (late, rng.integers(0, drugs, len(late)), s.landmark_time[late] - 40 * MINUTE, True),
        (home, rng.integers(0, drugs, len(home)), s.discharge_time[home] - 30 * MINUTE, True),
        (far.e, np.where(far.score(course) > 0, 10, 1), far.time, True),
    ]
    columns = [np.concatenate([np.broadcast_to(part[k], len(part[0])) for part in parts]) for k in range(4)]
    order = np.lexsort((columns[2], columns[0]))
    e, drug, start, main = (column[order] for column in columns)
    return Orders(e, drug, start, main)


def _prescription_rows(
    course: Course, rng: np.random.Generator, o: Orders, hadm: Ints, poe: pl.Series, seq: Ints, pharmacy: pl.Series
) -> pl.DataFrame:
    n, words = len(o.e), vocabulary("drugs")
    stop = o.start + rng.integers(6, 120, n) * HOUR
    # one in thirty stops before it starts
    stop = np.where(rng.random(n) < 0.033, o.start - rng.integers(1, 12, n) * HOUR, stop)
    unnamed = rng.random(n) < 0.02
    base = np.where(rng.random(n) < 0.6, "0.9% Sodium Chloride", "Vial")
    drug = words["drug"].gather(o.drug)
    given: dict[str, Values] = {
        "hadm_id": hadm,
        "pharmacy_id": pharmacy,
        "poe_id": hide(poe, unnamed),
        "poe_seq": hide(seq, unnamed),
        "order_provider_id": providers(rng, n),
        "starttime": when(o.start),
        "stoptime": when(stop, rng.random(n) > 0.01),
        "drug_type": np.where(o.main, "MAIN", "BASE"),
        "drug": pl.select(pl.when(pl.Series(o.main)).then(drug).otherwise(pl.Series(base))).to_series(),
        "formulary_drug_cd": words["code"].gather(o.drug),
        "gsn": hide(words["gsn"].gather(o.drug), rng.random(n) < 0.1),
        "ndc": words["ndc"].gather(o.drug),
        "prod_strength": words["strength"].gather(o.drug),
        "dose_val_rx": words["dose"].gather(o.drug),
        "dose_unit_rx": words["dose_unit"].gather(o.drug),
        "form_val_disp": "1",
        "form_unit_disp": "VIAL",
        "doses_per_24_hrs": hide(rng.integers(1, 5, n), rng.random(n) < 0.4),
        "route": words["route"].gather(o.drug),
    }
    return course.table("hosp/prescriptions", o.e, given)


def _pharmacy_rows(
    course: Course, rng: np.random.Generator, o: Orders, kept: Ints, hadm: Ints, poe: pl.Series, pharmacy: pl.Series
) -> pl.DataFrame:
    n, words = len(kept), vocabulary("drugs")
    start = o.start[kept]
    entered = start - rng.integers(60, 4 * HOUR, n)
    given: dict[str, Values] = {
        "hadm_id": hadm[kept],
        "pharmacy_id": pharmacy.gather(kept),
        "poe_id": poe.gather(kept),
        "starttime": when(start),
        "stoptime": when(start + rng.integers(6, 120, n) * HOUR),
        "medication": words["drug"].gather(o.drug[kept]),
        "proc_type": "Unit Dose",
        "status": rng.choice(["Discontinued via patient discharge", "Discontinued", "Expired"], n),
        "entertime": when(entered),
        "verifiedtime": when(entered),
        "route": words["route"].gather(o.drug[kept]),
        "frequency": rng.choice(["BID", "DAILY", "Q8H", "PRN", "1X"], n),
        "disp_sched": hide(np.full(n, "08, 20"), rng.random(n) < 0.5),
        "doses_per_24_hrs": rng.integers(1, 5, n),
        "duration": "Ongoing",
        "expiration_value": 36,
        "expiration_unit": "Hours",
        "dispensation": "Omnicell",
    }
    return course.table("hosp/pharmacy", o.e[kept], given)


def _emar(
    course: Course, rng: np.random.Generator, o: Orders, kept: Ints, hadm: Ints, poe: pl.Series, pharmacy: pl.Series
) -> Iterator[tuple[str, pl.DataFrame]]:
    n, words = len(kept), vocabulary("drugs")
    e, time = o.e[kept], o.start[kept] + rng.integers(0, 90, len(kept)) * MINUTE
    seq = 1 + _place(e) + _ORDERS * (course.unit[e] % 2)
    emar = pl.select(pl.format("{}-{}", pl.Series(course.subject[course.person[e]]), pl.Series(seq))).to_series()
    given: dict[str, Values] = {
        "hadm_id": hadm[kept],
        "emar_id": emar,
        "emar_seq": seq,
        "poe_id": poe.gather(kept),
        "pharmacy_id": pharmacy.gather(kept),
        "enter_provider_id": providers(rng, n),
        "charttime": when(time),
        "medication": words["drug"].gather(o.drug[kept]),
        "event_txt": rng.choice(["Administered", "Not Given", "Flushed"], n, p=[0.86, 0.08, 0.06]),
        "scheduletime": when(o.start[kept]),
        "storetime": when(time + rng.integers(0, 20, n) * MINUTE),
    }
    yield "hosp/emar", course.table("hosp/emar", e, given)
    detail: dict[str, Values] = {
        "emar_id": emar,
        "emar_seq": seq,
        "parent_field_ordinal": "1.1",
        "pharmacy_id": pharmacy.gather(kept),
        "dose_given": words["dose"].gather(o.drug[kept]),
        "dose_given_unit": words["dose_unit"].gather(o.drug[kept]),
        "product_code": words["code"].gather(o.drug[kept]),
        "product_description": words["strength"].gather(o.drug[kept]),
    }
    yield "hosp/emar_detail", course.table("hosp/emar_detail", e, detail)


def infusions(course: Course) -> Iterator[tuple[str, pl.DataFrame]]:
    """The tables ``inputevents`` and ``ingredientevents``: rates that change, some across the landmark."""
    rng = course.generator("infusions")
    s = course.episodes
    begin = np.maximum(course.base("treatments"), s.icu_in)
    there = np.flatnonzero(course.after_discharge["treatments"] & s.icu & (s.icu_out - begin > 2 * HOUR))
    row, item, _ = _chosen(course, rng, "inputs", there, one=False)
    e = there[row]
    started = begin[e] + (rng.random(len(e)) * 0.5 * np.minimum(s.icu_out[e] - begin[e], DAY)).astype(np.int64)
    count = rng.integers(1, 4, len(e))
    row, turn = turns(count)
    length = (s.icu_out[e] - started)[row] / count[row]
    first = started[row] + (turn * length).astype(np.int64)
    start, end = first // MINUTE * MINUTE, (first + length.astype(np.int64)) // MINUTE * MINUTE
    e, item = e[row], item[row]
    start = np.maximum(start, begin[e])
    score = standard(course, "treatments")[e, treatment_columns("inputs").start + item]
    rate = numbers("inputs", "rate")[item] * np.exp(0.4 * score + 0.2 * rng.standard_normal(len(e)))
    yield "icu/inputevents", _input_rows(course, rng, e, item, start, end, rate, row, turn == count[row] - 1)
    saline = np.flatnonzero(item == numbers("inputs", "itemid").tolist().index(_SALINE))
    yield "icu/ingredientevents", _ingredients(course, rng, e[saline], start[saline], end[saline], rate[saline])


def _input_rows(
    course: Course,
    rng: np.random.Generator,
    e: Ints,
    item: Ints,
    start: Ints,
    end: Ints,
    rate: Floats,
    link: Ints,
    last: Bools,
) -> pl.DataFrame:
    n, words = len(e), vocabulary("inputs")
    hours = np.maximum(end - start, MINUTE) / HOUR
    weight = np.round(np.clip(80 + 18 * course.latent[course.person[e], 0], 40, 180), 1)
    by_weight = words["rate_unit"].str.contains("kg").to_numpy()[item]
    amount = rate * hours * np.where(by_weight, 60 * weight / 1000, 1.0)
    given: dict[str, Values] = {
        **course.unit_ids(e, start),
        "caregiver_id": caregivers(rng, n),
        "starttime": when(start),
        "endtime": when(end),
        # entered about when it was started, or ended
        "storetime": when(np.where(rng.random(n) < 0.6, start, end) + rng.integers(0, 40, n) * MINUTE),
        "itemid": words["itemid"].gather(item),
        "amount": amount,
        "amountuom": words["unit"].gather(item),
        "rate": rate,
        "rateuom": words["rate_unit"].gather(item),
        "orderid": rng.integers(1, 10_000_000, n),
        "linkorderid": 1 + (link + course.number * 7919) % 10_000_000,
        "ordercategoryname": words["order"].gather(item),
        "secondaryordercategoryname": "02-Fluids (Crystalloids)",
        "ordercomponenttypedescription": "Main order parameter",
        "ordercategorydescription": words["description"].gather(item),
        "patientweight": weight,
        "totalamount": 250,
        "totalamountuom": "ml",
        "isopenbag": 0,
        "continueinnextdept": 0,
        "statusdescription": np.where(last, "FinishedRunning", "ChangeDose/Rate"),
        "originalamount": amount,
        "originalrate": rate,
    }
    return course.table("icu/inputevents", e, given)


def _ingredients(
    course: Course, rng: np.random.Generator, e: Ints, start: Ints, end: Ints, rate: Floats
) -> pl.DataFrame:
    row, turn = turns(np.full(len(e), len(_WATER)))
    hours = np.maximum(end - start, MINUTE) / HOUR
    orders = rng.integers(1, 10_000_000, len(e))[row]
    given: dict[str, Values] = {
        **course.unit_ids(e[row], start[row]),
        "caregiver_id": caregivers(rng, len(row)),
        "starttime": when(start[row]),
        "endtime": when(end[row]),
        "storetime": when(end[row]),
        "itemid": np.array([item for item, _ in _WATER])[turn],
        "amount": (rate * hours)[row],
        "amountuom": "ml",
        "rate": rate[row],
        "rateuom": "mL/hour",
        "orderid": orders,
        "linkorderid": orders,
        "statusdescription": "FinishedRunning",
        "originalamount": 0,
        "originalrate": rate[row],
    }
    return course.table("icu/ingredientevents", e[row], given)


def procedures(course: Course) -> pl.DataFrame:
    """The table ``procedureevents``: lines and ventilation, of which most outlast the landmark."""
    rng = course.generator("procedures")
    s, words = course.episodes, vocabulary("procedures")
    begin = np.maximum(course.base("treatments"), s.icu_in)
    there = np.flatnonzero(course.after_discharge["treatments"] & s.icu & (s.icu_out - begin > 2 * HOUR))
    row, item, _ = _chosen(course, rng, "procedures", there, one=False)
    e, n = there[row], len(row)
    start = begin[e] + (rng.random(n) ** 2 * (s.icu_out[e] - begin[e] - HOUR)).astype(np.int64) // MINUTE * MINUTE
    end = start + ((s.icu_out[e] - start) * rng.uniform(0.4, 1.0, n)).astype(np.int64) // MINUTE * MINUTE
    value = np.maximum((end - start) // MINUTE, 1)
    ventilated = numbers("procedures", "itemid")[item] == _VENTILATION
    given: dict[str, Values] = {
        **course.unit_ids(e, start),
        "caregiver_id": caregivers(rng, n),
        "starttime": when(start),
        "endtime": when(end),
        "storetime": when(end + rng.integers(0, 30, n)),
        "itemid": words["itemid"].gather(item),
        "value": value,
        "valueuom": "min",
        "location": words["location"].gather(item),
        "locationcategory": words["location_category"].gather(item),
        "orderid": 1 + rng.integers(0, 10_000_000, n),
        "linkorderid": 1 + rng.integers(0, 10_000_000, n),
        "ordercategoryname": words["order"].gather(item),
        "ordercategorydescription": "ContinuousProcess",
        "patientweight": np.round(rng.normal(82, 18, n).clip(40, 180), 1),
        "isopenbag": ventilated.astype(np.int64),
        "continueinnextdept": 0,
        "statusdescription": np.where(rng.random(n) < 0.9, "FinishedRunning", "Stopped"),
        "ORIGINALAMOUNT": value,
        "ORIGINALRATE": 1,
    }
    return course.table("icu/procedureevents", e, given)
