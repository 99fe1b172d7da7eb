"""Every command of the README and the documentation is run as it is written, but for size: few patients, one epoch."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import timm
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from mmnar_eicu.simulate import simulate as simulate_eicu
from mmnar_lightning.__main__ import main
from mmnar_meds.simulate import simulate as simulate_meds
from mmnar_mimic4.simulate import simulate as simulate_mimic4

# Lightning's advice on a run of a few batches
pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    # which is how a flag of a page differs from what its run was fitted with
    pytest.mark.filterwarnings("ignore:the checkpoint's model is used"),
]
ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```bash\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^```yaml title=\"(?P<title>[^\"]+)\"\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = sorted(p for p in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")] if BLOCK.search(p.read_text("utf-8")))
# run, as they are written, by a test of their own
ELSEWHERE = {"own-tables", "add-a-datamodule", "add-an-encoder", "add-a-fusion", "tutorial"}
# what is nobody's to test here: targets of the Makefile that continuous integration calls, and programs of others
OTHERS = {"make", "hf", "wget", "mkdir"}
SMALL = {"2000": "150"}
# weights of so few patients are refused; tests/commands/test_evaluate.py writes them and trains with them
TOO_FEW = {"--train_weights", "runs/eicu-2014"}
# so few patients say little about who gets what: nothing would be estimated
FEW = ("--draws", "5", "--min_ess", "1", "--min_ess_share", "0", "--max_clipped", "1", "--min_shift_share", "0")
ONE_EPOCH = ("--trainer.max_epochs", "1", "--model.init_args.pretrain_epochs", "0")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Extracts, models and a finished run, at the places that `PLACES` puts in place of those of the pages."""
    folder = tmp_path_factory.mktemp("world")
    simulate_eicu(folder / "eicu", patients=400, seed=1, progress=False)
    simulate_meds(folder / "meds", patients=700, progress=False)
    for films in ("jpg", "embeddings"):
        options: Any = {"films": films, "film_size": 40, "progress": False}
        simulate_mimic4(folder / films, patients=200, seed=1, **options)
    (folder / "tables").mkdir()
    for module in ("hosp", "icu"):
        (folder / "tables" / module).symlink_to(folder / "jpg" / module)
    _tiny_text_model(folder / "models" / "biomedbert")
    image = timm.create_model("resnet10t", num_classes=0)
    (folder / "models" / "resnet50").mkdir()
    save_file(image.state_dict(), folder / "models" / "resnet50" / "model.safetensors")
    timm.models.save_for_hf(image, str(folder / "models" / "resnet50"), safe_serialization=True)
    return folder


PLACES = {
    "/data/eicu-crd/2.0": "{world}/eicu",
    "/data/eicu": "{world}/eicu",
    "/data/meds": "{world}/meds",
    "/data/mimiciv/3.1": "{world}/tables",
    "/data/mimic-iv-note/2.2": "{world}/jpg",
    "/data/mimic-cxr-jpg/2.1.0": "{world}/jpg/cxr",
    "/scratch/me/stores": "stores",
}


def commands(code: str) -> list[list[str]]:
    """The commands of a block as bash splits them, loops unrolled; nothing is run."""
    programs = re.findall(r"^\s*(?:[A-Z_]+=\S+ )*(\S+)", code, re.MULTILINE)
    code = code.replace(".venv/bin/", "")
    names = {p.rpartition("/")[2] for p in programs} - {"for", "done", "do", "#"}
    shims = "\n".join(f"{n}() {{ printf '%s\\0' {n} \"$@\"; printf '\\n\\0'; }}" for n in names if n.isidentifier())
    said = subprocess.run(["bash", "-uc", f"{shims}\n{code}"], capture_output=True, text=True, check=True).stdout
    return [line.split("\0")[:-1] for line in said.split("\n\0") if line]


def sized(page: str, arguments: list[str], world: Path) -> list[str]:
    """The command, of a size for a test; a run that stands where it wants to write was another way of doing it."""
    given = [SMALL.get(word, word) for word in arguments]
    if given[0] == "evaluate":
        return [*given, *FEW]
    if given[0] != "fit" or "--print_config" in given or any(word.endswith(".help") for word in given):
        return given
    if "--run_dir" in given and "--resume" not in given:
        shutil.rmtree(given[given.index("--run_dir") + 1], ignore_errors=True)
    given += ONE_EPOCH
    words = " ".join(given)
    if "mine.yaml" in words and "encoders.yaml" not in words and "init_args.embeddings" not in words:
        # no hub is at hand: a model's name is a folder's
        given += ("--model.init_args.encoders.text.init_args.model", "models/biomedbert")
        if "cxr embeddings" in words:
            given += ("--data.init_args.cxr_root", str(world / "embeddings" / "cxr"))
        else:
            given += ("--model.init_args.encoders.image.init_args.model", "models/resnet50")
    return given


