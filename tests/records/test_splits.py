from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmnar_lightning.records import SPLITS, SplitSettings, assign_splits, calibration_half

TRAIN, VAL, CALIBRATION, TEST = range(4)


def cohort(n: int, seed: int = 0) -> pl.DataFrame:
    """n samples of about n/2 people, some of them at several sites, in no order."""
    rng = np.random.default_rng(seed)
    site = rng.integers(12, size=n)
    return pl.DataFrame(
        {
            "patient": [f"p{p}" for p in rng.integers(max(1, n // 2), size=n)],
            "site": [None if s == 11 else f"s{s}" for s in site],
            "group/region": [f"r{s % 4}" for s in site],
            "group/year": [str(2010 + y) for y in rng.integers(6, size=n)],
        }
    )


def splits_of(samples: pl.DataFrame, split: np.ndarray[Any, Any]) -> dict[str, set[int]]:
    where: dict[str, set[int]] = defaultdict(set)
    for patient, s in zip(samples["patient"], split, strict=True):
        where[patient].add(int(s))
    return where


@given(
    n=st.integers(1, 80),
    seed=st.integers(0, 2**32),
    by=st.sampled_from(["patient", "site", "region", "year"]),
    fold=st.integers(0, 4),
    val=st.floats(0, 0.4),
    calibration=st.floats(0, 0.4),
)
def test_no_person_is_in_two_splits(n: int, seed: int, by: Any, fold: int, val: float, calibration: float) -> None:
    samples = cohort(n, seed % 1000)
    if by == "site" and samples["site"].null_count() == n:
        return
    settings = SplitSettings(by=by, split_seed=seed, test_fold=fold, val=val, calibration=calibration)
    split = assign_splits(samples, settings)
    assert split.shape == (n,)
    assert split.dtype == np.int8
    assert all(len(s) == 1 for s in splits_of(samples, split).values())


@given(few=st.integers(1, 60), more=st.integers(0, 100), order=st.randoms(use_true_random=False))
def test_adding_patients_moves_nobody(few: int, more: int, order: Any) -> None:
    patients = [f"p{k}" for k in range(few + more)]
    before = assign_splits(pl.DataFrame({"patient": patients[:few]}), SplitSettings())
    order.shuffle(shuffled := list(patients))
    after = dict(zip(shuffled, assign_splits(pl.DataFrame({"patient": shuffled}), SplitSettings()), strict=True))
    assert [after[p] for p in patients[:few]] == before.tolist()


@pytest.mark.parametrize("by", ["patient", "site", "region", "year"])
@pytest.mark.parametrize("folds", [2, 5])
def test_test_folds_are_disjoint_and_cover(by: Any, folds: int) -> None:
    # one sample a person: nobody is seen in two groups, so that the folds of any split must cover everyone
    samples = cohort(600).unique("patient", maintain_order=True).filter(pl.col("site").is_not_null())
    tests = [
        set(np.flatnonzero(assign_splits(samples, SplitSettings(by=by, folds=folds, test_fold=k)) == TEST))
        for k in range(folds)
    ]
    assert sum(map(len, tests)) == samples.height
    assert set.union(*tests) == set(range(samples.height))


def test_shares_are_as_asked() -> None:
    samples = pl.DataFrame({"patient": [f"p{k}" for k in range(8000)]})
    shares = np.bincount(assign_splits(samples, SplitSettings()), minlength=4) / 8000
    # five standard errors of a share of 0.7 among 8,000
    np.testing.assert_allclose(shares, [0.6, 0.1, 0.1, 0.2], atol=5 * np.sqrt(0.21 / 8000))
    half = calibration_half(samples["patient"], 0)
    assert abs(half.mean() - 0.5) < 5 * np.sqrt(0.25 / 8000)
    # independent of the split itself, or calibration A and B would be of different people
    assert abs(half[assign_splits(samples, SplitSettings()) == CALIBRATION].mean() - 0.5) < 5 * np.sqrt(0.25 / 800)


def test_the_seed_moves_people_and_nothing_else_does() -> None:
    samples = cohort(400)
    first = assign_splits(samples, SplitSettings(split_seed=0))
    assert (first == assign_splits(samples, SplitSettings(split_seed=0))).all()
    assert (first != assign_splits(samples, SplitSettings(split_seed=1))).any()
    # each test fold has a val of its own, or one unlucky val would choose the checkpoints of all folds
    other = assign_splits(samples, SplitSettings(test_fold=1))
    neither = (first != TEST) & (other != TEST)
    assert (first[neither] != other[neither]).any()


@pytest.mark.parametrize(("by", "column"), [("site", "site"), ("region", "group/region"), ("year", "group/year")])
def test_held_out_groups(by: Any, column: str) -> None:
    samples = cohort(400)
    values = tuple(sorted(samples[column].drop_nulls().unique()))[-2:]
    split = assign_splits(samples, SplitSettings(by=by, test_values=values))
    groups: dict[str, set[str | None]] = defaultdict(set)
    for patient, group in samples.select("patient", column).iter_rows():
        groups[patient].add(group)
    where = splits_of(samples, split)
    kinds = set()
    for patient, seen in groups.items():
        if seen <= set(values):
            kinds.add("inside")
            assert where[patient] == {TEST}
        elif seen & set(values):
            kinds.add("both")
            assert where[patient] == {TRAIN}
        else:
            kinds.add("outside")
            assert TEST not in where[patient]
    assert kinds == {"inside", "both", "outside"}
    assert set(split) == {TRAIN, VAL, CALIBRATION, TEST}


def test_given_splits_stand_and_the_absent_ones_are_drawn_from_train() -> None:
    patients = [f"p{k}" for k in range(400)]
    full = [SPLITS[k % 4] for k in range(400)]
    split = assign_splits(pl.DataFrame({"patient": patients, "split": full}), SplitSettings(by="given"))
    assert [SPLITS[s] for s in split] == full
    pair = ["test" if k % 4 == 3 else "train" for k in range(400)]
    split = assign_splits(pl.DataFrame({"patient": patients, "split": pair}), SplitSettings(by="given"))
    assert {SPLITS[s] for s, g in zip(split, pair, strict=True) if g == "test"} == {"test"}
    drawn = np.bincount(split[[g == "train" for g in pair]], minlength=4) / 300
    np.testing.assert_allclose(drawn, [0.75, 0.125, 0.125, 0], atol=5 * np.sqrt(0.19 / 300))


@pytest.mark.parametrize(
    ("samples", "settings", "message"),
    [
        ({"patient": ["a"]}, {"by": "given"}, "no 'split' column"),
        ({"patient": ["a", "b"], "split": ["train", None]}, {"by": "given"}, "1 rows are none of train, val"),
        ({"patient": ["a", "b"], "split": ["train", "dev"]}, {"by": "given"}, "1 rows are none of train, val"),
        ({"patient": ["a", "a"], "split": ["train", "test"]}, {"by": "given"}, "1 people are in more than one split"),
        ({"patient": ["a"], "site": [None]}, {"by": "site"}, "the samples have no 'site'"),
        ({"patient": ["a"], "site": ["s"]}, {"by": "region"}, "the samples have no 'group/region'"),
        ({"patient": ["a"], "site": ["s"]}, {"by": "site", "test_values": ("t",)}, "1 of the test_values do not occur"),
    ],
)
def test_wrong_samples_say_what_is_wrong(samples: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assign_splits(pl.DataFrame(samples), SplitSettings(**settings))


@pytest.mark.parametrize(
    "settings", [{"test_fold": 5}, {"test_fold": -1}, {"folds": 1}, {"val": -0.1}, {"val": 0.5, "calibration": 0.5}]
)
def test_wrong_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"fold|shares"):
        SplitSettings(**settings)
