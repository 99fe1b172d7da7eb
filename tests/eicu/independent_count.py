"""The two eICU cohorts, counted again from the raw files with csv and gzip alone.

Written from the text of the cohort definition before the extractor was looked at, so that it has something to disagree
with. Where that text is silent a reading had to be chosen. Readings marked * are the extractor's, taken over after the
two were compared, for the reason given; everything else was read alike twice.

Unit stays and episodes
 1. An ICU stay is any row of `patient` whose `unitstaytype` is not `stepdown/other` (`unittype` names an ICU on those
    rows too, so it can't tell). Step-down rows are dropped before chaining: an ICU stay that follows another within 60
    minutes of step-down care is the same episode.
 2. The clock of a hospital stay runs from hospital admission: a unit stay starts at −hospitaladmitoffset and ends
    unitdischargeoffset later. Stays are ordered by (start, end, patientunitstayid). `unitvisitnumber` is not used.
 3. Two stays are one episode when the next starts at most 60 minutes (60 included) after the latest end so far;
    overlaps have a negative gap. The episode ends at its latest end; its closing status is that of the stay which ends
    last (the later one in order on ties).
 4. Unit discharge before unit admission, hospital discharge before hospital admission, or * over 180 days between the
    two admissions (the text names an offset of −480,446 as unusable) makes a row unusable. A stay of zero minutes is
    legal. So is a unit admission before the hospital's and a hospital discharge minutes before the unit's.
 5. "First" is the first among the rows present: no row is dropped for being called `readmit` or numbered 2 while its
    predecessor is absent.

Who is in
 6. Age `> 89` is 90. Empty age is excluded as unknown, below 18 as a minor. Reasons are applied in the order of the
    keys of `Count.excluded`.
 7. Landmark: in the unit at +24 h means that the earlier of episode end and hospital discharge is strictly later than
    1440 minutes after the episode's start: an episode of exactly 24 h 00 min is out. A break of at most 60 minutes
    inside an episode at that moment does not matter.
 8. Unit discharge: every episode, not only the first. Closing status Expired: died; empty: status unknown, excluded,
    for "ended alive" is then not known. Hospital discharge at most 60 minutes (60 included) after the episode's end, or
    before it, is leaving the hospital, * unless a later ICU episode shows that the person stayed.

Labels (empty status is unknown)
 9. `mortality_hospital`: hospitaldischargestatus, or a closing unitdischargestatus of Expired. `mortality_unit`: the
    closing unitdischargestatus; later episodes don't count. * Both are unknown where the record contradicts itself
    (died in the unit, left the hospital alive; died in one unit and went on to another).
10. `los_7d`: the episode lasts strictly longer than 10080 minutes from its start (not from the prediction time); a
    death before that is negative. `death_or_los_7d`: `los_7d`, or * a death in the hospital by minute 10080, in or out
    of the unit: one horizon for both parts, as in `death_or_readmission_30d`. Who leaves the hospital later than that
    was alive then, whatever the status.
11. `readmission_icu`: any later ICU episode of the same hospital stay, at whatever distance. Never unknown.

What was known at the prediction time (available <= prediction time counts)
12. Rows of the episode's unit stays count, on the episode's clock (offset + stay start − episode start), * if the stay
    has begun by the prediction time: before that nothing can have been filed under it. Rows of other unit stays of the
    hospital stay (step-down before the ICU, earlier episodes) do not count.
13. * The window opens 24 hours (1440 minutes, that minute included) before hospital admission, or at the episode's
    start where that is earlier, and is compared with the event. admissionDrug, pastHistory and note tell of earlier
    life and have no such bound.
14. With event and entry column, the later one; entry empty: event + 60; event empty: never. Event column alone: event
    + 60. `admitdxenteredoffset` is an entry time and needs no lag. * medication is the order, at drugorderoffset + 60:
    its start is not used, so need not have come. * physicalExam has no entry time, but in the demo each exam has a note
    of the same offset that has one, and it is known with the first of those; without a known note after 12 hours.
15. Whether an order is cancelled later is not known, so cancelled orders count.
16. Observed: a number in any measured column (vitals; `labresult` for labs; whatever its size), or a non-empty code:
    drughiclseqno or else drugname (medication, home drugs), drugname * with a rate that is not 0 (infusion), the path
    string (the others). `structured` always is.
"""

from __future__ import annotations

import csv
import gzip
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

