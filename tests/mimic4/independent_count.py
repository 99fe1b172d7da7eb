"""The two MIMIC-IV cohorts, counted again from the raw files with csv, gzip and datetime alone.

It follows the text of the cohort definition, one patient at a time, and shares no code with the extractor. Readings
where that text is silent:

 1. An admission is unusable, for the first reason that fits, where its subject is not in `patients`, its dischtime is
    empty, it is discharged before it is admitted, it has a deathtime before its admission, or the patient was dead
    when it began. Dead is from the earliest deathtime of an otherwise usable admission (its dischtime, where it ended
    in death without a deathtime) or the midnight after `dod`.
 2. Admissions are taken in the order of admittime, then hadm_id. One that begins at most 24 h (24 h included) after
    the latest dischtime of those before it is of the same episode.
 3. An admission ended in death where there is a deathtime, hospital_expire_flag is 1, or discharge_location is DIED;
    else alive where the flag is there; else unknown. An episode ended in death where one of its admissions did.
 4. Age at the episode's first admission, at most 90; adults are 18. First is the first episode as an adult, whatever
    becomes of it; random and all choose among those that nothing else excludes.
 5. Post discharge: prediction at the latest dischtime + grace. Dead by then, that moment included, is out; so is who
    has returned: some later episode has an edregtime or admittime by then.
 6. Landmark: the ICU stay with the earliest intime (then stay_id) of all of the patient's; out where it is of no
    usable admission of the patient, has no outtime or one before intime. Then: under 18; not yet admitted at the
    landmark; dead; out of the ICU; out of that admission. Exactly at the landmark is out.
 7. Windows of labels: later than the prediction time, at most so many times 24 h later. Readmission is any admission of
    a later episode, by admittime. Unplanned is EW EMER., URGENT or DIRECT EMER.; of a type that MIMIC-IV doesn't have
    it isn't known. An ICU stay of a later episode counts at its intime, or its admittime where that is later.
 8. Follow-up: no label that reaches past the hospital stay is known where the last year of anchor_year_group, moved by
    year(prediction time) − anchor_year, is the extract's last or later, or the group can't be read.
 9. The window opens with the edregtime or admittime of the episode's first admission, whichever is earlier (or the ICU
    stay's intime, where that is).
"""

from __future__ import annotations

import csv
import gzip
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

Row = dict[str, str]
COHORTS = ("post_discharge", "icu_landmark")
UNPLANNED = {"EW EMER.", "URGENT", "DIRECT EMER."}
PLANNED = {
    "ELECTIVE",
    "SURGICAL SAME DAY ADMISSION",
    "OBSERVATION ADMIT",
    "EU OBSERVATION",
    "DIRECT OBSERVATION",
    "AMBULATORY OBSERVATION",
}


@dataclass
class Admission:
    row: Row
    admit: datetime
    discharge: datetime
    arrival: datetime
    died: bool | None

    @property
    def hadm(self) -> int:
        return int(self.row["hadm_id"])


@dataclass
class Sample:
    subject: int
    hadm: int
    last_hadm: int
    stay: int | None
    window: datetime
    prediction: datetime
    episode: int
    admissions: set[int]
    age: int
    labels: dict[str, bool | None]


@dataclass
class Count:
    """Everything there is to compare for one cohort."""

    episodes: int = 0
    joined: int = 0
    excluded: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)


@dataclass(frozen=True)
class Rules:
    """The options of a cohort."""

    cohort: str
    episodes: str = "first"
    hours: float = 24.0  # grace, or landmark
    last_year: int = 2019
    chain: float = 24.0


