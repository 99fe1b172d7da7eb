"""The two eICU cohorts, counted again from the raw files with csv and gzip alone.

Written from the text of the cohort definition, without the project's code, so that the extractor has something to
disagree with. Where that text is silent, a reading had to be chosen. They are:

Unit stays and episodes
 1. An ICU stay is any row of `patient` whose `unitstaytype` is not `stepdown/other` (`unittype` names an ICU on those
    rows too, so it can't tell). Step-down rows are dropped before chaining: an ICU stay that follows another within 60
    minutes of step-down care is the same episode.
 2. The clock of a hospital stay runs from hospital admission: a unit stay starts at −hospitaladmitoffset and ends
    unitdischargeoffset later. Stays are ordered by (start, end, patientunitstayid). `unitvisitnumber` is not used.
 3. Two stays are one episode when the next starts at most 60 minutes (60 included) after the latest end so far;
    overlaps have a negative gap. The episode ends at its latest end; its closing status is that of the stay which ends
    last (the later one in order on ties).
 4. Unit discharge before unit admission, or hospital discharge before hospital admission, makes a row unusable. A stay
    of zero minutes is legal. So is a unit admission before the hospital's (hospitaladmitoffset > 0) and a hospital
    discharge minutes before the unit's.
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
    before it, is leaving the hospital.

Labels (empty status is unknown)
 9. `mortality_hospital`: hospitaldischargestatus. `mortality_unit`: the episode's closing unitdischargestatus; later
    episodes don't count.
10. `los_7d`: the episode lasts strictly longer than 10080 minutes from its start (not from the prediction time); a
    death before that is negative. `death_or_los_7d`: closing status Expired, or `los_7d`; unknown only where the status
    is and `los_7d` is negative.
11. `readmission_icu`: any later ICU episode of the same hospital stay, at whatever distance. Never unknown.

What was known at the prediction time (available <= prediction time counts)
12. Rows of all unit stays of the episode count, on the episode's clock (offset + stay start − episode start); rows of
    other unit stays of the hospital stay (step-down before the ICU, earlier episodes) do not. There is no lower bound
    on an offset.
13. With event and entry column, the later one; entry empty: event + 60. Event column alone: event + 60 (vitals,
    infusion, treatment, diagnosis, physicalExam). `admitdxenteredoffset` is an entry time and needs no lag. A
    medication is known from the later of drugorderoffset and drugstartoffset. Whether an order is cancelled later is
    not known, so cancelled orders count.
14. Observed: a number in any measured column (vitals; `labresult` for labs; whatever its size), or a non-empty code:
    drughiclseqno or else drugname (medication, home drugs), drugname (infusion), the path string (the others).
    `structured` always is.
"""

from __future__ import annotations

import csv
import gzip
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

DAY = 1440
GAP = 60
LAG = 60
COHORTS = ("landmark", "unit_discharge")
TASKS = {
    "landmark": ("mortality_hospital", "mortality_unit", "los_7d", "death_or_los_7d"),
    "unit_discharge": ("readmission_icu", "mortality_hospital"),
}
APERIODIC = "noninvasivesystolic noninvasivediastolic noninvasivemean paop cardiacoutput cardiacinput svr svri pvr pvri"
PERIODIC = (
    "temperature sao2 heartrate respiration cvp etco2 systemicsystolic systemicdiastolic systemicmean "
    "pasystolic padiastolic pamean st1 st2 st3 icp"
)


@dataclass(frozen=True)
class Source:
    """A raw table, the modality it feeds, its clock, and the columns of which one must hold something."""

    table: str
    modality: str
    event: str
    entry: str | None  # None: event + lag
    values: tuple[str, ...]
    lag: int = LAG


