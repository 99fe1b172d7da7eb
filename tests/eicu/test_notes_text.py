"""Notes of eICU as text: what the codes are made of, one document a note, through a transformer that the test makes."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from mmnar_eicu import EICUDataModule, EICUExtractor
from mmnar_eicu.modalities import describe
from mmnar_eicu.simulate import simulate
from mmnar_lightning.records import RecordStore

STAY = "patientunitstayid"
NOTE = "notes/Progress Notes/"
EXAM = f"{NOTE}Physical Exam/Physical Exam/"
Made = Callable[..., Any]
OPTIONS: tuple[dict[str, Any], ...] = ({}, {"cohort": "unit_discharge"})


@pytest.fixture
def made(tmp_path: Path, opened: Any, extracted: Any) -> Made:
    """`made(extract, **options)` writes an extract and runs it, with notes as text if nothing else is said."""

    def make(extract: Any, **options: Any) -> Any:
        extractor = EICUExtractor(**{"notes": "text", **options})
        return extracted(extractor, opened(extract.write(tmp_path), extractor))

    return make


def note(extract: Any, stay: int, at: int, path: str | None, entered: int | None = None, **columns: Any) -> None:
    times = {"noteoffset": at, "noteenteredoffset": at if entered is None else entered}
    path = None if path is None else NOTE + path
    extract.add("note", stay, **{"notetype": "Admission", "notepath": path, **times, **columns})


def exam(extract: Any, stay: int, at: int, path: str | None, **columns: Any) -> None:
    path = None if path is None else EXAM + path
    extract.add("physicalExam", stay, physicalexamoffset=at, physicalexampath=path, **columns)


def listed(found: Any) -> list[tuple[int, int, str]]:
    """Sample, minutes before the prediction time, text."""
    return [(sample, round(hours * 60), text) for sample, hours, text in found.elements["notes"].rows()]


def test_a_document_is_a_note_with_the_exam_of_its_minute(extract: Any, made: Made) -> None:
    extract.stay()
    note(extract, 1, 60, "Social History / Family History/Social History/Ethanol Use/none", 90)
    note(extract, 1, 60, "Allergies/Allergies/No", 90)
    note(extract, 1, 60, "Allergies/Allergies/No", 90)  # the same row again but for its id
    for part in ("GCS/Motor Score/6", "GCS/Score/scored", "GCS/Score/estimated"):
        exam(extract, 1, 60, f"Neurologic/{part}")
    note(extract, 1, 300, "Assessment and Plan/View Options/System View", notetype="Brief Progress")
    assert listed(made(extract)) == [
        (
            0,
            1350,  # it became known at minute 90
            "Admission\nAllergies: No\nPhysical Exam, Neurologic, GCS, Motor Score: 6\n"
            "Physical Exam, Neurologic, GCS, Score: estimated; scored\n"
            "Social History, Family History, Social History, Ethanol Use: none",
        ),
        (0, 1140, "Brief Progress\nAssessment and Plan, View Options: System View"),
    ]


def test_notes_of_one_minute_that_were_saved_apart_are_two_documents(extract: Any, made: Made) -> None:
    extract.stay()
    note(extract, 1, 60, "Allergies/No", 200, notetype="Brief Progress")
    note(extract, 1, 60, "Allergies/Yes", 70)
    exam(extract, 1, 60, "Neurologic/GCS/scored")
    with_exam = "Admission\nAllergies: Yes\nPhysical Exam, Neurologic, GCS: scored"
    assert listed(made(extract)) == [(0, 1370, with_exam), (0, 1240, "Brief Progress\nAllergies: No")]


def test_what_was_not_known_is_in_no_document(extract: Any, made: Made) -> None:
    extract.stay()
    note(extract, 1, 60, "Allergies/Yes", 1440)
    note(extract, 1, 60, "Allergies/No", 1441)
    note(extract, 1, 1441, "Allergies/Unknown")
    exam(extract, 1, 700, "Neurologic/GCS/9")  # without a note it is known after twelve hours
    exam(extract, 1, 721, "Neurologic/GCS/8")
    found = made(extract)
    assert listed(found) == [(0, 0, "Admission\nAllergies: Yes"), (0, 740, "Physical Exam, Neurologic, GCS: 9")]
    assert found.counts["note", "not yet known at the prediction time"] == 2


def test_typed_text_and_numbers_are_not_read(extract: Any, made: Made) -> None:
    extract.stay()
    note(extract, 1, 60, "Allergies/No", notevalue="seen by Dr Snow", notetext="seen by Dr Snow")
    exam(extract, 1, 60, "Constitutional/Weight (kg)/Admission", physicalexamvalue="Snow", physicalexamtext="71.3")
    ((_, _, text),) = listed(made(extract))
    assert text == "Admission\nAllergies: No\nPhysical Exam, Constitutional, Weight (kg): Admission"


def test_rows_that_say_nothing_make_no_document(extract: Any, made: Made) -> None:
    extract.stay().stay(2, patienthealthsystemstayid=11, uniquepid="001-2")
    note(extract, 1, 60, None, notetype=None)
    exam(extract, 1, 60, None)
    note(extract, 2, 60, None)
    found = made(extract)
    assert listed(found) == [(1, 1380, "Admission")]
    assert found.counts["notes", "rows that say nothing, not used"] == 2
    assert made(extract, notes="codes").elements["notes"]["sample"].to_list() == [1]


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_raw_rows_changes_no_byte(new_extract: Any, made: Made, seed: int) -> None:
    rng = random.Random(0)
    rows = [(rng.choice((60, 90)), rng.choice((90, 95)), f"A/{rng.randrange(9)}/{rng.random()}") for _ in range(120)]
    expected = None
    for shuffle in (False, True):
        extract = new_extract().stay()
        if shuffle:
            random.Random(seed).shuffle(rows)
        for at, entered, path in rows:
            note(extract, 1, at, path, entered, notetype=("Admission", "Brief Progress")[len(path) % 2])
            exam(extract, 1, at, path)
        written = made(extract).elements["notes"].write_ipc(None).getvalue()
        assert expected is None or written == expected
        expected = written


def test_kind_option_and_store(extract: Any, made: Made) -> None:
    assert {m.kind for m in describe() if m.name == "notes"} == {"codes"}
    assert {m.kind for m in describe(notes="text") if m.name == "notes"} == {"text"}
    assert [m.name for m in describe(notes="text")] == [m.name for m in describe()]
    with pytest.raises(ValueError, match="notes 'prose' is not one of codes, text"):
        EICUExtractor(notes="prose")  # type: ignore[arg-type]
    assert EICUDataModule(notes="text").extractor.options() != EICUDataModule().extractor.options()
    extract.stay()
    empty = made(extract).elements["notes"]
    assert (empty.height, empty.dtypes) == (0, [pl.Int64, pl.Float32, pl.String])


def compare_with_codes(root: Path, opened: Any, extracted: Any, options: Mapping[str, Any]) -> Any:
    """The same samples have notes as have codes, known for as long, and a document names every code's last part."""
    extractor = EICUExtractor(notes="text", **options)
    tables = {name: frame.collect().lazy() for name, frame in opened(root, extractor).items()}
    texts, coded = extracted(extractor, tables), extracted(EICUExtractor(**options), tables)
    assert texts.samples.equals(coded.samples)
    latest = [
        made.elements["notes"].group_by("sample").agg(pl.col("hours_before").min()).sort("sample")
        for made in (texts, coded)
    ]
    assert latest[0].height > 20
    assert latest[0].equals(latest[1])
    assert all(texts.elements[n].equals(coded.elements[n]) for n in coded.elements if n != "notes")
    said = dict(texts.elements["notes"].group_by("sample").agg(pl.col("text").str.join("\n")).rows())
    for sample, _, code in coded.elements["notes"].filter(~pl.col("code").str.starts_with("gcs:")).rows():
        assert code.partition(":")[2].split("/")[-1].strip(" :") in said[sample]
    return texts


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "extract"
    simulate(folder, patients=80, seed=4, progress=False)
    return folder


