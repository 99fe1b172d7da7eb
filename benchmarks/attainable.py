"""Whether the encoders find in simulated notes and films all that there is to find.

Run: ``python benchmarks/attainable.py [--patients 65536] [--out benchmarks/results/attainable.json]``. Patients are
simulated; models of reports, of summaries, of films and of all three are trained from scratch on MIMIC-IV's raw layout,
and their AUROC on test patients is set against that of Bayes' rule, which knows how words and pixels came about
(`mmnar_mimic4.simulated.attainable`). Then notes and films are handed from patient to patient, labels staying where
they are: the trained models have to fall to chance, and so has one that is trained on them.

No pretrained weights are used. The tokenizer is learnt from the notes of training patients; it takes whole phrases as
tokens, which suits simulated notes and no others.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from lightning.pytorch import Trainer, seed_everything
from measuring import RESULTS, machine, save
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from mmnar_lightning.encoders import ImageEncoder, TextEncoder
from mmnar_lightning.evaluation import Interval, bootstrap_difference, bootstrap_interval
from mmnar_lightning.fusion import ConcatFusion
from mmnar_lightning.module import MultimodalOutcomeModule
from mmnar_lightning.records import RecordStore, SplitSettings, write_store
from mmnar_lightning.simulation import MechanismKind
from mmnar_mimic4 import MIMIC4DataModule
from mmnar_mimic4.simulate import simulate
from mmnar_mimic4.simulated.attainable import Bayes, Reading, film_error, of_numbers, of_words, standardised_values
from mmnar_mimic4.simulated.course import FILMED
from mmnar_mimic4.simulated.population import population

TASK = "readmission_90d"  # the one with the most events
GAP = 0.02
PACKAGES = ("torch", "lightning", "transformers", "timm")
SIDE = 48
MECHANISM: MechanismKind = "mnar"
STRENGTH = 1.0
# The seed also draws how closely notes and films are tied to the outcome: what is attainable from reports is 0.70 with
# seed 11 and 0.59 with seed 0, where as many patients teach less.
SEED = 11
COHORT = "post_discharge"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
BERT: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 128}
WORDS = {"radiology": 3000, "discharge": 8000}
# a summary is read in short windows, so that attention over windows finds those that say something
WINDOW = {"radiology": 512, "discharge": 32}
NOTES = 3000
FILM: dict[str, Any] = {"model": "test_resnet", "pretrained": False, "channels": 1, "image_size": SIDE, "crop_pct": 1.0}
WIDTH = 64
MODELS = {
    "reports": ("radiology",),
    "summaries": ("discharge",),
    "films": ("cxr",),
    "joint": ("radiology", "discharge", "cxr"),
}
Array = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained."""

    epochs: int
    lr: float
    batch_size: int = 128
    dropout: float = 0.2


RECIPES = {
    "reports": Recipe(3, 1e-3),
    "summaries": Recipe(6, 1e-3),
    "films": Recipe(12, 2e-3, 512),
    "joint": Recipe(6, 1e-3),
}


class Shuffled(MIMIC4DataModule):
    """The same samples with the notes and films of each other: see `shuffled`."""

    def prepare_store(self) -> Path:
        return shuffled(RecordStore(super().prepare_store()), self.modalities or [])


def shuffled(store: RecordStore, modalities: Sequence[str], seed: int = 0) -> Path:
    """Write a store in which whoever has documents or films has all of those of someone else who has some.

    Samples, labels and availability are those of the store. Returns the folder of the new one, beside the old one.
    """
    elements = {name: _handed_on(store, name, np.random.default_rng([seed, k])) for k, name in enumerate(modalities)}
    fingerprint = hashlib.sha256(f"{store.fingerprint} {sorted(modalities)} {seed}".encode()).hexdigest()
    # what says who has what is written anew
    written = {"sample", *(c for c in store.samples.columns if c.split("/")[0] in ("observed", "start", "stop"))}
    others = {f"reason/{name}" for name in store.schema.names if name not in modalities}
    samples = store.samples.drop(written | others)
    schema = store.schema.restrict(list(modalities), None)
    names = store.manifest["dataset"], store.manifest["cohort"]
    return write_store(store.path.parent, *names, fingerprint, schema, samples, elements, {})


def _handed_on(store: RecordStore, modality: str, rng: np.random.Generator) -> pl.DataFrame:
    kind = store.schema.modality(modality).kind
    file = f"modality/{modality}.arrow"
    owner = store.column(file, "sample")
    holders = np.unique(owner)
    taker = rng.permutation(holders)[np.searchsorted(holders, owner)]
    frame = pl.DataFrame(
        {
            "sample": taker,
            "hours_before": store.column(file, "hours_before"),
            {"text": "text", "image": "path"}[kind]: pl.Series(store.strings(file).to_pylist(), dtype=pl.String),
        }
    )
    return frame.sort("sample", maintain_order=True)


