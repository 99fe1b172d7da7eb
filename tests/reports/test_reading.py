"""A run folder is read whole or refused, and small counts don't get past the reader."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest

from mmnar_lightning.reports import read_run, read_table


def test_test_comes_before_val(made: ModuleType, tmp_path: Path) -> None:
    run = made.write_run(tmp_path / "run", "val")
    assert read_run(run).stage == "val"
    (run / "findings-test.json").write_text(json.dumps(made.findings()))
    (run / "metrics-test.json").write_text(json.dumps(made.metrics()))
    read = read_run(run)
    assert (read.stage, read.name, read.tasks[0]) == ("test", "run", "mortality")
    assert read.estimate("rectified", "mortality", "auroc")[0] == pytest.approx(0.807)
    assert list(read.estimate("δ-only", "mortality", "auroc")) == pytest.approx([0.62, 0.56, 0.68])
    assert read.estimate("raw", "mortality", "calibration_slope") == (1.1, None, None)
    assert read.evaluation is not None


def test_paths_lose_their_folders(made: ModuleType, tmp_path: Path) -> None:
    config = read_run(made.write_run(tmp_path / "run")).config
    assert config["data"]["init_args"]["root"] == "…/eicu"
    assert "someone" not in json.dumps(config)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda f: f.update(format=2), r"findings-test.json: format 2, but this release reads 1; run `mmnar test`"),
        (lambda f: f.pop("format"), r"findings-test.json: format None"),
        (lambda f: f.pop("rectifier"), r"findings-test.json: key 'rectifier' is missing"),
        (lambda f: f["tasks"][1].pop("name"), r"findings-test.json: key 'tasks\[1\].name' is missing"),
        (lambda f: f["run"].update(epochs="many"), r"key 'run.epochs' holds str, not int or null"),
        (lambda f: f["cohort"].update(sites={}), r"key 'cohort.sites' holds dict, not list"),
        (lambda f: f["rectifier"].update(fitted=1), r"key 'rectifier.fitted' holds int, not bool"),
        (lambda f: f.update(stage="val"), r"findings-test.json: key 'stage' says 'val'"),
    ],
)
def test_what_is_wrong_is_named(made: ModuleType, tmp_path: Path, break_it: Any, said: str) -> None:
    found = made.findings()
    break_it(found)
    with pytest.raises(ValueError, match=said):
        read_run(made.write_run(tmp_path / "run", found=found))


def test_what_is_absent_is_named(made: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no run: there is no config.yaml"):
        read_run(tmp_path)
    run = made.write_run(tmp_path / "run")
    (run / "metrics-test.json").unlink()
    with pytest.raises(ValueError, match=r"metrics-test.json is absent"):
        read_run(run)
    (run / "findings-test.json").write_text('{"format": 1,')
    with pytest.raises(ValueError, match=r"findings-test.json: not JSON"):
        read_run(run)
    (run / "findings-test.json").unlink()
    with pytest.raises(ValueError, match=r"no findings-test.json or findings-val.json.*mmnar test"):
        read_run(run)


def test_nan_is_no_number(made: ModuleType, tmp_path: Path) -> None:
    run = made.write_run(tmp_path / "run", measured=made.metrics() | {"mortality/auroc": float("nan")})
    assert read_run(run).estimate("raw", "mortality", "auroc")[0] is None


def test_small_counts_are_not_kept(made: ModuleType, tmp_path: Path) -> None:
    found = made.findings()
    found["cohort"]["labels"][0] |= {"labelled": 100, "positive": 95}
    found["cohort"]["labels"][1] |= {"labelled": 100, "positive": 7}
    found["cohort"]["availability"][0] |= {"observed": 0.997, "not_ordered": 0.003}
    found["groups"][0] |= {"samples": 40, "events": 36}
    found["calibration"]["mortality"]["raw"]["samples"][2] = 9
    read = read_run(made.write_run(tmp_path / "run", found=found)).findings
    assert [row["rows"] for row in read["cohort"]["flow"]] == [3032, 3032, 283, None, 2404, 163, 1951]
    # 5 without the outcome are told by 95 of 100 with it
    assert [row["positive"] for row in read["cohort"]["labels"][:2]] == [None, None]
    assert (read["cohort"]["availability"][0]["observed"], read["cohort"]["availability"][0]["not_ordered"]) == (
        0.997,
        None,
    )
    assert "tiny hospital" not in json.dumps(read)
    assert "tiny group" not in json.dumps(read)
    assert (read["groups"][0]["events"], read["groups"][0]["rate"]) == (None, [None, None, None])
    assert len(read["calibration"]["mortality"]["raw"]["observed"]) == 5


def test_tables_are_read_from_csv_parquet_and_json(tmp_path: Path) -> None:
    frame = pl.DataFrame({"auroc": [0.81, None], "method": ["ours", "concat"], "events": [7, 120]})
    frame.write_csv(tmp_path / "t.csv")
    frame.write_parquet(tmp_path / "t.parquet")
    rows = [{"auroc": 0.81, "method": "ours", "events": 7, "gain": [0.01, -0.02, 0.03]}]
    (tmp_path / "t.json").write_text(json.dumps({"command": "python b.py", "rows": rows}))
    for kind in ("csv", "parquet"):
        table = read_table(tmp_path / f"t.{kind}")
        assert (table.caption, table.header, table.words) == (f"t.{kind}", ("method", "auroc", "events"), 1)
        assert table.rows == (("ours", "0.8100", "< 10"), ("concat", "–", "120"))
    assert read_table(tmp_path / "t.json").rows == (("ours", "0.8100", "< 10", "0.0100 [−0.0200, 0.0300]"),)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.xlsx", "", "a table is a .csv, .parquet or .json file"),
        ("t.json", "{", "can't be read as .json"),
        ("t.json", '{"rows": 3}', "neither a list of objects"),
        ("t.json", "[]", "the table has no rows"),
        ("t.parquet", "no", "can't be read as .parquet"),
        ("t.csv", "", "can't be read as .csv"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}: .*{said}"):
        read_table(tmp_path / name)
    with pytest.raises(ValueError, match=r"no such table"):
        read_table(tmp_path / "absent.csv")