@pytest.mark.parametrize("options", OPTIONS)
def test_a_simulated_sample_has_documents_where_it_has_codes(
    options: dict[str, Any], simulated: Path, opened: Any, extracted: Any
) -> None:
    compare_with_codes(simulated, opened, extracted, options)


@pytest.fixture(scope="session")
def demo() -> Path:
    shared = os.environ.get("MMNAR_SHARED_DATA")
    root = (Path(shared) if shared else Path(__file__).parents[3] / "shared" / "data") / "eicu-demo"
    if not (root / "patient.csv.gz").is_file():
        pytest.skip(f"NOT TESTED: the open eICU demo is absent ({root}); set MMNAR_SHARED_DATA to its parent folder")
    return root


@pytest.mark.shared_data
@pytest.mark.parametrize("options", OPTIONS)
def test_a_sample_of_the_demo_has_documents_where_it_has_codes(
    options: dict[str, Any], demo: Path, opened: Any, extracted: Any
) -> None:
    found = compare_with_codes(demo, opened, extracted, options).elements["notes"]
    assert found.height > 1.5 * found["sample"].n_unique()
    if not options:
        # how long they are, as docs/howto/eicu.md says
        length = found["text"].str.count_matches(r"\w+|[^\w\s]")
        assert length.median() == 238
        assert round((length <= 510).mean(), 2) == 0.94


