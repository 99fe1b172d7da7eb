"""The causal model that simulated MEDS subjects are drawn from, and the codes that its numbers are written under."""

from __future__ import annotations

from dataclasses import dataclass

from mmnar_lightning.simulation import CausalModel, Mechanism, MechanismKind, Outcome, View

PERSONS = 512  # drawn at once, and a shard of each split; another number is another dataset
LATENT = 3


@dataclass(frozen=True)
class Measured:
    """A numeric code.

    Args:
        code: As written.
        mean: Of its values.
        deviation: Standard deviation of its values between people.
        severity: Weight of the first latent axis.
    """

    code: str
    mean: float
    deviation: float
    severity: float


LABS = (
    Measured("LAB//50912//mg/dL", 1.4, 0.5, 0.6),
    Measured("LAB//50983//mEq/L", 139.0, 4.5, -0.2),
    Measured("LAB//50971//mEq/L", 4.2, 0.5, 0.3),
    Measured("LAB//50813//mmol/L", 2.2, 0.8, 0.9),
    Measured("LAB//50862//g/dL", 3.4, 0.5, -0.6),
    Measured("LAB//51222//g/dL", 11.2, 1.8, -0.4),
    Measured("LAB//51301//K/uL", 11.0, 3.5, 0.5),
    Measured("LAB//51265//K/uL", 210.0, 60.0, -0.4),
    Measured("LAB//50885//mg/dL", 1.1, 0.4, 0.5),
    Measured("LAB//51006//mg/dL", 26.0, 9.0, 0.6),
)
VITALS = (
    Measured("VITAL//HEART_RATE//bpm", 88.0, 14.0, 0.6),
    Measured("VITAL//RESPIRATORY_RATE//insp/min", 19.0, 4.0, 0.6),
    Measured("VITAL//SPO2//%", 96.0, 1.5, -0.5),
    Measured("VITAL//TEMPERATURE//C", 37.0, 0.5, 0.1),
    Measured("VITAL//SYSTOLIC//mmHg", 121.0, 16.0, -0.6),
    Measured("VITAL//DIASTOLIC//mmHg", 64.0, 10.0, -0.5),
)
DIAGNOSES = tuple(
    f"DIAGNOSIS//ICD//10//{code}"
    for code in ("I10", "E119", "I5022", "N179", "J9601", "A419", "I4891", "D649", "N186", "J449", "K7290", "C3490")
)
PROCEDURES = tuple(
    f"PROCEDURE//ICD//10//{code}" for code in ("02HV33Z", "5A1935Z", "0BH17EZ", "5A1D70Z", "30233N1", "3E0G76Z")
)
MEDICATIONS = tuple(
    f"MEDICATION//START//{drug}"
    for drug in (
        "norepinephrine", "vancomycin", "furosemide", "insulin", "heparin", "pantoprazole", "metoprolol", "propofol",
        "piperacillin", "acetaminophen",
    )
)  # fmt: skip


def population(seed: int, mechanism: MechanismKind, strength: float) -> CausalModel:
    """Latent health of three axes (severity, chronic burden, frailty), six modalities and two outcomes.

    Args:
        seed: Decides about everything.
        mechanism: What availability depends on.
        strength: How much, in log odds per standard deviation.
    """

    def severity(measured: tuple[Measured, ...]) -> tuple[float, ...]:
        return tuple(one.severity for one in measured)

    views = (
        View("structured", 2, 1.5, 1.0, loadings=(0.4, 0.1)),
        View("labs", len(LABS), 2.0, 0.8, severity(LABS), (1.0, 0.4, 0.0)),
        View("vitals", len(VITALS), 1.6, 0.85, severity(VITALS), (0.8, 0.0, 0.3)),
        View("diagnoses", len(DIAGNOSES), 2.0, 0.75, direction=(0.4, 1.0, 0.0)),
        View("procedures", len(PROCEDURES), 1.8, 0.35, direction=(1.0, 0.0, 0.2)),
        View("medications", len(MEDICATIONS), 2.0, 0.7, direction=(0.8, 0.5, 0.0)),
    )
    outcomes = (
        Outcome("death_in_hospital", 0.15, 1.8, (1.0, 0.4, 0.3)),
        Outcome("readmission_30d", 0.2, 1.2, (0.3, 0.8, 0.8)),
    )
    return CausalModel(views, outcomes, Mechanism(mechanism, strength), LATENT, "linear", seed, PERSONS)
