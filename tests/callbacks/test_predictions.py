from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from lightning.pytorch import Trainer

from mmnar_lightning.callbacks import predictions as writing
from mmnar_lightning.fusion import EvidenceFusion
from mmnar_lightning.module import MultimodalOutcomeModule
from mmnar_lightning.records import SplitSettings
from mmnar_tables import TablesDataModule

TASKS = ("death", "death_early", "readmission")
FRONT = {"sample": pl.Int64, "patient": pl.String, "site": pl.String, "split": pl.String, "pattern": pl.Int64}
OF_TASK = {"raw": pl.Float32, "rectified": pl.Float32, "target": pl.Boolean, "labelled": pl.Boolean}


@pytest.fixture(scope="module")
def found(trained: Path) -> pl.DataFrame:
    return pl.read_parquet(trained / "predictions.parquet")


@pytest.fixture(scope="module")
def data(own_tables: Path, trained: Path) -> TablesDataModule:
    return TablesDataModule(own_tables, trained.parent / "stores", splits=SplitSettings(val=0.2, calibration=0.3))


@pytest.fixture(scope="module")
def model(trained: Path) -> MultimodalOutcomeModule:
    path = trained / "checkpoints" / "best.ckpt"
    return MultimodalOutcomeModule.load_from_checkpoint(path, weights_only=True, map_location="cpu")


def test_columns_are_those_promised(found: pl.DataFrame) -> None:
    expected = FRONT | {f"{task}/{name}": dtype for task in TASKS for name, dtype in OF_TASK.items()}
    assert dict(found.schema) == expected
    assert list(found.columns) == list(expected)


def test_uncertainty_stands_beside_the_pattern_where_the_fusion_has_one(
    data: TablesDataModule, own_tables: Path, tmp_path: Path
) -> None:
    store = data.records.path.parent
    given = TablesDataModule(own_tables, store, modalities=["vitals", "labs"], splits=data.splits)
    given.setup("fit")
    model = MultimodalOutcomeModule(given.schema, EvidenceFusion, width=8)
    path = tmp_path / "predictions.parquet"
    quiet: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = Trainer(callbacks=[writing.PredictionWriter(str(path))], default_root_dir=tmp_path, **quiet)
    trainer.predict(model, datamodule=given, return_predictions=False)
    found = pl.read_parquet(path)
    assert list(found.columns[:6]) == [*FRONT, "uncertainty"]
    assert found.schema["uncertainty"] == pl.Float32
    number = pl.col("pattern").bitwise_count_ones()
    mean = found.group_by(number=number).agg(pl.col("uncertainty").mean()).sort("number")["uncertainty"].to_list()
    assert 1 >= mean[0] > mean[1] > mean[2] > 0, "the more is known, the less there is"


def test_each_sample_of_calibration_and_test_is_there_once(found: pl.DataFrame, data: TablesDataModule) -> None:
    for split in ("test", "calibration", "conformal"):
        samples = found.filter(pl.col("split") == split)["sample"].to_list()
        assert samples
        assert samples == data.samples_of(split).tolist(), "ascending, and each once"
    assert found["split"].is_in(["test", "calibration", "conformal"]).all()


def test_what_is_known_of_a_sample_is_that_of_the_store(found: pl.DataFrame, data: TablesDataModule) -> None:
    stored = found.select("sample").join(data.records.samples, on="sample", how="left", maintain_order="left")
    assert found["site"].equals(stored["site"])
    names = [m["name"] for m in data.schema["modalities"]]
    pattern = sum(stored[f"observed/{name}"].cast(pl.Int64) * 2**m for m, name in enumerate(names))
    assert found["pattern"].equals(pattern, check_names=False)
    for task in TASKS:
        label = stored[f"label/{task}"]
        assert found[f"{task}/target"].equals(label), "null where it is unknown"
        assert found[f"{task}/labelled"].equals(label.is_not_null())
    assert found["readmission/target"].null_count() > 0


def test_patients_are_named_by_a_keyed_hash(found: pl.DataFrame, data: TablesDataModule, trained: Path) -> None:
    stored = found.select("sample").join(data.records.samples, on="sample", how="left", maintain_order="left")
    pairs = pl.DataFrame({"id": stored["patient"], "hash": found["patient"]}).unique()
    assert pairs["id"].is_unique().all()
    assert pairs["hash"].is_unique().all()
    everything = (trained / "predictions.parquet").read_bytes()
    for identity, name in pairs.rows():
        assert identity.encode() not in everything
        plain = {h(identity.encode()).hexdigest()[: len(name)] for h in (hashlib.sha256, hashlib.blake2b, hashlib.md5)}
        short = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
        assert name not in plain | {short}, "that could be found by trying ids"


def test_rectified_is_the_rectifier_of_raw(found: pl.DataFrame, model: MultimodalOutcomeModule) -> None:
    raw = torch.tensor(found.select(f"{task}/raw" for task in TASKS).to_numpy()).double()
    corrected = model.rectifier.probabilities(torch.logit(raw), torch.tensor(found["pattern"].to_numpy()))
    rectified = found.select(f"{task}/rectified" for task in TASKS).to_numpy()
    np.testing.assert_allclose(rectified, corrected.numpy(), atol=2e-6)
    assert np.abs(rectified - raw.numpy()).max() > 0.01


def test_raw_is_what_the_module_says(
    found: pl.DataFrame, model: MultimodalOutcomeModule, data: TablesDataModule
) -> None:
    data.setup("predict")
    model.eval()
    with torch.no_grad():
        logits = {int(s): row for b in data.predict_dataloader() for s, row in zip(b.sample, model(b), strict=True)}
    expected = torch.stack([logits[s] for s in found["sample"]]).sigmoid().numpy()
    np.testing.assert_allclose(found.select(f"{task}/raw" for task in TASKS).to_numpy(), expected, atol=1e-5)


def test_the_file_says_which_schema_and_store_it_is_of(
    trained: Path, data: TablesDataModule, model: MultimodalOutcomeModule
) -> None:
    metadata = pl.read_parquet_metadata(trained / "predictions.parquet")
    assert metadata["store"] == data.records.fingerprint
    assert re.fullmatch("[0-9a-f]{16}", metadata["schema"])


def test_the_file_is_private_and_nothing_is_left_beside_it(trained: Path) -> None:
    assert (trained / "predictions.parquet").stat().st_mode & 0o777 == 0o600
    assert [p.name for p in trained.iterdir() if "predictions" in p.name] == ["predictions.parquet"]


def test_a_write_that_fails_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "predictions.parquet"
    writing._write(pl.DataFrame({"sample": [1]}), path, {"store": "a"})

    def fail(frame: Any, file: Path, **options: Any) -> None:
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", fail)
    with pytest.raises(OSError, match="No space"):
        writing._write(pl.DataFrame({"sample": [2]}), path, {"store": "a"})
    assert pl.read_parquet(path)["sample"].to_list() == [1]
