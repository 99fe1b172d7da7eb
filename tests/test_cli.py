"""What a person meets who types `mmnar …`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml

from mmnar_lightning import __version__
from mmnar_lightning.__main__ import LIGHTNING, main
from mmnar_lightning.commands import _config

CONF = Path(__file__).with_name("conf") / "tables.yaml"
EVALUATED = ("validate", "test", "predict")
LIGHT = """
import resource, sys
from mmnar_lightning.__main__ import main
status = main(sys.argv[1:])
heavy = {"torch", "lightning", "polars", "numpy", "jsonargparse", "rich"} & set(sys.modules)
used = resource.getrusage(resource.RUSAGE_SELF)
print(f"\\n{status} {sorted(heavy)} {used.ru_utime + used.ru_stime}")
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["nonsense"], []])
def test_what_is_no_work_imports_nothing_heavy_and_is_quick(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT, *arguments], capture_output=True, text=True, check=True)
    status, heavy, seconds = re.fullmatch(r"(\d) (.*) (\S+)", done.stdout.splitlines()[-1]).groups()  # type: ignore[union-attr]
    assert heavy == "[]"
    assert float(seconds) < 1
    assert int(status) == (0 if arguments[:1] in (["--help"], ["--version"]) else 2)


def test_help_lists_every_command_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for command in (*LIGHTNING, "prepare", "simulate"):
        assert re.search(rf"^  {command} +\S+", printed, re.MULTILINE), command


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mmnar {__version__}\n"


def test_an_unknown_command_lists_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "'train'" in error
    assert "fit, validate, test, predict, " in error


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "mmnar_lightning", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"mmnar {__version__}\n")


