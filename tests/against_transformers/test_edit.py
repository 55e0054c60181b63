"""Changes inside transformers' model by name are those inside ours, and those by hooks of one's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_heads import batch, build_class
from torch import Tensor

from longformer import LongformerModel, edit
from longformer.editing import Edit

pytest.importorskip("transformers")

CHANGES = {
    "zero a head": lambda e: (e.zero("layer.0.local_output", head=1), e.zero("layer.0.global_rows", head=1)),
    "scale global rows": lambda e: e.scale("layer.1.global_rows", 3.0, head=[0, 2]),
    "keys at tokens": lambda e: e.add("layer.1.key", torch.ones(8), head=3, tokens=slice(0, 5)),
    "mean of a state": lambda e: e.mean("layer.0.output", batch=0),
    "the embeddings of a token": lambda e: e.zero("embeddings", tokens=4),
}


@pytest.mark.parametrize("change", CHANGES)
def test_equal_to_ours(change: str) -> None:
    ours = build_class(LongformerModel)
    theirs: Any = ours.to_transformers()
    ids, mask, global_mask = batch()

    def changed(model: Any) -> Tensor:
        with torch.no_grad(), edit(model) as e:
            CHANGES[change](e)
            hidden: Tensor = model(ids, attention_mask=mask, global_attention_mask=global_mask)[0]
        return hidden

    assert Edit(theirs).names == Edit(ours).names
    torch.testing.assert_close(
        changed(theirs)[mask.bool()], changed(ours)[mask.bool()], rtol=0, atol=2e-6
    )  # its softmax is float32's


def test_equal_to_hooks_by_hand() -> None:
    model: Any = build_class(LongformerModel).to_transformers()
    ids, mask, global_mask = batch()
    inputs = {"input_ids": ids, "attention_mask": mask, "global_attention_mask": global_mask}

    def hook(module: Any, given: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        first = output[0].clone()
        first[..., 16:24] = 0
        return first, *output[1:]

    with torch.no_grad():
        handle = model.encoder.layer[1].attention.self.register_forward_hook(hook)
        expected = model(**inputs)[0]
        handle.remove()
        with edit(model) as e:
            e.zero("layer.1.local_output", head=2)
            e.zero("layer.1.global_rows", head=2)
            torch.testing.assert_close(model(**inputs)[0], expected, rtol=0, atol=1e-12)
