from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import polars as pl
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_model_data_config  # type: ignore[attr-defined]
from torch import Tensor, nn

from mmnar_lightning.encoders import encode
from mmnar_lightning.encoders.backbone import batch_norms
from mmnar_lightning.encoders.decoding import UnreadableError
from mmnar_lightning.encoders.image import ImageEncoder
from mmnar_lightning.encoders.pooling import AttentionPool
from mmnar_lightning.encoders.pretrained import NotDownloadedError, PretrainedError
from mmnar_lightning.module import MultimodalOutcomeModule
from mmnar_lightning.records import Elements, Modality, PatientBatch, RecordSchema, Task, read, write_store

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")

CXR = Modality("cxr", "image")
NAN = float("nan")
SIDE = 32
MODELS = ("test_resnet", "test_vit", "test_convnext")
MODES: list[dict[str, Any]] = [
    {"train": "frozen"},
    {"train": "last_n", "last_layers": 1},
    {"train": "full"},
    {"train": "full", "drop_path": 0.5, "train_batch_norm": True, "augment": True},
]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Safetensors files of models with their classifier, by name; batch norms have seen something."""
    folder, found = tmp_path_factory.mktemp("weights"), {}
    for name in MODELS:
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=7)
        with torch.no_grad():
            model(torch.randn(4, 3, 160, 160))
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        found[name] = str(folder / f"{name}.safetensors")
        save_file(model.state_dict(), found[name])
    (folder / "README.md").write_text("---\nlicense: mit\ndatasets:\n- some/films\n---\n", encoding="utf-8")
    return found


def build(files: dict[str, str], model: str = "test_resnet", **options: Any) -> ImageEncoder:
    torch.manual_seed(1)
    settings: dict[str, Any] = {"weights": files[model], "image_size": SIDE} | options
    encoder = ImageEncoder(CXR, 8, model=model, **settings)
    torch.manual_seed(2)
    for part in (encoder.film, encoder.films, encoder.head):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
    # attention begins as a plain mean, which would hide mistakes
    nn.init.normal_(encoder.films.score.weight)
    return encoder


def films(n: int, seed: int = 0, channels: int = 3, side: int = SIDE) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (n, channels, 4, 4), generator=generator).float()
    return nn.functional.interpolate(coarse, (side, side), mode="bilinear").to(torch.uint8)


def some(channels: int = 3, side: int = SIDE) -> tuple[Elements, Tensor]:
    """Rows 0, 2, 3 of a batch with several films each, the hours of one unknown."""
    row, hours = torch.tensor([0, 0, 2, 3, 3]), torch.tensor([0.0, 100.0, NAN, 2.0, 700.0])
    return Elements(row, hours, films(5, channels=channels, side=side)), torch.tensor([0, 2, 3])


def nobody(side: int = SIDE) -> tuple[Elements, Tensor]:
    none = torch.zeros(0, dtype=torch.long)
    return Elements(none, torch.zeros(0), torch.zeros(0, 3, side, side, dtype=torch.uint8)), none


def pooled_one_by_one(encoder: ImageEncoder, vectors: Tensor, elements: Elements, rows: Tensor) -> Tensor:
    """The encoder's formula from the films' vectors on, a sample at a time."""
    tokens = []
    for row in rows.tolist():
        members = []
        for mine, hours, vector in zip(elements.row, elements.hours_before, vectors, strict=True):
            if int(mine) == row:
                known = not bool(hours.isnan())
                when = torch.log1p(hours / 24) if known else torch.tensor(0.0)
                members.append(
                    encoder.film(torch.cat([encoder.norm(vector), when[None], torch.tensor([float(known)])]))
                )
        u = torch.stack(members)
        score = encoder.films.score(torch.tanh(encoder.films.hidden(u)))
        tokens.append(encoder.head((torch.softmax(score, 0) * u).sum(0)))
    return torch.stack(tokens)


@pytest.mark.parametrize("model", MODELS)
def test_from_file_to_token_is_what_timm_alone_makes_of_it(weights: dict[str, str], tmp_path: Path, model: str) -> None:
    encoder = build(weights, model, image_size=None).eval()
    official = timm.create_model(model, num_classes=7).eval()
    official.load_state_dict(load_file(weights[model]))
    official.reset_classifier(0)  # type: ignore[operator]
    config = resolve_model_data_config(official)  # type: ignore[no-untyped-call]
    transform = create_transform(**config, is_training=False)
    paths, vectors = [], []
    for k, film in enumerate(films(5, side=190)):
        paths.append(str(tmp_path / f"{k}.png"))
        image = Image.fromarray(film.permute(1, 2, 0).numpy()[:, : 170 + 5 * k])
        image.save(paths[k])
        with torch.no_grad():
            vectors.append(official(transform(image)[None])[0])
    elements, rows = some()
    elements = Elements(elements.row, elements.hours_before, tuple(paths))
    tokens, inputs = encoder(elements, rows)
    assert inputs is None
    expected = pooled_one_by_one(encoder, torch.stack(vectors), elements, rows)
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-4)


def test_packing_does_not_change_the_gradient(weights: dict[str, str]) -> None:
    elements, rows = some()
    gradients = []
    for way in ("packed", "plain"):
        encoder = build(weights, train="full").train()
        if way == "packed":
            encoder.film[3].p = 0.0  # type: ignore[assignment]
            tokens = encoder(elements, rows)[0]
        else:
            encoder.eval()
            assert encoder.backbone is not None
            values = elements.values
            assert isinstance(values, Tensor)
            x = (values / 255 - 0.5) / 0.5
            vectors = torch.cat([encoder.backbone(film[None]) for film in x])
            tokens = pooled_one_by_one(encoder, vectors, elements, rows)
        (tokens * torch.arange(24.0).reshape(3, 8)).sum().backward()
        gradients.append({n: p.grad for n, p in encoder.named_parameters()})
    for name, gradient in gradients[1].items():
        assert gradient is not None
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-3, atol=1e-3, msg=name)


def test_grey_is_colour_without_the_colours(weights: dict[str, str]) -> None:
    grey = build(weights, channels=1, train_batch_norm=False).eval()
    colour = build(weights).eval()
    elements, rows = some(channels=1)
    assert isinstance(elements.values, Tensor)
    threefold = Elements(elements.row, elements.hours_before, elements.values.expand(-1, 3, -1, -1))
    # mean and std of this model are the same for all colours, so that nothing is lost
    torch.testing.assert_close(grey(elements, rows)[0], colour(threefold, rows)[0], rtol=1e-4, atol=1e-4)


def test_films_matter_and_so_do_their_hours(weights: dict[str, str]) -> None:
    encoder = build(weights).eval()
    row, rows, values = torch.tensor([1, 1]), torch.tensor([1]), films(2)

    def token(hours: list[float], values: Tensor) -> Tensor:
        return encoder(Elements(row, torch.tensor(hours), values), rows)[0]  # type: ignore[no-any-return]

    base = token([3.0, 400.0], values)
    others = [token([30.0, 400.0], values), token([3.0, NAN], values), token([3.0, 400.0], films(2, seed=3))]
    assert all(not torch.allclose(base, other, atol=1e-4) for other in others)
    torch.testing.assert_close(token([400.0, 3.0], values.flip(0)), base, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("options", MODES)
def test_gradients_are_where_they_should_be(weights: dict[str, str], model: str, options: dict[str, Any]) -> None:
    if model == "test_convnext" and "drop_path" in options:
        options = options | {"drop_path": 0.1}
    encoder = build(weights, model, **options).train()
    assert encoder.backbone is not None
    last = {"test_resnet": ("layer4.",), "test_vit": ("blocks.5.", "norm."), "test_convnext": ("stages.3.", "head.")}
    before = {n: p.clone() for n, p in encoder.named_parameters()}
    elements, rows = some()
    torch.manual_seed(0)
    # of a square all directions count, unlike in a sum over a layer norm
    encoder(elements, rows)[0][:, 0].square().sum().backward()
    torch.optim.SGD((p for p in encoder.parameters() if p.requires_grad), lr=0.1).step()
    trained = {n for n, p in encoder.named_parameters() if p.grad is not None}
    assert trained == {n for n, p in encoder.named_parameters() if p.requires_grad}
    inner = {n.removeprefix("backbone.") for n in trained if n.startswith("backbone.")}
    everything = {n for n, _ in encoder.backbone.named_parameters()}
    if options["train"] == "frozen":
        assert not inner
    elif options["train"] == "full":
        assert inner == everything
    else:
        assert inner
        assert all(n.startswith(last[model]) for n in inner)
    for name, parameter in encoder.named_parameters():
        if name not in trained:
            assert torch.equal(parameter, before[name]), name
    assert sum(not torch.equal(p, before[n]) for n, p in encoder.named_parameters()) > 0.7 * len(trained)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("options", [*MODES, {"train": "full", "gradient_checkpointing": True}])
def test_no_films_join_the_graph_and_leave_no_trace(
    weights: dict[str, str], model: str, options: dict[str, Any]
) -> None:
    encoder = build(weights, model, **options).train()
    before = {n: b.clone() for n, b in encoder.named_buffers()}
    modes = [m.training for m in encoder.modules()]
    tokens, _ = encoder(*nobody())
    assert tokens.shape == (0, 8)
    tokens.sum().backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or not parameter.grad.any(), name
    assert all(torch.equal(b, before[n]) for n, b in encoder.named_buffers())
    assert modes == [m.training for m in encoder.modules()]
    with torch.no_grad():
        assert encoder.eval()(*nobody())[0].shape == (0, 8)


def test_nothing_is_computed_for_samples_without_films(weights: dict[str, str]) -> None:
    encoder = build(weights).eval()
    seen: list[int] = []
    assert encoder.backbone is not None
    encoder.backbone.register_forward_pre_hook(lambda _m, given: seen.append(len(given[0])))
    observed = torch.zeros(6, 1, dtype=torch.bool)
    observed[4] = True
    rest = (torch.zeros(6, 1), torch.ones(6, 1, dtype=torch.bool), torch.arange(6))
    one = Elements(torch.tensor([4]), torch.tensor([1.0]), films(1))
    assert encode({"cxr": encoder}, PatientBatch({"cxr": one}, observed, *rest)).tokens.shape == (1, 8)
    assert seen == [1]
    batch = PatientBatch({"cxr": nobody()[0]}, torch.zeros_like(observed), *rest)
    assert encode({"cxr": encoder}, batch).tokens.shape == (0, 8)
    assert seen == [1]


def test_a_row_does_not_depend_on_batch_mates(weights: dict[str, str]) -> None:
    elements, rows = some()
    for encoder in (build(weights).eval(), build(weights, train="full", train_batch_norm=True).eval()):
        together = encoder(elements, rows)[0]
        alone = encoder(Elements(elements.row[2:3], elements.hours_before[2:3], elements.values[2:3]), rows[1:2])[0]
        torch.testing.assert_close(alone, together[1:2], rtol=1e-4, atol=1e-4)


def test_batch_norms_keep_their_statistics_unless_told_otherwise(weights: dict[str, str]) -> None:
    elements, rows = some()
    kept: dict[str, bool] = {}
    cases: dict[str, dict[str, Any]] = {
        "frozen": {"train": "frozen", "train_batch_norm": True},
        "full": {"train": "full"},
        "scratch": {"train": "full", "weights": None, "pretrained": False},
        "asked": {"train": "full", "train_batch_norm": True},
    }
    for name, options in cases.items():
        encoder = build(weights, **options).train()
        assert encoder.backbone is not None
        norms = batch_norms(encoder.backbone)
        assert len(norms) > 3
        before = [n.running_mean.clone() for n in norms]  # type: ignore[operator]
        encoder(elements, rows)
        kept[name] = all(torch.equal(n.running_mean, b) for n, b in zip(norms, before, strict=True))  # type: ignore[arg-type]
    assert kept == {"frozen": True, "full": True, "scratch": False, "asked": False}
    one = Elements(elements.row[:1], elements.hours_before[:1], elements.values[:1])
    encoder = build(weights, train="full", train_batch_norm=True).train()
    assert encoder(one, rows[:1])[0].isfinite().all()
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(encoder)  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match="train_batch_norm cannot be used with sync_batchnorm"):
        synced(elements, rows)


@pytest.mark.parametrize("options", MODES)
def test_bf16_is_finite_and_near(weights: dict[str, str], options: dict[str, Any]) -> None:
    elements, rows = some()
    exact = build(weights).eval()(elements, rows)[0]
    encoder = build(weights, **options).eval()
    with torch.autocast("cpu", torch.bfloat16):
        tokens = encoder(elements, rows)[0]
    tokens.float().square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())
    torch.testing.assert_close(tokens.float(), exact, rtol=0.1, atol=0.1)
    whole = build(weights, **options).to(torch.bfloat16).train()
    tokens = whole(elements, rows)[0]
    assert tokens.dtype == torch.bfloat16
    assert tokens.isfinite().all()


def test_augmentation_is_light_and_for_training_only(weights: dict[str, str]) -> None:
    encoder = build(weights, augment=True, dropout=0.0).train()
    elements, rows = some()
    x = (films(5, side=64) / 255 - 0.5) / 0.5
    moved = encoder._augmented(x)
    assert 0.01 < (moved - x).abs().mean() < 0.5
    # nearer to the film than to its mirror image
    assert ((moved - x).abs().mean((1, 2, 3)) < (moved - x.flip(3)).abs().mean((1, 2, 3))).all()
    drawn = [encoder(elements, rows)[0] for _ in range(2)]
    assert not torch.equal(*drawn)
    encoder.eval()
    assert torch.equal(encoder(elements, rows)[0], encoder(elements, rows)[0])
    torch.testing.assert_close(encoder(elements, rows)[0], build(weights).eval()(elements, rows)[0])


def test_layers_learn_the_slower_the_nearer_they_are_to_the_film(weights: dict[str, str]) -> None:
    encoder = build(weights, "test_vit", train="full", layer_decay=0.5)
    groups = encoder.parameter_groups(lr=0.8, weight_decay=0.1)
    rate = {id(p): g["lr"] for g in groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    parameters = dict(encoder.named_parameters())
    assert sorted(rate) == sorted(id(p) for p in parameters.values())
    assert sum(len(g["params"]) for g in groups) == len(parameters)
    backbone = {n: rate[id(p)] for n, p in parameters.items() if n.startswith("backbone.")}
    for name, found in backbone.items():
        # six blocks, the norm goes with the last
        block = name.split(".")[2] if ".blocks." in name else "5" if ".norm." in name else "-1"
        assert found == pytest.approx(0.8 * 0.5 ** (5 - int(block))), name
    assert {rate[id(p)] for n, p in parameters.items() if n not in backbone} == {0.8}
    exempt = ("backbone.pos_embed", "backbone.cls_token", "backbone.reg_token")
    for name, p in parameters.items():
        assert decay[id(p)] == (0.1 if p.ndim > 1 and name not in exempt else 0.0), name
    torch.optim.AdamW(groups)
    flat = build(weights, "test_vit", train="last_n", last_layers=2).parameter_groups(0.8, 0.1)
    assert {g["lr"] for g in flat} == {0.8}
    frozen = build(weights, "test_vit").parameter_groups(0.8, 0.1)
    own = [p for n, p in parameters.items() if not n.startswith("backbone.")]
    assert sum(len(g["params"]) for g in frozen) == len(own)


# ---- weights and checkpoints


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("gone", [True, False])
def test_the_checkpoint_needs_no_file(weights: dict[str, str], tmp_path: Path, model: str, gone: bool) -> None:
    place = shutil.copy(weights[model], tmp_path / "model.safetensors")
    given = {model: str(place)}
    trained = build(given, model, train="full", image_size=64, channels=1).train()
    elements, rows = some(channels=1, side=64)
    trained(elements, rows)[0].square().sum().backward()
    torch.optim.SGD(trained.parameters(), lr=0.1).step()
    torch.save(trained.state_dict(), tmp_path / "state.ckpt")
    if gone:
        Path(place).unlink()
        fresh = build(given, model, train="full", image_size=64, channels=1)
    else:  # the settings mean another model now
        fresh = build(weights, "test_convnext" if model == "test_vit" else "test_vit", train="full")
    random_state = torch.get_rng_state()
    fresh.load_state_dict(torch.load(tmp_path / "state.ckpt", weights_only=True))
    assert torch.equal(random_state, torch.get_rng_state())
    assert fresh.provenance == trained.provenance
    assert fresh.opener() == trained.opener()
    torch.testing.assert_close(fresh.eval()(elements, rows)[0], trained.eval()(elements, rows)[0], rtol=0, atol=0)
    state = copy.deepcopy(fresh.state_dict())["_extra_state"]
    assert json.loads(json.dumps(state)) == state == trained.state_dict()["_extra_state"]


def test_weights_that_are_not_here_are_one_error_that_says_what_to_do(weights: dict[str, str]) -> None:
    elements, rows = some()
    for options, expected in (
        (
            {"weights": None, "download": True},
            r"'timm/test_resnet.r160_in1k' .*HF_HUB_OFFLINE is set.*`hf download timm/",
        ),
        ({"weights": "nowhere.safetensors"}, r"'test_resnet': its weights are not there: nowhere.safetensors"),
    ):
        encoder = build(weights, **options)
        # how films are prepared is known all the same
        assert encoder.opener().size == (3, SIDE, SIDE)
        with pytest.raises(NotDownloadedError, match=expected) as error:
            encoder(elements, rows)
        assert "\n" not in str(error.value)
        with pytest.raises(NotDownloadedError, match=expected):
            encoder(*nobody())
        with pytest.raises(NotDownloadedError, match=expected):
            encoder.state_dict()
    absent = ImageEncoder(CXR, 8, model="hf-hub:nobody/none", revision="abc")
    calls: list[Callable[[], Any]] = [absent.opener, lambda: absent(elements, rows), absent.state_dict]
    for call in calls:
        with pytest.raises(NotDownloadedError, match=r"`hf download nobody/none --revision abc`"):
            call()


@pytest.fixture
def folder(weights: dict[str, str], tmp_path: Path) -> Path:
    """A model in timm's format, as the hub offers it, with its own way of preparing films."""
    place = tmp_path / "model"
    place.mkdir()
    shutil.copy(weights["test_resnet"], place / "model.safetensors")
    source = {"input_size": [3, 96, 96], "mean": [0.1, 0.2, 0.3], "std": [0.2, 0.2, 0.5], "interpolation": "bicubic"}
    source |= {"crop_pct": 0.8, "crop_mode": "squash", "first_conv": "conv1.0", "classifier": "fc", "num_classes": 7}
    config = {
        "architecture": "test_resnet",
        "num_classes": 7,
        "pretrained_cfg": source,
        "model_args": {"drop_rate": 0.0, "num_classes": 7},
    }
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (place / "README.md").write_text("---\nlicense: mit\ndatasets:\n- some/films\n---\n", encoding="utf-8")
    return place


