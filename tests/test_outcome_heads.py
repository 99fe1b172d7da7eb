from __future__ import annotations

import pytest
import torch

from mmnar_lightning._heads import OutcomeHeads
from mmnar_lightning.records import Modality, RecordSchema, Task


def schema_of(*tasks: Task) -> RecordSchema:
    return RecordSchema((Modality("a", "vector", ("x",), (0.0,), (1.0,)),), tasks)


def test_a_child_is_a_mixture_of_its_own_head_and_its_parents_probability() -> None:
    schema = schema_of(Task("a"), Task("b", parent="a"), Task("c"), Task("d", parent="b"))
    torch.manual_seed(0)
    heads = OutcomeHeads(6, schema, dropout=0.5).eval()
    assert heads.mix is not None
    assert heads.conditional is not None
    torch.nn.init.normal_(heads.mix)
    patient = torch.randn(5, 6)
    with torch.no_grad():
        adapted = [adapter(patient) for adapter in heads.adapters]
        direct = [heads.direct[k](adapted[k]).squeeze(1).sigmoid() for k in range(4)]
        given = [head(a).squeeze(1).sigmoid() for head, a in zip(heads.conditional, adapted, strict=True)]
        w = heads.mix.sigmoid()
        b = w[1] * direct[1] + (1 - w[1]) * direct[0] * given[1]
        expected = torch.stack([direct[0], b, direct[2], w[3] * direct[3] + (1 - w[3]) * b * given[3]], 1)
        torch.testing.assert_close(heads(patient).sigmoid(), expected, rtol=1e-5, atol=1e-6)
        # all on the conditional head: a child is never likelier than its parent
        heads.mix.fill_(-30.0)
        p = heads(patient).sigmoid()
        assert (p[:, 1] <= p[:, 0]).all()
        assert (p[:, 3] <= p[:, 1]).all()


def test_heads_start_at_the_prevalence_of_train() -> None:
    schema = schema_of(Task("a", prevalence=0.2), Task("b", parent="a", prevalence=0.05), Task("c", prevalence=0.0))
    heads = OutcomeHeads(4, schema, dropout=0.0)
    starts = [float(head.get_parameter("bias").detach().sigmoid()) for head in heads.direct]
    assert starts == pytest.approx([0.2, 0.05, 0.001], rel=1e-4)
    assert heads.conditional is not None
    given = [float(head.get_parameter("bias").detach().sigmoid()) for head in heads.conditional]
    assert given[1] == pytest.approx(0.05 / 0.2, rel=1e-4)
