"""`mmnar rectify`: a table in, the same table with corrected probabilities and a report out, or a refusal."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss

from mmnar_lightning.__main__ import main
from mmnar_lightning.rectifier import Rectifier, patient_keys

SPLITS = ("train", "val", "calibration", "conformal", "test")
IDS = np.array([0, 1, 3, 7, 8, 12, 15, 16])
SHIFT = np.array([0.9, -0.8, 0.6, -0.7, 0.8, -0.9, 0.5, 0.0])
TOLD = ("p17", "secret")


def table(seed: int = 0, patients: int = 2400) -> pl.DataFrame:
    """As `PredictionWriter` writes it: two tasks, a planted shift by pattern in `a`, few events in `b`."""
    g = np.random.default_rng(seed)
    n = 2 * patients
    which = g.choice(8, n, p=[0.22, 0.2, 0.15, 0.15, 0.1, 0.1, 0.079, 0.001])
    split = np.repeat(np.array(SPLITS)[g.choice(5, patients, p=[0.1, 0.1, 0.35, 0.1, 0.35])], 2)
    x = g.normal(-0.5, 1, n)
    y = g.random(n) < 1 / (1 + np.exp(-x - SHIFT[which]))
    known = g.random(n) < 0.9
    frame = pl.DataFrame(
        {
            "sample": np.arange(n),
            "patient": [f"p{i // 2}" for i in range(n)],
            "site": "secret",
            "split": split,
            "pattern": IDS[which],
            "a/raw": (1 / (1 + np.exp(-x))).astype(np.float32),
            "a/rectified": np.zeros(n, dtype=np.float32),
            "a/target": y,
            "a/labelled": known,
            "b/raw": np.full(n, 0.01, dtype=np.float32),
            "b/rectified": np.zeros(n, dtype=np.float32),
            "b/target": np.arange(n) % 1500 == 0,
            "b/labelled": True,
        }
    )
    return frame.with_columns(pl.when("a/labelled").then("a/target").alias("a/target"))


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    path = tmp_path / "predictions.parquet"
    table().write_parquet(path, metadata={"schema": "abc"})
    return path


def rectified(path: Path, *options: object) -> tuple[pl.DataFrame, str]:
    out = path.with_name("rectified.parquet")
    assert main(["rectify", "--predictions", str(path), "--out", str(out), *map(str, options)]) == 0
    return pl.read_parquet(out), out.with_suffix(".md").read_text(encoding="utf-8")


def test_our_predictions_are_read_unchanged_and_corrected(ours: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = pl.read_parquet(ours)
    after, report = rectified(ours)
    assert capsys.readouterr().out.splitlines() == [
        str(ours.with_name(f"rectified.{kind}")) for kind in ("parquet", "md")
    ]
    assert after.columns == before.columns
    columns = ["a/rectified", "b/rectified"]
    assert after.drop(columns).equals(before.drop(columns))
    assert pl.read_parquet_metadata(ours.with_name("rectified.parquet"))["schema"] == "abc"
    test = after.filter((pl.col("split") == "test") & pl.col("a/labelled"))
    y = test["a/target"].to_numpy()
    for score in (log_loss, brier_score_loss):
        assert score(y, test["a/rectified"]) < score(y, test["a/raw"]) - 0.005
    # too few events: left as it is
    np.testing.assert_allclose(after["b/rectified"], after["b/raw"], rtol=1e-6)
    assert "Left as it is: fewer than 10 positive labels" in report
    assert "Rung: `intercepts`, the simplest within one standard error" in report
    for split in ("conformal", "test"):
        assert f"| {split} | brier | log_loss | excess_ece | auroc |" in report
    assert "| train | " not in report


def test_it_is_the_rectifier_fitted_on_calibration_rows_alone(ours: Path) -> None:
    after, _ = rectified(ours)
    frame = pl.read_parquet(ours)
    rows = frame.filter((pl.col("split") == "calibration") & pl.col("a/labelled"))
    x = torch.logit(torch.tensor(rows["a/raw"].cast(pl.Float64).to_numpy()))[:, None]
    y = torch.tensor(rows["a/target"].to_numpy()).double()[:, None]
    pattern, keys = torch.tensor(rows["pattern"].to_numpy()), patient_keys(rows["patient"])
    expected = Rectifier(["a"]).fit_ladder(x, y, torch.ones_like(y, dtype=torch.bool), pattern, keys, 5)
    at = after.filter((pl.col("split") == "calibration") & pl.col("a/labelled"))
    np.testing.assert_allclose(at["a/rectified"], expected.probabilities(x, pattern)[:, 0], atol=1e-9)


def test_labels_of_other_rows_change_no_probability(ours: Path) -> None:
    first, report = rectified(ours)
    frame = pl.read_parquet(ours)
    other = pl.col("split") != "calibration"
    frame.with_columns(pl.when(other).then(~pl.col("a/target")).otherwise("a/target").alias("a/target")).write_parquet(
        ours
    )
    second, changed = rectified(ours)
    assert second["a/rectified"].equals(first["a/rectified"])
    assert changed != report


def test_same_input_gives_same_bytes(ours: Path) -> None:
    rectified(ours)
    first = [ours.with_name(f"rectified.{kind}").read_bytes() for kind in ("parquet", "md")]
    rectified(ours)
    assert [ours.with_name(f"rectified.{kind}").read_bytes() for kind in ("parquet", "md")] == first
    assert sorted(p.name for p in ours.parent.iterdir()) == ["predictions.parquet", "rectified.md", "rectified.parquet"]


def test_tables_of_others_logits_flags_and_csv(tmp_path: Path) -> None:
    frame = table()
    raw = frame["a/raw"].cast(pl.Float64)
    flags = {f"has_{m}": (frame["pattern"].to_numpy() >> m & 1).astype(bool) for m in range(5)}
    theirs = pl.DataFrame(
        {
            "mrn": frame["patient"],
            "use": frame["split"].replace({"calibration": "tune"}),
            "died_logit": np.log(raw) - np.log1p(-raw),
            "died": frame["a/target"].cast(pl.Int64),
            **flags,
        }
    )
    path = tmp_path / "theirs.csv"
    theirs.write_csv(path)
    names = ",".join(flags)
    options = ["--patient", "mrn", "--score", "{task}_logit", "--scores", "logit", "--target", "{task}"]
    options += ["--rectified", "{task}_p", "--observed", f"[{names}]", "--split", "use", "--calibration", "[tune]"]
    found, report = rectified(path, *options, "--evaluation", "[test]")
    frame.write_parquet(tmp_path / "ours.parquet")
    expected, _ = rectified(tmp_path / "ours.parquet")
    np.testing.assert_allclose(found["died_p"], expected["a/rectified"], atol=1e-9)
    assert "| has_0+has_1+has_2+has_3 | " in report
    assert "| none | " in report
    assert "conformal" not in report
    out = tmp_path / "again.csv"
    assert main(["rectify", "--predictions", str(path), "--out", str(out), *options]) == 0
    np.testing.assert_allclose(pl.read_csv(out)["died_p"], found["died_p"])


def test_fitting_on_every_known_label_scores_nothing(ours: Path) -> None:
    found, report = rectified(ours, "--fit_on", "labels", "--rung", "intercepts", "--tasks", "[a]")
    assert "none is left to be scored" in report
    assert "Rung: `intercepts`, as given." in report
    assert "log_loss" not in report
    assert "## b" not in report
    assert found["a/rectified"].is_between(0, 1).all()


def minus(report: str, version: str) -> dict[str, list[float]]:
    """Estimate, low, high by metric, in the split that comes last (test)."""
    line = [line for line in report.splitlines() if line.startswith(f"Rectified minus {version}, ")][-1]
    found = re.findall(r"(\w+) (\S+) \[(\S+), (\S+)\]", line)
    return {name: [float(value) for value in values] for name, *values in found}


def test_what_is_added_to_bias_and_temperature_is_told_apart(ours: Path) -> None:
    # scores that are off by a bias alone, beside the planted shifts
    frame = pl.read_parquet(ours)
    odds = pl.col("a/raw") / (1 - pl.col("a/raw")) * np.exp(1.5)
    frame.with_columns((odds / (1 + odds)).alias("a/raw")).write_parquet(ours)
    after, report = rectified(ours, "--tasks", "[a]")
    rows = after.filter((pl.col("split") == "test") & pl.col("a/labelled"))
    raw = minus(report, "raw")
    added = minus(report, "recalibrated")
    assert set(added) == set(raw) == {"brier", "log_loss"}
    by_hand = Rectifier(["a"], "global")
    fit = after.filter((pl.col("split") == "calibration") & pl.col("a/labelled"))
    x, x_test = (torch.logit(torch.tensor(f["a/raw"].cast(pl.Float64).to_numpy()))[:, None] for f in (fit, rows))
    y = torch.tensor(fit["a/target"].to_numpy()).double()[:, None]
    by_hand.fit(x, y, torch.ones_like(y, dtype=torch.bool), torch.tensor(fit["pattern"].to_numpy()), 5)
    recalibrated = by_hand.recalibrate(x_test).sigmoid().numpy()[:, 0]
    target = rows["a/target"].to_numpy()
    for name, score in (("brier", brier_score_loss), ("log_loss", log_loss)):
        for found, before in ((raw, rows["a/raw"]), (added, recalibrated)):
            estimate, low, high = found[name]
            assert estimate == pytest.approx(score(target, rows["a/rectified"]) - score(target, before), abs=6e-5)
            assert low <= estimate <= high < 0
        # most of the gain over raw is the bias
        assert raw[name][0] < 2 * added[name][0]


def test_the_rung_global_adds_nothing(ours: Path) -> None:
    _, report = rectified(ours, "--tasks", "[a]", "--rung", "global")
    assert "Rectified minus recalibrated: nothing is added, since the rung is `global`." in report
    assert set(minus(report, "raw")) == {"brier", "log_loss"}
    assert "Rectified minus recalibrated, " not in report


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_labels_that_are_nan_are_not_known(kind: str, ours: Path) -> None:
    expected, _ = rectified(ours, "--tasks", "[a]", "--rung", "intercepts")
    target = pl.col("a/target").cast(pl.Float64)
    theirs = pl.read_parquet(ours).drop("a/labelled").with_columns(target.fill_null(float("nan")))
    assert theirs["a/target"].is_nan().any()
    path = ours.with_name(f"theirs.{kind}")
    getattr(theirs, f"write_{kind}")(path)
    found, _ = rectified(path, "--tasks", "[a]", "--rung", "intercepts")
    np.testing.assert_allclose(found["a/rectified"], expected["a/rectified"], atol=1e-6)


def test_probability_scale_and_slopes(ours: Path) -> None:
    added, report = rectified(ours, "--scale", "probability", "--tasks", "[a]")
    assert "scale probability" in report
    shifted = added.filter(pl.col("pattern") == 0)
    assert (shifted["a/rectified"] - shifted["a/raw"]).mean() > 0.05  # type: ignore[operator]
    _, report = rectified(ours, "--rung", "slopes", "--tasks", "[a]")
    assert "Slopes: τ of counts" in report


def test_groups_of_fewer_than_ten_people_are_not_told(ours: Path) -> None:
    frame = pl.read_parquet(ours)
    few = frame.filter((pl.col("split") == "calibration") & (pl.col("pattern") == 16))["patient"].n_unique()
    assert 0 < few < 10
    _, report = rectified(ours)
    assert "\n| 16 |" not in report
    assert "\n| 15 |" in report
    assert "1 further patterns have fewer than 10 labelled patients" in report
    assert not any(word in report for word in TOLD)


def changed(name: str, value: object, dtype: pl.DataType | None = None) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """Set three test rows of a column."""

    def change(frame: pl.DataFrame) -> pl.DataFrame:
        rows = pl.int_range(pl.len()) < 3
        return frame.with_columns(pl.when(rows).then(pl.lit(value, dtype)).otherwise(pl.col(name)).alias(name))

    return change


def numbered(frame: pl.DataFrame) -> pl.DataFrame:
    # as pandas writes ids of which some are not there
    number = frame.with_columns(pl.col("patient").str.slice(1).cast(pl.Float64))
    return changed("patient", float("nan"))(number)


def shared(frame: pl.DataFrame) -> pl.DataFrame:
    # the two rows of each of four people are parted
    people = frame.filter(pl.col("split") == "calibration")["patient"].unique().sort()[:4]
    parted = pl.col("patient").is_in(people.to_list()) & (pl.col("sample") % 2 == 0)
    return frame.with_columns(pl.when(parted).then(pl.lit("test")).otherwise("split").alias("split"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (changed("a/raw", 1.5), "column 'a/raw': 3 rows have a probability outside 0 … 1"),
        (changed("a/raw", float("nan")), "column 'a/raw': 3 rows have a score that is not a number"),
        (changed("a/raw", None), "column 'a/raw': 3 rows have no score"),
        (changed("b/target", None), "column 'b/target': 3 rows have no label though 'b/labelled' says it is known"),
        (changed("b/target", 2, pl.Int64()), "column 'b/target': 3 rows have a label other than 0 and 1"),
        (changed("patient", None), "column 'patient': 3 rows without a patient"),
        (changed("patient", ""), "column 'patient': 3 rows without a patient"),
        (changed("patient", "NaN"), "column 'patient': 3 rows without a patient"),
        (numbered, "column 'patient': 3 rows without a patient"),
        (changed("b/target", float("nan"), pl.Float64()), "3 rows have no label though 'b/labelled' says it is known"),
        (changed("pattern", -1), "column 'pattern': 3 rows have a pattern outside"),
        (changed("sample", 5), "column 'sample': 3 rows have the id of an earlier one"),
        (lambda f: pl.concat([f, f[:7]]).drop("sample"), "7 rows repeat another in all 12 columns"),
        (shared, "column 'patient': 4 patients have rows for calibration and others"),
        (lambda f: f.with_columns(split=pl.lit("test")), "no row is calibration; there are: test"),
        (lambda f: f.with_columns(pl.col("a/raw").cast(pl.String)), "column 'a/raw' has the type String"),
        (lambda f: f.with_columns(pl.col("pattern").cast(pl.Float64)), "a pattern is a whole number"),
        (lambda f: f.drop("pattern", "a/target"), "no column pattern, a/target; there are: sample, patient"),
        (lambda f: f.rename({"a/raw": "a", "b/raw": "b"}), "no column like '{task}/raw'"),
    ],
)
def test_tables_that_cannot_be_used_are_refused_with_a_count(
    change: Callable[[pl.DataFrame], pl.DataFrame], told: str, ours: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(pl.read_parquet(ours)).write_parquet(ours)
    assert main(["rectify", "--predictions", str(ours), "--out", str(ours.with_name("out.parquet"))]) == 1
    error = capsys.readouterr().err
    assert told in error
    assert not any(word in error for word in TOLD)
    assert [p.name for p in ours.parent.iterdir()] == [ours.name]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--evaluation", "[calibration]"], "calibration and evaluation name the same split"),
        (["--rung", "slopes", "--scale", "probability"], "the probability scale has no slopes"),
        (["--rung", "stairs"], "'global', 'intercepts', 'slopes'"),
        (["--score", "a/raw"], "tasks must be named"),
        (["--folds", "1"], "1 folds"),
    ],
)
def test_options_that_make_no_sense(
    options: list[str], told: str, ours: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rectify", "--predictions", str(ours), "--out", str(ours.with_name("out.parquet")), *options]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(("name", "told"), [("out.xlsx", "not a .parquet or .csv"), ("predictions.parquet", "is read")])
def test_where_it_would_write(name: str, told: str, ours: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rectify", "--predictions", str(ours), "--out", str(ours.with_name(name))]) == 1
    assert told in capsys.readouterr().err


def test_what_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.parquet").write_text("p17")
    for name, told in (("bad.parquet", "can't be read"), ("gone.csv", "no such file")):
        assert main(["rectify", "--predictions", str(tmp_path / name), "--out", str(tmp_path / "o.csv")]) == 1
        assert told in capsys.readouterr().err