def test_a_folder_brings_its_own_preparation(
    folder: Path, weights: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    encoder = ImageEncoder(CXR, 8, model=str(folder))
    reader = encoder.opener()
    assert (reader.size, reader.crop_pct, reader.crop_mode) == ((3, 96, 96), 0.8, "squash")
    black = encoder.shift.reshape(-1)
    torch.testing.assert_close(black, torch.tensor([-0.5, -1.0, -0.6]))
    torch.testing.assert_close(encoder.scale.reshape(-1) * 255 + black, torch.tensor([4.5, 4.0, 1.4]))
    assert encoder.provenance["licence"] == "mit"
    assert encoder.provenance["datasets"] == ["some/films"]
    assert len(encoder.provenance["weights"]["model.safetensors"]) == 64
    assert "modality 'cxr': " in caplog.text
    assert "trained on: some/films" in caplog.text
    assert encoder.backbone is not None
    for name, tensor in load_file(weights["test_resnet"]).items():
        assert name.startswith("fc.") or torch.equal(encoder.backbone.state_dict()[name], tensor), name
    wanted = ImageEncoder(
        CXR, 8, model=str(folder), image_size=48, crop_pct=1.0, crop_mode="border", channels=1
    ).opener()
    assert (wanted.size, wanted.crop_pct, wanted.crop_mode) == ((1, 48, 48), 1.0, "border")
    assert wanted.mean == pytest.approx((0.2,))
    (folder / "config.json").unlink()
    with pytest.raises(PretrainedError, match=r"no config\.json of timm"):
        ImageEncoder(CXR, 8, model=str(folder))


@pytest.mark.parametrize("name", ["hf-hub:some/tiny", "some/tiny", "test_resnet.r160_in1k"])
def test_a_hub_model_comes_from_the_local_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = "some/tiny" if name.endswith("tiny") else "timm/test_resnet.r160_in1k"
    cache = tmp_path / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit, encoding="utf-8")
    real = huggingface_hub.snapshot_download

    def cached(asked: str, *, local_files_only: bool, **wanted: Any) -> str:
        assert local_files_only
        return str(real(asked, cache_dir=tmp_path, local_files_only=True, **wanted))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    encoder = ImageEncoder(CXR, 8, model=name, image_size=SIDE, download=True)
    assert (encoder.provenance["model"], encoder.provenance["revision"]) == (repository, commit)
    assert encoder.backbone is not None
    expected = load_file(folder / "model.safetensors")["conv1.0.weight"]
    assert torch.equal(encoder.backbone.state_dict()["conv1.0.weight"], expected)


