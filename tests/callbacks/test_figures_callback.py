"""Pictures of a run, read back from its event files, and what they are made of."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from mmnar_lightning.callbacks import OutcomeFigures
from mmnar_lightning.callbacks import figures as figures_module
from mmnar_lightning.callbacks.outcome_rows import OutcomeRows, curve_counts, mean_views, train_patterns
from mmnar_lightning.fusion import EvidenceFusion, MMNARFusion
from mmnar_lightning.records import Encoded, FusionShape, RecordSchema

CONF = Path(__file__).parents[1] / "conf"
TASKS = ("death", "death_early", "readmission")
Fit = Callable[..., Path]


@pytest.fixture(scope="module")
def fit(mmnar: Any, own_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """`fit(conf, *words)` fits and returns the run's folder."""
    stores = tmp_path_factory.mktemp("stores")

    def run(conf: str, *words: str) -> Path:
        folder = tmp_path_factory.mktemp("drawn") / "run"
        data = ("--data.init_args.root", own_tables, "--data.init_args.store", stores)
        done = mmnar("fit", "--config", CONF / conf, *data, "--run_dir", folder, *words)
        assert done.status == 0, done.out
        return folder

    return run


@pytest.fixture(scope="module")
def drawn(fit: Fit) -> Path:
    """The run `trained` is of, with pictures of as many epochs as there is time for."""
    asked = ("--trainer.callbacks.every_n_epochs=1", "--trainer.callbacks.share=1.0")
    return fit("tables.yaml", "--trainer.callbacks+=OutcomeFigures", *asked)


def read(folder: Path) -> Any:
    sizes = {"scalars": 0, "tensors": 0, "images": 0}
    events = EventAccumulator(str(folder), size_guidance=sizes)
    events.Reload()
    return events


def test_every_picture_is_there_and_shows_something(drawn: Path) -> None:
    events = read(drawn)
    promised = {f"{what}/{task}" for what in ("calibration", "pattern_rate", "pattern_auroc") for task in TASKS}
    promised |= {"patterns/train", "rectifier/shifts", "fusion/gate", "fusion/attention"}
    page = (CONF.parents[1] / "docs" / "howto" / "tensorboard.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| images \| `(.+?)` \|", page, flags=re.MULTILINE))
    assert {tag.replace("{task}", task) for tag in listed for task in TASKS} == promised | {"fusion/precision_share"}
    assert set(events.Tags()["images"]) == promised
    for tag in promised:
        event = events.Images(tag)[-1]
        assert event.encoded_image_string.startswith(b"\x89PNG"), tag
        picture = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB"))
        assert picture.shape[1] >= 400, tag
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10, tag
        # the last of three epochs; what is the same in all of them is drawn once
        assert event.step == 18 or tag == "patterns/train", tag
    assert len(events.Images("patterns/train")) == 1


def test_curves_of_precision_and_recall(drawn: Path) -> None:
    events = read(drawn)
    tags = set(events.PluginTagToContent("pr_curves"))
    assert {f"precision_recall/death/{version}" for version in ("raw", "rectified")} <= tags
    event = events.Tensors("precision_recall/death/raw")[-1]
    counts = tensor_util.make_ndarray(event.tensor_proto)
    assert counts.shape[0] == 6
    assert not (counts[:4] % 10).any()
    assert counts[5, 0] == 1.0


def test_another_fusion_shows_what_it_has(fit: Fit) -> None:
    events = read(fit("evidence.yaml"))
    tags = set(events.Tags()["images"])
    assert "fusion/precision_share" in tags
    assert not tags & {"fusion/gate", "fusion/attention"}
    # every epoch was asked for, but so short a run leaves no time for it
    assert len(events.Images("fusion/precision_share")) == 1


def test_drawing_changes_nothing_in_the_run(drawn: Path, trained: Path) -> None:
    ours, other = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for folder in (drawn, trained)
    )
    assert ours.pop("_extra_state") == other.pop("_extra_state")
    assert all(torch.equal(value, ours[name]) for name, value in other.items())