DAY = 1440
GAP = LAG = 60
EXAM_LAG = 12 * 60
FARTHEST_ADMISSION = 180 * DAY
COHORTS = ("landmark", "unit_discharge")
APERIODIC = "noninvasivesystolic noninvasivediastolic noninvasivemean paop cardiacoutput cardiacinput svr svri pvr pvri"
PERIODIC = (
    "temperature sao2 heartrate respiration cvp etco2 systemicsystolic systemicdiastolic systemicmean "
    "pasystolic padiastolic pamean st1 st2 st3 icp"
)
DRUG, HISTORY = ("drughiclseqno", "drugname"), ("pasthistorypath",)


@dataclass(frozen=True)
class Source:
    """A raw table, the modality it feeds, its clock, and the columns of which one must hold something."""

    table: str
    modality: str
    event: str
    entry: str | None  # None: event + lag
    values: tuple[str, ...]
    lag: int = LAG
    any_time: bool = False  # tells of earlier life, too


SOURCES = (
    Source("vitalPeriodic", "vitals", "observationoffset", None, tuple(PERIODIC.split())),
    Source("vitalAperiodic", "vitals", "observationoffset", None, tuple(APERIODIC.split())),
    Source("lab", "labs", "labresultoffset", "labresultrevisedoffset", ("labresult",)),
    Source("medication", "medication", "drugorderoffset", None, DRUG),
    Source("infusionDrug", "infusion", "infusionoffset", None, ("drugname", "drugrate")),
    Source("admissionDrug", "home_drugs", "drugoffset", "drugenteredoffset", DRUG, any_time=True),
    Source("treatment", "treatment", "treatmentoffset", None, ("treatmentstring",)),
    Source("diagnosis", "diagnosis", "diagnosisoffset", None, ("diagnosisstring",)),
    Source("admissionDx", "diagnosis", "admitdxenteredoffset", None, ("admitdxpath",), lag=0),
    Source("pastHistory", "diagnosis", "pasthistoryoffset", "pasthistoryenteredoffset", HISTORY, any_time=True),
    Source("note", "notes", "noteoffset", "noteenteredoffset", ("notepath",), any_time=True),
    Source("physicalExam", "notes", "physicalexamoffset", None, ("physicalexampath",), lag=EXAM_LAG),
)
MODALITIES = ("structured", *dict.fromkeys(source.modality for source in SOURCES))


@dataclass(frozen=True)
class Stay:
    """A unit stay, in minutes from hospital admission."""

    stay: str
    hospital_stay: str
    person: str
    age: str
    unit_type: str
    start: int
    end: int
    leaves_hospital: int
    status: str
    hospital_status: str


@dataclass(frozen=True)
class Episode:
    """Unit stays at most an hour apart."""

    stays: tuple[Stay, ...]

    @property
    def start(self) -> int:
        return self.stays[0].start

    @property
    def end(self) -> int:
        return max(stay.end for stay in self.stays)

    @property
    def last(self) -> Stay:
        return [stay for stay in self.stays if stay.end == self.end][-1]

    @property
    def leaves_hospital(self) -> int:
        return max(stay.leaves_hospital for stay in self.stays)

    @property
    def died_in_unit(self) -> bool | None:
        return expired(self.last.status)

    @property
    def died_in_hospital(self) -> bool | None:
        """By the hospital's status; unknown where the unit stays repeat it differently."""
        known = {died for stay in self.stays if (died := expired(stay.hospital_status)) is not None}
        return known.pop() if len(known) == 1 else None

    @property
    def contradiction(self) -> bool:
        went_on = any(expired(stay.status) for stay in self.stays if stay is not self.last)
        return went_on or (self.died_in_unit is True and self.died_in_hospital is False)


@dataclass
class Sample:
    """An episode at its prediction time, in minutes from the episode's start."""

    episode: Episode
    prediction: int
    labels: dict[str, bool | None]
    observed: set[str] = field(default_factory=lambda: {"structured"})


@dataclass
class Count:
    """Everything there is to compare for one cohort."""

    rows: dict[str, int]
    joined: int  # unit stays that continue the episode of another
    episodes: int
    excluded: dict[str, int]
    samples: list[Sample]
    tallies: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def labels(self) -> dict[str, dict[str, int]]:
        """Positive, negative and unknown labels of each task."""
        names = {True: "positive", False: "negative", None: "unknown"}
        tasks = self.samples[0].labels if self.samples else {}
        found = {task: Counter(names[sample.labels[task]] for sample in self.samples) for task in tasks}
        return {task: {name: counts[name] for name in names.values()} for task, counts in found.items()}

    @property
    def observed(self) -> dict[str, int]:
        """Samples that have each modality."""
        return {name: sum(name in sample.observed for sample in self.samples) for name in MODALITIES}


