"""Lightning's plain loop trains our heads as a loop of one's own does, saves them and goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_heads import batch, build_class
from torch import Tensor, nn
from torch.utils.data import DataLoader

from longformer import LongformerForMaskedLM, LongformerForQuestionAnswering, LongformerForSequenceClassification

lightning = pytest.importorskip("pytorch_lightning", reason="Lightning: pip install pytorch-lightning")
TARGETS: dict[type, dict[str, Tensor]] = {
    LongformerForSequenceClassification: {"labels": torch.tensor([0, 1, 1, 0])},
    LongformerForMaskedLM: {"labels": torch.arange(192).view(4, 48) % 60},
    LongformerForQuestionAnswering: {"start_positions": torch.arange(4), "end_positions": torch.arange(4, 8)},
}


def examples(cls: type) -> list[dict[str, Tensor]]:
    names = ("input_ids", "attention_mask", "global_attention_mask")
    rows = {**dict(zip(names, batch(), strict=True)), **TARGETS[cls]}
    return [{key: x[i] for key, x in rows.items()} for i in range(4)]


class Module(lightning.LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.losses: list[float] = []

    def training_step(self, batch: dict[str, Tensor], number: int) -> Any:
        output = self.model(**batch)
        self.losses.append(float(output.loss.detach()))
        return {"loss": output.loss, "output": output}  # its tools walk through what a step returns

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def run(model: nn.Module, folder: Path, *, epochs: int, resume: Path | None = None, **options: Any) -> Module:
    module = Module(model.train())
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    callback = lightning.callbacks.ModelCheckpoint(folder, save_last=True)
    trainer = lightning.Trainer(max_epochs=epochs, callbacks=[callback], log_every_n_steps=1, **quiet, **options)
    trainer.fit(module, DataLoader(examples(type(model)), batch_size=2), ckpt_path=resume, weights_only=False)
    return module


@pytest.mark.parametrize("cls", TARGETS)
def test_trains_as_a_loop_of_ones_own(cls: type, tmp_path: Path) -> None:
    """Two epochs at once, and one after the other from Lightning's own checkpoint."""
    at_once = run(build_class(cls, dtype=torch.float32), tmp_path / "once", epochs=2)
    run(build_class(cls, dtype=torch.float32), tmp_path / "twice", epochs=1)
    again = run(
        build_class(cls, dtype=torch.float32), tmp_path / "twice", epochs=2, resume=tmp_path / "twice/last.ckpt"
    )
    model = build_class(cls, dtype=torch.float32).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        for rows in DataLoader(examples(cls), batch_size=2):
            optimizer.zero_grad()
            loss = model(**rows).loss
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert at_once.losses == pytest.approx(losses, rel=1e-5)
    assert again.losses == pytest.approx(losses[2:], rel=1e-5)
    assert sum(losses[2:]) < sum(losses[:2])
    for own, once, later in zip(*(m.parameters() for m in (model, at_once.model, again.model)), strict=True):
        torch.testing.assert_close(once, own, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(later, own, rtol=1e-5, atol=1e-6)
    again.model.save_pretrained(tmp_path / "model")
    loaded = cls.from_pretrained(tmp_path / "model")
    assert all(map(torch.equal, loaded.parameters(), again.model.parameters()))


def test_in_bfloat16(tmp_path: Path) -> None:
    model = build_class(LongformerForSequenceClassification, dtype=torch.float32)
    expected = run(build_class(type(model), dtype=torch.float32), tmp_path / "wide", epochs=1).losses
    found = run(model, tmp_path / "narrow", epochs=1, precision="bf16-mixed").losses
    assert found == pytest.approx(expected, rel=0.05) and found != expected
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