@pytest.mark.parametrize("wrong", [{"every_n_epochs": 0}, {"share": 0.0}, {"share": 1.5}, {"most": 0}])
def test_arguments_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        OutcomeFigures(**wrong)


def trainer(epoch: int) -> Any:
    state = SimpleNamespace(fn="fit")
    return SimpleNamespace(
        state=state, sanity_checking=False, current_epoch=epoch, global_step=epoch, is_global_zero=True, loggers=[]
    )


def test_it_draws_every_few_epochs_while_there_is_time_and_always_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now, drawings = [0.0], []
    callback = OutcomeFigures(every_n_epochs=2, share=0.1)

    def draw(self: OutcomeFigures, at: Any, module: Any) -> None:
        drawings.append(at.current_epoch + 1)
        self._cost, self._step = 3.0, None
        self._spent += 3.0

    monkeypatch.setattr(OutcomeFigures, "_draw", draw)
    monkeypatch.setattr(figures_module, "board_of", lambda _: object())
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    module: Any = SimpleNamespace()
    callback.on_train_start(trainer(0), module)
    for epoch in range(13):
        now[0] += 10.0
        callback.on_validation_end(trainer(epoch), module)
    # 2 s are supposed at first; each costs 3 s, so that after the second 60 s must have passed, then 90, then 120
    assert drawings == [2, 6, 10, 12]
    callback.on_train_end(trainer(12), module)
    assert drawings == [2, 6, 10, 12, 13]
    callback.on_train_end(trainer(12), module)
    assert drawings == [2, 6, 10, 12, 13]


def test_without_tensorboard_nothing_is_watched_or_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    fusion = MMNARFusion(FusionShape(8, ("labs", "notes"), (0, 0), 1), heads=2)
    module: Any = SimpleNamespace(fusion=fusion, evaluated={"val": object()})
    monkeypatch.setattr(OutcomeFigures, "_draw", lambda *_: pytest.fail("drawn"))
    callback = OutcomeFigures(every_n_epochs=1, share=1.0)
    callback.on_train_start(trainer(0), module)
    callback.on_validation_epoch_start(trainer(0), module)
    assert not fusion._forward_hooks
    callback.on_validation_end(trainer(0), module)
    callback.on_train_end(trainer(0), module)


def test_the_fusion_is_left_as_it_was() -> None:
    fusion = MMNARFusion(FusionShape(8, ("labs", "notes"), (0, 0), 1), heads=2)
    callback = OutcomeFigures()
    watch = figures_module._Watch(fusion)
    watch.open(True)
    assert fusion.keep_attention
    watch.stop()
    assert not fusion.keep_attention
    assert not fusion._forward_hooks
    module: Any = SimpleNamespace(fusion=fusion)
    callback.on_exception(trainer(0), module, RuntimeError())


def test_shares_of_the_precision_and_what_is_left_are_all_of_it() -> None:
    fusion = EvidenceFusion(FusionShape(8, ("labs", "notes"), (0, 0), 1), pattern=False).eval()
    observed = torch.tensor([[True, True], [False, True], [False, False]])
    modality = torch.tensor([0, 1, 1])
    encoded = Encoded(torch.randn(3, 8), torch.tensor([0, 0, 1]), modality, observed, (None, None))
    views = fusion(encoded).views
    share = views["precision_share"]
    assert not share[~observed].any()
    assert (share[observed] > 0).all()
    # without a pattern's expert the rest is the prior's, whose precision is 1
    torch.testing.assert_close(share.sum(1) + views["uncertainty"], torch.ones(3))
    assert not share.requires_grad


def rows_of(schema: RecordSchema, n: int, people: int, seed: int = 0) -> OutcomeRows:
    rng = np.random.default_rng(seed)
    tasks = len(schema.tasks)
    p = rng.uniform(size=(n, tasks))
    targets = (rng.uniform(size=(n, tasks)) < p).astype(np.float64)
    probabilities = dict.fromkeys(("raw", "recalibrated", "rectified"), p)
    pattern = rng.integers(2, size=n)
    return OutcomeRows(schema, probabilities, targets, np.ones((n, tasks), bool), pattern, np.arange(n) % people)


