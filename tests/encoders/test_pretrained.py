from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, RobertaConfig, RobertaModel

from mmnar_lightning.encoders.pretrained import NotDownloadedError, PretrainedError, in_words, locate
from mmnar_lightning.encoders.text import TextEncoder
from mmnar_lightning.module import MultimodalOutcomeModule
from mmnar_lightning.records import Elements, Modality

NAN = float("nan")
MODES: list[dict[str, Any]] = [
    {"train": "frozen"},
    {"train": "last_n", "last_layers": 1},
    {"train": "full"},
    {"train": "lora", "lora_rank": 2},
]


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("gone", [True, False])
def test_the_checkpoint_needs_no_folder(
    text_model: Path,
    tmp_path: Path,
    options: dict[str, Any],
    gone: bool,
    build_text: Any,
    some_documents: tuple[Elements, Tensor],
) -> None:
    place = shutil.copytree(text_model, tmp_path / "model")
    trained = build_text(model=place, **options).train()
    elements, rows = some_documents
    optimizer = torch.optim.SGD((p for p in trained.parameters() if p.requires_grad), lr=0.1)
    trained(elements, rows)[0].square().sum().backward()
    optimizer.step()
    torch.save(trained.state_dict(), tmp_path / "state.ckpt")
    shutil.rmtree(place)
    if not gone:  # the name means another model now
        config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
        AutoTokenizer.from_pretrained(text_model).save_pretrained(place)
        BertModel(config).save_pretrained(place)
        options = options | {"last_layers": 1}
    fresh = build_text(model=place, **options)
    random_state = torch.get_rng_state()
    fresh.load_state_dict(torch.load(tmp_path / "state.ckpt", weights_only=True))
    assert torch.equal(random_state, torch.get_rng_state())
    assert fresh.provenance == trained.provenance
    assert {n: p.requires_grad for n, p in fresh.named_parameters()} == {
        n: p.requires_grad for n, p in trained.named_parameters()
    }
    torch.testing.assert_close(fresh.eval()(elements, rows)[0], trained.eval()(elements, rows)[0], rtol=0, atol=0)
    again = copy.deepcopy(fresh.state_dict())
    torch.testing.assert_close(
        again["backbone.embeddings.word_embeddings.weight"],
        fresh.state_dict()["backbone.embeddings.word_embeddings.weight"],
    )
    assert json.loads(json.dumps(again["_extra_state"])) == again["_extra_state"]
    assert again["_extra_state"] == trained.state_dict()["_extra_state"]


def test_a_model_that_is_not_here_is_one_error_that_says_what_to_do(
    tmp_path: Path, some_documents: tuple[Elements, Tensor]
) -> None:
    encoder = TextEncoder(Modality("notes", "text"), 8, model="nobody/none", revision="abc", download=True)
    elements, rows = some_documents
    nothing = Elements(rows[:0], torch.zeros(0), ())
    expected = r"'nobody/none'.*HF_HUB_OFFLINE is set.*`hf download nobody/none --revision abc`"
    for call in (lambda: encoder(elements, rows), lambda: encoder(nothing, rows[:0]), encoder.state_dict):
        with pytest.raises(NotDownloadedError, match=expected) as error:
            call()
        assert "\n" not in str(error.value)
    with pytest.raises(NotDownloadedError, match="not in the local cache of hub models; download it beforehand"):
        locate("nobody/none")
    with pytest.raises(NotDownloadedError, match="no folder on this machine, and no name of a hub model"):
        locate(str(tmp_path / "nowhere"))