def read(root: Path, table: str, columns: tuple[str, ...]) -> Iterator[list[str]]:
    """The named columns of every row of a table."""
    with gzip.open(root / f"{table}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        header = next(rows)
        wanted = [header.index(column) for column in columns]
        for row in rows:
            yield [row[index] for index in wanted]


def unit_stays(root: Path) -> list[Stay]:
    """Every row of `patient`."""
    names = "patientunitstayid patienthealthsystemstayid uniquepid age unitstaytype unitdischargestatus"
    offsets = "hospitaladmitoffset unitdischargeoffset hospitaldischargeoffset"
    stays = []
    for row in read(root, "patient", (*names.split(), "hospitaldischargestatus", *offsets.split())):
        admitted, unit_end, hospital_end = map(int, row[7:])
        times = (-admitted, unit_end - admitted, hospital_end - admitted)
        stays.append(Stay(row[0], row[1], row[2], row[3], row[4], *times, status=row[5], hospital_status=row[6]))
    return stays


def unusable(stay: Stay) -> bool:
    """Whether a discharge stands before its admission, or the admissions are too far apart to be true."""
    return stay.end < stay.start or stay.leaves_hospital < 0 or abs(stay.start) > FARTHEST_ADMISSION


def expired(status: str) -> bool | None:
    """A death by a status column; None where it is empty or says something else."""
    return {"Expired": True, "Alive": False}.get(status)


def episodes(stays: list[Stay]) -> dict[str, list[Episode]]:
    """The ICU episodes of each hospital stay, in order."""
    by_hospital_stay: dict[str, list[Stay]] = defaultdict(list)
    for stay in stays:
        if stay.unit_type != "stepdown/other" and not unusable(stay):
            by_hospital_stay[stay.hospital_stay].append(stay)
    found: dict[str, list[Episode]] = {}
    for name, members in by_hospital_stay.items():
        chains: list[list[Stay]] = []
        for stay in sorted(members, key=lambda stay: (stay.start, stay.end, int(stay.stay))):
            if chains and stay.start - max(other.end for other in chains[-1]) <= GAP:
                chains[-1].append(stay)
            else:
                chains.append([stay])
        found[name] = [Episode(tuple(chain)) for chain in chains]
    return found


def age_reason(age: str) -> str | None:
    """Why an age keeps someone out."""
    if not age:
        return "age unknown"
    return "under 18" if age != "> 89" and int(age) < 18 else None


def landmark_reason(episode: Episode, position: int) -> str | None:
    """Why an episode is not in the landmark cohort."""
    if position:
        return "not the first episode"
    return None if min(episode.end, episode.leaves_hospital) - episode.start > DAY else "left or died by 24 h"


def discharge_reason(episode: Episode, later: int) -> str | None:
    """Why an episode with `later` more after it is not in the unit-discharge cohort."""
    if episode.died_in_unit is not False:
        return "died in the unit" if episode.died_in_unit else "unit status unknown"
    stayed = later > 0 or episode.leaves_hospital - episode.end > GAP
    return None if stayed else "left the hospital within 60 min"


def labels(cohort: str, episode: Episode, later: int) -> dict[str, bool | None]:
    """The labels of an episode with `later` more episodes after it."""
    unit = episode.died_in_unit
    hospital: bool | None = True if unit else episode.died_in_hospital
    if episode.contradiction:
        unit = hospital = None
    if cohort == "unit_discharge":
        return {"readmission_icu": later > 0, "mortality_hospital": hospital}
    week = episode.start + 7 * DAY
    long = episode.end > week
    early_death = False if episode.leaves_hospital > week else hospital
    either = True if long else early_death
    return {"mortality_hospital": hospital, "mortality_unit": unit, "los_7d": long, "death_or_los_7d": either}


def draw(stays: list[Stay], cohort: str) -> Count:
    """A cohort with its exclusions and labels; nothing observed yet."""
    kept = [stay for stay in stays if stay.unit_type != "stepdown/other"]
    excluded = {"step-down unit stay": len(stays) - len(kept), "unusable unit stay": sum(map(unusable, kept))}
    excluded |= dict.fromkeys(("age unknown", "under 18"), 0)
    reasons = {
        "landmark": ("not the first episode", "left or died by 24 h"),
        "unit_discharge": ("died in the unit", "unit status unknown", "left the hospital within 60 min"),
    }
    excluded |= dict.fromkeys(reasons[cohort], 0)
    samples = []
    found = episodes(stays)
    for chain in found.values():
        for position, episode in enumerate(chain):
            later = len(chain) - position - 1
            reason = age_reason(episode.stays[0].age)
            if reason is None and cohort == "landmark":
                reason = landmark_reason(episode, position)
            elif reason is None:
                reason = discharge_reason(episode, later)
            if reason is not None:
                excluded[reason] += 1
                continue
            prediction = DAY if cohort == "landmark" else episode.end - episode.start
            samples.append(Sample(episode, prediction, labels(cohort, episode, later)))
    samples.sort(key=lambda sample: int(sample.episode.stays[0].stay))
    all_episodes = sum(map(len, found.values()))
    joined = len(kept) - excluded["unusable unit stay"] - all_episodes
    return Count({"patient": len(stays)}, joined, all_episodes, excluded, samples)


def known_at(source: Source, event: str, entry: str | None) -> float:
    """The offset from which a row was there to be seen; infinite where it has no event."""
    if not event:
        return math.inf
    return max(int(event), int(entry)) if entry else int(event) + source.lag


@dataclass(frozen=True)
class View:
    """A sample seen from one of its unit stays, on that stay's own clock."""

    sample: Sample
    opens: int
    prediction: int


def views(samples: list[Sample]) -> dict[str, list[View]]:
    """The samples that each unit stay serves."""
    found: dict[str, list[View]] = defaultdict(list)
    for sample in samples:
        for stay in sample.episode.stays:
            shift = stay.start - sample.episode.start
            if shift <= sample.prediction:
                found[stay.stay].append(View(sample, min(-stay.start - DAY, -shift), sample.prediction - shift))
    return found


def has_value(source: Source, values: list[str]) -> bool:
    """Whether a row says anything."""
    if source.table != "infusionDrug":
        return any(values)
    name, rate = values
    try:
        return bool(name) and (not rate or float(rate) > 0)
    except ValueError:  # a rate in words
        return bool(name)


def note_entries(root: Path) -> dict[tuple[str, str], float]:
    """When the first note about a minute of a unit stay was entered, by stay and offset."""
    source = next(source for source in SOURCES if source.table == "note")
    first: dict[tuple[str, str], float] = {}
    for stay, event, entry in read(root, "note", ("patientunitstayid", "noteoffset", "noteenteredoffset")):
        first[stay, event] = min(known_at(source, event, entry), first.get((stay, event), math.inf))
    return first


def observe(root: Path, source: Source, counts: dict[str, Count], notes: dict[tuple[str, str], float]) -> None:
    """Mark the samples that have a known row with a value in one table, and tally its rows."""
    served = {cohort: views(count.samples) for cohort, count in counts.items()}
    tallies = {cohort: {"rows": 0, "late": 0, "outside": 0} for cohort in counts}
    clock = (source.event,) if source.entry is None else (source.event, source.entry)
    total = 0
    for stay, event, *rest in read(root, source.table, ("patientunitstayid", *clock, *source.values)):
        total += 1
        entry, values = (None, rest) if source.entry is None else (rest[0], rest[1:])
        available = known_at(source, event, entry)
        if source.table == "physicalExam":
            available = min(available, notes.get((stay, event), math.inf))
        for cohort, stays in served.items():
            for view in stays.get(stay, ()):
                inside = source.any_time or (event != "" and int(event) >= view.opens)
                tallies[cohort]["rows"] += 1
                tallies[cohort]["late"] += available > view.prediction
                tallies[cohort]["outside"] += available <= view.prediction and not inside
                if inside and available <= view.prediction and has_value(source, values):
                    view.sample.observed.add(source.modality)
    for cohort, count in counts.items():
        count.rows[source.table] = total
        count.tallies[source.table] = tallies[cohort]


def count_cohorts(root: Path) -> dict[str, Count]:
    """Both cohorts of an eICU folder of `.csv.gz` files."""
    stays = unit_stays(root)
    counts = {cohort: draw(stays, cohort) for cohort in COHORTS}
    hospitals = sum(1 for _ in read(root, "hospital", ("hospitalid",)))
    for count in counts.values():
        count.rows["hospital"] = hospitals
    notes = note_entries(root)
    for source in SOURCES:
        observe(root, source, counts, notes)
    return counts
