"""What the extractor finds in a simulated extract is what the simulator put there: availability, cohorts, labels."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from mmnar_eicu.cohort import CohortName
from mmnar_eicu.extractor import EICUExtractor
from mmnar_eicu.simulate import simulate
from mmnar_lightning.extract import prepare

PERSONS = 700  # three chunks, the last cut
STAY = "patientunitstayid"


@pytest.fixture(scope="module")
def extract(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extract") / "raw"
    simulate(folder, PERSONS, seed=3, progress=False)
    return folder


@pytest.fixture(scope="module")
def truth(extract: Path) -> pl.DataFrame:
    return pl.read_parquet(extract / "truth" / "*.parquet")


def prepared(extract: Path, folder: Path, cohort: CohortName) -> Path:
    extractor = EICUExtractor(cohort=cohort, include_respiratory=True, include_micro=True)
    return prepare(extractor, extract, folder, progress=False)


@pytest.fixture(scope="module")
def landmark(extract: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(extract, tmp_path_factory.mktemp("landmark"), "landmark")


@pytest.fixture(scope="module")
def unit_discharge(extract: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(extract, tmp_path_factory.mktemp("unit_discharge"), "unit_discharge")


def samples(store: Path) -> pl.DataFrame:
    return pl.read_ipc(store / "samples.arrow").with_row_index("row")


def test_the_landmark_cohort_is_the_true_one(landmark: Path, truth: pl.DataFrame) -> None:
    found = samples(landmark).filter(pl.col("id/episode") == 0)
    assert sorted(found[f"id/{STAY}"]) == sorted(truth.filter("cohort/landmark")[STAY])
    assert 0.08 <= truth.filter("cohort/landmark")["label/mortality_hospital"].mean() <= 0.12  # type: ignore[operator]


def test_the_unit_discharge_cohort_is_the_true_one(unit_discharge: Path, truth: pl.DataFrame) -> None:
    found = samples(unit_discharge).filter(pl.col("id/episode") == 0)
    assert sorted(found[f"id/{STAY}"]) == sorted(truth.filter("cohort/unit_discharge")[STAY])


@pytest.mark.parametrize(
    ("cohort", "task"),
    [
        ("landmark", "mortality_hospital"),
        ("landmark", "mortality_unit"),
        ("landmark", "los_7d"),
        ("unit_discharge", "mortality_hospital"),
        ("unit_discharge", "readmission_icu"),
    ],
)
def test_labels_are_the_true_ones(cohort: str, task: str, truth: pl.DataFrame, request: pytest.FixtureRequest) -> None:
    found = samples(request.getfixturevalue(cohort)).filter(pl.col("id/episode") == 0)
    both = found.join(truth, left_on=f"id/{STAY}", right_on=STAY, suffix="/true", validate="1:1")
    assert both[f"label/{task}"].to_list() == both[f"label/{task}/true"].to_list()
    assert both[f"label/{task}"].any()


@pytest.mark.parametrize("cohort", ["landmark", "unit_discharge"])
def test_availability_is_the_true_one(cohort: str, truth: pl.DataFrame, request: pytest.FixtureRequest) -> None:
    store: Path = request.getfixturevalue(cohort)
    found = samples(store).filter(pl.col("id/episode") == 0)
    both = found.join(truth, left_on=f"id/{STAY}", right_on=STAY, validate="1:1")
    modalities = [c.removeprefix("available/") for c in truth.columns if c.startswith("available/")]
    assert len(modalities) == 11
    for modality in modalities:
        there = set(pl.read_ipc(store / "modality" / f"{modality}.arrow")["sample"])
        observed = [row in there for row in both["row"]]
        wrong = sum(a != b for a, b in zip(observed, both[f"available/{modality}"], strict=True))
        assert both[f"observed/{modality}"].to_list() == observed
        assert wrong == 0, f"{modality}: {wrong} of {len(observed)} stays differ from the truth"


def test_what_is_stored_predicts_but_does_not_betray(landmark: Path) -> None:
    """Records of the future tell who dies, with an AUROC near 1: so high, and something has read them."""
    found = samples(landmark).filter(pl.col("label/mortality_hospital").is_not_null())
    label = found["label/mortality_hospital"].to_numpy()
    for modality in ("labs", "vitals"):
        stored = pl.read_ipc(landmark / "modality" / f"{modality}.arrow").unique("sample")
        width = stored["values"].dtype.shape[0]  # type: ignore[attr-defined]
        table = np.full((len(label), width), np.nan)
        row = {sample: k for k, sample in enumerate(found["row"])}
        for sample, values in zip(stored["sample"], stored["values"].to_numpy(), strict=True):
            if sample in row:
                table[row[sample]] = values
        table = table[:, np.isfinite(table).mean(0) > 0.3]
        features = StandardScaler().fit_transform(np.where(np.isnan(table), np.nanmean(table, axis=0), table))
        fold = np.arange(len(label)) % 2
        scored = np.zeros(len(label))
        for k in (0, 1):
            fitted = LogisticRegression(C=0.01, max_iter=2000).fit(features[fold != k], label[fold != k])
            scored[fold == k] = fitted.decision_function(features[fold == k])
        area = roc_auc_score(label, scored)
        # Bayes on u itself reaches 0.87 here; the standard error with about 60 deaths is 0.03
        assert 0.6 < area < 0.9, f"{modality}: AUROC {area:.3f}"
