"""Which codes a selection takes, and which settings it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from mmnar_lightning.records import SplitSettings
from mmnar_meds import DEFAULT, Labels, MEDSExtractor, Selection
from mmnar_meds.selection import task_name

CODES = [
    "LAB//50912//mg/dL", "LABEL//x", "VITAL//HR", "VITALS//HR", "Vital_Signs//HR", "DIAGNOSIS//ICD//9//4019",
    "PROCEDURE//ICD//10//5A1935Z", "MEDICATION//START//heparin", "MEDICATION//STOP//heparin",
    "INFUSION_START//221906", "MEDS_BIRTH", "MEDS_DEATH", "TRANSFER_TO//ICU",
]  # fmt: skip


def taken(selection: Selection) -> list[str]:
    frame = pl.DataFrame({"code": CODES})
    return frame.filter(selection.matches(pl.col("code")))["code"].to_list()


def test_the_default_takes_codes_by_their_first_part() -> None:
    assert taken(DEFAULT["labs"]) == ["LAB//50912//mg/dL"]
    assert taken(DEFAULT["vitals"]) == ["VITAL//HR", "VITALS//HR", "Vital_Signs//HR"]
    assert taken(DEFAULT["diagnoses"]) == ["DIAGNOSIS//ICD//9//4019"]
    assert taken(DEFAULT["procedures"]) == ["PROCEDURE//ICD//10//5A1935Z"]
    assert taken(DEFAULT["medications"]) == ["MEDICATION//START//heparin", "INFUSION_START//221906"]


def test_prefixes_and_a_pattern_add_up_and_without_wins() -> None:
    both = Selection("codes", prefixes=("LAB//",), pattern="//HR$", without=("VITALS",))
    assert taken(both) == ["LAB//50912//mg/dL", "VITAL//HR", "Vital_Signs//HR"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "image", "pattern": "."}, "kind 'image' is not one of vector, codes, series, text"),
        ({"kind": "codes"}, "needs prefixes or a pattern"),
        ({"kind": "codes", "prefixes": ("",)}, "empty prefix"),
        ({"kind": "codes", "pattern": "("}, "no regular expression"),
        ({"kind": "series", "pattern": ".", "rows": "static"}, "static rows have no time"),
        ({"kind": "codes", "pattern": ".", "rows": "static", "window_hours": 3}, "static rows have no time"),
        ({"kind": "codes", "pattern": ".", "rows": "both"}, "rows 'both' is not one of timed, static"),
        ({"kind": "codes", "pattern": ".", "window_hours": 0}, "above 0"),
        ({"kind": "codes", "pattern": ".", "lag_hours": -1}, "must not be negative"),
        ({"kind": "vector", "pattern": ".", "statistics": ("median",)}, "statistics must be some of last, first"),
        ({"kind": "vector", "pattern": ".", "most": 0}, "at least 1"),
    ],
)
def test_a_selection_that_makes_no_sense_is_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Selection(**settings)


def test_labels_lie_below_their_folder() -> None:
    with pytest.raises(ValueError, match="must lie below"):
        Labels("../elsewhere")


def test_task_names_are_words() -> None:
    assert task_name("death") == "death"
    assert task_name("30-day readmission") == "task_30_day_readmission"


def test_the_page_names_every_default_and_its_choices_are_accepted() -> None:
    page = (Path(__file__).parents[2] / "docs" / "howto" / "meds.md").read_text(encoding="utf-8")
    for name, selection in DEFAULT.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert f"| {selection.kind} |" in row
        assert all(f"`{prefix}`" in row for prefix in (*selection.prefixes, *selection.without))
        assert selection.window_hours is None or f"{selection.window_hours:g} h" in row
    blocks = [yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)]
    given = [block["data"]["init_args"] for block in blocks]
    chosen = {name: Selection(**listed) for part in given for name, listed in part.get("events", {}).items()}
    assert {selection.kind for selection in chosen.values()} == {"vector", "series", "codes"}
    assert [name for part in given for name, listed in part.get("labels", {}).items() if Labels(**listed)] == [
        "death",
        "readmission_30d",
    ]
    assert [SplitSettings(**part["splits"]).by for part in given if "splits" in part] == ["given"]


def test_a_pattern_that_polars_cannot_search_for_is_refused(tmp_path: Path) -> None:
    looking_ahead = Selection("codes", pattern="LAB(?=//)")
    with pytest.raises(ValueError, match="polars can search for"):
        MEDSExtractor(tmp_path, events={"labs": looking_ahead})


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted where /proc tells them")
def test_importing_the_plugins_starts_no_computation() -> None:
    """A process that forks after polars has computed hangs in the child: loaders' workers are forked."""
    code = (
        "from pathlib import Path; from mmnar_lightning.commands._config import load_plugins; load_plugins();"
        "names = [p.read_text().strip() for p in Path('/proc/self/task').glob('*/comm')];"
        "assert 'polars-0' not in names, names"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