@pytest.mark.shared_data
def test_in_the_demo_a_note_is_a_form_that_was_saved_once(demo: Path) -> None:
    """Why a document is what it is: rows of one stay, offset and entry have one type, and one ``Copies`` row.

    A note's value is the end of its path, so that nothing is lost by reading the path alone.
    """
    rows = pl.read_csv(demo / "note.csv.gz", infer_schema=False)
    assert rows.select(pl.col("notepath").str.ends_with(pl.col("notevalue")).all()).item()
    copies = pl.col("notepath").str.ends_with("/Copies/Copies").sum()
    saved = rows.group_by(STAY, "noteoffset", "noteenteredoffset").agg(pl.col("notetype").n_unique(), copies=copies)
    assert saved.height == 3343
    assert saved.select((pl.col("notetype") == 1).all(), (pl.col("copies") == 1).all()).row(0) == (True, True)
    exams = pl.read_csv(demo / "physicalExam.csv.gz", infer_schema=False).select(STAY, noteoffset="physicalexamoffset")
    notes = saved.group_by(STAY, "noteoffset").len()
    of_exams = exams.unique().join(notes, on=[STAY, "noteoffset"], how="left")["len"]
    assert (of_exams.len(), of_exams.null_count(), (of_exams > 1).sum()) == (2168, 0, 7)


def truncated(root: Path, target: Path, samples: pl.DataFrame) -> Path:
    """Copy an extract without the notes and exams of which anything happened or was entered after the prediction time.

    Prediction times are put on each unit stay's clock with plain joins.
    """
    target.mkdir()
    whole = {path.name.split(".")[0]: path for path in root.glob("*.csv.gz")}
    own = ["patienthealthsystemstayid", "hospitaladmitoffset"]
    stays = pl.read_csv(whole["patient"], columns=[STAY, *own], schema_overrides={STAY: pl.Int64})
    ends = samples.select("prediction_time", pl.col(f"id/{STAY}").cast(pl.Int64).alias(STAY)).join(stays, on=STAY)
    moment = (pl.col("prediction_time") - pl.col(own[1])).max().alias("moment")
    limit = stays.join(ends.group_by(own[0]).agg(moment), on=own[0])
    limit = limit.select(STAY, limit=pl.col("moment") + pl.col(own[1]))
    for name, path in whole.items():
        times = {"note": ["noteoffset", "noteenteredoffset"], "physicalExam": ["physicalexamoffset"]}.get(name)
        if times is None:
            (target / path.name).symlink_to(path)
            continue
        frame = pl.read_csv(path, infer_schema=False)
        known = frame.with_columns(pl.col(STAY).cast(pl.Int64)).join(limit, on=STAY, maintain_order="left")
        late = pl.max_horizontal(pl.col(t).cast(pl.Float64) for t in times) > pl.col("limit")
        kept = known.filter(~late).drop("limit")
        assert 0 < kept.height < frame.height
        kept.write_csv(target / f"{name}.csv")
    return target


def check_the_future_is_not_read(root: Path, target: Path, opened: Any, extracted: Any) -> None:
    extractor = EICUExtractor(notes="text")
    before = extracted(extractor, opened(root, extractor))
    cut = truncated(root, target, before.samples)
    after = extracted(extractor, opened(cut, extractor))
    assert after.same_as(before)


def test_without_its_future_a_simulated_extract_has_the_same_documents(
    simulated: Path, tmp_path: Path, opened: Any, extracted: Any
) -> None:
    check_the_future_is_not_read(simulated, tmp_path / "cut", opened, extracted)


@pytest.mark.shared_data
def test_without_its_future_the_demo_has_the_same_documents(
    demo: Path, tmp_path: Path, opened: Any, extracted: Any
) -> None:
    check_the_future_is_not_read(demo, tmp_path / "cut", opened, extracted)


