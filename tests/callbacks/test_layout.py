from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from mmnar_lightning.callbacks.layout import TAG, scalar_layout

CONF = Path(__file__).parents[1] / "conf" / "tables.yaml"
TASKS = ("death", "death_early", "readmission")


def read(folder: Path) -> Any:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def expressions(layout: Any) -> dict[str, list[str]]:
    return {
        f"{category.title}/{chart.title}": list(chart.multiline.tag)
        for category in layout.category
        for chart in category.chart
    }


@pytest.fixture(scope="module")
def events(trained: Path) -> Any:
    return read(trained)


def test_the_layout_that_was_written_is_that_of_the_tasks(events: Any) -> None:
    (event,) = events.Tensors(TAG)
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["losses by term", "metrics by task", "by pattern"]
    expected = {
        f"{category}/{chart}": content[1]
        for category, charts in scalar_layout(TASKS).items()
        for chart, content in charts.items()
    }
    assert expressions(layout) == expected


def test_each_chart_has_the_curves_it_should_and_no_other(events: Any) -> None:
    tags = events.Tags()["scalars"]
    found = {
        (category, chart): {tag for tag in tags if re.match(content[1][0], tag)}
        for category, charts in scalar_layout(TASKS).items()
        for chart, content in charts.items()
    }
    # the rectifier leaves tasks with few labels as they are
    empty = {chart for (_, chart), curves in found.items() if not curves}
    assert empty <= {f"{task}: shift" for task in TASKS if task != "death"}
    assert found["losses by term", "what is minimised"] == {"train/loss"}
    assert found["losses by term", "tasks"] == {f"train/loss_{task}" for task in TASKS}
    auxiliary = {f"train/{term}" for term in ("reconstruction", "contrast", "missingness")}
    # what the fusion shows of itself without a gradient may stand beside them
    assert auxiliary <= found["losses by term", "auxiliary terms"]
    assert not {tag for tag in found["losses by term", "auxiliary terms"] if "/spread/" in tag or "loss" in tag}
    assert found["metrics by task", "auroc, raw"] == {f"val/{task}/auroc" for task in TASKS}
    assert found["metrics by task", "brier, rectified"] == {f"val/rectified/{task}/brier" for task in TASKS}
    patterns = found["by pattern", "death: auroc"]
    assert "val/death/pattern/vitals+labs+diagnoses/auroc" in patterns
    assert all(tag.startswith("val/death/pattern/") for tag in patterns)
    assert "rectifier/death/pattern/vitals+labs+diagnoses" in found["by pattern", "death: shift"]


def test_names_are_no_expressions() -> None:
    (chart,) = (content for name, content in scalar_layout(["a.b"])["by pattern"].items() if name == "a.b: auroc")
    (expression,) = chart[1]
    assert re.match(expression, "val/a.b/pattern/labs/auroc")
    assert not re.match(expression, "val/axb/pattern/labs/auroc")


def test_a_run_that_goes_on_has_one_layout_and_one_set_of_settings(
    mmnar: Any, own_tables: Path, tmp_path: Path
) -> None:
    data = ("--data.init_args.root", own_tables, "--data.init_args.store", tmp_path / "stores")
    words = ("fit", "--config", CONF, *data, "--run_dir", tmp_path / "run", "--resume", "auto")
    assert mmnar(*words, end={"moment": "step", "count": 10, "how": "raise"}).status == 1
    assert len(read(tmp_path / "run").Tensors(TAG)) == 1
    for _ in range(2):
        done = mmnar(*words)
        assert done.status == 0, done.out
    events = read(tmp_path / "run")
    assert len(events.Tensors(TAG)) == 1
    assert len(events.Scalars("best/val/auroc")) == 1
    written = b"".join(path.read_bytes() for path in (tmp_path / "run").glob("events.out.tfevents.*"))
    assert written.count(b"_hparams_/session_start_info") == 1