def write_model(folder: Path, notes: Sequence[str], words: int, seed: int) -> Path:
    """Save a tokenizer learnt from notes and a small transformer with weights drawn at random."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    # numbers are of laboratory results, and cost a token a digit
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"[0-9.%]*[0-9]"), "")]
    )
    # the pieces are phrases: merges go across blanks, and end at a line's end or after a mark
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+|(?<=[.:,]) +"), "removed")
    trainer = trainers.BpeTrainer(vocab_size=words, special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(notes, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(BertConfig(vocab_size=tokenizer.get_vocab_size(), **BERT)).save_pretrained(folder)
    return folder


def encoders(data: MIMIC4DataModule, folder: Path, dropout: float, seed: int) -> dict[str, Callable[..., Any]]:
    """The encoders of the modalities of a datamodule, all of whose parts are trained."""
    made: dict[str, Callable[..., Any]] = {}
    for name in data.modalities or []:
        if data.records.schema.modality(name).kind == "image":
            made[name] = partial(ImageEncoder, **FILM, train="full", dropout=dropout)
            continue
        file = f"modality/{name}.arrow"
        own = np.isin(data.records.column(file, "sample"), data.samples_of("train"))
        notes = pl.Series(data.records.strings(file).to_pylist()).filter(pl.Series(own)).head(NOTES).to_list()
        model = write_model(folder / name, notes, WORDS[name], seed)
        # every report of a stay says the same
        window: dict[str, Any] = {"max_tokens": WINDOW[name], "stride": 0, "max_documents": 1}
        made[name] = partial(TextEncoder, model=str(model), train="full", dropout=dropout, **window)
    return made


def train(data: MIMIC4DataModule, folder: Path, recipe: Recipe, seed: int) -> MultimodalOutcomeModule:
    """Train a model of the modalities of a datamodule, for all tasks; the last epoch's weights are used."""
    seed_everything(seed, verbose=False)
    model = MultimodalOutcomeModule(
        data.schema,
        fusion=partial(ConcatFusion, dropout=recipe.dropout),
        encoders=encoders(data, folder, recipe.dropout, seed),
        width=WIDTH,
        dropout=recipe.dropout,
        lr=recipe.lr,
    )
    _trainer(max_epochs=recipe.epochs, limit_val_batches=0, gradient_clip_val=1.0).fit(model, datamodule=data)
    return model


def predicted(model: MultimodalOutcomeModule, data: MIMIC4DataModule) -> Array:
    """Probabilities of `TASK` for the test samples of a datamodule, in their order, not rectified."""
    batches: list[dict[str, torch.Tensor]] = _trainer().predict(model, datamodule=data)  # type: ignore[assignment]
    rows = torch.cat([batch["sample"] for batch in batches]).numpy()
    values = torch.cat([batch["raw"] for batch in batches])[:, model.schema.task_names.index(TASK)]
    return np.asarray(values[np.argsort(rows)], dtype=np.float64)


def _trainer(**options: Any) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **quiet, **options)


class TestSet:
    """The test samples of a store, and what the simulator knows about them."""

    def __init__(self, extract: Path, seed: int, store: RecordStore, rows: NDArray[np.int64]) -> None:
        truth = pl.read_parquet(extract / "truth" / "*.parquet")
        self.filmed = float(truth["year"].is_between(*FILMED).mean())  # type: ignore[arg-type]
        samples = store.samples[rows].rename({"id/subject_id": "subject_id", "id/hadm_id": "hadm_id"})
        truth = samples.select("subject_id", "hadm_id").join(
            truth, on=["subject_id", "hadm_id"], how="left", validate="1:1", maintain_order="left"
        )
        self.model = population(seed, MECHANISM, STRENGTH)
        self.patient = samples["patient"].to_numpy()
        self.known = samples[f"label/{TASK}"].is_not_null().to_numpy()
        self.label = samples[f"label/{TASK}"].fill_null(False).to_numpy().astype(np.float64)
        self.observed = {name: samples[f"observed/{name}"].to_numpy() for name in MODELS["joint"]}
        self.values = {
            name: standardised_values(self.model, name, truth.select(f"^value/{name}/.*$").to_numpy())
            for name in MODELS["joint"]
        }
        self.icu = truth["stay_id"].is_not_null().to_numpy()

    def bayes(self, readings: Sequence[Reading], icu: bool = False) -> Array:
        """P(y = 1 | readings, availability): probabilities of `TASK`, [n]."""
        events = {"icu": self.icu} if icu else {}
        values = self.values
        noisy = {r.modality: r for r in readings if any(r.error)}
        rng = np.random.default_rng(0)
        values = {
            name: x + rng.standard_normal(x.shape) * noisy[name].error if name in noisy else x
            for name, x in values.items()
        }
        return Bayes(self.model, readings, self.filmed).predict(values, self.observed, events)[TASK]

    def attainable(self, modalities: Sequence[str]) -> Array:
        """Probabilities of whoever reads all that words and pixels say."""
        error = film_error(SIDE).tolist()
        return self.bayes([of_numbers(m, error) if m == "cxr" else of_words(m) for m in modalities])

    def auroc(self, probabilities: Array, chosen: Bools, against: Array | None = None) -> dict[str, Any]:
        """AUROC among some of the samples, or by how much it is above another's, with its interval."""
        where: dict[str, Any] = {"labelled": self.known & chosen}
        if against is None:
            return _plain(bootstrap_interval("auroc", probabilities, self.label, self.patient, **where))
        return _plain(bootstrap_difference("auroc", probabilities, against, self.label, self.patient, **where))


