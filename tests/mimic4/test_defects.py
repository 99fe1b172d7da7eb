"""What the code released with the paper does, and a store and a model of MIMIC-IV must not (`docs/method.md`).

1. The rectifier is fitted on test predictions. Here: outcomes of test patients move neither model nor rectifier. That
   it gains nothing where there is nothing to gain: `tests/rectifier/test_rectifier.py`.
2. Training draws test rows. Here: who was drawn, with several stays of a patient. In general: `tests/records`.
3. Notes and films of a whole life, so that availability tells who came back. Here: of those who did; in full:
   `test_leaks.py`.
4. "90 day" labels that count any later admission. Here: through the extractor; in full: `test_labels.py`.
5. Two bit orders of patterns, statistics over all rows, vectors cut to a width, an untrained aggregator of films.
6. A schedule built per step and stepped per epoch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
import torch
from lightning.pytorch import Callback, Trainer

from mmnar_lightning.extract import ExtractError
from mmnar_lightning.module import MultimodalOutcomeModule
from mmnar_lightning.records import SplitSettings
from mmnar_mimic4 import MIMIC4DataModule, MIMIC4Extractor

if TYPE_CHECKING:
    from tests.mimic4.conftest import Extracted, RawTables

    NewRaw = Callable[[], RawTables]
    At = Callable[..., datetime]
    Run = Callable[..., Extracted]

PATIENTS, STAYS = 160, 2
USED = ("structured", "labs", "treatments", "radiology", "cxr", "micro")
SOMETIMES = ("labs", "treatments", "radiology", "cxr", "micro")
FILM_WIDTH, EPOCHS, LR, WARMUP, FLOOR = 6, 3, 1e-2, 0.25, 0.1
TRAIN, TEST = 0, 3


def subject(number: int) -> int:
    return 10_000_001 + number


@dataclass
class People:
    """An extract of people with two stays each, and what was recorded in which."""

    raw: RawTables
    root: Path
    has: dict[tuple[str, int], set[str]] = field(default_factory=dict)

    def write(self) -> People:
        self.raw.write(self.root)
        for key, modality, width in (("dicom_id", "cxr", FILM_WIDTH), ("note_id", "radiology", 4)):
            rng = random.Random(width)
            table = "mimic-cxr-2.0.0-metadata" if modality == "cxr" else "note/radiology"
            ids = [row[key] for row in self.raw.rows[table]]
            vectors = [[rng.gauss(0, 1) for _ in range(width)] for _ in ids]
            pl.DataFrame({key: ids, "v": vectors}).write_parquet(self.root / f"{modality}.parquet")
        return self

    def data(self, **options: Any) -> MIMIC4DataModule:
        own = {name: self.root / f"{name}.parquet" for name in ("cxr", "radiology")}
        given = {"cxr_root": self.root, "embeddings": own, "episodes": "all", "include_micro": True, "modalities": USED}
        given |= {"splits": SplitSettings(val=0.2, calibration=0.35), "min_patients": 2, "batch_size": 16, "seed": 0}
        return MIMIC4DataModule(self.root, self.root.parent / "stores", **{**given, **options})


def drawn(raw: RawTables, root: Path, at: At, seed: int = 0) -> People:
    """Draw people: each table has rows in half of the stays, films at times several."""
    rng, people = random.Random(seed), People(raw, root)
    for number in range(PATIENTS):
        who = {"subject_id": subject(number)}
        raw.patient(subject(number), dod=rng.choice([at(227).date(), at(300).date(), None, None]))
        for stay in range(STAYS):
            first = 200 * stay
            hadm = 20_000_001 + 10 * number + stay
            raw.admission(hadm, at(first), at(first + 5), subject(number), edregtime=at(first, -2))
            there = {name for name in SOMETIMES if rng.random() < 0.5}
            people.has[str(subject(number)), hadm] = there | {"structured"}
            time, key = at(first + 1), f"{number}-{stay}"
            if "labs" in there:
                lab = {"itemid": 50912, "valuenum": 1 + rng.random(), "valueuom": "mg/dL", "charttime": time}
                raw.add("hosp/labevents", **who, **lab)
            if "treatments" in there:
                raw.add("hosp/prescriptions", **who, drug_type="MAIN", drug="Furosemide", starttime=time)
            if "radiology" in there:
                raw.add("note/radiology", **who, note_id=f"note-{key}", charttime=time, text="clear")
            if "micro" in there:
                raw.add("hosp/microbiologyevents", **who, charttime=time, spec_type_desc="URINE")
            for film in range(rng.randint(1, 3) if "cxr" in there else 0):
                raw.film(None, f"film-{key}-{film}", time + timedelta(hours=film), subject(number))
        if rng.random() < 0.3:
            # back 20 days after the last stay, and not recorded there
            hadm = 21_000_001 + number
            raw.admission(hadm, at(225), at(226), subject(number))
            people.has[str(subject(number)), hadm] = {"structured"}
    return people.write()


@pytest.fixture(scope="module")
def people(new_raw: NewRaw, at: At, tmp_path_factory: pytest.TempPathFactory) -> People:
    return drawn(new_raw(), tmp_path_factory.mktemp("people") / "raw", at)


@pytest.fixture(scope="module")
def data(people: People) -> MIMIC4DataModule:
    made = people.data()
    made.setup("fit")
    return made


class Rates(Callback):
    """Keeps the learning rate of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