def test_unfit_weights_are_refused(weights: dict[str, str], tmp_path: Path) -> None:
    torch.save(load_file(weights["test_resnet"]), tmp_path / "model.pth")
    with pytest.raises(PretrainedError, match=r"safetensors alone, not from model\.pth"):
        build({"test_resnet": str(tmp_path / "model.pth")})
    shutil.copy(tmp_path / "model.pth", tmp_path / "renamed.safetensors")
    with pytest.raises(PretrainedError, match="its weights don't fit 'test_resnet'"):
        build({"test_resnet": str(tmp_path / "renamed.safetensors")})
    state = load_file(weights["test_resnet"])
    lost = [n for n in state if n.startswith("layer3.") and not n.endswith("num_batches_tracked")]
    save_file({n: t for n, t in state.items() if n not in lost}, tmp_path / "holes.safetensors")
    with pytest.raises(PretrainedError, match=rf"{len(lost)} weights of 'test_resnet' are not in its file, .*'layer3"):
        build({"test_resnet": str(tmp_path / "holes.safetensors")})
    with pytest.raises(PretrainedError, match="not in its file"):
        build({"test_resnet": weights["test_vit"]})
    save_file(state | {"layer3.0.conv1.weight": torch.zeros(1)}, tmp_path / "shape.safetensors")
    with pytest.raises(PretrainedError, match=r"don't fit 'test_resnet' \(size mismatch for layer3.0.conv1.weight"):
        build({"test_resnet": str(tmp_path / "shape.safetensors")})