def test_a_hub_model_comes_from_the_local_cache(
    text_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    build_text: Any,
    some_documents: tuple[Elements, Tensor],
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--some--tiny"
    shutil.copytree(text_model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit, encoding="utf-8")
    real = huggingface_hub.snapshot_download
    asked: list[bool] = []

    def cached(name: str, *, local_files_only: bool, **wanted: Any) -> str:
        asked.append(local_files_only)
        return str(real(name, cache_dir=tmp_path, local_files_only=local_files_only, **wanted))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    encoder = build_text(model="some/tiny", download=True)
    assert asked == [True]
    assert encoder.provenance["revision"] == commit
    elements, rows = some_documents
    torch.testing.assert_close(encoder.eval()(elements, rows), build_text().eval()(elements, rows))
    with pytest.raises(NotDownloadedError):
        locate("some/tiny", "other")


def test_pickles_are_refused_and_not_opened(text_model: Path, tmp_path: Path, build_text: Any) -> None:
    place = shutil.copytree(text_model, tmp_path / "model")
    torch.save(load_file(place / "model.safetensors"), place / "pytorch_model.bin")
    build_text(model=place)
    (place / "model.safetensors").unlink()
    with pytest.raises(PretrainedError, match=r"only pytorch_model.bin, which can run code"):
        build_text(model=place)
    (place / "pytorch_model.bin").unlink()
    with pytest.raises(PretrainedError, match="no weights"):
        build_text(model=place)


def test_shards_are_read_and_must_be_complete(
    text_model: Path, tmp_path: Path, build_text: Any, some_documents: tuple[Elements, Tensor]
) -> None:
    place = tmp_path / "model"
    AutoModel.from_pretrained(text_model).save_pretrained(place, max_shard_size="5KB")
    AutoTokenizer.from_pretrained(text_model).save_pretrained(place)
    assert len(locate(str(place)).weights) > 1
    elements, rows = some_documents
    torch.testing.assert_close(build_text(model=place).eval()(elements, rows), build_text().eval()(elements, rows))
    locate(str(place)).weights[0].unlink()
    with pytest.raises(PretrainedError, match=r"1 of .* weight files are missing"):
        build_text(model=place)


def test_weights_that_are_lacking_are_not_drawn_at_random(text_model: Path, tmp_path: Path, build_text: Any) -> None:
    place = shutil.copytree(text_model, tmp_path / "model")
    weights = load_file(place / "model.safetensors")
    lost = [n for n in weights if "layer.1.attention" in n]
    save_file({n: w for n, w in weights.items() if n not in lost}, place / "model.safetensors", {"format": "pt"})
    with pytest.raises(PretrainedError, match=rf"{len(lost)} weights .* the first '.*layer.1.attention"):
        build_text(model=place)


def test_code_of_a_model_is_never_run(text_model: Path, tmp_path: Path, build_text: Any) -> None:
    place = shutil.copytree(text_model, tmp_path / "model")
    config = json.loads((place / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}
    (place / "config.json").write_text(json.dumps(config))
    (place / "own.py").write_text("raise SystemExit('run')")
    with pytest.raises(ValueError, match=r"can't be loaded|no tokenizer"):
        build_text(model=place)


def test_provenance_says_what_is_known(
    text_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, build_text: Any
) -> None:
    caplog.set_level("INFO")
    origin = build_text().provenance
    assert (origin["licence"], origin["datasets"], origin["base_model"]) == ("mit", ["some/corpus"], ["a/b"])
    assert [len(d) for d in origin["weights"].values()] == [64]
    assert "licence: mit; trained on: some/corpus" in caplog.text
    place = shutil.copytree(text_model, tmp_path / "model")
    for card in (None, "no head", "---\n: [\n---\n"):
        (place / "README.md").unlink(missing_ok=True)
        if card is not None:
            (place / "README.md").write_text(card, encoding="utf-8")
        bare = build_text(model=place).provenance
        assert (bare["licence"], bare["datasets"]) == (None, [])
        assert "licence: not stated; trained on: not stated" in in_words(bare)


def test_roberta_counts_positions_from_behind_the_padding(
    text_model: Path, tmp_path: Path, build_text: Any, some_documents: tuple[Elements, Tensor]
) -> None:
    place = tmp_path / "roberta"
    config = RobertaConfig(
        vocab_size=80,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=34,
        pad_token_id=1,
    )
    RobertaModel(config).save_pretrained(place)
    AutoTokenizer.from_pretrained(text_model).save_pretrained(place)
    with pytest.raises(ValueError, match="more than the model's 32"):
        build_text(model=place, max_tokens=33)
    elements, rows = some_documents
    assert build_text(model=place, max_tokens=32).eval()(elements, rows)[0].isfinite().all()


# Lightning says that a frozen encoder is in evaluation mode, which is meant
@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode")
@pytest.mark.parametrize("train", ["frozen", "full"])
def test_a_module_with_notes_is_loaded_without_the_folder(
    text_model: Path, tmp_path: Path, make_datamodule: Any, train: str
) -> None:

    place = shutil.copytree(text_model, tmp_path / "model")
    data = make_datamodule(tmp_path / "stores", modalities=["vitals", "notes"], batch_size=32)
    options = {"model": str(place), "max_tokens": 16, "stride": 4, "train": train}
    part = {"class_path": "mmnar_lightning.encoders.text.TextEncoder", "init_args": options}
    module = MultimodalOutcomeModule(data.schema, encoders={"text": part}, width=8, lr=0.01)  # type: ignore[dict-item]
    settings: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    settings |= {"enable_model_summary": False, "default_root_dir": tmp_path, "limit_val_batches": 1}
    trainer = Trainer(max_epochs=1, limit_train_batches=2, enable_checkpointing=False, **settings)
    trainer.fit(module, datamodule=data)
    trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    backbone = list(module.encoders["notes"].backbone.parameters())  # type: ignore[union-attr]
    assert all((id(p) in trained) == (train == "full") for p in backbone)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    batch = next(iter(data.train_dataloader()))
    module.eval()
    with torch.no_grad():
        expected = module(batch)
    shutil.rmtree(place)
    loaded = MultimodalOutcomeModule.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch), expected, rtol=0, atol=0)
    again = Trainer(max_epochs=2, limit_train_batches=2, enable_checkpointing=False, **settings)
    fresh = MultimodalOutcomeModule(data.schema, encoders={"text": part}, width=8, lr=0.01)  # type: ignore[dict-item]
    again.fit(fresh, datamodule=data, ckpt_path=tmp_path / "run.ckpt", weights_only=True)
    assert again.global_step > trainer.global_step
