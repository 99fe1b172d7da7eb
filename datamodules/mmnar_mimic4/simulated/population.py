"""The causal model that simulated MIMIC-IV patients are drawn from."""

from __future__ import annotations

from mmnar_lightning.simulation import CausalModel, Mechanism, MechanismKind, Outcome, View
from mmnar_mimic4.simulated import films, texts
from mmnar_mimic4.simulated.vocabulary import severity, vocabulary

PERSONS = 512  # drawn at once; another number is another extract
EPISODES = 2  # hospital episodes drawn for a person; the second isn't there for everyone
MODALITIES = ("structured", "labs", "vitals", "treatments", "cxr", "radiology", "discharge", "micro")
SPECIMENS = 4


def population(seed: int, mechanism: MechanismKind, strength: float) -> CausalModel:
    """Latent health of three axes (severity, chronic burden, frailty), eight modalities, and what follows.

    A unit of the model is a hospital episode. Both episodes of a person share his latent health. The outcomes are
    events that are independent of each other given the health; the labels are made of them by `course`:

    * ``icu``: the first episode has an ICU stay.
    * ``death``: he dies in hospital.
    * ``early_return``, ``late_return``: he comes back within 30 days, or (if not) within 90.
    * ``early_death``, ``late_death``: he dies within 30 days of leaving, or (if not) within 180.
    * ``icu_return``: when he comes back, he comes to an ICU.

    Args:
        seed: Decides about everything.
        mechanism: What availability depends on.
        strength: How much, in log odds per standard deviation.
    """
    lab, chart = severity("labs"), severity("charts")
    treatment = severity("drugs", "inputs", "procedures")
    views = (
        View("structured", 3, 1.5, 1.0, loadings=(0.6, 0.5, 0.1)),
        View("labs", len(lab), 3.0, 0.88, loadings=lab, direction=(1.0, 0.5, 0.2)),
        View("vitals", len(chart), 1.6, 0.9, loadings=chart, direction=(1.0, 0.2, 0.0)),
        View("treatments", len(treatment), 2.0, 0.88, loadings=treatment),
        View("cxr", films.WIDTH, 1.0, 0.65, direction=(1.0, 0.3, 0.3)),
        View("radiology", texts.WIDTH, 1.0, 0.6, direction=(0.8, 0.5, 0.0)),
        # who leaves in a hurry has his letter written late
        View("discharge", texts.WIDTH, 1.0, 0.8, direction=(0.3, 0.6, 1.0)),
        View("micro", SPECIMENS, 2.0, 0.35, direction=(0.8, 0.5, 0.0)),
    )
    outcomes = (
        Outcome("icu", 0.38, 0.8, (1.0, 0.2, 0.1)),
        Outcome("death", 0.11, 1.8, (1.0, 0.4, 0.3)),
        Outcome("early_return", 0.2, 1.2, (0.3, 1.0, 0.6)),
        Outcome("late_return", 0.15, 0.9, (0.2, 1.0, 0.5)),
        Outcome("early_death", 0.06, 1.6, (0.6, 0.5, 1.0)),
        Outcome("late_death", 0.08, 1.3, (0.2, 0.8, 1.0)),
        Outcome("icu_return", 0.35, 1.2, (1.0, 0.4, 0.0)),
    )
    assert tuple(view.name for view in views) == MODALITIES
    return CausalModel(views, outcomes, Mechanism(mechanism, strength), 3, "linear", seed, PERSONS * EPISODES)


def treatment_columns(name: str) -> slice:
    """Which of the values of ``treatments`` belong to the vocabulary ``drugs``, ``inputs`` or ``procedures``."""
    start = 0
    for other in ("drugs", "inputs", "procedures"):
        stop = start + len(vocabulary(other))
        if other == name:
            return slice(start, stop)
        start = stop
    raise ValueError(f"no vocabulary {name!r} of treatments")
