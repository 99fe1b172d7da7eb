"""Where pretrained weights come from: a local folder or the cache of hub models, safetensors only, nothing unasked."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

# weights, settings, tokenizer and model card; never code, never pickles
PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "README.md")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")


class PretrainedError(ValueError):
    """A pretrained model cannot be used; the message says why and what to do."""


class NotDownloadedError(PretrainedError):
    """A model is neither a folder nor in the local cache of hub models."""


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model on this machine.

    Args:
        name: Hub name or folder, as it was given.
        folder: Where its files are.
        revision: Commit of the hub's repository; None for a folder.
        weights: Its safetensors files.
    """

    name: str
    folder: Path
    revision: str | None
    weights: tuple[Path, ...]


def locate(model: str, revision: str | None = None, *, download: bool = False) -> Pretrained:
    """Find a pretrained model.

    A folder is used as it is. A hub name is looked up in the local cache; the network is asked only with `download`,
    and never where HF_HUB_OFFLINE is set.

    Args:
        model: Folder, or name of a hub repository.
        revision: Branch, tag or commit of a hub repository; None is its main branch.
        download: Whether to fetch from the hub what is not in the cache.

    Raises:
        NotDownloadedError: If it is not on this machine; says how to download it beforehand.
        PretrainedError: If it holds no safetensors weights, or a revision is asked of a folder.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise PretrainedError(f"model {model!r} is a folder, which has no revision {revision!r}")
        return Pretrained(model, folder, None, _weights(model, folder))
    if model.count("/") > 1 or model.startswith((".", "/", "~")):
        raise NotDownloadedError(f"model {model!r} is no folder on this machine, and no name of a hub model either")
    folder = _snapshot(model, revision, download)
    commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else revision
    return Pretrained(model, folder, commit, _weights(model, folder))


def _snapshot(model: str, revision: str | None, download: bool) -> Path:
    # here, not above: who uses no hub model should not wait for it
    from huggingface_hub import constants, snapshot_download

    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": list(PATTERNS)}
    offline = constants.HF_HUB_OFFLINE
    try:
        return Path(snapshot_download(model, local_files_only=offline or not download, **wanted))
    except Exception as error:  # each network library has errors of its own
        if not download:
            why = "it is not in the local cache of hub models"
        elif offline:
            why = "it is not in the local cache of hub models, and HF_HUB_OFFLINE is set"
        else:
            why = f"it could not be downloaded ({type(error).__name__})"
    instead = ", or `download: true`" if not download else ", and unset HF_HUB_OFFLINE to do so" if offline else ""
    command = f"hf download {model}" + (f" --revision {revision}" if revision else "")
    raise NotDownloadedError(
        f"model {model!r} is no folder, and {why}; download it beforehand, where there is a network, with "
        f"`{command}`{instead}, or give the path of a local folder"
    )


def _weights(model: str, folder: Path) -> tuple[Path, ...]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return (single,)
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        lacking = [name for name in shards if not (folder / name).is_file()]
        if lacking:
            raise PretrainedError(f"model {model!r}: {len(lacking)} of {len(shards)} weight files are missing")
        return tuple(folder / name for name in shards)
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    what = f"only {', '.join(pickles)}, which can run code when it is read" if pickles else "no weights"
    raise PretrainedError(
        f"model {model!r} holds no model.safetensors but {what}; weights are read from safetensors alone. Some hub "
        "repositories offer them under another `revision` (such as refs/pr/1); else convert them once with "
        "`save_pretrained`, on a machine that may run that file"
    )


def provenance(found: Pretrained) -> dict[str, Any]:
    """Return what is known of a pretrained model's origin, as plain types.

    Returns:
        `model` and `revision`; `weights`, the SHA-256 of each file; `licence`, `datasets` (what it has seen) and
        `base_model` as its model card states them, None and empty lists where it doesn't.
    """
    card = _card(found.folder / "README.md")
    return {
        "model": found.name,
        "revision": found.revision,
        "weights": {path.name: _sha256(path) for path in found.weights},
        "licence": ", ".join(_strings(card.get("license"))) or None,
        "datasets": _strings(card.get("datasets")),
        "base_model": _strings(card.get("base_model")),
    }


def in_words(origin: dict[str, Any]) -> str:
    """Say a provenance in one line."""
    seen = ", ".join(origin["datasets"]) or "not stated"
    digests = ", ".join(digest[:12] for digest in origin["weights"].values())
    revision = f" at {origin['revision'][:12]}" if origin["revision"] else ""
    return (
        f"{origin['model']}{revision} (weights {digests}; licence: {origin['licence'] or 'not stated'}; "
        f"trained on: {seen})"
    )


def _card(path: Path) -> dict[str, Any]:
    """The metadata at the head of a model card; empty where there is none that can be read."""
    if not path.is_file():
        return {}
    head = re.match(r"---\s*\n(.*?)\n---", path.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        stated = yaml.safe_load(head.group(1)) if head else {}
    except yaml.YAMLError:
        return {}
    return stated if isinstance(stated, dict) else {}


def _strings(value: Any) -> list[str]:
    return [str(v) for v in value] if isinstance(value, list) else [] if value is None else [str(value)]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
