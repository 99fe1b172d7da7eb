from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from mmnar_lightning.records import Modality, RecordSchema, RecordStore, Task, availability_reasons, write_store

SCHEMA = RecordSchema((Modality("labs", "vector", ("x",)), Modality("film", "image")), (Task("death"),))


def store_of(folder: Path, sites: list[str | None], labs: list[int], reason: list[str | None]) -> RecordStore:
    n = len(sites)
    samples = pl.DataFrame(
        {
            "patient": [f"p{k}" for k in range(n)],
            "site": sites,
            "prediction_time": [0.0] * n,
            "label/death": [False] * n,
            "reason/film": reason,
        },
        schema_overrides={"site": pl.String, "reason/film": pl.String},
    )
    elements = {
        "labs": pl.DataFrame({"sample": labs, "hours_before": [1.0] * len(labs), "x": [1.0] * len(labs)}),
        "film": pl.DataFrame(schema={"sample": pl.Int64, "hours_before": pl.Float32, "path": pl.String}),
    }
    return RecordStore(write_store(folder, "reasons", "all", "0" * 16, SCHEMA, samples, elements, {}))


def test_reason_of_each_absence(tmp_path: Path) -> None:
    # 50 stays at `big`, one of them with labs; 50 at `bare` without; 49 at `small` with one; 2 without a site
    sites: list[str | None] = ["big"] * 50 + ["bare"] * 50 + ["small"] * 49 + [None] * 2
    reason = [None] * 150 + ["unreadable"]
    store = store_of(tmp_path, sites, [3, 120], reason)
    found = availability_reasons(store, np.arange(len(store)))
    labs = dict(found.filter(modality="labs").select("sample", "reason").iter_rows())
    assert labs == {
        k: "not_ordered" if k < 50 else "not_collected" if k < 100 else "unknown"
        for k in range(151)
        if k not in (3, 120)
    }
    film = dict(found.filter(modality="film").select("sample", "reason").iter_rows())
    assert film[150] == "unreadable"
    assert film[149] == "unknown"
    assert set(film) == set(range(151))
    assert film[0] == "not_collected"


def test_only_training_rows_say_what_a_site_collects(tmp_path: Path) -> None:
    # the one row with labs is not in train: a later row must not turn "not collected" into "not ordered"
    store = store_of(tmp_path, ["big"] * 60, [59], [None] * 60)
    by_train = availability_reasons(store, np.arange(50)).filter(modality="labs")
    assert set(by_train["reason"]) == {"not_collected"}
    assert set(availability_reasons(store, np.arange(49)).filter(modality="labs")["reason"]) == {"unknown"}
    assert set(availability_reasons(store, np.arange(60)).filter(modality="labs")["reason"]) == {"not_ordered"}


def test_rows_without_a_value_make_an_absence_unreadable_and_what_is_observed_has_no_reason(tmp_path: Path) -> None:
    schema = RecordSchema((Modality("film", "image"),), (Task("death"),))
    reasons = ["not_ordered", "not_ordered", "not_collected", None]
    samples = pl.DataFrame(
        {"patient": list("abcd"), "site": None, "prediction_time": 0.0, "label/death": False, "reason/film": reasons},
        schema_overrides={"site": pl.String},
    )
    # the first has a film and a broken one, the second only a broken one
    films = pl.DataFrame(
        {"sample": [0, 0, 1], "hours_before": [1.0, 2.0, 3.0], "path": ["a.jpg", None, None]},
        schema_overrides={"sample": pl.Int64},
    )
    store = RecordStore(write_store(tmp_path, "reasons", "all", "1" * 16, schema, samples, {"film": films}, {}))
    assert store.samples["observed/film"].to_list() == [True, False, False, False]
    assert store.samples["reason/film"].to_list() == [None, "unreadable", "not_collected", None]