BAD_ARGUMENTS = {
    "unknown option of the data": (["--data.init_args.colour", "red"], "Option 'colour' is not accepted"),
    "unknown option of a part": (
        ["--model.init_args.fusion.init_args.colour", "red"],
        "Option 'colour' is not accepted",
    ),
    "unknown option": (["--colour", "red"], "unrecognized arguments: --colour red"),
    "a word for a number": (["--trainer.max_epochs", "many"], "trainer.max_epochs.*many"),
    "unknown choice": (["--model.init_args.loss", "hinge"], "loss.*'bce', 'focal'"),
    "unknown model": (["--model", "Nothing"], "no class Nothing is known"),
    "unknown accelerator": (["--trainer.accelerator", "quantum"], "invalid accelerator name"),
    "unknown config": (["--config", "nothing"], "no config file 'nothing'; those that ship: .*eicu"),
    "unknown resume": (["--resume", "maybe"], "'maybe' is not one of auto, never"),
    "unknown modality": (["--data.init_args.modalities", "[films]"], "no modality 'films'; there are: vitals, labs"),
    "unknown task weight": (
        ["--model.init_args.task_weights.flu", "1"],
        "task_weights: 'flu' unknown; there are: death",
    ),
    "unknown auxiliary term": (["--model.init_args.auxiliary_weights.magic", "1"], "'magic' unknown; there are: recon"),
    "no such root": (["--data.init_args.root", "nowhere"], "nowhere"),
    "test fold": (["--data.init_args.splits.test_fold", "5"], "test_fold 5 of 5 folds"),
    "nobody to validate on": (["--data.init_args.splits.val", "0"], "no sample is in val"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_an_error_is_one_line_that_says_what_is_wrong(
    name: str, mmnar: Any, own_tables: Path, trained: Path, tmp_path: Path
) -> None:
    arguments, message = BAD_ARGUMENTS[name]
    data = ("--data.init_args.root", own_tables, "--data.init_args.store", trained.parent / "stores")
    done = mmnar("fit", "--config", CONF, *data, "--run_dir", tmp_path / "run", *arguments)
    assert done.status == 1
    (line,) = [line for line in done.out.splitlines() if "error" in line]
    assert re.match("mmnar fit: error: ", line)
    assert re.search(message, line), line
    assert done.out.splitlines()[-1] == line
    assert len(line) < 300
    assert "Traceback" not in done.out


def test_errors_of_a_config_file_and_of_prepare_are_one_line_too(mmnar: Any, tmp_path: Path) -> None:
    config = yaml.safe_load(CONF.read_text())
    config["data"]["init_args"]["colour"] = "red"
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "broken.yaml").write_text("trainer: [")
    for command in ("fit", "prepare"):
        odd = mmnar(command, "--config", tmp_path / "odd.yaml")
        assert (odd.status, odd.out.count("\n")) == (1, 1), odd.out
        assert "Option 'colour' is not accepted" in odd.out
        broken = mmnar(command, "--config", tmp_path / "broken.yaml")
        assert (broken.status, broken.out.count("\n")) == (1, 1), broken.out


def test_verbose_shows_where_an_error_came_from(mmnar: Any) -> None:
    done = mmnar("fit", "--config", CONF, "--resume", "maybe", "--verbose")
    assert done.status == 1
    assert "Traceback" in done.out
    assert done.out.splitlines()[-1].startswith("mmnar fit: error: ")


def test_a_shipped_config_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = Path(_config.config_path("eicu"))
    assert shipped.name == "eicu.yaml"
    assert _config.config_path("configs/eicu.yaml") == _config.config_path("eicu.yaml") == str(shipped)
    (tmp_path / "eicu.yaml").touch()
    assert _config.config_path("eicu.yaml") == "eicu.yaml", "a file that is there comes first"
    assert _config.resolve_configs(["fit", "--config", "eicu", "--config=eicu", "-c", "eicu", "eicu"]) == [
        *("fit", "--config", str(shipped), f"--config={shipped}", "-c", str(shipped), "eicu")
    ]


def test_configs_are_found_in_an_installed_package_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "mmnar_lightning"
    shutil.copytree(Path(_config.__file__).parent, package / "commands")
    root = Path(__file__).parents[1]
    wheel = __import__("tomllib").loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    for source, target in wheel["force-include"].items():
        shutil.copytree(root / source, tmp_path / "site-packages" / target)
    spec = spec_from_file_location("installed_config", package / "commands" / "_config.py")
    assert spec is not None
    assert spec.loader is not None
    installed = module_from_spec(spec)
    spec.loader.exec_module(installed)
    monkeypatch.chdir(tmp_path)
    assert installed.config_path("eicu") == str(package / "configs" / "eicu.yaml")


def fit(mmnar: Any, own_tables: Path, stores: Path, run_dir: Path, *arguments: Any, **options: Any) -> Any:
    data = ("--data.init_args.root", own_tables, "--data.init_args.store", stores)
    return mmnar("fit", "--config", CONF, *data, "--run_dir", run_dir, *arguments, **options)


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, to do with what one likes."""
    return shutil.copytree(trained, tmp_path / "run")


def test_a_run_is_never_started_afresh_over_another(mmnar: Any, own_tables: Path, trained: Path, run_dir: Path) -> None:
    before = {p.name: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
    done = fit(mmnar, own_tables, trained.parent / "stores", run_dir)
    assert done.status == 1
    assert re.search("holds a run; --resume auto continues it, another --run_dir starts one", done.out)
    assert {p.name: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model.init_args.width", "8"], "model.init_args.width"),
        (["--data.init_args.batch_size", "8"], "data.init_args.batch_size"),
        (["--data.init_args.splits.split_seed", "1"], "data.init_args.splits.split_seed"),
        (["--seed_everything", "7"], "seed_everything"),
        (["--seed_everything", "7", "--model.init_args.lr", "1"], "model.init_args.lr, seed_everything"),
        (["--model.init_args.fusion", "ConcatFusion"], "model.init_args.fusion.class_path"),
    ],
)
def test_a_run_is_not_continued_with_other_settings(
    arguments: list[str], named: str, mmnar: Any, own_tables: Path, trained: Path, run_dir: Path
) -> None:
    done = fit(mmnar, own_tables, trained.parent / "stores", run_dir, "--resume", "auto", *arguments)
    assert done.status == 1
    assert f"holds a run with other settings ({named}" in done.out


def test_a_run_is_not_continued_with_other_patients(
    mmnar: Any, own_tables: Path, trained: Path, run_dir: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(own_tables, tmp_path / "other")
    samples = pl.read_parquet(other / "samples.parquet")
    samples.with_columns(site=pl.lit("elsewhere")).write_parquet(other / "samples.parquet")
    done = fit(mmnar, other, trained.parent / "stores", run_dir, "--resume", "auto", "--trainer.max_epochs", "4")
    assert done.status == 1
    assert "give the same data to continue it" in done.out


def test_a_run_is_continued_with_more_epochs_from_a_store_that_was_moved(
    mmnar: Any, own_tables: Path, trained: Path, run_dir: Path, tmp_path: Path
) -> None:
    stores = shutil.copytree(trained.parent / "stores", tmp_path / "moved")
    extra = (
        "--trainer.max_epochs",
        "4",
        "--trainer.log_every_n_steps",
        "2",
        "--data.init_args.predict_splits",
        "[test]",
    )
    done = fit(mmnar, own_tables, stores, run_dir, "--resume", "auto", *extra)
    assert done.status == 0, done.out
    assert [r["validation"] for r in done.trace if "validation" in r] == [3]
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["trainer"]["max_epochs"] == 4


def evaluate(
    mmnar: Any, command: str, root: Path, trained: Path, run_dir: Path, *arguments: Any, **options: Any
) -> Any:
    data = ("--data.init_args.root", root, "--data.init_args.store", trained.parent / "stores")
    checkpoint = ("--ckpt_path", trained / "checkpoints" / "best.ckpt")
    return mmnar(command, "--config", CONF, *data, *checkpoint, "--run_dir", run_dir, *arguments, **options)


def metrics(run_dir: Path, stage: str = "test") -> dict[str, float]:
    found: dict[str, float] = json.loads((run_dir / f"metrics-{stage}.json").read_text())
    return found


@pytest.mark.parametrize("command", EVALUATED)
def test_without_a_checkpoint_there_is_nothing_to_evaluate(command: str, mmnar: Any, tmp_path: Path) -> None:
    done = mmnar(command, "--config", CONF, "--run_dir", tmp_path / "none")
    assert done.status == 1
    assert "no checkpoint in" in done.out
    assert not (tmp_path / "none").exists()


def test_in_evaluation_the_checkpoints_model_wins_with_a_warning(
    mmnar: Any, own_tables: Path, trained: Path, tmp_path: Path
) -> None:
    flags = ("--model.init_args.width", "64", "--model.init_args.lr", "0.5", "--model.init_args.fusion", "ConcatFusion")
    done = evaluate(mmnar, "test", own_tables, trained, tmp_path, *flags, strict=False)
    assert done.status == 0, done.out
    assert re.search("the checkpoint's model is used; ignored of the config: fusion, width, lr", done.out)
    assert metrics(tmp_path) == metrics(trained)


def test_a_config_that_says_what_the_checkpoint_says_gives_no_warning(
    mmnar: Any, own_tables: Path, trained: Path, tmp_path: Path
) -> None:
    done = evaluate(mmnar, "test", own_tables, trained, tmp_path)
    assert done.status == 0, done.out
    assert "is used; ignored" not in done.out


def test_other_splits_on_the_same_store_are_refused(
    mmnar: Any, own_tables: Path, trained: Path, tmp_path: Path
) -> None:
    for command in EVALUATED:
        done = evaluate(mmnar, command, own_tables, trained, tmp_path, "--data.init_args.splits.test_fold", "1")
        assert done.status == 1
        assert "trained with other split settings on the same source" in done.out


def changed_tables(own_tables: Path, folder: Path, **modalities: pl.DataFrame | None) -> Path:
    """A copy of the tables in which modalities are replaced, or left out (None)."""
    root = shutil.copytree(own_tables, folder)
    described = yaml.safe_load((root / "schema.yaml").read_text())
    for name, table in modalities.items():
        if table is None:
            del described["modalities"][name]
            (root / f"{name}.parquet").unlink()
        else:
            described["modalities"][name] = {"kind": "codes" if "code" in table.columns else "vector"}
            table.write_parquet(root / f"{name}.parquet")
    (root / "schema.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
    return root


def test_a_store_without_a_modality_and_an_item_is_seen_through_the_checkpoints_schema(
    mmnar: Any, own_tables: Path, trained: Path, tmp_path: Path
) -> None:
    vitals = pl.read_parquet(own_tables / "vitals.parquet").drop("heart_rate").with_columns(extra=pl.lit(1.0))
    root = changed_tables(own_tables, tmp_path / "tables", labs=None, vitals=vitals)
    done = evaluate(mmnar, "predict", root, trained, tmp_path / "run")
    assert done.status == 0, done.out
    found, usual = (pl.read_parquet(folder / "predictions.parquet") for folder in (tmp_path / "run", trained))
    names = [
        m["name"]
        for m in torch.load(trained / "checkpoints/best.ckpt", weights_only=True)["hyper_parameters"]["schema"][
            "modalities"
        ]
    ]
    bit = 1 << names.index("labs")
    assert ((usual["pattern"] & bit) > 0).any()
    assert (found["pattern"] == (usual["pattern"] & ~bit)).all(), "without labs, and nothing else"
    assert (found["sample"] == usual["sample"]).all()
    assert found.columns == usual.columns


def test_a_modality_of_another_kind_is_refused(mmnar: Any, own_tables: Path, trained: Path, tmp_path: Path) -> None:
    diagnoses = pl.read_parquet(own_tables / "diagnoses.parquet").select("sample_id", severity=pl.lit(1.0))
    root = changed_tables(own_tables, tmp_path / "tables", diagnoses=diagnoses.unique(maintain_order=True))
    done = evaluate(mmnar, "test", root, trained, tmp_path / "run")
    assert done.status == 1
    assert "'diagnoses' is of kind 'vector'" in done.out
    assert "the model takes 'codes'" in done.out


def test_print_config_prints_what_can_be_run(mmnar: Any, own_tables: Path, trained: Path, tmp_path: Path) -> None:
    flags = ("--data.init_args.root", own_tables, "--data.init_args.store", trained.parent / "stores", "--run_dir", "r")
    printed = mmnar("fit", "--config", CONF, *flags, "--model.init_args.width", "24", "--print_config")
    assert printed.status == 0
    config = yaml.safe_load(printed.out)
    assert config["model"]["init_args"]["width"] == 24
    assert config["model"]["class_path"] == "mmnar_lightning.MultimodalOutcomeModule"
    (tmp_path / "printed.yaml").write_text(printed.out)
    again = mmnar("fit", "--config", tmp_path / "printed.yaml", "--print_config")
    assert (again.status, yaml.safe_load(again.out)) == (0, config)


def test_a_saved_config_runs_again_as_it_is(mmnar: Any, trained: Path, tmp_path: Path) -> None:
    short = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1")
    done = mmnar("fit", "--config", trained / "config.yaml", "--run_dir", tmp_path / "run", *short)
    assert done.status == 0, done.out
    first, again = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (trained, tmp_path / "run"))
    assert first["model"] == again["model"]
    assert first["data"] == again["data"]


def test_hyper_parameters_of_a_cli_checkpoint_are_plain(trained: Path) -> None:
    stored = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)["hyper_parameters"]
    json.dumps(stored)
    assert "_instantiator" not in stored, "jsonargparse would hand parts over as partials"
    assert stored["fusion"] == {
        "class_path": "mmnar_lightning.fusion.MMNARFusion",
        "init_args": stored["fusion"]["init_args"],
    }
    assert stored["encoders"] == {}


def test_what_a_run_leaves_is_for_its_owner_only(trained: Path) -> None:
    assert trained.stat().st_mode & 0o077 == 0
    assert os.access(trained, os.W_OK)
