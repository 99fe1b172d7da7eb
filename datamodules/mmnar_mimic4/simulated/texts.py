"""Radiology reports and discharge summaries whose wording carries numbers.

A number is said two to four times in a text, each time in one of eleven grades, by one of several phrases for that
grade, in one of several sentences. The grades of the mentions are shifted against each other, so that together they
tell more than one alone. Everything else in a text is drawn independently of the numbers. The words stand in
``phrases.csv`` (graded) and ``sentences.csv`` (what is put around them, and what carries nothing).
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmnar_lightning.simulation import Floats

RADIOLOGY = ("heart", "effusion", "consolidation", "edema")
DISCHARGE = ("fluid", "kidneys", "breathing", "strength")
WIDTH = 4
GRADES = 11
STEP = 0.45  # standard deviations a grade

Ints = NDArray[np.int64]
Words = NDArray[np.object_]

_REPORT = """EXAMINATION:  {examination}

INDICATION:  {indication}

TECHNIQUE:  {technique}

COMPARISON:  {comparison}

FINDINGS: 

{findings}

IMPRESSION: 

{impression}
"""  # noqa: W291 (the real reports have the blank, too)
_SUMMARY = """ 
Name:  ___                     Unit No:   ___
 
Admission Date:  ___              Discharge Date:   ___
 
Date of Birth:  ___             Sex:   {sex}
 
Service: {service}
 
Allergies: 
{allergy}
 
Attending: ___.
 
Chief Complaint:
{complaint}
 
Major Surgical or Invasive Procedure:
{procedure}

 
History of Present Illness:
{title} ___ is a {age} year old {person} {opening} {presenting}.
{hpi}
 
Past Medical History:
{history}
 
Social History:
___
Family History:
{family}
 
Physical Exam:
ON ARRIVAL:
VS: ___
{physical}
 
Pertinent Results:
{results}
 
Brief Hospital Course:
{course}

STATUS ON LEAVING:
{status}

TRANSITIONAL ISSUES:
{transition}
 
Medications on Admission:
The Preadmission Medication list is accurate and complete.
{before}
 
Discharge Medications:
{after}
 
Discharge Disposition:
{disposition}
 
Facility:
___
 
Discharge Diagnosis:
{diagnosis}
 
Discharge Condition:
Mental Status: Clear and coherent.
Level of Consciousness: Alert and interactive.
{condition}
 
Discharge Instructions:
Dear {title} ___,

It was a pleasure taking care of you at ___.
{instructions}
We wish you all the best.

Sincerely,
Your ___ Team
 
