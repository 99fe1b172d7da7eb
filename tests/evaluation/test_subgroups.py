"""Which subgroups a store offers: what its source declares, and the size of the site."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from mmnar_lightning.evaluation.subgroups import MOST_GROUPS, site_size, subgroups
from mmnar_lightning.records import RecordDataModule


@pytest.fixture(scope="module")
def data(
    make_datamodule: Callable[..., RecordDataModule], tmp_path_factory: pytest.TempPathFactory
) -> RecordDataModule:
    return make_datamodule(tmp_path_factory.mktemp("stores"), 600)


def with_columns(data: RecordDataModule, monkeypatch: pytest.MonkeyPatch, **columns: pl.Series) -> RecordDataModule:
    monkeypatch.setattr(data.records, "_frame", data.records.samples.with_columns(**columns))
    return data


def test_declared_groups_and_the_size_of_sites_are_found(data: RecordDataModule) -> None:
    sample = data.samples_of("test")
    found = subgroups(data, sample)
    assert list(found) == ["sex", "age_band", "region", "year", "site_size"]
    assert set(found["site_size"]) == {"<100", "100-499", None}
    assert found["sex"] == data.records.samples["group/sex"].gather(sample).to_list()
    assert [subgroups(data, sample[::-1])[name][0] for name in found] == [values[-1] for values in found.values()]


def test_site_sizes_count_people_and_not_samples() -> None:
    samples = pl.DataFrame(
        {
            "patient": [f"a{i // 2}" for i in range(198)] + [f"b{i}" for i in range(100)] + ["c"],
            "site": ["a"] * 198 + ["b"] * 100 + [None],
        }
    )
    found = site_size(samples)
    assert found.value_counts().sort("site_size", nulls_last=True).rows() == [
        ("100-499", 100),
        ("<100", 198),
        (None, 1),
    ]


def test_groups_of_fewer_than_ten_people_and_beyond_the_largest_are_unknown(
    data: RecordDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = len(data.records)
    patient = data.records.samples["patient"].rank("dense").to_numpy()
    rare = pl.Series(np.where(patient <= 9, "rare", np.where(patient % 2, "one", "two")))
    many = pl.Series([f"g{int(p) % (MOST_GROUPS + 5):02d}" for p in patient])
    frame = with_columns(data, monkeypatch, **{"group/rare": rare, "group/many": many})
    found = subgroups(frame, np.arange(n))
    assert set(found["rare"]) == {"one", "two", None}
    assert len(set(found["many"]) - {None}) == MOST_GROUPS


def test_a_variable_with_one_group_or_a_store_without_any_gives_none(
    data: RecordDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = data.records.samples.drop([c for c in data.records.samples.columns if c.startswith("group/")])
    one = bare.with_columns(**{"site": pl.lit(None, pl.String), "group/sex": pl.lit("female")})
    monkeypatch.setattr(data.records, "_frame", one)
    assert subgroups(data, data.samples_of("test")) == {}
