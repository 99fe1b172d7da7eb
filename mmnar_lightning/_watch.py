"""What shows that representations collapse, cheap enough for every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmnar_lightning.records import Encoded


def spread(encoded: Encoded, patient: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Standard deviation over a batch's rows, mean over the D dimensions, of each modality's tokens and of h.

    Near 0 where an encoder says the same of everyone, which is how a reconstruction can be won without learning: the
    target is shrunk. Rows of this device only; nothing is read back, so that no GPU waits.

    Args:
        encoded: N tokens of B rows.
        patient: float [B, D], h.
        names: Of the M modalities.

    Returns:
        Scalars ``spread/<modality>`` and ``spread/patient``, without gradient; NaN where fewer than two rows have it.
    """
    tokens, m = encoded.tokens.detach().float(), encoded.modality
    count = encoded.observed.sum(0)[:, None]
    empty = tokens.new_zeros(len(names), tokens.shape[1])
    mean = empty.index_add(0, m, tokens) / count
    variance = empty.index_add(0, m, (tokens - mean[m]).square()) / (count - 1)
    # a count of one divides 0 by 0; of none, 0 by −1
    each = torch.where(count > 1, variance, torch.nan).sqrt().mean(1)
    h = patient.detach().float()
    # `std` warns of fewer than two rows
    whole = h.std(0).mean() if len(h) > 1 else h.new_full((), torch.nan)
    return {f"spread/{name}": each[i] for i, name in enumerate(names)} | {"spread/patient": whole}