def read(root: Path, table: str) -> list[Row]:
    """All rows of a table, as text."""
    with gzip.open(root / f"{table}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def moment(text: str) -> datetime | None:
    """A time, or None for an empty field."""
    return datetime.fromisoformat(text) if text else None


def ended_in_death(row: Row) -> bool | None:
    if row["deathtime"] or row["hospital_expire_flag"] == "1" or row["discharge_location"] == "DIED":
        return True
    return False if row["hospital_expire_flag"] else None


def usable(rows: list[Row], person: Row, count: Count) -> tuple[list[Admission], datetime | None]:
    """A patient's usable admissions in order, and the patient's death."""
    found = []
    for row in rows:
        admit, discharge, death = moment(row["admittime"]), moment(row["dischtime"]), moment(row["deathtime"])
        assert admit is not None
        if discharge is None:
            count.excluded["discharge time unknown"] += 1
        elif discharge < admit:
            count.excluded["discharge before admission"] += 1
        elif death is not None and death < admit:
            count.excluded["death before admission"] += 1
        else:
            arrival = min(admit, moment(row["edregtime"]) or admit)
            found.append(Admission(row, admit, discharge, arrival, ended_in_death(row)))
    deaths = [moment(a.row["deathtime"]) or a.discharge for a in found if a.died]
    if person["dod"]:
        deaths.append(datetime.fromisoformat(person["dod"]) + timedelta(days=1))
    death = min(deaths, default=None)
    alive = [a for a in found if death is None or a.admit <= death]
    count.excluded["admitted after death"] += len(found) - len(alive)
    return sorted(alive, key=lambda a: (a.admit, a.hadm)), death


def chained(admissions: list[Admission], hours: float) -> list[list[Admission]]:
    """Episodes."""
    found: list[list[Admission]] = []
    for admission in admissions:
        if found and admission.admit - max(a.discharge for a in found[-1]) <= timedelta(hours=hours):
            found[-1].append(admission)
        else:
            found.append([admission])
    return found


def age_at(person: Row, admission: Admission) -> int:
    return min(90, int(person["anchor_age"]) + admission.admit.year - int(person["anchor_year"]))


def outcome(episode: list[Admission]) -> bool | None:
    died = [a.died for a in episode]
    return True if True in died else None if None in died else False


def followed(person: Row, prediction: datetime, last_year: int) -> bool:
    """Whether what happens after the hospital stay is known."""
    group = person["anchor_year_group"].split(" - ")
    if len(group) != 2:
        return False
    return int(group[1]) + prediction.year - int(person["anchor_year"]) < last_year


def discharge_labels(
    later: list[list[Admission]], stays: dict[int, list[Row]], death: datetime | None, prediction: datetime
) -> dict[str, bool | None]:
    """Labels, as if follow-up were complete."""

    def inside(time: datetime | None, days: int) -> bool:
        return time is not None and prediction < time <= prediction + timedelta(days=days)

    coming = [a for episode in later for a in episode]
    soon = [a for a in coming if inside(a.admit, 30)]
    kinds = {a.row["admission_type"] for a in soon}
    unplanned: bool | None = bool(kinds & UNPLANNED)
    if not unplanned and kinds - PLANNED:
        unplanned = None
    icu = [max(datetime.fromisoformat(s["intime"]), a.admit) for a in coming for s in stays.get(a.hadm, [])]
    return {
        "readmission_30d_any": bool(soon),
        "readmission_30d_unplanned": unplanned,
        "readmission_90d": any(inside(a.admit, 90) for a in coming),
        "icu_90d": any(inside(time, 90) for time in icu),
        "mortality_30d": inside(death, 30),
        "mortality_180d": inside(death, 180),
        "death_or_readmission_30d": bool(soon) or inside(death, 30),
    }


@dataclass
class Person:
    """One patient's rows, put in order."""

    row: Row
    episodes: list[list[Admission]]
    death: datetime | None
    stays: list[Row]

    def stays_of(self) -> dict[int, list[Row]]:
        found = defaultdict(list)
        for stay in self.stays:
            found[int(stay["hadm_id"])].append(stay)
        return found


def after_discharge(person: Person, rules: Rules, count: Count) -> list[Sample]:
    """The post-discharge samples of a patient."""
    found, seen_adult = [], False
    for number, episode in enumerate(person.episodes):
        age = age_at(person.row, episode[0])
        end = max(a.discharge for a in episode)
        prediction = end + timedelta(hours=rules.hours)
        later = person.episodes[number + 1 :]
        died = outcome(episode)
        back = [a.arrival for e in later for a in e]
        reason = None
        if age < 18:
            reason = "under 18"
        elif rules.episodes == "first" and seen_adult:
            reason = "not the first"
        elif died is None:
            reason = "outcome unknown"
        elif died:
            reason = "died in the hospital"
        elif person.death is not None and person.death <= prediction:
            reason = "died by then"
        elif back and min(back) <= prediction:
            reason = "returned by then"
        seen_adult = seen_adult or age >= 18
        if reason:
            count.excluded[reason] += 1
            continue
        labels = discharge_labels(later, person.stays_of(), person.death, prediction)
        if not followed(person.row, prediction, rules.last_year):
            labels = dict.fromkeys(labels)
        found.append(
            Sample(
                int(person.row["subject_id"]),
                episode[0].hadm,
                max(episode, key=lambda a: (a.discharge, a.admit, a.hadm)).hadm,
                None,
                episode[0].arrival,
                prediction,
                number,
                {a.hadm for a in episode},
                age,
                labels,
            )
        )
    return found


def at_landmark(person: Person, rules: Rules, count: Count) -> list[Sample]:
    """The landmark sample of a patient, if there is one."""
    ordered = sorted(person.stays, key=lambda s: (s["intime"], int(s["stay_id"])))
    count.excluded["not the first ICU stay"] += max(len(ordered) - 1, 0)
    if not ordered:
        return []
    stay = ordered[0]
    homes = [(n, e, a) for n, e in enumerate(person.episodes) for a in e if a.row["hadm_id"] == stay["hadm_id"]]
    intime, outtime = datetime.fromisoformat(stay["intime"]), moment(stay["outtime"])
    prediction = intime + timedelta(hours=rules.hours)
    reason = None
    if not homes:
        reason = "ICU stay without admission"
    elif outtime is None or outtime < intime:
        reason = "ICU discharge unknown"
    elif age_at(person.row, homes[0][1][0]) < 18:
        reason = "under 18"
    elif homes[0][2].admit > prediction:
        reason = "admitted later"
    elif person.death is not None and person.death <= prediction:
        reason = "died by then"
    elif outtime <= prediction:
        reason = "left the ICU by then"
    elif homes[0][2].discharge <= prediction:
        reason = "left the hospital by then"
    if reason:
        count.excluded[reason] += 1
        return []
    number, episode, _ = homes[0]
    begun = [a for a in episode if a.admit <= prediction]
    known = followed(person.row, prediction, rules.last_year)
    dead = person.death is not None and person.death <= prediction + timedelta(days=30)
    labels = {"mortality_hospital": outcome(episode), "mortality_30d": dead if known else None}
    window = min(intime, episode[0].arrival)
    hadms = {a.hadm for a in begun}
    subject, age = int(person.row["subject_id"]), age_at(person.row, episode[0])
    return [
        Sample(
            subject,
            episode[0].hadm,
            begun[-1].hadm,
            int(stay["stay_id"]),
            window,
            prediction,
            number,
            hadms,
            age,
            labels,
        )
    ]


def draw(patients: list[Row], admissions: list[Row], stays: list[Row], rules: Rules) -> Count:
    """A cohort with its exclusions and labels."""
    count = Count()
    people = {row["subject_id"]: row for row in patients}
    mine: dict[str, list[Row]] = defaultdict(list)
    for row in admissions:
        mine[row["subject_id"]].append(row)
    in_icu: dict[str, list[Row]] = defaultdict(list)
    for row in stays:
        in_icu[row["subject_id"]].append(row)
    strangers = [row for subject, rows in mine.items() if subject not in people for row in rows]
    if rules.cohort == "icu_landmark":
        strangers += [row for subject, rows in in_icu.items() if subject not in people for row in rows]
    count.excluded["no patient"] = len(strangers)
    for subject in sorted(people, key=int):
        found, death = usable(mine[subject], people[subject], count)
        person = Person(people[subject], chained(found, rules.chain), death, in_icu[subject])
        count.episodes += len(person.episodes)
        count.joined += len(found) - len(person.episodes)
        make = after_discharge if rules.cohort == "post_discharge" else at_landmark
        count.samples += make(person, rules, count)
    count.excluded += Counter()  # drops the zeros
    return count


def count_cohort(root: Path, rules: Rules) -> Count:
    """A cohort of a MIMIC-IV folder of `.csv.gz` files."""
    return draw(read(root, "hosp/patients"), read(root, "hosp/admissions"), read(root, "icu/icustays"), rules)