def test_positions_are_resampled_for_another_size(weights: dict[str, str]) -> None:
    encoder = build(weights, "test_vit", image_size=64)
    elements, rows = some(side=64)
    assert encoder.eval()(elements, rows)[0].isfinite().all()
    assert encoder.backbone is not None
    stored = load_file(weights["test_vit"])["pos_embed"]
    assert encoder.backbone.state_dict()["pos_embed"].shape[1] < stored.shape[1]
    assert encoder.backbone.state_dict()["pos_embed"].abs().mean() > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "some"}, "frozen, last_n, full"),
        ({"channels": 2}, "channels 2 is not one of 1, 3"),
        ({"unreadable": "skip"}, "error, count"),
        ({"crop_mode": "random"}, "center, squash, border"),
        ({"max_films": 0}, "max_films must be at least 1"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"layer_decay": 1.5}, "layer_decay must be above 0 and at most 1"),
        ({"crop_pct": 0.0}, "crop_pct must be above 0"),
        ({"train": "last_n", "last_layers": 40}, "'cxr': last_layers 40 is more than the model's layers"),
        ({"model": "test_resnett"}, "timm has no model 'test_resnett', and it is no folder; near it are: test_resnet"),
        ({"model": "test_resnet.nothing"}, "timm knows no weights"),
        ({"model": "test_coatnet", "weights": None}, "timm names no repository .*give `weights`"),
        ({"model": "vgg11", "pretrained": False, "weights": None, "drop_path": 0.1}, "timm can't build 'vgg11' with "),
    ],
)
def test_options_are_checked(weights: dict[str, str], options: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"model": "test_resnet", "weights": weights["test_resnet"]} | options
    with pytest.raises(ValueError, match=message):
        ImageEncoder(CXR, 8, **settings)