SOURCES = (
    Source("vitalPeriodic", "vitals", "observationoffset", None, tuple(PERIODIC.split())),
    Source("vitalAperiodic", "vitals", "observationoffset", None, tuple(APERIODIC.split())),
    Source("lab", "labs", "labresultoffset", "labresultrevisedoffset", ("labresult",)),
    Source("medication", "medication", "drugstartoffset", "drugorderoffset", ("drughiclseqno", "drugname")),
    Source("infusionDrug", "infusion", "infusionoffset", None, ("drugname",)),
    Source("admissionDrug", "home_drugs", "drugoffset", "drugenteredoffset", ("drughiclseqno", "drugname")),
    Source("treatment", "treatment", "treatmentoffset", None, ("treatmentstring",)),
    Source("diagnosis", "diagnosis", "diagnosisoffset", None, ("diagnosisstring",)),
    Source("admissionDx", "diagnosis", "admitdxenteredoffset", None, ("admitdxpath",), lag=0),
    Source("pastHistory", "diagnosis", "pasthistoryoffset", "pasthistoryenteredoffset", ("pasthistorypath",)),
    Source("note", "notes", "noteoffset", "noteenteredoffset", ("notepath",)),
    Source("physicalExam", "notes", "physicalexamoffset", None, ("physicalexampath",)),
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
    def status(self) -> str:
        return [stay for stay in self.stays if stay.end == self.end][-1].status

    @property
    def leaves_hospital(self) -> int:
        return self.stays[0].leaves_hospital


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
    episodes: int
    excluded: dict[str, int]
    samples: list[Sample]

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
    columns = (
        "patientunitstayid patienthealthsystemstayid uniquepid age unitstaytype hospitaladmitoffset "
        "unitdischargeoffset hospitaldischargeoffset unitdischargestatus hospitaldischargestatus"
    )
    stays = []
    for stay, hospital_stay, person, age, kind, admit, unit_end, end, status, final in read(
        root, "patient", tuple(columns.split())
    ):
        start = -int(admit)
        times = (start, start + int(unit_end), start + int(end))
        stays.append(Stay(stay, hospital_stay, person, age, kind, *times, status, final))
    return stays


def unusable(stay: Stay) -> bool:
    """Whether a discharge stands before its admission."""
    return stay.end < stay.start or stay.leaves_hospital < 0


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
    if min(episode.end, episode.leaves_hospital) - episode.start > DAY:
        return None
    dead = episode.stays[0].hospital_status == "Expired" and episode.leaves_hospital - episode.start <= DAY
    return "died by 24 h" if dead or episode.status == "Expired" else "left by 24 h"


def discharge_reason(episode: Episode) -> str | None:
    """Why an episode is not in the unit-discharge cohort."""
    if episode.status != "Alive":
        return "died in the unit" if episode.status == "Expired" else "unit status unknown"
    return "left the hospital within 60 min" if episode.leaves_hospital - episode.end <= GAP else None


def expired(status: str) -> bool | None:
    """A death by a status column; None where it is empty."""
    return {"Expired": True, "Alive": False, "": None}[status]


def labels(cohort: str, episode: Episode, later: int) -> dict[str, bool | None]:
    """The labels of an episode with `later` more episodes after it."""
    hospital = expired(episode.stays[0].hospital_status)
    if cohort == "unit_discharge":
        return {"readmission_icu": later > 0, "mortality_hospital": hospital}
    unit = expired(episode.status)
    long = episode.end - episode.start > 7 * DAY
    either = True if long else unit
    return {"mortality_hospital": hospital, "mortality_unit": unit, "los_7d": long, "death_or_los_7d": either}


def draw(stays: list[Stay], cohort: str) -> Count:
    """A cohort with its exclusions and labels; nothing observed yet."""
    kept = [stay for stay in stays if stay.unit_type != "stepdown/other"]
    excluded = {"step-down unit stay": len(stays) - len(kept), "unusable unit stay": sum(map(unusable, kept))}
    excluded |= dict.fromkeys(("age unknown", "under 18"), 0)
    reasons = {
        "landmark": ("not the first episode", "died by 24 h", "left by 24 h"),
        "unit_discharge": ("died in the unit", "unit status unknown", "left the hospital within 60 min"),
    }
    excluded |= dict.fromkeys(reasons[cohort], 0)
    samples = []
    found = episodes(stays)
    for chain in found.values():
        for position, episode in enumerate(chain):
            reason = age_reason(episode.stays[0].age)
            if reason is None:
                reason = landmark_reason(episode, position) if cohort == "landmark" else discharge_reason(episode)
            if reason is not None:
                excluded[reason] += 1
                continue
            prediction = DAY if cohort == "landmark" else episode.end - episode.start
            samples.append(Sample(episode, prediction, labels(cohort, episode, len(chain) - position - 1)))
    samples.sort(key=lambda sample: int(sample.episode.stays[0].stay))
    return Count({"patient": len(stays)}, sum(map(len, found.values())), excluded, samples)


def known_at(event: str, entry: str | None, lag: int) -> int | None:
    """The offset at which a row was there to be seen; None where it has no time at all."""
    if not event:
        return int(entry) if entry else None
    return int(event) + lag if not entry else max(int(event), int(entry))


def observe(root: Path, source: Source, counts: dict[str, Count]) -> None:
    """Mark the samples that have a known, non-empty row of one table, and count its rows."""
    members: dict[str, list[tuple[Sample, int]]] = defaultdict(list)
    for count in counts.values():
        for sample in count.samples:
            for stay in sample.episode.stays:
                # the prediction time on this stay's own clock
                members[stay.stay].append((sample, sample.prediction - (stay.start - sample.episode.start)))
    clock = (source.event,) if source.entry is None else (source.event, source.entry)
    total = 0
    for name, *rest in read(root, source.table, ("patientunitstayid", *clock, *source.values)):
        total += 1
        if name not in members or not any(rest[len(clock) :]):
            continue
        available = known_at(rest[0], rest[1] if source.entry else None, source.lag)
        for sample, prediction in members[name]:
            if available is not None and available <= prediction:
                sample.observed.add(source.modality)
    for count in counts.values():
        count.rows[source.table] = total


def count_cohorts(root: Path) -> dict[str, Count]:
    """Both cohorts of an eICU folder of `.csv.gz` files."""
    stays = unit_stays(root)
    counts = {cohort: draw(stays, cohort) for cohort in COHORTS}
    hospitals = sum(1 for _ in read(root, "hospital", ("hospitalid",)))
    for count in counts.values():
        count.rows["hospital"] = hospitals
    for source in SOURCES:
        observe(root, source, counts)
    return counts