@dataclass
class Fitted:
    module: MultimodalOutcomeModule
    before: dict[str, torch.Tensor]
    rates: list[float]
    predictions: dict[str, torch.Tensor]


def fit(data: MIMIC4DataModule, folder: Path) -> Fitted:
    torch.manual_seed(0)
    options = {"lr": LR, "warmup": WARMUP, "lr_floor": FLOOR, "dropout": 0.0}
    module = MultimodalOutcomeModule(data.schema, width=8, **options)  # type: ignore[arg-type]
    module.configure_model()
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    rates = Rates()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        max_epochs=EPOCHS,
        num_sanity_val_steps=0,
        callbacks=[rates],
        default_root_dir=folder,
        **quiet,  # type: ignore[arg-type]
    )
    trainer.fit(module, datamodule=data)
    given = trainer.predict(module, datamodule=data)
    assert given is not None
    found = {name: torch.cat([batch[name] for batch in given]) for name in given[0]}
    return Fitted(module, before, rates.seen, found)


@pytest.fixture(scope="module")
def fitted(data: MIMIC4DataModule, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fit(data, tmp_path_factory.mktemp("run"))


# ---- 1 and 2: who is learned from


def test_1_outcomes_of_test_patients_move_neither_model_nor_rectifier(
    new_raw: NewRaw, at: At, tmp_path: Path, data: MIMIC4DataModule, fitted: Fitted
) -> None:
    tested = set(data.records.samples.filter(pl.Series(data.split == TEST))["patient"])
    other = drawn(new_raw(), tmp_path / "raw", at)
    for row in other.raw.rows["hosp/patients"]:
        if str(row["subject_id"]) in tested:
            row["dod"] = None if row["dod"] else at(300).date()
    again = other.write().data()
    labels = [c for c in data.records.samples.columns if c.startswith("label/")]
    differ = [a != b for a, b in zip(*(d.records.samples.select(labels).rows() for d in (data, again)), strict=True)]
    assert set(data.records.samples.filter(pl.Series(differ))["patient"]) == tested
    assert again.schema == data.schema
    now = fit(again, tmp_path)
    assert now.module.rectifier.fitted
    assert now.module.rectifier.to_state() == fitted.module.rectifier.to_state()
    for name, weights in fitted.module.state_dict().items():
        assert name.endswith("_extra_state") or torch.equal(weights, now.module.state_dict()[name]), name
    assert torch.equal(now.predictions["rectified"], fitted.predictions["rectified"])
    assert not torch.equal(now.predictions["targets"], fitted.predictions["targets"])


def test_2_only_training_patients_are_drawn_each_of_their_stays_once_an_epoch(data: MIMIC4DataModule) -> None:
    patients = data.records.samples["patient"]
    assert patients.n_unique() == PATIENTS
    assert len(patients) > 1.9 * PATIENTS
    held = {name: set(patients[data.samples_of(name)]) for name in ("val", "calibration", "conformal", "test")}
    assert all(held.values())
    loader = data.train_dataloader()
    for _ in range(2):
        rows = torch.cat([batch.sample for batch in loader]).tolist()
        drawn_people = set(patients[rows])
        assert sorted(rows) == data.samples_of("train").tolist()
        for name, others in held.items():
            assert not drawn_people & others, name
    names = list(held)
    assert all(not held[a] & held[b] for a in names for b in names if a < b)
    # both stays of a patient are on the same side
    sides = pl.DataFrame({"patient": patients, "split": data.split}).group_by("patient").n_unique()
    assert sides["split"].unique().to_list() == [1]


# ---- 3 and 4: availability and labels


def test_3_availability_does_not_tell_who_came_back(new_raw: NewRaw, at: At, extracted: Run, tmp_path: Path) -> None:
    """Half come back, and are examined then: what there is of the stay before is the same for both halves."""
    raw = new_raw()
    for number in range(20):
        raw.life(number, tmp_path, bare=number % 4 > 1)
        if number % 2:
            raw.rows["hosp/admissions"].pop()
            raw.rows["icu/icustays"].pop()
            continue
        who, later = 10_000_001 + 10 * number, at(40, hours=3)
        note = {"subject_id": who, "charttime": later, "storetime": later, "text": "back"}
        raw.add("note/radiology", note_id=f"{who}-RR-8", **note)
        raw.add("note/discharge", note_id=f"{who}-DS-8", hadm_id=20_000_002 + 10 * number, **note)
        raw.film(tmp_path, f"later-{who}", later, who)
        raw.add("hosp/labevents", subject_id=who, itemid=50912, valuenum=2, valueuom="mg/dL", charttime=later)
    one = MIMIC4Extractor(cxr_root=tmp_path, include_micro=True)
    samples = extracted(one, raw.write(tmp_path)).store(tmp_path / "stores").samples
    assert samples["label/readmission_90d"].to_list() == [number % 2 == 0 for number in range(20)]
    observed = [c for c in samples.columns if c.startswith(("observed/", "start/", "stop/"))]
    for name in (c for c in observed if c.startswith("observed/") and c != "observed/structured"):
        assert samples[name].to_list() == [number % 4 <= 1 for number in range(20)], name
    counts = samples.select(pl.col(f"stop/{m}") - pl.col(f"start/{m}") for m in ("cxr", "radiology", "discharge"))
    assert counts.max().row(0) == (1, 1, 1)


def test_4_labels_end_with_their_windows(new_raw: NewRaw, at: At, extracted: Run, tmp_path: Path) -> None:
    """Predicted at noon of day 6: a later admission, ICU stay and death count to the second and the day, no longer."""
    second = timedelta(seconds=1)
    # back at, 30 days, 90 days
    returns = [
        (at(36), True, True),
        (at(36) + second, False, True),
        (at(96) - second, False, True),
        (at(96), False, True),
        (at(96) + second, False, False),
        (at(186), False, False),
        (at(700), False, False),
    ]
    # died on the day of, 30 days, 180 days: a date counts at its end, midnight
    deaths = [(at(35), True, True), (at(36), False, True), (at(185), False, True), (at(186), False, False)]
    deaths += [(at(900), False, False)]
    raw = new_raw()
    for number, (back, *_) in enumerate(returns):
        raw.patient(subject(number)).admission(100 + number, at(0), at(5), subject(number))
        raw.admission(200 + number, back, back + timedelta(days=3), subject(number))
        raw.icu_stay(300 + number, 200 + number, back, back + timedelta(days=1), subject(number))
    for number, (died, *_) in enumerate(deaths, start=len(returns)):
        raw.patient(subject(number), dod=died.date()).admission(100 + number, at(0), at(5), subject(number))
    samples = extracted(MIMIC4Extractor(), raw.write(tmp_path), "structured").samples
    told = {name: samples[f"label/{name}"].to_list() for name in ("readmission_30d_any", "readmission_90d", "icu_90d")}
    nobody = [False] * len(deaths)
    assert told["readmission_30d_any"] == [month for _, month, _ in returns] + nobody
    assert told["readmission_90d"] == told["icu_90d"] == [quarter for _, _, quarter in returns] + nobody
    alive = [False] * len(returns)
    assert samples["label/mortality_30d"].to_list() == alive + [month for _, month, _ in deaths]
    assert samples["label/mortality_180d"].to_list() == alive + [half for _, _, half in deaths]


# ---- 5: patterns, statistics, widths, films


def test_5_a_pattern_is_the_same_from_raw_rows_to_predictions(
    people: People, data: MIMIC4DataModule, fitted: Fitted
) -> None:
    samples = data.records.samples
    hadm = samples["id/hadm_id"].to_list()
    names = [modality["name"] for modality in data.schema["modalities"]]
    assert set(names) == set(USED)
    seen = set()
    for sample, pattern in zip(*(fitted.predictions[k].tolist() for k in ("sample", "pattern")), strict=True):
        there = people.has[samples["patient"][sample], hadm[sample]]
        assert pattern == sum(2**k for k, name in enumerate(names) if name in there)
        seen.add(pattern)
    # a reversed order would give other numbers
    backwards = {sum(2 ** (len(names) - 1 - k) for k in range(len(names)) if p >> k & 1) for p in seen}
    assert len(seen) > 8
    assert backwards != seen
    train = samples[data.samples_of("train")]
    keys = zip(train["patient"], train["id/hadm_id"], strict=True)
    ids = [sum(2**k for k, name in enumerate(names) if name in people.has[key]) for key in keys]
    assert max(ids, key=lambda p: (ids.count(p), -p)) == data.schema["patterns"][0]


def test_5_statistics_come_from_train_alone(new_raw: NewRaw, at: At, tmp_path: Path, data: MIMIC4DataModule) -> None:
    trained = set(data.records.samples.filter(pl.Series(data.split == TRAIN))["patient"])
    for side in ("others", "train"):
        changed = drawn(new_raw(), tmp_path / side / "raw", at)
        for table, column in (("hosp/labevents", "valuenum"), ("hosp/patients", "anchor_age")):
            for row in changed.raw.rows[table]:
                if (str(row["subject_id"]) in trained) == (side == "train"):
                    row[column] = row[column] * 1.5 if column == "valuenum" else row[column] + 9
        now = changed.write().data()
        labs = [d.records.column("modality/labs.arrow", "values").tobytes() for d in (data, now)]
        assert labs[0] != labs[1]
        assert (now.schema == data.schema) == (side == "others")


def test_5_a_vector_of_another_width_is_an_error_and_never_cut(new_raw: NewRaw, at: At, tmp_path: Path) -> None:
    people = drawn(new_raw(), tmp_path / "raw", at)
    path = people.root / "cxr.parquet"
    frame = pl.read_parquet(path)
    vectors = frame["v"].to_list()
    # of a film that a sample has, longer and shorter than the others
    for wrong in ([*vectors[3], 1.0], vectors[3][:-1]):
        pl.DataFrame({"dicom_id": frame["dicom_id"], "v": [*vectors[:3], wrong, *vectors[4:]]}).write_parquet(path)
        data = people.data()
        with pytest.raises(ExtractError, match=rf"1 row \(row 4\) with another width than the first, {FILM_WIDTH}"):
            data.prepare_data()
        assert not list((tmp_path / "stores").glob("mimic4-*"))


def test_5_several_films_are_put_together_by_trained_weights(
    people: People, data: MIMIC4DataModule, fitted: Fitted
) -> None:
    films = data.records.samples.select(pl.col("stop/cxr") - pl.col("start/cxr"))["stop/cxr"]
    assert films.max() == 3
    names = [name for name in fitted.before if name.startswith("encoders.cxr.")]
    assert names
    after = dict(fitted.module.named_parameters())
    still = [name for name in names if torch.equal(after[name], fitted.before[name])]
    assert not still
    assert all(parameter.requires_grad for parameter in after.values())


# ---- 6: the learning rate


def test_6_the_schedule_is_stepped_as_it_is_built(data: MIMIC4DataModule, fitted: Fitted) -> None:
    steps = EPOCHS * math.ceil(len(data.samples_of("train")) / 16)
    warm = round(WARMUP * steps)
    expected = [LR * (step + 1) / (warm + 1) for step in range(warm)]
    for step in range(warm, steps):
        fallen = 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
        expected.append(LR * (FLOOR + (1 - FLOOR) * fallen))
    assert fitted.rates == pytest.approx(expected)
    assert min(fitted.rates[warm:]) < 1.2 * FLOOR * LR