def test_films_of_another_size_are_refused(weights: dict[str, str]) -> None:
    encoder = build(weights)
    elements, rows = some(side=SIDE + 1)
    with pytest.raises(ValueError, match="needs films as uint8 of 3 × 32 × 32"):
        encoder(elements, rows)
    floats = Elements(elements.row, elements.hours_before, torch.rand(5, 3, SIDE, SIDE))
    with pytest.raises(ValueError, match="needs films as uint8"):
        encoder(floats, rows)


# ---- in a module, with a loader


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 people; two thirds have films, bright ones where they died; the last three files are broken or gone."""
    folder = tmp_path_factory.mktemp("stores")
    (folder / "files").mkdir()
    rng = np.random.default_rng(0)
    rows, names = rng.random(200) < 0.6, []
    for sample in np.flatnonzero(rows).tolist():
        for k in range(1 + sample % 2):
            name = f"p{sample}-{k}.png"
            grey = rng.integers(0, 100, (40, 36)) + (100 if sample % 3 == 0 else 0)
            Image.fromarray(grey.astype(np.uint8)).save(folder / "files" / name)
            names.append((sample, float(k), name))
    for sample, _, name in names[-3:]:
        (folder / "files" / name).write_text("no film")
        assert sample > 190
    schema = RecordSchema((Modality("age", "vector", ("years",)), CXR), (Task("death"),))
    samples = pl.DataFrame(
        {
            "patient": [f"p{k}" for k in range(200)],
            "site": "s",
            "prediction_time": 0.0,
            "label/death": [k % 3 == 0 for k in range(200)],
        }
    )
    cxr = pl.DataFrame(names, schema={"sample": pl.Int64, "hours_before": pl.Float32, "path": pl.String}, orient="row")
    age = pl.DataFrame({"sample": list(range(200)), "hours_before": 0.0, "years": rng.normal(60, 9, 200)})
    return write_store(folder, "films", "all", "e" * 16, schema, samples, {"age": age, "cxr": cxr}, {})


def part(files: dict[str, str], **options: Any) -> dict[str, Any]:
    init = {"model": "test_resnet", "weights": files["test_resnet"], "image_size": SIDE} | options
    return {"image": {"class_path": "mmnar_lightning.encoders.image.ImageEncoder", "init_args": init}}


def datamodule(store_datamodule: Any, store: Path, **options: Any) -> Any:
    class Films(store_datamodule):  # type: ignore[misc]
        def image_folder(self, modality: str) -> Path | None:
            assert modality == "cxr"
            return store.parent / "files"

    return Films(store, batch_size=16, min_patients=1, **options)


def is_film(store: Path, name: str) -> bool:
    return (store.parent / "files" / name).read_bytes()[:4] == b"\x89PNG"


QUIET: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
QUIET |= {"enable_model_summary": False, "enable_checkpointing": False, "num_sanity_val_steps": 1}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_opens_films_in_the_loader_and_counts_lost_ones(
    weights: dict[str, str], store: Path, store_datamodule: Any, tmp_path: Path, workers: int
) -> None:
    from lightning.pytorch import Trainer

    data = datamodule(store_datamodule, store, workers=workers, predict_splits=["train", "val", "calibration", "test"])
    place = shutil.copy(weights["test_resnet"], tmp_path / "model.safetensors")
    encoders = part(weights, weights=str(place), unreadable="count", train="full")
    torch.manual_seed(0)
    module = MultimodalOutcomeModule(data.schema, encoders=encoders, width=8, lr=0.01)
    trainer = Trainer(max_epochs=1, default_root_dir=tmp_path, **QUIET)
    trainer.fit(module, datamodule=data)
    counted = {k: int(v) for k, v in trainer.callback_metrics.items() if k.endswith("/unreadable_cxr")}
    assert set(counted) == {"train/unreadable_cxr", "val/unreadable_cxr", "calibration/unreadable_cxr"}
    trainer.test(module, datamodule=data, verbose=False)
    counted["test"] = int(trainer.callback_metrics["test/unreadable_cxr"])
    names = data.records.strings("modality/cxr.arrow").to_pylist()
    frame = data.records.samples
    lost = [
        sum(not is_film(store, n) for n in names[a:b])
        for a, b in zip(frame["start/cxr"], frame["stop/cxr"], strict=True)
    ]
    assert sum(lost) == 3
    for name, count in counted.items():
        assert count == sum(lost[s] for s in data.samples_of(name.partition("/")[0]))
    batches: Any = trainer.predict(module, datamodule=data)
    predicted = {name: torch.cat([b[name] for b in batches]) for name in ("sample", "pattern")}
    order = predicted["sample"].argsort()
    spans = zip(frame["start/cxr"], frame["stop/cxr"], strict=True)
    sound = [any(is_film(store, n) for n in names[a:b]) for a, b in spans]
    # a sample whose films are all lost is predicted as one without films
    assert ((predicted["pattern"][order] & 2) > 0).tolist() == sound
    assert sum(sound) < frame["observed/cxr"].sum()
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    Path(place).unlink()
    loaded = MultimodalOutcomeModule.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True).eval()
    data.setup("test")
    # no loader has a reader of this module: it opens the films itself
    batch = data._datasets["test"].__getitems__(list(range(20)))
    module.eval()
    opened = read(batch, module.readers())
    assert isinstance(opened.elements["cxr"].values, Tensor)
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch), module(opened), rtol=0, atol=0)


@pytest.mark.timeout(120)
def test_a_run_stops_at_a_broken_film(
    weights: dict[str, str], store: Path, store_datamodule: Any, tmp_path: Path
) -> None:
    from lightning.pytorch import Trainer

    data = datamodule(store_datamodule, store, workers=2, predict_splits=["train", "val", "calibration", "test"])
    module = MultimodalOutcomeModule(data.schema, encoders=part(weights), width=8)
    with pytest.raises(UnreadableError, match=r"^modality 'cxr': \d of \d+ films of a batch can't be read, [^\n]*$"):
        Trainer(default_root_dir=tmp_path, **QUIET).predict(module, datamodule=data)


def test_a_row_that_lost_its_films_is_not_observed(weights: dict[str, str], tmp_path: Path) -> None:
    Image.fromarray(films(1)[0].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    elements = Elements(
        torch.tensor([0, 1, 1]), torch.tensor([1.0, 1.0, 2.0]), tuple(str(tmp_path / n) for n in ("b", "a.png", "c"))
    )
    encoder = build(weights, unreadable="count").eval()
    with pytest.raises(UnreadableError, match="1 of 2 rows have no film that can be read"):
        encoder(elements, torch.tensor([0, 1]))
    batch = PatientBatch(
        {"cxr": elements},
        torch.tensor([[True], [True], [False]]),
        torch.zeros(3, 1),
        torch.ones(3, 1, dtype=torch.bool),
        torch.arange(3),
    )
    encoded = encode({"cxr": encoder}, batch)
    assert encoded.observed.tolist() == [[False], [True], [False]]
    assert encoded.row.tolist() == [1]
    assert batch.observed.tolist() == [[True], [True], [False]]


def test_two_devices_train_as_one_on_the_joint_batch(
    run_two_ranks: Callable[..., None], weights: dict[str, str], tmp_path: Path
) -> None:
    worker = Path(__file__).with_name("image_two_processes.py")
    run_two_ranks(worker, tmp_path / "rendezvous", weights["test_resnet"])


def test_attention_pool_is_the_text_encoders() -> None:
    assert isinstance(ImageEncoder(CXR, 8, model="test_resnet", pretrained=False).films, AttentionPool)