def run(arguments: list[str]) -> int | str | None:
    """Run a command; one that ends the process, as help does, ends here."""
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code or 0


def _run_of_eicu(folder: Path, world: Path) -> None:
    flags = ["--config", "eicu", "--data.init_args.root", str(world / "eicu"), "--run_dir", str(folder / "runs/eicu")]
    assert main(["fit", *flags, *ONE_EPOCH]) == 0


def _predictions(folder: Path, world: Path) -> None:
    """A table of predictions of ours, and one of somebody else's."""
    _run_of_eicu(folder, world)
    flags = ["--config", "eicu", "--data.init_args.root", str(world / "eicu"), "--run_dir", "runs/eicu"]
    assert main(["predict", *flags]) == 0
    (folder / "run").symlink_to(folder / "runs" / "eicu")
    draw = np.random.default_rng(0)
    n = 2000
    labs, notes, film = draw.random((3, n)) < 0.6
    risk = draw.uniform(0.05, 0.95, n)
    pl.DataFrame(
        {
            "mrn": np.arange(n),
            "death_risk": risk,
            "death": (draw.random(n) < risk).astype(int),
            "has_labs": labs,
            "has_notes": notes,
            "has_film": film,
            "use": draw.choice(["tune", "test"], n),
        }
    ).write_csv(folder / "scores.csv")


def _vectors(folder: Path, world: Path) -> None:
    """Vectors of notes and films, as somebody's own model may have made them."""
    films = pl.read_csv(next((world / "jpg" / "cxr").glob("mimic-cxr-2.0.0-metadata.csv*")))["dicom_id"]
    ids = {"films": ("dicom_id", films)}
    for kind in ("radiology", "discharge"):
        ids[kind] = ("note_id", pl.read_csv(next((world / "jpg" / "note").glob(f"{kind}.csv*")))["note_id"])
    for name, (column, values) in ids.items():
        vectors = np.random.default_rng(0).normal(size=(len(values), 4)).astype(np.float32)
        pl.DataFrame({column: values, "vector": vectors.tolist()}).write_parquet(folder / f"{name}.parquet")


PREPARED: dict[str, Callable[[Path, Path], None]] = {
    "availability": _run_of_eicu,
    "rectify": _predictions,
    "mimic4": _vectors,
    "tensorboard": _run_of_eicu,
}


@pytest.mark.parametrize("page", [p for p in PAGES if p.stem not in ELSEWHERE], ids=lambda p: p.stem)
def test_the_commands_of_a_page_do_what_they_say(
    page: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mmnar"])  # pytest's own arguments are none of mmnar's
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "models").symlink_to(world / "models")
    text = page.read_text(encoding="utf-8")
    for named, place in PLACES.items():
        text = text.replace(named, place.format(world=world))
    hospitals = pl.read_csv(world / "eicu" / "patient.csv.gz", columns=["hospitalid"])["hospitalid"].value_counts(
        sort=True
    )
    text = text.replace("site=73", f"site={hospitals['hospitalid'][0]}")
    for title, code in [*FILE.findall((ROOT / "docs" / "howto" / "mimic4.md").read_text("utf-8")), *FILE.findall(text)]:
        for named, place in PLACES.items():
            code = code.replace(named, place.format(world=world))
        Path(title).parent.mkdir(parents=True, exist_ok=True)
        Path(title).write_text(code, encoding="utf-8")
    if page.stem in PREPARED:
        PREPARED[page.stem](tmp_path, world)
    capfd.readouterr()
    for block in BLOCK.finditer(text):
        for program, *arguments in commands(block["code"]):
            if TOO_FEW & set(arguments):
                continue
            if program == "mmnar":
                given = sized(page.stem, arguments, world)
                assert run(given) == 0, (given, capfd.readouterr().err[-2000:])
            elif program == "tensorboard":
                assert any(Path(arguments[1]).rglob("events.out.tfevents*")), arguments
            elif program == "python":
                assert (ROOT / arguments[0]).is_file(), arguments
            else:
                assert program in OTHERS, program


def test_every_page_with_commands_is_run() -> None:
    assert {p.stem for p in PAGES} > {"README", "eicu", "mimic4", "encoders", "availability", "rectify", "cli"}
    pages = {p.stem: p.read_text("utf-8") for p in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]}
    # a command in a block of another language would not be found
    other = re.compile(r"^```(?!bash$)(\w*)$(?P<code>(?:\n(?!```).*)*)\n```$", re.MULTILINE)
    opened = {name: re.sub(BLOCK, "", text) for name, text in pages.items()}
    assert not [n for n, text in opened.items() if any("\nmmnar fit " in b["code"] for b in other.finditer(text))]


def _tiny_text_model(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)  # type: ignore[no-untyped-call]
    size: Any = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(words), **size)).save_pretrained(folder)
