"""A checkpoint and a table give what `mmnar predict` gives with store and datamodule."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer, seed_everything
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from mmnar_lightning.callbacks import PredictionWriter, finish
from mmnar_lightning.module import MultimodalOutcomeModule
from mmnar_lightning.predictor import Predictor, load_predictor
from mmnar_lightning.records import RecordDataModule
from mmnar_tables import TablesDataModule

NUMBERS = ("vitals", "labs", "diagnoses", "monitor")


@dataclass(frozen=True)
class Fitted:
    """A checkpoint, and what it predicted in the way that `mmnar predict` takes."""

    data: RecordDataModule
    checkpoint: Path
    predictions: pl.DataFrame

    @property
    def predictor(self) -> Predictor:
        return load_predictor(self.checkpoint)

    def frame(self) -> pl.DataFrame:
        return self.predictor.frame_of(self.data.records, self.predictions["sample"].to_list())


def fitted(data: RecordDataModule, folder: Path, **options: Any) -> Fitted:
    seed_everything(0, verbose=False)
    writer: Callback = PredictionWriter(str(folder / "predictions.parquet"))
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        logger=False,
        callbacks=[writer],
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = MultimodalOutcomeModule(data.schema, width=8, **options)
    trainer.fit(module, datamodule=data)
    path = folder / "model.ckpt"
    trainer.save_checkpoint(path)
    finish(trainer, module, data, path)
    trainer.predict(module, datamodule=data, ckpt_path=path, return_predictions=False, weights_only=True)
    return Fitted(data, path, pl.read_parquet(folder / "predictions.parquet"))


@pytest.fixture(scope="module")
def numbers(make_datamodule: Any, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Vectors, codes and series; one in twelve samples is nowhere known of."""
    folder = tmp_path_factory.mktemp("numbers")
    return fitted(make_datamodule(folder, 300, modalities=NUMBERS, batch_size=32), folder, linear_precision=100.0)