def _plain(interval: Interval) -> dict[str, Any]:
    found = {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(interval).items()}
    return {name: found[name] for name in ("estimate", "low", "high", "samples")}


def compare(test: TestSet, modalities: Sequence[str], model: Array, handed_on: Array) -> dict[str, Any]:
    """What a model reaches of what can be reached, and what is left of it once notes and films are another's."""
    some = np.any([test.observed[name] for name in modalities], axis=0)
    everything = np.all([test.observed[name] for name in modalities], axis=0)
    most = test.attainable(modalities)
    numbers = test.bayes([of_numbers(name) for name in modalities])
    stay = test.bayes([of_numbers(name) for name in modalities], icu=True)
    whole = np.ones(len(some), dtype=bool)
    return {
        "events": int((test.label * (test.known & some)).sum()),
        "where_there_is_one": {
            "attainable": test.auroc(most, some),
            "model": test.auroc(model, some),
            "model_minus_attainable": test.auroc(model, some, most),
            "numbers_minus_attainable": test.auroc(numbers, some, most)["estimate"],
            "numbers_and_icu_minus_attainable": test.auroc(stay, some, most)["estimate"],
        },
        "all": {
            "attainable": test.auroc(most, whole),
            "model": test.auroc(model, whole),
            "model_minus_attainable": test.auroc(model, whole, most),
        },
        # where all are observed, availability is the same for everyone and tells nothing
        "handed_on_where_all_are": test.auroc(handed_on, everything),
    }


def measure(
    folder: Path,
    patients: int,
    seed: int,
    recipes: Mapping[str, Recipe] = RECIPES,
    retrain: Sequence[str] = ("reports",),
) -> dict[str, Any]:
    """Simulate, train each of the models named in `recipes`, compare; hand on, and train again on that."""
    extract = folder / "extract"
    simulate(extract, patients, seed, MECHANISM, STRENGTH, film_size=SIDE, progress=False)
    found: dict[str, Any] = {}
    for name, recipe in recipes.items():
        modalities = list(MODELS[name])
        options = data_options(extract, folder / "stores", modalities, recipe.batch_size)
        data, other = MIMIC4DataModule(**options), Shuffled(**options)
        began = time.process_time()
        model = train(data, folder / name, recipe, seed)
        seconds = time.process_time() - began
        test = TestSet(extract, seed, data.records, data.samples_of("test"))
        found[name] = {
            "modalities": modalities,
            **asdict(recipe),
            "trained_on": int(np.isin(data.samples_of("train"), _held(data)).sum()),
            **compare(test, modalities, predicted(model, data), predicted(model, other)),
            "training_cpu_seconds": round(seconds),
        }
        if name in retrain:
            again = train(Shuffled(**options), folder / f"{name}-handed-on", recipe, seed)
            everything = np.all([test.observed[m] for m in modalities], axis=0)
            found[name]["trained_on_handed_on"] = test.auroc(predicted(again, Shuffled(**options)), everything)
    return found


def data_options(extract: Path, stores: Path, modalities: Sequence[str], batch_size: int) -> dict[str, Any]:
    """Arguments of the datamodule: all tasks, films opened but not decoded beforehand."""
    return {
        "root": extract,
        "store": stores,
        "cxr_root": extract / "cxr",
        "cohort": COHORT,
        "check_films": "open",
        "modalities": list(modalities),
        "splits": SplitSettings(val=0.02, calibration=0.02),
        "batch_size": batch_size,
        "predict_splits": ("test",),
    }


def _held(data: MIMIC4DataModule) -> NDArray[np.int64]:
    """Samples with any of the modalities."""
    return np.unique(
        np.concatenate([data.records.column(f"modality/{m}.arrow", "sample") for m in data.modalities or []])
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--patients", type=int, default=65536)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument(
        "--folder", type=Path, help="where the extract and its stores are kept; gone in the end if not given"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "attainable.json")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        for name in arguments.models:
            found |= measure(folder, arguments.patients, arguments.seed, {name: RECIPES[name]})
            # after each, for all of them take an hour
            save(arguments.out, described(arguments.patients, arguments.seed, found), PACKAGES, machine())


def described(patients: int, seed: int, found: Mapping[str, Any]) -> dict[str, Any]:
    """The result, with what it is about."""
    return {
        "what": f"AUROC of {TASK} on test patients (95 % bootstrap intervals over patients), against Bayes' rule",
        "patients": patients,
        "seed": seed,
        "mechanism": MECHANISM,
        "strength": STRENGTH,
        "text_model": {"type": "bert", **BERT, "vocabulary": WORDS, "window": WINDOW},
        "image_model": FILM,
        "models": found,
        "target_gap": GAP,
    }


if __name__ == "__main__":
    main()
