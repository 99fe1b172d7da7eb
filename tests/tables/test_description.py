from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmnar_lightning.extract import ExtractError
from mmnar_tables import read_description

Change = Callable[[dict[str, Any]], Any]


def put(*path: str, value: Any) -> Change:
    def change(schema: dict[str, Any]) -> dict[str, Any]:
        inner = schema
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        return schema

    return change


def without(key: str) -> Change:
    return lambda schema: {name: value for name, value in schema.items() if name != key}


BAD: dict[str, tuple[Change, str]] = {
    "no mapping": (lambda schema: ["tasks"], "the file: must be a mapping"),
    "empty": (lambda schema: None, "the file: must be a mapping"),
    "unknown key": (
        put("modality", value={}),
        "unknown key 'modality'; allowed: dataset, cohort, groups, tasks, modalities",
    ),
    "no dataset": (without("dataset"), "missing key 'dataset'"),
    "no tasks": (without("tasks"), "missing key 'tasks'"),
    "no modalities": (without("modalities"), "missing key 'modalities'"),
    "tasks without one": (put("tasks", value={}), "tasks: must name at least one"),
    "tasks as a list": (put("tasks", value=["icu_90d"]), "tasks: must be a mapping"),
    "dataset as a path": (put("dataset", value="../x"), "dataset: may hold letters"),
    "dataset as a number": (put("dataset", value=3), "dataset: must be text, not a number; quotes"),
    "groups as text": (put("groups", value="sex"), "groups: must be a list of names, not text"),
    "group twice": (put("groups", value=["sex", "sex"]), "groups: a name is written twice"),
    "unknown task key": (
        put("tasks", "icu_90d", "window", value="x"),
        "tasks.icu_90d: unknown key 'window'; allowed: horizon",
    ),
    "unknown parent": (
        put("tasks", "icu_90d", "parent", value="death"),
        "parent 'death' must be a task that stands before",
    ),
    "label in a reserved column": (
        put("tasks", "icu_90d", "column", value="site"),
        "column 'site' has a meaning of its own",
    ),
    "task name": (put("tasks", "30 days", value=None), "task name '30 days' must be letters"),
    "a modality without kind": (put("modalities", "labs", value={}), "modalities.labs: missing key 'kind'"),
    "a modality of nothing": (put("modalities", "labs", value=None), "modalities.labs: must be a mapping"),
    "unknown kind": (
        put("modalities", "labs", "kind", value="tabular"),
        "modalities.labs.kind: 'tabular' is no kind; the kinds are: vector, codes, series, text, image",
    ),
    "a key of another kind": (
        put("modalities", "drugs", "items", value=["A"]),
        "modalities.drugs: unknown key 'items'; allowed for kind codes: kind, file, column",
    ),
    "a file outside": (
        put("modalities", "labs", "file", value="../labs"),
        "modalities.labs.file: must be a path below",
    ),
    "an item twice": (
        put("modalities", "labs", "items", value=["a", "a"]),
        "modalities.labs.items: a name is written twice",
    ),
    "too many modalities": (
        put("modalities", value={f"m{k}": {"kind": "text"} for k in range(63)}),
        "63 modalities; a pattern id holds at most 62",
    ),
}


def read(folder: Path, text: str) -> Any:
    (folder / "schema.yaml").write_text(text, encoding="utf-8")
    return read_description(folder)


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_schema_is_one_clear_error(case: str, tmp_path: Path, schema: dict[str, Any]) -> None:
    change, message = BAD[case]
    with pytest.raises(ExtractError) as caught:
        read(tmp_path, yaml.safe_dump(change(schema), sort_keys=False))
    assert str(caught.value).startswith("schema.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset: [", "not readable as YAML"),
        ("dataset: a\ndataset: b\n", "line 2: key 'dataset' is written twice"),
        (
            "dataset: a\ntasks: {a: }\nmodalities: {on: {kind: text}}\n",
            "YAML reads on, off, yes and no so: put it in quotes",
        ),
        ("dataset: a\ntasks: {a: }\nmodalities: {[x]: {kind: text}}\n", "line 3: a key must be a word"),
        ("dataset: !!python/object/apply:os.getcwd []\n", "not readable as YAML"),
    ],
)
def test_yaml_that_means_something_else_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ExtractError, match=r"^schema\.yaml") as caught:
        read(tmp_path, text)
    assert message in str(caught.value)


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    described = read(
        tmp_path, "dataset: a\ntasks: {died: {column: death}}\nmodalities: {notes: {kind: text, file: n.parquet}}\n"
    )
    assert described.cohort == "all"
    assert described.groups == ()
    assert described.tasks[0].column == "death"
    assert (described.modalities[0].file, described.modalities[0].column) == ("n", "text")
