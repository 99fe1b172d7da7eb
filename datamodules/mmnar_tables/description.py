"""`schema.yaml`: what a folder of one's own tables holds, in words that people write by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from mmnar_lightning.extract import ExtractError
from mmnar_lightning.records import Modality, RecordSchema, Task

FILE = "schema.yaml"
SAMPLES = "samples"
RESERVED = ("sample_id", "patient_id", "site", "split", "prediction_time")
KEYS = ("dataset", "cohort", "groups", "tasks", "modalities")
TASK_KEYS = ("horizon", "description", "parent", "column")
MODALITY_KEYS = {
    "vector": ("kind", "file", "items", "column"),
    "codes": ("kind", "file", "column"),
    "series": ("kind", "file", "items"),
    "text": ("kind", "file", "column"),
    "image": ("kind", "file", "column"),
}
VALUE_COLUMN = {"codes": "code", "text": "text", "image": "path"}


@dataclass(frozen=True)
class TaskEntry:
    """One task of `schema.yaml`.

    Args:
        task: Its name, horizon, description and parent.
        column: Column of ``samples.parquet`` that holds its labels.
    """

    task: Task
    column: str


@dataclass(frozen=True)
class ModalityEntry:
    """One modality of `schema.yaml`.

    Args:
        name: Its name.
        kind: ``vector``, ``codes``, ``series``, ``text`` or ``image``.
        file: Path of its table below the folder, without ``.parquet``.
        column: Column with its values; of a ``vector`` only where they are lists, else None.
        items: Names of the features (``vector``) or variables (``series``); empty where the table says which.
    """

    name: str
    kind: str
    file: str
    column: str | None = None
    items: tuple[str, ...] = ()


@dataclass(frozen=True)
class Description:
    """What `schema.yaml` says.

    Args:
        dataset: First part of the store's name.
        cohort: Second part of the store's name.
        tasks: Tasks in the order they are written.
        modalities: Modalities in the order they are written: bit m of a pattern is the m-th.
        groups: Columns of ``samples.parquet`` to report by, and to split by (``region``, ``year``).
    """

    dataset: str
    cohort: str
    tasks: tuple[TaskEntry, ...]
    modalities: tuple[ModalityEntry, ...]
    groups: tuple[str, ...] = field(default=())

    def schema(self, items: Mapping[str, tuple[str, ...]]) -> RecordSchema:
        """Build the record schema once the items of each modality are known from its table."""
        return RecordSchema(
            tuple(Modality(m.name, m.kind, items.get(m.name, ())) for m in self.modalities),  # type: ignore[arg-type]
            tuple(t.task for t in self.tasks),
        )


class _Loader(yaml.SafeLoader):
    """YAML's safe loader that refuses a key written twice, of which the plain one silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ExtractError(f"{FILE}, line {key_node.start_mark.line + 1}: a key must be a word")
            key = key_node.value
            if key in seen:
                raise ExtractError(f"{FILE}, line {key_node.start_mark.line + 1}: key {key!r} is written twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_description(root: Path) -> Description:
    """Read and check `schema.yaml`.

    Args:
        root: The folder it stands in.

    Raises:
        ExtractError: If the folder or file is missing or unreadable, a key is missing, unknown or of another type, a
            kind is unknown, a name is used twice, or a task's parent does not stand before it. Names the key, and the
            choices where there are some.
    """
    if not root.is_dir():
        raise ExtractError(f"{root}: no such folder")
    path = root / FILE
    if not path.is_file():
        raise ExtractError(f"{FILE}: missing in {root}; it says which tables and tasks there are")
    try:
        # the loader derives from SafeLoader: it builds plain types only
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        raise ExtractError(f"{FILE}{where}: not readable as YAML") from error
    except OSError as error:
        raise ExtractError(f"{FILE}: not readable ({error.strerror})") from error
    top = _mapping(content, "the file")
    _only(top, KEYS, "")
    _needed(top, ("dataset", "tasks", "modalities"), "")
    described = Description(
        dataset=_word(top["dataset"], "dataset"),
        cohort=_word(top.get("cohort", "all"), "cohort"),
        tasks=tuple(_task(name, entry) for name, entry in _named(top["tasks"], "tasks")),
        modalities=tuple(_modality(name, entry) for name, entry in _named(top["modalities"], "modalities")),
        groups=_texts(top.get("groups", []), "groups"),
    )
    try:
        described.schema({})
    except ValueError as error:
        raise ExtractError(f"{FILE}: {error}") from error
    return described


def _task(name: str, entry: Any) -> TaskEntry:
    where = f"tasks.{name}"
    settings = _mapping({} if entry is None else entry, where)
    _only(settings, TASK_KEYS, where)
    text = {key: _text(value, f"{where}.{key}") for key, value in settings.items() if value is not None}
    column = text.pop("column", name)
    if column in RESERVED:
        raise ExtractError(f"{FILE}: {where}: column {column!r} has a meaning of its own and can't hold labels")
    return TaskEntry(_built(Task, where, name=name, **text), column)


def _modality(name: str, entry: Any) -> ModalityEntry:
    where = f"modalities.{name}"
    settings = _mapping(entry, where)
    _needed(settings, ("kind",), where)
    kind = settings["kind"]
    if not isinstance(kind, str) or kind not in MODALITY_KEYS:
        raise ExtractError(f"{FILE}: {where}.kind: {kind!r} is no kind; the kinds are: {', '.join(MODALITY_KEYS)}")
    _only(settings, MODALITY_KEYS[kind], where, f" for kind {kind}")
    file = _text(settings.get("file", name), f"{where}.file").removesuffix(".parquet")
    parts = PurePosixPath(file)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts:
        raise ExtractError(f"{FILE}: {where}.file: must be a path below the folder")
    column = settings.get("column", VALUE_COLUMN.get(kind))
    items = _texts(settings.get("items", []), f"{where}.items")
    _built(Modality, where, name=name, kind=kind, items=items)
    return ModalityEntry(name, kind, file, None if column is None else _text(column, f"{where}.column"), items)


def _built(what: type[Any], where: str, **arguments: Any) -> Any:
    try:
        return what(**arguments)
    except ValueError as error:
        raise ExtractError(f"{FILE}: {where}: {error}") from error


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ExtractError(f"{FILE}: {where}: must be a mapping (key: value), not {_type(value)}")
    for key in value:
        if not isinstance(key, str):
            raise ExtractError(
                f"{FILE}: {where}: a key is {key!r}, not a word; YAML reads on, off, yes and no so: put it in quotes"
            )
    return value


def _named(value: Any, where: str) -> Iterable[tuple[str, Any]]:
    entries = _mapping(value, where)
    if not entries:
        raise ExtractError(f"{FILE}: {where}: must name at least one")
    return entries.items()


def _only(settings: Mapping[str, Any], allowed: Iterable[str], where: str, why: str = "") -> None:
    strange = [key for key in settings if key not in tuple(allowed)]
    if strange:
        place = f"{where}: " if where else ""
        raise ExtractError(
            f"{FILE}: {place}unknown key {', '.join(map(repr, strange))}; allowed{why}: {', '.join(allowed)}"
        )


def _needed(settings: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    missing = [key for key in keys if settings.get(key) is None]
    if missing:
        place = f"{where}: " if where else ""
        raise ExtractError(f"{FILE}: {place}missing key {', '.join(map(repr, missing))}")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ExtractError(f"{FILE}: {where}: must be text, not {_type(value)}; quotes make it text")
    return value


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ExtractError(f"{FILE}: {where}: must be a list of names, not {_type(value)}")
    names = tuple(_text(entry, where) for entry in value)
    if len(set(names)) != len(names):
        raise ExtractError(f"{FILE}: {where}: a name is written twice")
    return names


def _word(value: Any, where: str) -> str:
    word = _text(value, where)
    # it becomes part of a folder's name
    if not all(c.isalnum() or c in "._-" for c in word) or word.startswith("."):
        raise ExtractError(f"{FILE}: {where}: may hold letters, digits, '.', '_' and '-' only")
    return word


def _type(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "empty" if value is None or value == "" else names.get(type(value), type(value).__name__)