def same(predicted: pl.DataFrame, written: pl.DataFrame) -> None:
    assert predicted["sample"].to_list() == written["sample"].to_list()
    assert predicted["pattern"].to_list() == written["pattern"].to_list()
    names = [c for c in written.columns if c.endswith(("/raw", "/rectified")) or c == "uncertainty"]
    assert names
    for name in names:
        np.testing.assert_allclose(predicted[name], written[name], rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("batch_size", [7, 512])
def test_a_table_gives_what_the_store_gives(numbers: Fitted, batch_size: int) -> None:
    same(numbers.predictor.predict(numbers.frame(), batch_size=batch_size), numbers.predictions)
    assert numbers.predictions["pattern"].n_unique() > 8


def test_conformal_sets_are_those_of_the_model(numbers: Fitted) -> None:
    predictor = numbers.predictor
    predicted = predictor.predict(numbers.frame())
    p = torch.from_numpy(np.stack([predicted[f"{t}/rectified"] for t in predictor.schema.task_names], 1))
    held = predictor.module.conformal.sets(p, torch.tensor(predicted["pattern"].to_list()))
    for k, task in enumerate(predictor.schema.task_names):
        wanted = [[c for c in (0, 1) if row[c]] for row in held[:, k].tolist()]
        assert predicted[f"{task}/set"].to_list() == wanted


def test_text_and_films_go_the_same_way(tmp_path: Path) -> None:
    data, encoders = documents(tmp_path)
    made = fitted(data, tmp_path, encoders=encoders)
    same(made.predictor.predict(made.frame()), made.predictions)
    # without hours, and as plain strings, it is another sample, but one
    plain = made.frame().with_columns(
        pl.col("notes").list.eval(pl.element().struct.field("text")),
        pl.col("films").list.eval(pl.element().struct.field("path")),
    )
    assert made.predictor.predict(plain)["pattern"].to_list() == made.predictions["pattern"].to_list()


def test_several_elements_and_what_the_model_takes_nothing_of(own_several: Fitted) -> None:
    frame = own_several.frame()
    assert frame["labs/lactate"].dtype == pl.List(pl.Float32)
    assert frame["labs/lactate"].list.len().max() == 2
    # one that was measured by an item alone that too few have for the model to take
    assert frame["observed/labs"].any()
    same(own_several.predictor.predict(frame), own_several.predictions)


def test_an_example_is_of_nobody_and_can_be_filled(numbers: Fitted) -> None:
    predictor = numbers.predictor
    example = predictor.example(3)
    assert example.height == 3
    before = predictor.predict(example)
    assert before["pattern"].to_list() == [0, 0, 0]
    filled = example.with_columns(
        pl.lit(1.5).alias("labs/lactate"),
        pl.Series("diagnoses", [["code_01"], ["nothing that training knew"], []]),
        pl.Series("monitor", [[], None, [{"variable": "map", "value": 0.3, "hours_before": 1.0}]]),
        sample=pl.Series(["a", "b", "c"]),
    ).cast({"monitor": example.schema["monitor"]})
    after = predictor.predict(filled.with_columns(ward=pl.lit("x")), keep=["ward"])
    assert after["pattern"].to_list() == [0b0110, 0b0110, 0b1010]
    assert after["sample"].to_list() == ["a", "b", "c"]
    assert after.columns[:4] == ["sample", "ward", "pattern", "cut"]
    assert (after["death/raw"] != before["death/raw"]).all()
    # absent columns, and columns of nulls alone, are not measured either
    assert predictor.predict(pl.DataFrame({"vitals/spo2": [None]}))["pattern"].to_list() == [0]
    assert predictor.predict(pl.DataFrame({"vitals/spo2": [1]}))["pattern"].to_list() == [1]
    assert predictor.predict(example.clear()).columns == before.columns


def test_a_hidden_modality_is_not_observed(numbers: Fitted) -> None:
    frame = numbers.frame()
    predictor = numbers.predictor
    hidden = predictor.predict(predictor.hide(frame, "labs", "monitor"))["pattern"]
    assert ((hidden & 0b1010) == 0).all()
    assert ((hidden & 0b0101) == (numbers.predictions["pattern"] & 0b0101)).all()
    with pytest.raises(ValueError, match="no modality 'lab'; there are: vitals, labs"):
        predictor.hide(frame, "lab")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"labs/lactat": [1.0]}, r"'labs/lactat' \(did you mean 'labs/lactate'\?\)"),
    "far from any": ({"zzz": [1.0]}, r"does not know: 'zzz'; drop"),
    "text for a number": ({"labs/lactate": ["high"]}, "column 'labs/lactate' is String where a number"),
    "a string for a list": ({"diagnoses": ["code_01"]}, "column 'diagnoses' is String where a list of strings"),
    "fields": ({"monitor": [[{"variable": "map", "val": 1.0}]]}, "where a list of structs of variable, value and"),
    "strings for a series": ({"monitor": [["map"]]}, "column 'monitor' is .* where a list of structs"),
    "infinite": ({"labs/lactate": [float("inf")]}, "column 'labs/lactate' is infinite in 1 rows"),
    "from the future": ({"labs/lactate": [1.0], "labs/hours_before": [-1.0]}, "'labs': 1 elements lie after the pred"),
    "uneven": (
        {"labs/lactate": [[1.0, 2.0]], "labs/sodium": [[1.0]]},
        "modality 'labs': the lists of its items differ in length in 1 rows",
    ),
    "variable": (
        {"monitor": [[{"variable": "secret", "value": 1.0, "hours_before": None}]]},
        "column 'monitor': 1 elements of variables the model does not know; it knows heart_rate, map, fio2$",
    ),
    "denied": ({"labs/lactate": [1.0], "observed/labs": [False]}, "'observed/labs' is false in 1 rows that have"),
    "flag": ({"observed/labs": [1.0]}, "column 'observed/labs' is Float64 where true or false"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_refused_without_a_value(numbers: Fitted, name: str) -> None:
    columns, message = WRONG[name]
    with pytest.raises(ValueError, match=message) as error:
        numbers.predictor.predict(pl.DataFrame(columns, strict=False))
    assert "secret" not in str(error.value)
    assert "high" not in str(error.value)


def test_values_far_from_training_are_counted_and_never_cut_in_silence(
    numbers: Fitted, caplog: pytest.LogCaptureFixture
) -> None:
    predictor, rows = numbers.predictor, [0.0, 20.0, 900.0]
    with caplog.at_level(logging.WARNING):
        predicted = predictor.predict(
            pl.DataFrame({"vitals/spo2": rows, "vitals/sbp": [0.0, 0.0, 900.0]}), batch_size=2
        )
    assert predicted["cut"].to_list() == [0, 1, 2]
    (warning,) = caplog.messages
    assert warning.endswith(": vitals/spo2 (2 of 3)")
    monitor = [[{"variable": "map", "value": v, "hours_before": 1.0} for v in (0.0, 900.0, -900.0)]]
    assert predictor.predict(pl.DataFrame({"monitor": monitor}))["cut"].to_list() == [2]


def test_several_threads_may_predict_at_once(numbers: Fitted) -> None:
    predictor, frame = numbers.predictor, numbers.frame()
    with ThreadPoolExecutor(3) as pool:
        for predicted in pool.map(lambda _: predictor.predict(frame, batch_size=64), range(3)):
            same(predicted, numbers.predictions)


def test_loading_says_what_is_wrong_and_draws_nothing(numbers: Fitted, tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    load_predictor(numbers.checkpoint)
    assert torch.get_rng_state().equal(before)
    with pytest.raises(ValueError, match=r"no checkpoint in .*; fit first"):
        load_predictor(tmp_path)
    (tmp_path / "best.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"best\.ckpt is no checkpoint of mmnar"):
        load_predictor(tmp_path)
    kept = torch.load(numbers.checkpoint, weights_only=True)
    kept["hyper_parameters"]["_class_path"] = "torch.nn.Linear"
    torch.save(kept, tmp_path / "best.ckpt")
    with pytest.raises(ValueError, match="is no MultimodalOutcomeModule"):
        load_predictor(tmp_path)


@pytest.fixture(scope="module")
def own_several(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Two blood samples a person, and an item that eight of them have and nothing else."""
    folder = tmp_path_factory.mktemp("several")
    n, rng = 200, np.random.default_rng(0)
    sick = rng.random(n) < 0.4
    names = [f"s{k}" for k in range(n)]
    samples = {"sample_id": names, "patient_id": names, "death": sick}
    pl.DataFrame(samples).write_parquet(folder / "samples.parquet")
    twice = np.repeat(np.arange(0, n, 2), 2)
    values = np.where(rng.random(len(twice)) < 0.2, np.nan, rng.normal(size=len(twice)) + sick[twice])
    labs = pl.DataFrame({"sample_id": [names[k] for k in twice], "lactate": values})
    # eight have nothing else, and the first has it beside the other
    rare = pl.DataFrame({"sample_id": [names[0], *names[1:17:2]], "rare": 1.0})
    labs = pl.concat([labs, rare], how="diagonal")
    labs.with_columns(hours_before=pl.Series(rng.uniform(0, 9, len(labs)))).write_parquet(folder / "labs.parquet")
    described = {"dataset": "several", "tasks": {"death": None}, "modalities": {"labs": {"kind": "vector"}}}
    (folder / "schema.yaml").write_text(yaml.safe_dump(described), encoding="utf-8")
    splits: Any = ("train", "val", "calibration", "test")
    data = TablesDataModule(folder, folder / "stores", batch_size=32, predict_splits=splits)
    assert data.schema["modalities"][0]["items"] == ["lactate"]
    return fitted(data, folder)


def documents(folder: Path) -> tuple[RecordDataModule, dict[str, Any]]:
    """Tables with notes and films, and encoders for them that nobody trained."""
    rng, n = np.random.default_rng(0), 60
    words = ["stable", "worse", "pain", "fever"]
    vocabulary = {word: k for k, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special: Any = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, **special).save_pretrained(folder / "bert")
    size: Any = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(vocabulary), **size)).save_pretrained(folder / "bert")
    names = [f"s{k}" for k in range(n)]
    samples = {"sample_id": names, "patient_id": names, "death": rng.random(n) < 0.5}
    pl.DataFrame(samples).write_parquet(folder / "samples.parquet")
    noted, filmed = names[::2] * 2, names[::3]
    texts = [" ".join(rng.choice(words, 5)) for _ in noted]
    notes = {"sample_id": noted, "hours_before": rng.uniform(0, 9, len(noted)), "text": texts}
    pl.DataFrame(notes).write_parquet(folder / "notes.parquet")
    for name in filmed:
        Image.fromarray(rng.integers(0, 255, (40, 36)).astype(np.uint8)).save(folder / f"{name}.png")
    films = {"sample_id": filmed, "path": [f"{name}.png" for name in filmed]}
    pl.DataFrame(films).write_parquet(folder / "films.parquet")
    kinds = {"notes": "text", "films": "image"}
    described = {"dataset": "d", "tasks": {"death": None}, "modalities": {m: {"kind": k} for m, k in kinds.items()}}
    (folder / "schema.yaml").write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")
    bert = {"model": str(folder / "bert"), "max_tokens": 8, "stride": 2}
    resnet = {"model": "test_resnet", "pretrained": False, "image_size": 32, "channels": 1}
    encoders = {
        "notes": {"class_path": "mmnar_lightning.encoders.TextEncoder", "init_args": bert},
        "films": {"class_path": "mmnar_lightning.encoders.ImageEncoder", "init_args": resnet},
    }
    return TablesDataModule(folder, folder / "stores", batch_size=16), encoders
