"""What is written and filmed: radiology reports, discharge summaries and chest films of a simulated extract."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from mmnar_lightning.simulation import Floats
from mmnar_mimic4.simulated import distractors, films, texts
from mmnar_mimic4.simulated.course import FILMED, LAST_NOTES, Course, Values, hide, standard, turns, when
from mmnar_mimic4.simulated.patients import Registry
from mmnar_mimic4.simulated.timeline import DAY, HOUR, MINUTE, Bools, Ints

_EXAMS = (("71045", "CHEST (PORTABLE AP)"), ("71046", "CHEST (PA AND LAT)"))
_FINDINGS = ("Cardiomegaly", "Pleural Effusion", "Pneumonia", "Edema", "Atelectasis", "Lung Opacity")
_VIEW_CODES = {"AP": "antero-posterior", "PA": "postero-anterior", "LATERAL": "lateral", "LL": "left lateral"}
_STUDIES = 16  # room for the studies of a person in the numbering of studies


def radiology(course: Course) -> Iterator[tuple[str, pl.DataFrame]]:
    """The tables ``radiology`` and ``radiology_detail``."""
    rng = course.generator("radiology")
    s = course.episodes
    there = np.flatnonzero(course.after_discharge["radiology"])
    days = (s.end - s.start)[there] / DAY
    row, turn = turns(1 + np.minimum(rng.poisson(0.2 * days), 4))
    e, base = there[row], course.base("radiology")[there][row]
    later = base + (np.maximum(s.end[e] - base, HOUR) * rng.random(len(e))).astype(np.int64)
    time = np.where(turn == 0, base + rng.integers(5, 61, len(e)) * MINUTE, later // MINUTE * MINUTE)
    time = np.maximum(time, base)
    stored = time + np.where(turn == 0, rng.integers(20, 90, len(e)), rng.integers(20, 900, len(e))) * MINUTE
    score = standard(course, "radiology")[e]
    parts = [(e, time, stored, score, rng.random(len(e)) < 0.01)]
    for moments in (
        distractors.before(course, rng, 0.08),
        distractors.after(course, rng, 0.12),
        distractors.pending(course, rng, 0.08, s.start + HOUR, s.end),
        distractors.dying(course, rng),
        distractors.pending_in_unit(course, rng, "radiology"),
    ):
        kept = np.flatnonzero(course.real_year[moments.e] <= LAST_NOTES)
        tells = np.repeat(moments.score(course)[kept, None], texts.WIDTH, axis=1)
        # theirs is always known: without one they would exist an hour after they happened
        parts.append((moments.e[kept], moments.time[kept], moments.stored[kept], tells, np.zeros(len(kept), bool)))
    e, time, stored, score, unknown = (np.concatenate(column) for column in zip(*parts, strict=True))
    # in the order of patients and time, as their numbers are
    order = np.lexsort((stored, time, course.person[e]))
    e, time, stored, score, unknown = e[order], time[order], stored[order], score[order], unknown[order]
    filed = np.where(rng.random(len(e)) < 0.25, 0, course.admission(e, time))
    note, frame = _note_rows(course, rng, "RR", e, filed, when(time), when(stored, ~unknown))
    said = texts.radiology(score, rng)
    yield "note/radiology", course.table("note/radiology", e, frame | {"text": said})
    portable = (rng.random(len(e)) < 0.5).astype(np.int64)
    row, turn = turns(np.full(len(e), 2))
    detail: dict[str, Values] = {
        "note_id": note.gather(row),
        "field_name": np.array(["exam_code", "exam_name"])[turn],
        "field_value": np.array(_EXAMS)[portable[row], turn],
        "field_ordinal": 1,
    }
    yield "note/radiology_detail", course.table("note/radiology_detail", e[row], detail)


def _note_rows(
    course: Course, rng: np.random.Generator, kind: str, e: Ints, filed: Ints, charted: pl.Series, stored: pl.Series
) -> tuple[pl.Series, dict[str, Values]]:
    """Ids and columns of notes that are sorted by patient."""
    p = course.person[e]
    # numbers have gaps: other notes of the patient are of no chest
    seq = 2 + 2 * (np.arange(len(e)) - np.searchsorted(p, p)) + rng.integers(0, 2, len(e))
    note = pl.select(pl.format(f"{{}}-{kind}-{{}}", pl.Series(course.subject[p]), pl.Series(seq))).to_series()
    given: dict[str, Values] = {
        "note_id": note,
        "hadm_id": filed,
        "note_type": kind,
        "note_seq": seq,
        "charttime": charted,
        "storetime": stored,
    }
    return note, given


def summaries(course: Course, registry: Registry) -> Iterator[tuple[str, pl.DataFrame]]:
    """The tables ``discharge`` and ``discharge_detail``.

    Those that make the modality observed are stored within the grace; half of the others are stored days after it. A
    charttime is the midnight before the discharge.
    """
    rng = course.generator("discharge")
    s = course.episodes
    n = len(s)
    written = course.after_discharge["discharge"] | (course.collected["discharge"] & (rng.random(n) < 0.5))
    e = np.concatenate([np.flatnonzero(written), np.flatnonzero(written & s.chained)])
    earlier = np.arange(len(e)) >= int(written.sum())  # of the first of two admissions
    e, earlier = e[(order := np.lexsort((~earlier, e)))], earlier[order]
    ends = np.where(earlier, s.left[e], s.end[e])
    in_time = course.after_discharge["discharge"][e]
    soon = np.minimum(ends + rng.integers(HOUR, 20 * HOUR, len(e)), s.discharge_time[e] - MINUTE)
    # some of them at the last minute, or a minute too late
    odd = rng.random(len(e))
    soon = np.where(odd < 0.03, s.discharge_time[e], soon)
    late = s.discharge_time[e] + np.where(odd < 0.1, MINUTE, rng.integers(HOUR, 10 * DAY, len(e)))
    stored = np.where(in_time, soon, late) // MINUTE * MINUTE
    # without a storetime it exists from the end of the day on, which is in time
    known = ~in_time | (rng.random(len(e)) > 0.02)
    filed = np.where(earlier, course.first_hadm[e], course.last_hadm[e])
    note, frame = _note_rows(course, rng, "DS", e, filed, when(ends // DAY * DAY), when(stored, known))
    score = standard(course, "discharge")[e]
    # what is written too late knows what became of the patient
    p = course.person[e]
    bad = (course.fates.early_return | course.fates.early_death)[p] & ~course.second[e]
    score = np.where(in_time[:, None], score, np.where(bad, distractors.WORST, -distractors.WORST)[:, None])
    said = texts.discharge(score, registry.facts()[e], rng)
    yield "note/discharge", course.table("note/discharge", e, frame | {"text": said})
    detail: dict[str, Values] = {
        "note_id": note,
        "field_name": "author",
        "field_value": "___",
        "field_ordinal": 1,
    }
    yield "note/discharge_detail", course.table("note/discharge_detail", e, detail)


@dataclass(frozen=True)
class Films:
    """Chest films of one chunk; all [n].

    Args:
        e: Row of the episode, by person ascending.
        time: When it was taken.
        study: Number of the study among those of the person.
        view: ``PA``, ``AP``, ``LATERAL`` or ``LL``.
        score: What it shows, [n, WIDTH].
        dicom: ``dicom_id``.
        study_id: Ids of the studies, in no order of time.
    """

    e: Ints
    time: Ints
    study: Ints
    view: np.ndarray[tuple[int], np.dtype[np.str_]]
    score: Floats
    dicom: list[str]
    study_id: Ints

    @property
    def frontal(self) -> Bools:
        """Whether it was taken from the front or the back."""
        return np.isin(self.view, ["PA", "AP"])


def taken(course: Course) -> Films:
    """Draw the films.

    Patients who have none from the front in a window may have lateral ones in it, and any before and after it.
    """
    rng = course.generator("films")
    s = course.episodes
    there = np.flatnonzero(course.after_discharge["cxr"])
    row, turn = turns(1 + np.minimum(rng.poisson(0.25 * (s.end - s.start)[there] / DAY), 3))
    e, base = there[row], course.base("cxr")[there][row]
    later = base + (np.maximum(s.end[e] - base, HOUR) * rng.random(len(e))).astype(np.int64)
    time = np.where(turn == 0, base + rng.integers(5, 61, len(e)) * MINUTE, np.maximum(later, base)) // MINUTE * MINUTE
    parts = [(e, time + rng.integers(0, 60, len(e)), standard(course, "cxr")[e], np.ones(len(e), bool))]
    # within the hour before the landmark: not known at it
    e = np.flatnonzero(course.late["cxr"] & course.after_discharge["cxr"])
    parts.append((e, s.landmark_time[e] - 25 * MINUTE, standard(course, "cxr")[e], np.ones(len(e), bool)))
    only = np.flatnonzero(course.collected["cxr"] & ~course.after_discharge["cxr"] & (rng.random(len(s)) < 0.2))
    parts.append((only, s.start[only] + 2 * HOUR, standard(course, "cxr")[only], np.zeros(len(only), bool)))
    for moments in (
        distractors.before(course, rng, 0.1),
        distractors.after(course, rng, 0.2),
        distractors.dying(course, rng),
    ):
        year = course.real_year[moments.e]
        kept = np.flatnonzero(course.collected["cxr"][moments.e] & (year > FILMED[0]) & (year < FILMED[1]))
        tells = np.repeat(moments.score(course)[kept, None], films.WIDTH, axis=1)
        parts.append((moments.e[kept], moments.time[kept], tells, np.ones(len(kept), bool)))
    e, time, score, front = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((time, course.person[e]))
    e, time, score, front = e[order], time[order], score[order], front[order]
    view = np.where(front, rng.choice(["PA", "AP"], len(e)), rng.choice(["LATERAL", "LL"], len(e)))
    study = np.arange(len(e)) - np.searchsorted(course.person[e], course.person[e])
    # two views of one study
    both = np.flatnonzero(view == "PA")
    index = np.sort(np.concatenate([np.arange(len(e)), both]), kind="stable")
    second = np.append(False, index[1:] == index[:-1])
    e, time, score, study = e[index], time[index] + 40 * second, score[index], study[index]
    view = np.where(second, "LATERAL", view[index])
    whole = course.number * len(course.subject) + course.person[e]
    slots = rng.permuted(np.tile(np.arange(_STUDIES), (len(course.subject), 1)), axis=1)
    if len(study) and study.max() >= _STUDIES:
        raise ValueError(f"a person has {study.max() + 1} studies; numbers are kept for {_STUDIES}")
    number = 50_000_000 + whole * _STUDIES + slots[course.person[e], study]
    words = rng.integers(0, 1 << 32, (len(e), 5), dtype=np.uint64)
    dicom = ["-".join(f"{int(word):08x}" for word in line) for line in words]
    return Films(e, time, study, view, score, dicom, number)


def film_tables(course: Course, f: Films) -> Iterator[tuple[str, pl.DataFrame]]:
    """The tables of metadata, of the split and of the findings."""
    rng = course.generator("metadata")
    n = len(f.e)
    at, fraction = f.time % DAY, rng.integers(0, 1000, n)
    clock = at // HOUR * 10_000 + at % HOUR // MINUTE * 100 + at % MINUTE
    # read as a number and written as one, times before ten have lost their leading zeros
    text = pl.select(pl.format("{}.{}", pl.Series(clock), pl.Series(fraction).cast(pl.String).str.zfill(3))).to_series()
    side = np.where(
        f.view == "PA", "CHEST (PA AND LAT)", np.where(f.view == "AP", "CHEST (PORTABLE AP)", "CHEST (PA AND LAT)")
    )
    codes = [_VIEW_CODES[view] for view in f.view.tolist()]
    metadata: dict[str, Values] = {
        "dicom_id": f.dicom,
        "study_id": f.study_id,
        "PerformedProcedureStepDescription": side,
        # of one in 25 only the code tells the view
        "ViewPosition": hide(f.view, rng.random(n) < 0.04),
        "Rows": np.where(f.frontal, 3056, 2544),
        "Columns": np.where(f.frontal, 2544, 3056),
        "StudyDate": when(f.time).dt.to_string("%Y%m%d"),
        "StudyTime": text,
        "ProcedureCodeSequence_CodeMeaning": side,
        "ViewCodeSequence_CodeMeaning": codes,
        "PatientOrientationCodeSequence_CodeMeaning": hide(np.full(n, "Erect"), rng.random(n) < 0.3),
    }
    yield "cxr/mimic-cxr-2.0.0-metadata", course.table("cxr/mimic-cxr-2.0.0-metadata", f.e, metadata)
    part = np.select([course.subject % 100 == 0, course.subject % 100 == 1], ["test", "validate"], "train")
    split: dict[str, Values] = {"dicom_id": f.dicom, "study_id": f.study_id, "split": part[course.person[f.e]]}
    yield "cxr/mimic-cxr-2.0.0-split", course.table("cxr/mimic-cxr-2.0.0-split", f.e, split)
    first = np.flatnonzero(np.append(True, f.study_id[1:] != f.study_id[:-1])) if n else np.zeros(0, int)
    m = len(first)
    shows = f.score[first][:, np.arange(len(_FINDINGS)) % films.WIDTH] > 0.8
    found: dict[str, Values] = {"study_id": f.study_id[first]}
    for k, finding in enumerate(_FINDINGS):
        said = np.where(shows[:, k], np.where(rng.random(m) < 0.85, "1.0", "-1.0"), "0.0")
        found[finding] = hide(said, ~shows[:, k] & (rng.random(m) < 0.7))
    found["No Finding"] = hide(np.full(m, "1.0"), shows.any(axis=1))
    yield "cxr/mimic-cxr-2.0.0-chexpert", course.table("cxr/mimic-cxr-2.0.0-chexpert", f.e[first], found)


def film_files(course: Course, f: Films, form: str, size: int, keep: Bools) -> Iterator[tuple[str, bytes | Floats]]:
    """Path below ``cxr`` of every film to keep, and its JPEG or (``embeddings``) its numbers."""
    rng = course.generator("pixels")
    subject = course.subject[course.person[f.e]]
    front, side = np.flatnonzero(f.frontal), np.flatnonzero(~f.frontal)
    made: dict[int, bytes | Floats] = {}
    if form == "jpg":
        made |= dict(zip(front.tolist(), films.render(f.score[front], rng, size), strict=True))
        made |= dict(zip(side.tolist(), films.lateral(rng, len(side), size), strict=True))
    else:
        made |= dict(enumerate(np.asarray(films.embed(np.where(f.frontal[:, None], f.score, 0.0), rng))))
    ending = "jpg" if form == "jpg" else "tfrecord"
    for k in np.flatnonzero(keep).tolist():
        patient = f"p{subject[k]}"
        yield f"files/{patient[:3]}/{patient}/s{f.study_id[k]}/{f.dicom[k]}.{ending}", made[k]