Followup Instructions:
___
"""  # noqa: W291, W293 (the real summaries have the blanks, too)
_ADDRESS = {"F": ("Ms.", "woman"), "M": ("Mr.", "man")}
_DISPOSITIONS = np.array(["Home"] * 4 + ["Home With Service"] * 3 + ["Extended Care"] * 4, dtype=object)
_LENGTH = (np.log(680.0), 0.38, 340.0, 1420.0)  # words of a summary: log-normal, cut
_FIXED = 375  # words of a summary without anything that is drawn to fill it
_OLDEST = 89  # older ages are never written
# words of each filled part beyond the fixed ones: share of them, words of one unit, fewest and most units
_FILLING = {
    "hpi": (0.22, 11.5, 0, 25),
    "history": (0.09, 3.8, 1, 32),
    "results": (0.08, 8.0, 0, 12),
    "course": (0.37, 10.6, 0, 34),
    "drug": (0.16, 14.0, 1, 30),
    "instructions": (0.08, 11.1, 0, 12),
}


def radiology(values: Floats, generator: np.random.Generator) -> list[str]:
    """Reports of chest films, 60 to 200 words each.

    Args:
        values: One number a finding in the order of ``RADIOLOGY``, about standard normal, greater is sicker, [n, 4].
        generator: Source of all chance; the same state gives the same texts.

    Raises:
        ValueError: If the values are not finite numbers of that shape.
    """
    n = _checked(values)
    text, every = "radiology", range(WIDTH)
    said = np.stack([_mention(text, "findings", k, values[:, k], 0.25, generator) for k in every], axis=1)
    short = np.stack([_mention(text, "impression", k, values[:, k], -0.25, generator) for k in every], axis=1)
    found = _mixed(_pool(text, "irrelevant"), generator.integers(2, 8, n), said, generator)
    concluded = _mixed(np.empty(0, dtype=object), np.zeros(n, dtype=np.int64), short, generator)
    # every other impression ends with a sentence that carries nothing
    closing = np.where(generator.random(n) < 0.5, _one(text, "closing", n, generator), "").tolist()
    columns: dict[str, list[str]] = {
        part: _one(text, part, n, generator).tolist()
        for part in ("examination", "indication", "technique", "comparison")
    }
    columns["findings"] = [" ".join(row) for row in found]
    columns["impression"] = [
        _numbered([*row, last] if last else row) for row, last in zip(concluded, closing, strict=True)
    ]
    return _filled(_REPORT, columns)


def discharge(values: Floats, facts: pl.DataFrame, generator: np.random.Generator) -> list[str]:
    """Discharge summaries, 300 to 1,500 words each.

    Each number is said in the hospital course, the status on leaving and twice elsewhere: ``fluid`` in the history of
    the present illness and the last examination, ``kidneys`` in the results and the transitional issues, ``breathing``
    in the last examination and the instructions, ``strength`` in the condition and the instructions. ``strength``
    decides about the disposition, too. No text says what became of the patient.

    Args:
        values: One number a finding in the order of ``DISCHARGE``, about standard normal, greater is sicker, [n, 4].
        facts: ``age`` Int64, ``sex`` String (F, M) and ``service`` String (a code of hosp/services), n rows. Unknown is
            null; an age over 89 is not written.
        generator: Source of all chance; the same state gives the same texts.

    Raises:
        ValueError: If the values are not finite numbers of that shape, or a column or rows of the facts are missing.
    """
    n = _checked(values)
    missing = [name for name in ("age", "sex", "service") if name not in facts.columns]
    if missing or facts.height != n:
        raise ValueError(f"facts: {facts.height} rows for {n} values, missing columns {missing}")
    extra = np.clip(np.exp(generator.normal(*_LENGTH[:2], n)), *_LENGTH[2:]) - _FIXED
    counts = {
        part: np.clip(np.rint(extra * share / words), low, high).astype(np.int64)
        for part, (share, words, low, high) in _FILLING.items()
    }
    columns: dict[str, list[str]] = _facts(facts, generator)
    for part in ("allergy", "complaint", "procedure", "opening", "family", "diagnosis"):
        columns[part] = _one("discharge", part, n, generator).tolist()
    columns["presenting"] = [text[0].lower() + text[1:] for text in columns["complaint"]]
    columns |= _carrying(values, counts, generator)
    nothing = np.empty((n, 0), dtype=object)
    history = _mixed(_pool("discharge", "history"), counts["history"], nothing, generator)
    columns["history"] = ["\n".join(f"- {line}" for line in row) for row in history]
    new = generator.integers(1, 4, n)
    drugs = _mixed(_pool("discharge", "drug"), counts["drug"] + new, nothing, generator)
    columns["before"] = [_numbered(row[: len(row) - k]) for row, k in zip(drugs, new.tolist(), strict=True)]
    columns["after"] = [_numbered(row) for row in drugs]
    return _filled(_SUMMARY, columns)


def grades(values: Floats, shift: float = 0.0) -> Ints:
    """Grade 0 … 10 of each value; 5 is the middle.

    Args:
        values: About standard normal, any shape.
        shift: Of the borders between grades, in grades.
    """
    return np.clip(np.floor(values / STEP + GRADES / 2 + shift), 0, GRADES - 1).astype(np.int64)


def _carrying(values: Floats, counts: dict[str, Ints], rng: np.random.Generator) -> dict[str, list[str]]:
    """The parts of a summary that say something of the values."""
    fluid, kidneys, breathing, strength = values.T

    def mention(part: str, which: int, value: Floats, shift: float) -> Words:
        return _mention("discharge", part, which, value, shift, rng)

    def mixed(part: str, said: list[Words]) -> list[str]:
        rows = _mixed(_pool("discharge", part), counts[part], np.stack(said, axis=1), rng)
        return ["\n".join(row) for row in rows]

    n = len(values)
    some = rng.integers(3, 6, n)
    nothing = np.empty((n, 0), dtype=object)
    physical = _mixed(_pool("discharge", "physical"), some, nothing, rng)
    leaving = _mixed(
        _pool("discharge", "physical"),
        np.ones(n, dtype=np.int64),
        np.stack([mention("exam", 0, fluid, 1 / 3), mention("exam", 2, breathing, 1 / 3)], axis=1),
        rng,
    )
    panels = rng.choice(_panels(), (n, _FILLING["results"][3]))
    results = [[*row[:k]] for row, k in zip(panels.tolist(), counts["results"].tolist(), strict=True)]
    comment = mention("results", 1, kidneys, 1 / 3)
    issues = _mixed(
        _pool("discharge", "transition"),
        rng.integers(0, 4, n),
        mention("transition", 1, kidneys, -1 / 3)[:, None],
        rng,
    )
    said = [mention("course", k, values[:, k], 0.0) for k in range(WIDTH)]
    status = [mention("status", k, values[:, k], -1 / 6) for k in range(WIDTH)]
    parting = [mention("instructions", 2, breathing, -1 / 3), mention("instructions", 3, strength, -1 / 3)]
    return {
        "hpi": mixed("hpi", [mention("hpi", 0, fluid, -1 / 3)]),
        "physical": [
            "\n".join([*first, "", "ON LEAVING:", "VS: ___", *last])
            for first, last in zip(physical, leaving, strict=True)
        ],
        "results": ["\n".join([*row, said]) for row, said in zip(results, comment, strict=True)],
        "course": mixed("course", said),
        "transition": ["\n".join(row) for row in issues],
        "status": ["\n".join(row) for row in zip(*status, strict=True)],
        "condition": mention("condition", 3, strength, 1 / 3).tolist(),
        "disposition": _DISPOSITIONS[grades(strength)].tolist(),
        "instructions": mixed("instructions", parting),
    }


def _facts(facts: pl.DataFrame, rng: np.random.Generator) -> dict[str, list[str]]:
    """What is known of the patient. Two in three ages are blanked, as de-identification does."""
    sexes = facts["sex"].to_list()
    blanked = rng.random(facts.height) < 2 / 3
    address = [_ADDRESS.get(sex, ("___", "patient")) for sex in sexes]
    services = dict(zip(_rows("discharge", "service")["of"], _pool("discharge", "service"), strict=True))
    return {
        "sex": [sex or "___" for sex in sexes],
        "title": [title for title, _ in address],
        "person": [person for _, person in address],
        "age": [
            "___" if blank or age is None or age > _OLDEST else str(age)
            for age, blank in zip(facts["age"].to_list(), blanked.tolist(), strict=True)
        ],
        "service": [services.get(code, code or "___") for code in facts["service"].to_list()],
    }


def _checked(values: Floats) -> int:
    if values.ndim != 2 or values.shape[1] != WIDTH or not np.isfinite(values).all():
        raise ValueError(f"values of shape {values.shape}: finite numbers [n, {WIDTH}] are needed")
    return len(values)


def _mention(text: str, part: str, which: int, value: Floats, shift: float, rng: np.random.Generator) -> Words:
    """A sentence about each value, [n]."""
    table = _sayings(text, part, (RADIOLOGY if text == "radiology" else DISCHARGE)[which])
    return table[grades(value, shift), rng.integers(0, table.shape[1], len(value))]


def _one(text: str, part: str, n: int, rng: np.random.Generator) -> Words:
    """One sentence of the part for each of n texts, [n]."""
    pool = _pool(text, part)
    return pool[rng.integers(0, len(pool), n)]


def _mixed(pool: Words, counts: Ints, said: Words, rng: np.random.Generator) -> list[list[str]]:
    """For each text so many different sentences of the pool and all that is to be said, in random order.

    Args:
        pool: Sentences that carry nothing, [S].
        counts: How many of them, [n], at most S.
        said: Sentences that must stand there, [n, K].
        rng: Source of chance.
    """
    n, size = len(said), len(pool)
    keys = rng.random((n, size + said.shape[1]))
    bounded = np.concatenate([np.sort(keys[:, :size], axis=1), np.ones((n, 1))], axis=1)
    counts = np.minimum(counts, size)
    left_out = keys[:, :size] >= np.take_along_axis(bounded, counts[:, None], axis=1)
    keys[:, :size][left_out] = 2.0
    every = np.concatenate([np.broadcast_to(pool, (n, size)), said], axis=1)
    ordered: list[list[str]] = np.take_along_axis(every, np.argsort(keys, axis=1), axis=1).tolist()
    return [row[:k] for row, k in zip(ordered, (counts + said.shape[1]).tolist(), strict=True)]


def _numbered(lines: list[str]) -> str:
    return "\n".join(f"{k}. {line} " for k, line in enumerate(lines, start=1))


def _filled(template: str, columns: dict[str, list[str]]) -> list[str]:
    names = list(columns)
    rows = zip(*columns.values(), strict=True)
    return [template.format_map(dict(zip(names, row, strict=True))) for row in rows]


@cache
def _sayings(text: str, part: str, finding: str) -> Words:
    """Every sentence for each grade of a finding, [GRADES, variants].

    Raises:
        ValueError: If there is a grade without a phrase, or no sentence.
    """
    frames = _rows(text, part).filter(pl.col("of") == finding)["sentence"].to_list()
    phrases = _read("phrases.csv").filter(pl.col("text") == text, pl.col("finding") == finding)
    table = []
    for grade in range(1, GRADES + 1):
        words = phrases.filter(pl.col("grade") == str(grade))["phrase"].to_list()
        table.append([_sentence(frame, phrase) for frame in frames for phrase in words])
    if not table[0] or len({len(row) for row in table}) > 1:
        raise ValueError(f"phrases.csv, sentences.csv: {finding!r} in {part!r} needs as many words for every grade")
    return np.array(table, dtype=object)


def _sentence(frame: str, phrase: str) -> str:
    said = frame.format(phrase)
    return said[0].upper() + said[1:]


@cache
def _pool(text: str, part: str) -> Words:
    """Sentences of a part that carry nothing, [S]."""
    rows = _rows(text, part).filter(~pl.col("sentence").str.contains("{}", literal=True))
    return np.array(rows["sentence"].to_list(), dtype=object)


@cache
def _panels(each: int = 150) -> Words:
    """Lines of laboratory results, [P]. Numbers are drawn once, evenly within the bounds that the words name."""
    rng = np.random.Generator(np.random.Philox(7))

    def number(match: re.Match[str]) -> str:
        low, high = match.groups()
        decimals = len(low.partition(".")[2])
        return f"{rng.uniform(float(low), float(high)):.{decimals}f}"

    return np.array(
        [re.sub(r"\{([\d.]+):([\d.]+)\}", number, line) for line in _pool("discharge", "panel") for _ in range(each)],
        dtype=object,
    )


@cache
def _rows(text: str, part: str) -> pl.DataFrame:
    rows = _read("sentences.csv").filter(pl.col("text") == text, pl.col("part") == part)
    if rows.is_empty():
        raise ValueError(f"sentences.csv has no sentences for {part!r} of {text!r}")
    return rows


@cache
def _read(name: str) -> pl.DataFrame:
    return pl.read_csv(files(__package__).joinpath(name).read_bytes(), infer_schema=False)
