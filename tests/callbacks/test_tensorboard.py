"""What a run shows in TensorBoard, read back from its event files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from mmnar_lightning.records import RecordSchema, SplitSettings, pattern_names
from mmnar_tables import TablesDataModule

TASKS = ("death", "death_early", "readmission")


@pytest.fixture(scope="module")
def events(trained: Path) -> Any:
    found = EventAccumulator(str(trained), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


@pytest.fixture(scope="module")
def tags(events: Any) -> set[str]:
    return set(events.Tags()["scalars"])


@pytest.fixture(scope="module")
def schema(trained: Path) -> RecordSchema:
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    return RecordSchema.from_dict(checkpoint["hyper_parameters"]["schema"])


def test_losses_by_term_at_every_step(events: Any, tags: set[str]) -> None:
    expected = {"train/loss", *(f"train/loss_{task}" for task in TASKS)}
    expected |= {"train/reconstruction", "train/contrast", "train/missingness"}
    assert expected <= tags
    for tag in expected:
        assert [e.step for e in events.Scalars(tag)] == list(range(18)), tag
    assert [e.value for e in events.Scalars("train/auxiliary_share")] == [1.0] * 3
    assert {"val/loss", "test/loss"} <= tags


def test_the_parts_of_the_loss_add_up(events: Any) -> None:
    parts = {f"train/loss_{task}": 1.0 for task in TASKS}
    parts |= {"train/reconstruction": 1.0, "train/contrast": 0.3, "train/missingness": 0.5}
    for step in range(18):
        total = sum(weight * events.Scalars(tag)[step].value for tag, weight in parts.items())
        assert total == pytest.approx(events.Scalars("train/loss")[step].value, rel=1e-4)


@pytest.mark.parametrize("metric", ["auroc", "auprc", "brier"])
def test_metrics_of_each_task_raw_and_rectified(metric: str, events: Any, tags: set[str]) -> None:
    for kind in ("", "rectified/"):
        for task in TASKS:
            # three epochs and `mmnar validate`
            assert len(events.Scalars(f"val/{kind}{task}/{metric}")) == 4
            assert len(events.Scalars(f"test/{kind}{task}/{metric}")) == 1
        assert f"val/{kind}{metric}" in tags


def test_the_same_for_the_most_frequent_patterns(tags: set[str], schema: RecordSchema) -> None:
    words = {"+".join(pattern_names(p, schema.names)) or "none" for p in schema.patterns}
    assert 0 < len(words) <= 8
    for stage in ("val", "test"):
        shown = {
            tag.split("/pattern/")[1].split("/")[0]
            for tag in tags
            if tag.startswith(f"{stage}/") and "/pattern/" in tag
        }
        assert shown <= words
        assert "vitals+labs+diagnoses" in shown
    for metric in ("auroc", "auprc", "brier"):
        assert f"val/death/pattern/vitals+labs+diagnoses/{metric}" in tags


def test_availability_stands_at_the_start(events: Any, schema: RecordSchema, trained: Path, own_tables: Path) -> None:
    data = TablesDataModule(own_tables, trained.parent / "stores", splits=SplitSettings(val=0.2, calibration=0.3))
    for k, split in enumerate(("train", "val", "calibration", "test")):
        samples = data.records.samples.filter(pl.Series(data.split == k))
        for name in schema.names:
            tag, has = f"availability/{split}/{name}", pl.col(f"observed/{name}")
            people = [samples.filter(side)["patient"].n_unique() for side in (has, ~has)]
            if any(0 < number < 10 for number in people):
                assert tag not in events.Tags()["scalars"]
                continue
            (event,) = events.Scalars(tag)
            assert event.step == 0
            assert event.value == pytest.approx(samples[f"observed/{name}"].to_numpy().mean(), abs=1e-6)
    assert any(tag.startswith("availability") for tag in events.Tags()["tensors"])


def test_learning_rate_at_every_step(events: Any, tags: set[str]) -> None:
    (first, *_) = sorted(tag for tag in tags if tag.startswith("lr-"))
    values = [e.value for e in events.Scalars(first)]
    assert len(values) == 18
    assert max(values) == pytest.approx(1e-3, rel=0.05)
    assert values[-1] < values[3]


def test_shifts_of_the_rectifier_each_epoch(events: Any, tags: set[str], trained: Path) -> None:
    state = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]["_extra_state"][
        "rectifier"
    ]
    fitted = [task for task, reason in zip(state["tasks"], state["reasons"], strict=True) if not reason]
    assert "death" in fitted
    for task in fitted:
        for name in ("bias", "temperature", "tau_pattern", "pattern/vitals+labs+diagnoses"):
            assert len(events.Scalars(f"rectifier/{task}/{name}")) == 3


def test_nothing_names_a_patient(events: Any, trained: Path, own_tables: Path) -> None:
    people = set(pl.read_parquet(own_tables / "samples.parquet")["patient_id"])
    people |= set(pl.read_parquet(trained / "predictions.parquet")["patient"])
    assert len(people) > 100
    files = [path for path in trained.iterdir() if path.is_file() and path.name != "predictions.parquet"]
    assert any("tfevents" in path.name for path in files)
    for path in files:
        content = path.read_bytes()
        assert not [person for person in people if person.encode() in content], path.name


def test_small_counts_are_not_shown(events: Any) -> None:
    (tag,) = (tag for tag in events.Tags()["tensors"] if tag.startswith("availability"))
    text = events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
    assert "| modality | observed |" in text
    assert "| task | labelled | positive |" in text
    rows = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    cells = [cell.strip() for row in rows for cell in row.strip("|").split("|")[1:]]
    assert cells.count("< 10") > 0
    assert all(int(cell) == 0 or int(cell) >= 10 for cell in cells if cell.isdigit())


def test_the_promised_curves_are_there(events: Any, tags: set[str], schema: RecordSchema) -> None:
    """`docs/howto/tensorboard.md` is the one list; `test_figures_callback.py` looks at the pictures."""
    page = (Path(__file__).parents[2] / "docs" / "howto" / "tensorboard.md").read_text(encoding="utf-8")
    promised = re.findall(r"^\| (.+?) \| `(.+?)` \|", page, flags=re.MULTILINE)
    assert len(promised) >= 20
    there = {
        "scalars": tags,
        "text": set(events.Tags()["tensors"]),
        "custom scalars": set(events.PluginTagToContent("custom_scalars")),
        "HPARAMS": set(events.PluginTagToContent("hparams")),
    }
    words = {"modality": [*schema.names], "task": ["death"], "metric": ["auroc", "brier"], "split": ["train", "val"]}
    for tab, tag in promised:
        if tab in there:
            for name in re.findall(r"{(\w+)}", tag)[:1] or [""]:
                for word in words.get(name, [None]):
                    tag_of = tag if word is None else tag.replace(f"{{{name}}}", word)
                    expression = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(tag_of))
                    assert [t for t in there[tab] if re.fullmatch(expression, t)], tag_of


def test_settings_and_the_best_metrics_stand_side_by_side(events: Any, trained: Path) -> None:
    found = events.PluginTagToContent("hparams")
    started = HParamsPluginData.FromString(found["_hparams_/session_start_info"]).session_start_info.hparams
    given = {name: value.string_value or value.number_value for name, value in started.items()}
    assert given["fusion"] == "MMNARFusion"
    assert given["width"] == 16
    assert given["data/batch_size"] == 34
    assert not [name for name in given if "schema" in name]
    columns = HParamsPluginData.FromString(found["_hparams_/experiment"]).experiment.metric_infos
    names = {column.name.tag for column in columns}
    assert {"best/val/auroc", "best/val/death/auroc", "test/auroc", "test/rectified/death/brier"} <= names
    # all of the test's and the best checkpoint's are curves that exist
    assert names <= set(events.Tags()["scalars"])
    (best,) = events.Scalars("best/val/auroc")
    # `mmnar validate` looked at the same checkpoint
    expected = json.loads((trained / "metrics-val.json").read_text())["auroc"]
    assert best.value == pytest.approx(expected, abs=1e-6)
