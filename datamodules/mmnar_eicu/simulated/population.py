"""The causal model that simulated eICU patients are drawn from."""

from __future__ import annotations

import numpy as np

from mmnar_eicu.simulated.vocabulary import labs, terms
from mmnar_lightning.simulation import CausalModel, Mechanism, MechanismKind, Outcome, View

PERSONS = 256  # drawn at once; another number is another extract
ADMISSIONS = 2  # hospital stays drawn for a person; the second exists for one in eight
VITALS = ("heartrate", "sao2", "respiration", "temperature", "systolic", "diastolic", "cvp")
_VITAL_SEVERITY = (0.7, -0.5, 0.6, 0.1, -0.6, -0.5, 0.3)
RESPIRATORY = ("FiO2", "PEEP", "RR (patient)", "Tidal Volume (set)", "Mean Airway Pressure", "LPM O2")
_RESPIRATORY_SEVERITY = (0.9, 0.6, 0.5, -0.1, 0.6, 0.3)


def _severity(*tables: str) -> tuple[float, ...]:
    return tuple(float(w) for table in tables for w in terms(table).severity)


def population(seed: int, mechanism: MechanismKind, strength: float) -> CausalModel:
    """Latent health of three axes (severity, chronic burden, frailty), eleven modalities and three outcomes.

    A unit of the model is a hospital stay. The shares observed are about those of eICU, table by table, with ``labs``,
    ``vitals`` and ``notes`` missing somewhat more often than there, so that every pattern has patients.

    Args:
        seed: Decides about everything.
        mechanism: What availability depends on.
        strength: How much, in log odds per standard deviation.
    """
    lab = tuple(float(w) for w in labs().severity)
    diagnosis, notes = _severity("diagnosis", "admissionDx", "pastHistory"), _severity("note", "physicalExam")
    views = (
        View("structured", 3, 1.5, 1.0, loadings=(0.6, 0.5, 0.0)),
        View("vitals", len(VITALS), 1.6, 0.93, loadings=_VITAL_SEVERITY, direction=(1.0, 0.2, 0.0)),
        View("labs", len(lab), 3.0, 0.88, loadings=lab, direction=(1.0, 0.5, 0.2)),
        View("medication", len(terms("medication")), 2.0, 0.72, loadings=_severity("medication")),
        View("infusion", len(terms("infusionDrug")), 1.5, 0.33, _severity("infusionDrug"), (1.0, 0.0, 0.2)),
        # who is too ill to say what he takes at home isn't asked
        View("home_drugs", len(terms("admissionDrug")), 1.5, 0.25, _severity("admissionDrug"), (-0.8, 0.6, 0.0)),
        View("treatment", len(terms("treatment")), 2.0, 0.85, loadings=_severity("treatment")),
        View("diagnosis", len(diagnosis), 2.5, 0.9, loadings=diagnosis, direction=(0.5, 1.0, 0.0)),
        View("notes", len(notes), 2.5, 0.85, loadings=notes, direction=(-0.4, 0.3, 1.0)),
        View("respiratory", len(RESPIRATORY), 1.5, 0.5, _RESPIRATORY_SEVERITY, (1.0, 0.3, 0.0)),
        View("micro", 4, 2.0, 0.08, direction=(0.8, 0.5, 0.0)),
    )
    outcomes = (
        Outcome("death", 0.1, 1.9, (1.0, 0.4, 0.3)),
        Outcome("long_stay", 0.13, 1.3, (0.6, 0.9, 0.0)),
        Outcome("readmission", 0.09, 1.1, (0.3, 0.5, 1.0)),
    )
    return CausalModel(views, outcomes, Mechanism(mechanism, strength), 3, "linear", seed, PERSONS * ADMISSIONS)


def persons(index: np.ndarray[tuple[int], np.dtype[np.int64]]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Number of the person each hospital stay belongs to, [n], from the numbers of the stays, [n]."""
    return index // ADMISSIONS