def test_precision_and_recall_are_those_of_the_rows_where_they_may_be_shown(make_records: Any) -> None:
    rows = rows_of(make_records(20).schema, 400, 400)
    _, _, counts = next(iter(curve_counts(rows)))
    p, y = rows.probabilities["raw"][:, 0], rows.targets[:, 0] > 0.5
    thresholds = np.linspace(0, 1, counts.shape[1])
    shown = 0
    for j, t in enumerate(thresholds):
        above = p >= t
        if above.sum() >= 10 and (~above).sum() >= 10:
            shown += 1
            exact = [(above & y).sum(), (above & ~y).sum(), (~above & ~y).sum(), (~above & y).sum()]
            assert counts[:4, j].tolist() == [count // 10 * 10 for count in exact]
            assert counts[4:, j] == pytest.approx([exact[0] / above.sum(), exact[0] / y.sum()])
    assert shown > 80
    # the last thresholds, above which there are fewer than ten, stand at the last that may be shown
    assert np.unique(counts[:, -2:], axis=1).shape[1] == 1
    assert counts[5, -1] > 0


def test_nine_people_are_shown_nowhere(make_records: Any) -> None:
    schema = make_records(20).schema
    rows = rows_of(schema, 300, 9)
    assert list(curve_counts(rows)) == []
    assert rows.by_pattern() == []
    assert all(not any(curve.values()) for curve in rows.calibration(0).values())


def test_views_are_means_by_pattern_of_ten_people_or_more(make_datamodule: Any, tmp_path: Path) -> None:
    data = make_datamodule(tmp_path, 120)
    schema = RecordSchema.from_dict(data.schema)
    M = len(schema.names)
    people = data.records.samples["patient"].to_list()
    alone = [people.index(person) for person in sorted(set(people))]
    samples = torch.tensor(alone[:19])
    observed = torch.zeros(19, M, dtype=torch.bool)
    observed[:, 0] = True
    observed[10:, 1] = True  # nine people
    gate = torch.rand(19, M) * observed
    attention = torch.zeros(19, M, M)
    attention[:, 0, 0] = 1.0
    share = torch.full((19, M), 0.1) * observed
    views = {"gate": gate, "attention": attention, "precision_share": share}
    found = mean_views(
        [
            (samples[:7], observed[:7], {n: v[:7] for n, v in views.items()}),
            (samples[7:], observed[7:], {n: v[7:] for n, v in views.items()}),
        ],
        data,
        schema,
    )
    values, patterns, columns = found["gate"]
    assert patterns == [[schema.names[0]]]
    assert columns == list(schema.names)
    np.testing.assert_allclose(values[0], gate[:10].mean(0).numpy(), rtol=1e-6)
    assert found["attention"][0][0].tolist() == [1.0] + [0.0] * (M - 1)
    values, _, columns = found["precision_share"]
    assert len(columns) == M + 1
    np.testing.assert_allclose(values[0], [0.1] + [0.0] * (M - 1) + [0.9], rtol=1e-6)


def test_patterns_of_train_are_counted(make_datamodule: Any, tmp_path: Path) -> None:
    data = make_datamodule(tmp_path, 200)
    schema = RecordSchema.from_dict(data.schema)
    samples = data.records.samples[data.samples_of("train")]
    found = train_patterns(data, schema)
    assert found
    assert [row["samples"] for row in found] == sorted((row["samples"] for row in found), reverse=True)
    for row in found:
        there = np.stack([samples[f"observed/{n}"].to_numpy() == (n in row["modalities"]) for n in schema.names])
        kept = there.all(0)
        assert kept.sum() == row["samples"]
        assert samples.filter(kept)["patient"].n_unique() >= 10
