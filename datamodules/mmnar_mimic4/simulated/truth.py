"""What really was: health, availability, risks and outcomes of simulated patients, and who is in which cohort."""

from __future__ import annotations

import numpy as np
import polars as pl

from mmnar_mimic4.simulated.course import LAST_YEAR, Course, hide, when, year
from mmnar_mimic4.simulated.fates import ICU_TASKS, POST_TASKS
from mmnar_mimic4.simulated.timeline import NEVER, Bools, Ints


def truth(course: Course) -> pl.DataFrame:
    """One row an episode, in order of the patients and of time.

    Columns: ids and times; ``latent/<axis>``; ``value/<modality>/<k>``, what the rows of a modality express;
    ``propensity/<modality>``, P(drawn | health, values) if it can be collected at all; and for each cohort, null
    outside of it, ``prediction_time/<cohort>``, ``year_low/…`` and ``year_high/…`` (real years that are possible in its
    window), ``available/<cohort>/<modality>``, ``label/<cohort>/<task>`` (null where the extract does not tell) and
    ``risk/<cohort>/<task>``, P(label | health, when the first episode was).

    An episode is in ``post_discharge`` if it is the patient's first, he was an adult, left alive, and neither died nor
    came back within the grace. It is in ``icu_landmark`` if the patient's first ICU stay is in it, and he was an adult,
    and alive and in the ICU a day later.
    """
    s, fates = course.episodes, course.fates
    p, model = course.person, course.model
    first_icu = s.icu & ~(course.second & fates.first.icu[p])
    adult = ~course.minor[p]
    discharge = ~course.second & adult & ~s.death & ~fates.in_grace[p] & ~fates.at_once[p]
    landmark = first_icu & adult & s.in_unit
    day = fates.death_day[p]
    columns: dict[str, pl.Series] = {
        "subject_id": pl.Series(course.subject[p]),
        "hadm_id": pl.Series(course.first_hadm),
        "last_hadm_id": pl.Series(course.last_hadm),
        "stay_id": hide(course.stay, ~s.icu),
        "episode": pl.Series(course.second.astype(np.int64)),
        "window_start": when(s.start),
        "age": pl.Series(np.minimum(course.anchor_age[p] + year(s.admit) - course.anchor_year[p], 90)),
        "year": pl.Series(course.real_year),
        "death_day": hide((np.where(day < NEVER, day, 0)).astype("datetime64[D]"), day >= NEVER),
    }
    columns |= {f"latent/{axis}": pl.Series(course.latent[p, axis]) for axis in range(model.latent)}
    for name in model.names:
        columns |= {f"value/{name}/{k}": pl.Series(x) for k, x in enumerate(course.values[name].T)}
    columns |= {f"propensity/{name}": pl.Series(course.propensity[:, m]) for m, name in enumerate(model.names)}
    columns |= _cohort(course, "post_discharge", discharge, s.discharge_time, course.after_discharge)
    columns |= _cohort(course, "icu_landmark", landmark, s.landmark_time, course.at_landmark)
    columns |= _outcomes(course, discharge, landmark)
    return pl.DataFrame(columns)


def _latest_year(course: Course, time: Ints) -> Ints:
    """The latest real year that a moment may lie in, by what the tables tell, up to the release's last."""
    shown = 2010 + 3 * course.group[course.person] + year(np.where(time < NEVER, time, 0))
    return np.asarray(np.minimum(shown - course.anchor_year[course.person], LAST_YEAR[course.release]))


def _cohort(course: Course, name: str, there: Bools, time: Ints, available: dict[str, Bools]) -> dict[str, pl.Series]:
    p = course.person
    earliest = 2008 + 3 * course.group[p] + year(course.episodes.start) - course.anchor_year[p]
    return {
        f"cohort/{name}": pl.Series(there),
        f"prediction_time/{name}": when(time, there),
        f"year_low/{name}": hide(np.maximum(earliest, 2008), ~there),
        f"year_high/{name}": hide(_latest_year(course, time), ~there),
        **{f"available/{name}/{modality}": hide(has, ~there) for modality, has in available.items()},
    }


def _outcomes(course: Course, discharge: Bools, landmark: Bools) -> dict[str, pl.Series]:
    """Labels and risks of both cohorts. Where the follow-up may end in a sample, no label that needs it is known."""
    s, last = course.episodes, LAST_YEAR[course.release]
    p = course.person
    labels, risks = course.fates.labels()
    columns = {}
    known = _latest_year(course, s.discharge_time) < last
    for task in POST_TASKS:
        columns[f"label/post_discharge/{task}"] = hide(labels[task].gather(p), ~discharge | ~known)
        columns[f"risk/post_discharge/{task}"] = hide(risks[task].gather(p), ~discharge)
    first_labels, first_risks, labels, risks = course.fates.landmark_labels()
    known = _latest_year(course, s.landmark_time) < last
    for task in ICU_TASKS:
        hidden = ~landmark | (~known & (task != "mortality_hospital"))
        of = [np.where(course.second, b[task].to_numpy()[p], a[task].to_numpy()[p])
              for a, b in ((first_labels, labels), (first_risks, risks))]  # fmt: skip
        columns[f"label/icu_landmark/{task}"] = hide(of[0], hidden)
        columns[f"risk/icu_landmark/{task}"] = hide(of[1], ~landmark)
    return columns
