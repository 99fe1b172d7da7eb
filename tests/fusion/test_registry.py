from __future__ import annotations

import pytest
import torch

from mmnar_lightning.fusion import Fused, Fusion, drop_modalities, fusion_class, fusions, tokens_per_modality
from mmnar_lightning.records import Encoded, FusionShape, Inputs


def test_fusions_are_found_by_name_and_an_unknown_name_lists_them() -> None:
    assert fusion_class("MMNARFusion") is fusions()["MMNARFusion"]
    with pytest.raises(ValueError, match=r"no fusion 'Magic'; there are: .*ConcatFusion.*DeltaOnlyFusion.*MMNARFusion"):
        fusion_class("Magic")
    assert "Fusion" not in fusions()


def test_a_users_fusion_is_found_by_being_defined() -> None:
    class Mean(Fusion):
        def forward(self, encoded: Encoded) -> Fused:
            return Fused(self.shown(encoded)[0].mean(1))

    assert fusion_class("Mean") is Mean
    with pytest.raises(ValueError, match="modality_dropout"):
        Mean(FusionShape(4, ("a",)), modality_dropout=1.0)


def test_drop_modalities_has_its_probability_and_keeps_each_alike() -> None:
    torch.manual_seed(0)
    observed = torch.ones(20_000, 3, dtype=torch.bool)
    kept = drop_modalities(observed, 0.5)
    # 3 coins, and one of three kept where all fall: (3/2 + 1/8) / 3 of all; its standard error is below 0.003
    torch.testing.assert_close(kept.float().mean(0), torch.full((3,), (1.5 + 0.125) / 3), atol=0.012, rtol=0)
    assert drop_modalities(observed, 0.0).all()
    assert drop_modalities(observed[:0], 0.5).shape == (0, 3)


def test_tokens_per_modality_counts_with_and_without_inputs() -> None:
    observed = torch.tensor([[True, False, True], [True, True, False], [True, False, True]])
    modality, row = observed.T.nonzero(as_tuple=True)
    some = tuple(Inputs(torch.zeros(n, 2), torch.ones(n, 2, dtype=torch.bool)) if n != 1 else None for n in (3, 1, 2))
    for inputs in ((), some, (None, None, None)):
        assert tokens_per_modality(Encoded(torch.zeros(6, 4), row, modality, observed, inputs)) == [3, 1, 2]
