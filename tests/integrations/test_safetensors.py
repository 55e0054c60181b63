"""safetensors' own save_model and load_model, which look for weights that share memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, load_model, save_model
from tiny_heads import CLASSES, build_class

from longformer import LongformerForMultipleChoice


@pytest.mark.parametrize("cls", [*CLASSES, LongformerForMultipleChoice])
def test_there_and_back(cls: Any, tmp_path: Path) -> None:
    """The word embeddings are once in the file, of a masked language model too, and both users of them are filled."""
    model, other = build_class(cls), cls(build_class(cls).config).double()
    save_model(model, tmp_path / "model.safetensors")
    assert set(load_file(tmp_path / "model.safetensors")) == {name for name, _ in model.named_parameters()}
    assert load_model(other, tmp_path / "model.safetensors") == (set(), [])
    for x, y in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(x, y)
    loaded = cls.from_pretrained(tmp_path, config=model.config, dtype="auto")
    assert all(map(torch.equal, loaded.parameters(), model.parameters()))
