"""What a sample may hold and what is asked of it: modalities, tasks, and availability patterns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Kind = Literal["vector", "codes", "series", "text", "image"]
KINDS: tuple[str, ...] = get_args(Kind)
MAX_MODALITIES = 62
UNKNOWN = "<unknown>"


@dataclass(frozen=True)
class Modality:
    """One source of evidence about a patient.

    Args:
        name: Word that names it in the store, the config and the metrics.
        kind: How its elements look: ``vector`` (named floats), ``codes``, ``series`` (variable, value, time), ``text``
            or ``image``.
        items: Names in order: the features of a ``vector``, the variables of a ``series``. For ``codes`` the vocabulary
            that was fitted on training patients, with ``<unknown>`` first; empty in a store, which fits nothing.
        mean: Mean of each item over training samples; empty in a store. For ``codes`` the share of them with the code.
        std: Standard deviation of each item over training samples, never 0; empty in a store.
    """

    name: str
    kind: Kind
    items: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"modality {self.name!r}: kind {self.kind!r} is not one of {', '.join(KINDS)}")
        if not self.name.isidentifier():
            raise ValueError(f"modality name {self.name!r} must be letters, digits and underscores")
        if len(set(self.items)) != len(self.items):
            raise ValueError(f"modality {self.name!r}: an item name occurs twice")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (0, len(self.items)):
                raise ValueError(f"modality {self.name!r}: {name} must have one number per item")


@dataclass(frozen=True)
class Task:
    """One binary outcome.

    Args:
        name: Word that names it.
        horizon: What the label window is, in words ("within 7 days of ICU admission").
        description: What a positive label means.
        parent: Task that must be positive wherever this one is, or None.
        prevalence: Share of positives among labelled training samples; None in a store.
    """

    name: str
    horizon: str = ""
    description: str = ""
    parent: str | None = None
    prevalence: float | None = None

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"task name {self.name!r} must be letters, digits and underscores")


@dataclass(frozen=True)
class RecordSchema:
    """Modalities and tasks in order. Bit m of a pattern id is modality m here.

    Args:
        modalities: At most 62, with distinct names.
        tasks: At least one, with distinct names; a parent stands before its children.
        patterns: Ids of the most frequent availability patterns of train, most frequent first; empty in a store.
        samples: Number of training samples that it was fitted on; 0 in a store.

    Raises:
        ValueError: If names repeat, a parent is missing or stands after its child, or there are too many modalities.
    """

    modalities: tuple[Modality, ...]
    tasks: tuple[Task, ...]
    patterns: tuple[int, ...] = ()
    samples: int = 0

    def __post_init__(self) -> None:
        names = [m.name for m in self.modalities]
        tasks = [t.name for t in self.tasks]
        if not names or not tasks:
            raise ValueError("a schema needs at least one modality and one task")
        for what, words in (("modality", names), ("task", tasks)):
            twice = sorted({w for w in words if words.count(w) > 1})
            if twice:
                raise ValueError(f"{what} name occurs twice: {', '.join(twice)}")
        if len(names) > MAX_MODALITIES:
            raise ValueError(f"{len(names)} modalities; a pattern id holds at most {MAX_MODALITIES}")
        for k, task in enumerate(self.tasks):
            if task.parent is not None and task.parent not in tasks[:k]:
                raise ValueError(f"task {task.name!r}: its parent {task.parent!r} must be a task that stands before it")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the modalities, in order."""
        return tuple(m.name for m in self.modalities)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks, in order."""
        return tuple(t.name for t in self.tasks)

    @property
    def parents(self) -> tuple[int | None, ...]:
        """Index of each task's parent, or None."""
        return tuple(None if t.parent is None else self.task_names.index(t.parent) for t in self.tasks)

    def modality(self, name: str) -> Modality:
        """Return the modality of that name.

        Raises:
            ValueError: If there is none; lists those there are.
        """
        for modality in self.modalities:
            if modality.name == name:
                return modality
        raise ValueError(f"no modality {name!r}; there are: {', '.join(self.names)}")

    def restrict(self, modalities: Sequence[str] | None = None, tasks: Sequence[str] | None = None) -> RecordSchema:
        """Keep the named modalities and tasks, in the order of this schema (None keeps all).

        Raises:
            ValueError: If a name is unknown; lists those there are.
        """
        for what, asked, known in (("modality", modalities, self.names), ("task", tasks, self.task_names)):
            strange = [name for name in asked or () if name not in known]
            if strange:
                raise ValueError(f"no {what} {', '.join(map(repr, strange))}; there are: {', '.join(known)}")
        kept_tasks = [t for t in self.tasks if tasks is None or t.name in tasks]
        kept_names = {t.name for t in kept_tasks}
        return RecordSchema(
            tuple(m for m in self.modalities if modalities is None or m.name in modalities),
            tuple(t if t.parent in kept_names else replace(t, parent=None) for t in kept_tasks),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, for manifests and hyper-parameters."""
        described = asdict(self)
        return {
            "modalities": [
                {k: list(v) if isinstance(v, tuple) else v for k, v in m.items()} for m in described["modalities"]
            ],
            "tasks": [dict(t) for t in described["tasks"]],
            "patterns": list(self.patterns),
            "samples": self.samples,
        }

    @classmethod
    def from_dict(cls, described: Mapping[str, Any]) -> RecordSchema:
        """Build the schema back from `to_dict`.

        Raises:
            ValueError: If a key is missing or unknown.
        """
        try:
            listed: list[dict[str, Any]] = [
                {k: tuple(v) if isinstance(v, list) else v for k, v in m.items()} for m in described["modalities"]
            ]
            modalities = tuple(Modality(**m) for m in listed)
            tasks = tuple(Task(**t) for t in described["tasks"])
            return cls(modalities, tasks, tuple(described.get("patterns", ())), int(described.get("samples", 0)))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a record schema: {error}") from error


def pattern_id(observed: Tensor) -> Tensor:
    """Turn availability into pattern ids: bit m of the id is ``observed[:, m]``.

    Args:
        observed: bool [B, M], M ≤ 62.

    Returns:
        int64 [B].
    """
    bits = torch.arange(observed.shape[1], device=observed.device)
    return (observed.long() << bits).sum(1)


def pattern_names(pattern: int, names: Iterable[str]) -> tuple[str, ...]:
    """Names of the modalities that a pattern id marks as observed."""
    return tuple(name for m, name in enumerate(names) if pattern >> m & 1)


@dataclass(frozen=True)
class FusionShape:
    """Sizes a fusion is built for, known from the schema and the encoders.

    Args:
        width: D, the width of a token.
        modalities: Names of the M modalities, in order.
        inputs: Width F_m of each modality's standardised input vector (0 where it has none, as raw text).
        tasks: K, the number of outcomes.
    """

    width: int
    modalities: tuple[str, ...]
    inputs: tuple[int, ...] = field(default=())
    tasks: int = 1
