"""Parts of a model by configuration: a class, a partial or `{class_path, init_args}`, kept as the latter."""

from __future__ import annotations

import functools
import importlib
from typing import Any


def as_part(part: Any) -> dict[str, Any]:
    """Normalise a part to ``{"class_path": …, "init_args": {…}}``, plain types that a checkpoint can hold safely.

    Args:
        part: A class, a `functools.partial` of one with keywords, or a mapping of that form already.

    Raises:
        ValueError: If it is none of these, or is defined in `__main__`, where a checkpoint could not find it again.
    """
    if isinstance(part, dict) and "class_path" in part:
        return {"class_path": part["class_path"], "init_args": dict(part.get("init_args") or {})}
    keywords: dict[str, Any] = {}
    if isinstance(part, functools.partial):
        if part.args:
            raise ValueError("a part given as a partial may have keyword arguments only")
        part, keywords = part.func, dict(part.keywords)
    name = getattr(part, "__qualname__", "")
    if not isinstance(part, type) or "<" in name:
        raise ValueError("a part is a class, a partial of one, or {class_path, init_args}")
    if part.__module__ == "__main__":
        raise ValueError(f"{name} is defined in __main__, where a checkpoint can't find it again; move it to a module")
    return {"class_path": f"{part.__module__}.{name}", "init_args": keywords}


def build_part(part: dict[str, Any], base: type, *arguments: Any) -> Any:
    """Build a part from its normal form, `arguments` first.

    Raises:
        ValueError: If its class can't be found, is no `base` (a checkpoint must not be able to call anything else), or
            does not take its arguments; says which.
    """
    path, init = part["class_path"], part.get("init_args") or {}
    module, _, name = path.rpartition(".")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"cannot find {path!r}: {error}") from error
    if not (isinstance(factory, type) and issubclass(factory, base)):
        raise ValueError(f"{path} is no {base.__name__}")
    try:
        return factory(*arguments, **init)
    except TypeError as error:
        raise ValueError(f"cannot build {path}: {error}") from error
