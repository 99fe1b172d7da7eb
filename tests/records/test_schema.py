from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmnar_lightning.records import Modality, RecordSchema, Task, pattern_id, pattern_names

words = st.text("abcdefgh_", min_size=1, max_size=6)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def schemas(draw: st.DrawFn) -> RecordSchema:
    modalities = []
    for name in draw(st.lists(words, min_size=1, max_size=5, unique=True)):
        items = tuple(draw(st.lists(st.text(min_size=1, max_size=5), max_size=4, unique=True)))
        mean = tuple(draw(st.lists(numbers, min_size=len(items), max_size=len(items)))) if draw(st.booleans()) else ()
        kind: Any = draw(st.sampled_from(["vector", "codes", "series", "text", "image"]))
        modalities.append(Modality(name, kind, items, mean, mean))
    tasks: list[Task] = []
    for name in draw(st.lists(words, min_size=1, max_size=5, unique=True)):
        parent = draw(st.sampled_from([None, *(t.name for t in tasks)]))
        tasks.append(Task(name, draw(st.text(max_size=5)), "", parent, draw(st.none() | st.floats(0, 1))))
    patterns = tuple(draw(st.lists(st.integers(0, 2 ** len(modalities) - 1), max_size=3)))
    return RecordSchema(tuple(modalities), tuple(tasks), patterns)


@given(schemas())
def test_json_round_trip_is_exact(schema: RecordSchema) -> None:
    assert RecordSchema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema


@given(schemas(), st.data())
def test_restrict_keeps_order_and_drops_lost_parents(schema: RecordSchema, data: st.DataObject) -> None:
    modalities = data.draw(st.permutations(schema.names).map(lambda p: p[: max(1, len(p) // 2)]))
    tasks = data.draw(st.permutations(schema.task_names).map(lambda p: p[: max(1, len(p) // 2)]))
    part = schema.restrict(modalities, tasks)
    assert list(part.names) == [n for n in schema.names if n in modalities]
    assert list(part.task_names) == [n for n in schema.task_names if n in tasks]
    for task in part.tasks:
        assert task.parent is None or task.parent in tasks
    assert schema.restrict().modalities == schema.modalities


def test_parents_are_indices() -> None:
    schema = RecordSchema((Modality("a", "text"),), (Task("x"), Task("y", parent="x"), Task("z", parent="y")))
    assert schema.parents == (None, 0, 1)


MODALITY, TASK = Modality("a", "text"), Task("x")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Modality("a", "sound"), "'sound' is not one of vector, codes, series, text, image"),  # type: ignore[arg-type]
        (lambda: Modality("a/b", "text"), "letters, digits and underscores"),
        (lambda: Modality("a", "vector", ("x", "x")), "occurs twice"),
        (lambda: Modality("a", "vector", ("x", "y"), mean=(1.0,)), "mean must have one number per item"),
        (lambda: Task("a b"), "letters, digits and underscores"),
        (lambda: RecordSchema((), (TASK,)), "at least one modality"),
        (lambda: RecordSchema((MODALITY,), ()), "at least one modality and one task"),
        (lambda: RecordSchema((MODALITY, MODALITY), (TASK,)), "modality name occurs twice: a"),
        (lambda: RecordSchema((MODALITY,), (TASK, TASK)), "task name occurs twice: x"),
        (lambda: RecordSchema((MODALITY,), (Task("y", parent="x"), TASK)), "must be a task that stands before it"),
        (lambda: RecordSchema(tuple(Modality(f"m{k}", "text") for k in range(63)), (TASK,)), "at most 62"),
        (lambda: RecordSchema((MODALITY,), (TASK,)).modality("b"), "no modality 'b'; there are: a"),
        (lambda: RecordSchema((MODALITY,), (TASK,)).restrict(["b"]), "no modality 'b'; there are: a"),
        (lambda: RecordSchema((MODALITY,), (TASK,)).restrict(None, ["y"]), "no task 'y'; there are: x"),
        (lambda: RecordSchema.from_dict({"tasks": []}), "not a record schema"),
        (lambda: RecordSchema.from_dict({"modalities": [{"name": "a", "sort": "text"}], "tasks": []}), "not a record"),
    ],
)
def test_wrong_schema_says_what_is_wrong(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


@given(st.integers(1, 62).flatmap(lambda m: st.lists(st.lists(st.booleans(), min_size=m, max_size=m), min_size=1)))
def test_pattern_id_sets_bit_m(observed: list[list[bool]]) -> None:
    names = [f"m{k}" for k in range(len(observed[0]))]
    ids = pattern_id(torch.tensor(observed))
    assert ids.dtype == torch.int64
    assert ids.tolist() == [int("".join("01"[o] for o in reversed(row)), 2) for row in observed]
    assert pattern_names(int(ids[0]), names) == tuple(n for n, o in zip(names, observed[0], strict=True) if o)
