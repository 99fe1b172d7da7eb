"""Calibration rows as they are handed over: checked over all devices, unlabelled cells neutral, patients as keys."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mmnar_lightning.rectifier.patterns import Reduce

LOGIT_LIMIT = 40.0
"""Beyond it a probability is 0 or 1 in float64; an infinite logit must not make an infinite sum."""
KEY_BITS = 62


def checked_rows(
    logits: Tensor,
    targets: Tensor,
    labelled: Tensor,
    pattern: Tensor,
    n_modalities: int,
    weights: Tensor | None,
    tasks: Sequence[str],
    reduce: Reduce,
) -> tuple[Tensor, Tensor, Tensor]:
    """Check rows as `Rectifier.fit` describes them.

    Returns:
        Logits, targets (0 where unlabelled) and weights (0 where unlabelled), each float64 [n, K].

    Raises:
        ValueError: As `Rectifier.fit`.
    """
    n, K = len(pattern), len(tasks)
    for name, tensor in (("logits", logits), ("targets", targets), ("labelled", labelled)):
        if tensor.shape != (n, K):
            raise ValueError(f"{name} must be [{n}, {K}] (rows, tasks), not {list(tensor.shape)}")
    if not 1 <= n_modalities <= 62:
        raise ValueError(f"{n_modalities} modalities; a pattern id holds 1 to 62")
    weight = logits.new_ones(n, dtype=torch.float64) if weights is None else weights.detach().double()
    if weight.shape != (n,):
        raise ValueError(f"weights must be [{n}], not {list(weight.shape)}")
    x = logits.detach().double()
    y = torch.where(labelled, targets.detach().double(), 0.0)
    wrong = {
        "labelled logits that are NaN": (labelled & x.isnan()).sum(),
        "labelled targets other than 0 and 1": ((y != 0) & (y != 1)).sum(),
        "weights that are negative or not finite": (~(weight >= 0) | weight.isinf()).sum(),
        f"pattern ids outside 0 … 2^{n_modalities} − 1": (pattern >> n_modalities != 0).sum(),
    }
    counts = reduce(torch.stack(list(wrong.values())).double()).tolist()
    found = [f"{int(count)} {what}" for what, count in zip(wrong, counts, strict=True) if count]
    if found:
        raise ValueError(f"calibration rows: {'; '.join(found)}")
    x = torch.where(labelled, x.clamp(-LOGIT_LIMIT, LOGIT_LIMIT), 0.0)
    return x, y, weight[:, None] * labelled


def patient_keys(patients: Iterable[str | int]) -> Tensor:
    """Return a 62-bit key for each patient id: int64 [n], the same wherever and in whatever order it is made."""
    known: dict[str | int, int] = {}
    keys = []
    for patient in patients:
        if patient not in known:
            digest = hashlib.blake2b(str(patient).encode(), digest_size=8).digest()
            known[patient] = int.from_bytes(digest, "big") >> (64 - KEY_BITS)
        keys.append(known[patient])
    return torch.tensor(keys, dtype=torch.int64)


def fold_of(keys: Tensor, folds: int, seed: int) -> Tensor:
    """Assign each patient key to a fold by a keyed hash: int64 in 0 … folds − 1, whatever other patients there are."""
    secret = str(seed).encode()
    drawn = [hashlib.blake2b(str(key).encode(), key=secret, digest_size=8).digest() for key in keys.tolist()]
    found = [int.from_bytes(digest, "big") * folds >> 64 for digest in drawn]
    return torch.tensor(found, dtype=torch.int64, device=keys.device)
