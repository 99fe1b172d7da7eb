from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from PIL import Image

SCHEMA: dict[str, Any] = {
    "dataset": "example",
    "groups": ["sex"],
    "tasks": {"readmission_90d": None, "icu_90d": {"parent": "readmission_90d", "horizon": "within 90 days"}},
    "modalities": {
        "labs": {"kind": "vector"},
        "embedding": {"kind": "vector", "column": "values"},
        "drugs": {"kind": "codes"},
        "vitals": {"kind": "series"},
        "notes": {"kind": "text"},
        "films": {"kind": "image"},
    },
}


def tables() -> dict[str, pl.DataFrame]:
    """A sound folder: four samples of three people, of which s-3 has no modality at all but its labs."""
    return {
        "samples": pl.DataFrame(
            {
                "sample_id": ["s-2", "s-1", "s-3", "s-4"],
                "patient_id": [7, 7, 8, 9],
                "site": ["north", "north", None, "south"],
                "split": ["train", "train", "test", "train"],
                "sex": ["F", "F", None, "M"],
                "prediction_time": [24.0, 48.0, 24.0, 24.0],
                "readmission_90d": [True, True, None, False],
                "icu_90d": [True, False, None, False],
            }
        ),
        "labs": pl.DataFrame(
            {
                "sample_id": ["s-1", "s-3", "s-2", "s-1", "s-4"],
                "hours_before": [2.5, 0.0, None, 30.0, 1.0],
                "sodium": [140.0, 131.5, None, 138.0, None],
                "lactate": [1, None, 4, None, None],
            }
        ),
        "embedding": pl.DataFrame(
            {"sample_id": ["s-2", "s-4"], "values": [[0.25, -1.5, 3.0], [1.0, None, 0.5]]},
            schema={"sample_id": pl.String, "values": pl.List(pl.Float64)},
        ),
        "drugs": pl.DataFrame(
            {"sample_id": ["s-4", "s-1", "s-4"], "code": [["B01", "A02"], ["A02"], ["A02", None, " "]]}
        ),
        "vitals": pl.DataFrame(
            {
                "sample_id": ["s-1", "s-1", "s-2"],
                "variable": ["heart_rate", "spo2", "heart_rate"],
                "value": [88.0, 97.0, float("nan")],
                "hours_before": [1.0, 1.0, 3.0],
            }
        ),
        "notes": pl.DataFrame({"sample_id": ["s-2", "s-2", "s-1"], "text": ["second sample", "again", "  "]}),
        "films": pl.DataFrame({"sample_id": ["s-1", "s-4"], "path": ["films/a.png", "films/b.png"]}),
    }


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a folder of tables: the sound one, with what is given replaced (None leaves a file out)."""

    def make(schema: Any = SCHEMA, **changed: pl.DataFrame | bytes | None) -> Path:
        root = tmp_path / "tables"
        root.mkdir()
        (root / "films").mkdir()
        for name in ("a", "b"):
            Image.new("L", (8, 8), color=90).save(root / "films" / f"{name}.png")
        for name, table in (tables() | changed).items():
            if isinstance(table, pl.DataFrame):
                table.write_parquet(root / f"{name}.parquet")
            elif table is not None:
                (root / f"{name}.parquet").write_bytes(table)
        text = schema if isinstance(schema, str) else yaml.safe_dump(schema, sort_keys=False)
        (root / "schema.yaml").write_text(text, encoding="utf-8")
        return root

    return make


@pytest.fixture
def sound() -> dict[str, pl.DataFrame]:
    """The sound tables, to change."""
    return tables()


@pytest.fixture
def schema() -> dict[str, Any]:
    """A copy of the sound `schema.yaml`, to change."""
    copied: dict[str, Any] = yaml.safe_load(yaml.safe_dump(SCHEMA, sort_keys=False))
    return copied
