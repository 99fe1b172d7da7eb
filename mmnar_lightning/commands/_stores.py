"""Where stores are: those of a folder, and the one that a run was made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml


def kept_in(folder: Path) -> list[Path]:
    """The finished stores in a folder, by name."""
    return sorted(path.parent for path in folder.glob("*/manifest.json") if not path.parent.name.startswith("."))


def manifest_of(store: Path) -> dict[str, Any] | None:
    """The manifest of a store; None where it can't be read."""
    try:
        found = json.loads((store / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def store_of_run(run_dir: Path) -> Path:
    """Find the store that a run was trained on: in its configuration's folder of stores, by its fingerprint.

    Args:
        run_dir: Folder with ``config.yaml``.

    Raises:
        ValueError: If the run has no checkpoint that says which store it was, or that store is not there any more.
    """
    saved = run_dir / "config.yaml"
    try:
        parent = Path(yaml.safe_load(saved.read_text(encoding="utf-8"))["data"]["init_args"]["store"])
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"{saved}: names no folder of stores (data.init_args.store); give the store itself") from error
    # a relative one is seen from where the fit was started: here, or above the run
    places = [base / parent.expanduser() for base in (Path(), *run_dir.absolute().parents)]
    places = [place for place in places if place.is_dir()]
    if not places:
        raise ValueError(f"{run_dir}: its folder of stores ({parent}) is not there; give the store itself")
    wanted = _fingerprint(run_dir)
    for place in places:
        for store in kept_in(place):
            if (manifest_of(store) or {}).get("fingerprint") == wanted:
                return store
    raise ValueError(
        f"{run_dir}: its store (fingerprint {wanted[:16]}) is not in {places[0]} any more; mmnar prepare makes it again"
    )


def _fingerprint(run_dir: Path) -> str:
    import torch

    for name in ("best", "last"):
        path = run_dir / "checkpoints" / f"{name}.ckpt"
        if not path.is_file():
            continue
        try:
            loaded = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{path} is no checkpoint of mmnar; give the store itself") from error
        for state in loaded.values():
            if isinstance(state, dict) and {"store", "splits"} <= state.keys():
                return str(state["store"])
    raise ValueError(f"{run_dir}: has no checkpoint that says which store it was trained on; give the store itself")
