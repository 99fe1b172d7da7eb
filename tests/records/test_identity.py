from __future__ import annotations

import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmnar_lightning.records import patient_hashes, patient_key
from mmnar_lightning.records.identity import KEY


def test_key_is_private_and_stays(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        key = patient_key(tmp_path / "stores")
    finally:
        os.umask(before)
    assert len(key) == 32
    assert stat.S_IMODE((tmp_path / "stores" / KEY).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "stores").stat().st_mode) == 0o700
    assert patient_key(tmp_path / "stores") == key
    assert [p.name for p in (tmp_path / "stores").iterdir()] == [KEY]
    assert patient_key(tmp_path / "others") != key


def test_whoever_starts_together_agrees(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(patient_key, [tmp_path / "threads"] * 16))) == 1
    assert [p.name for p in (tmp_path / "threads").iterdir()] == [KEY]


def test_damaged_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / KEY).write_bytes(b"short")
    with pytest.raises(ValueError, match="not a key of 32 bytes"):
        patient_key(tmp_path)


def test_hashes_need_the_key(tmp_path: Path) -> None:
    key = patient_key(tmp_path)
    patients = [f"p{k}" for k in range(1000)] + ["ü"]
    hashes = patient_hashes(patients, key)
    assert len(set(hashes)) == len(patients)
    assert all(len(h) == 16 and int(h, 16) >= 0 for h in hashes)
    assert hashes == patient_hashes(patients, key)
    assert not set(hashes) & set(patient_hashes(patients, bytes(32)))
    plain = {hashlib.blake2b(p.encode(), digest_size=8).hexdigest() for p in patients}
    assert not plain & set(hashes)