def write_model(path: Path, texts: list[str]) -> Path:
    """A tokenizer trained on documents, and two layers drawn at random, as `save_pretrained` leaves them."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(path)
    shape: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"intermediate_size": 32, "max_position_embeddings": 128}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=tokenizer.get_vocab_size(), **shape)).save_pretrained(path)
    return path


@dataclass(frozen=True)
class Setting:
    """Commands over one extract, each in a process of its own; `texts` are all documents in its store."""

    mmnar: Any
    config: Path
    stores: Path
    texts: list[str]

    def __call__(self, command: str, *words: Any, fails: bool = False, **options: Any) -> Any:
        """Run a command; whatever it says, no document is in it."""
        done = self.mmnar(command, "--config", self.config, *words, **options)
        assert (done.status != 0) == fails, done.out
        assert not any(line in done.out for text in self.texts for line in text.split("\n")[1:] if len(line) > 30)
        return done

    def features(self) -> list[Path]:
        return sorted(self.stores.glob("*.derived/features-notes-*"))


def setting(mmnar: Any, extract: Path, folder: Path, **data: Any) -> Setting:
    """Prepare a store, and write a model of its documents and a config over both."""
    options: dict[str, Any] = {"root": str(extract), "store": str(folder / "stores"), "notes": "text", "seed": 0}
    store = RecordStore(EICUDataModule(**options).prepare_store())
    texts: list[str] = store.strings("modality/notes.arrow").to_pylist()
    assert len(texts) > 50
    encoder = {"model": str(write_model(folder / "model", texts)), "max_tokens": 64, "stride": 8, "max_documents": 8}
    more = {"batch_size": 32, "min_patients": 1, "modalities": ["structured", "labs", "notes"], **data}
    config = {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 2,
            "log_every_n_steps": 1,
            "enable_model_summary": False,
            "enable_progress_bar": False,
            "callbacks": [{"class_path": name} for name in ("BestCheckpoint", "ResumeCheckpoint", "PredictionWriter")],
        },
        "model": {
            "class_path": "MultimodalOutcomeModule",
            "init_args": {"width": 8, "encoders": {"text": {"class_path": "TextEncoder", "init_args": encoder}}},
        },
        "data": {"class_path": "EICUDataModule", "init_args": options | more},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return Setting(mmnar, folder / "config.yaml", folder / "stores", texts)


@pytest.fixture(scope="module")
def command(mmnar: Any, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("text")
    simulate(folder / "extract", patients=160, seed=1, progress=False)
    return setting(mmnar, folder / "extract", folder)


def losses(done: Any) -> list[float]:
    return [float.fromhex(record["loss"]) for record in done.trace if "step" in record]


def fit_embed_fit_predict(run: Setting, folder: Path) -> None:
    on_the_fly = run("fit", "--run_dir", folder / "slow")
    assert "computed on the fly" in on_the_fly.out
    run("embed")
    (features,) = run.features()
    from_features = run("fit", "--run_dir", folder / "fast")
    assert f"read from {features}" in from_features.out.replace("\n", "")
    assert len(losses(on_the_fly)) > 3
    np.testing.assert_allclose(losses(from_features), losses(on_the_fly), atol=1e-5)
    predicted = []
    for name in ("slow", "fast"):
        run("predict", "--run_dir", folder / name)
        predicted.append(pl.read_parquet(folder / name / "predictions.parquet"))
    raw = [frame["mortality_hospital/raw"].to_numpy() for frame in predicted]
    assert len(raw[0]) > 20
    np.testing.assert_allclose(raw[0], raw[1], atol=1e-5)


def test_fit_embed_fit_from_features_and_predict(command: Setting, tmp_path: Path) -> None:
    fit_embed_fit_predict(command, tmp_path)


@pytest.mark.shared_data
@pytest.mark.slow
def test_fit_embed_fit_from_features_and_predict_on_the_demo(mmnar: Any, demo: Path, tmp_path: Path) -> None:
    fit_embed_fit_predict(setting(mmnar, demo, tmp_path, lab_delay=59), tmp_path)


@pytest.mark.parametrize("train", ["full", pytest.param("frozen", marks=pytest.mark.slow)])
def test_stopped_and_continued_is_the_same_run(train: str, command: Setting, tmp_path: Path) -> None:
    """Killed in the second epoch; fine-tuned, with the dropout of the transformer on, and frozen."""
    words = ("--model.init_args.encoders.text.init_args.train", train, "--resume", "auto")
    whole = command("fit", *words, "--run_dir", tmp_path / "whole")
    end = {"moment": "step", "count": 7, "how": "kill"}
    stopped = command("fit", *words, "--run_dir", tmp_path / "run", end=end, fails=True)
    done = command("fit", *words, "--run_dir", tmp_path / "run")
    assert 0 < len(losses(done)) < len(losses(whole))
    expected = {record["step"]: record["loss"] for record in whole.trace if "step" in record}
    again = [record for record in (*stopped.trace, *done.trace) if "step" in record]
    assert {record["step"] for record in again} == expected.keys()
    assert all(record["loss"] == expected[record["step"]] for record in again)
    paths = [tmp_path / name / "checkpoints" / "last.ckpt" for name in ("whole", "run")]
    states = [torch.load(path, weights_only=True)["state_dict"] for path in paths]
    kept, found = ({n: w for n, w in state.items() if isinstance(w, torch.Tensor)} for state in states)
    assert kept.keys() == found.keys()
    assert all(torch.equal(kept[name], found[name]) for name in kept)
    saved = load_file(command.config.parent / "model" / "model.safetensors")
    learnt = [not torch.equal(kept[f"encoders.notes.backbone.{n}"], w) for n, w in saved.items() if "pooler" not in n]
    assert any(learnt) == (train == "full")
