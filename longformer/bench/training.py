"""``bench model --training``: one step of training, that is forward, backward and AdamW."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from longformer.bench.model import our_model, reference_model
from longformer.bench.problem import make_training_inputs
from longformer.bench.timing import Case, Contender
from longformer.config import LongformerConfig

OURS = "longformer"
RIVALS = {"transformers": False, "transformers, gradient checkpointing": True}  # whether it checkpoints gradients
# These gradients must agree: of the first weight and the last that the backward pass reaches, and of some between.
COMPARED = (
    "longformer.embeddings.word_embeddings.weight",
    "longformer.encoder.layer.0.attention.self.query.weight",
    "longformer.encoder.layer.0.attention.self.value_global.weight",
    "longformer.encoder.layer.0.output.dense.weight",
    "qa_outputs.weight",
)


class Step:
    """Training steps of one model. The learning rate is 0: all steps are the same, and models may share weights."""

    def __init__(self, model: nn.Module, inputs: dict[str, Tensor], dropout_p: float) -> None:
        self.model = model.train()
        self.inputs = inputs
        self.dropout_p = dropout_p
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

    def run(self) -> Sequence[Tensor]:
        """Forward, backward, AdamW. Returns the loss. The gradients stay until ``prepare`` drops them."""
        loss: Tensor = self.model(**self.inputs)[0]
        loss.backward()
        self.optimizer.step()
        return [loss.detach()]

    def prepare(self) -> None:
        """Drop the gradients of the last step, which is no part of the next one's time."""
        set_dropout(self.model, self.dropout_p)
        self.optimizer.zero_grad()

    def check(self) -> Sequence[Tensor]:
        """The loss and some gradients of a step without dropout; with dropout no two models agree."""
        set_dropout(self.model, 0.0)
        result = self.run()
        parameters = dict(self.model.named_parameters())
        gradients = [parameters[name].grad for name in COMPARED]
        found = [*result, *(g.clone() for g in gradients if g is not None)]
        self.optimizer.zero_grad()
        return found


def set_dropout(model: nn.Module, p: float) -> None:
    """Set every dropout of either model, also that of the attention probabilities."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
        for name in ("dropout_p", "dropout"):  # attention of ours and of transformers keeps the number itself
            if isinstance(getattr(module, name, None), (int, float)):
                setattr(module, name, p)


def contender(name: str, step: Callable[[], Step]) -> Contender:
    """Steps of our model, or of transformers' with or without gradient checkpointing."""
    made = step()
    switches: list[Any] = [part for part in made.model.modules() if hasattr(part, "gradient_checkpointing")]
    if RIVALS.get(name):
        model: Any = made.model
        if hasattr(model, "activation_checkpointing_enable"):  # its newer name
            model.activation_checkpointing_enable()
        else:
            model.gradient_checkpointing_enable()

    def prepare() -> None:
        made.prepare()
        for part in switches:  # one model of transformers runs in turns with it and without it
            part.gradient_checkpointing = RIVALS.get(name, False)

    return Contender(name, made.run, prepare, made.check)


class Steps:
    """Steps of both models, with the same weights. Each is made when it is first asked for."""

    def __init__(self, config: LongformerConfig, tokens: int, global_tokens: int, dropout_p: float) -> None:
        self.config = config
        self.dropout_p = dropout_p
        self.inputs = make_training_inputs(config, tokens, global_tokens)
        self._made: dict[bool, Step] = {}

    def get(self, name: str, *, alone: bool = False) -> Step:
        """The step of ``name``. If ``alone``, transformers' model has weights of its own, and ours is not made."""
        rival = name in RIVALS
        if rival not in self._made:
            if not rival:
                model: nn.Module = our_model(self.config)
            else:
                model = reference_model(self.config, weights=None if alone else self.get(OURS).model)
            self._made[rival] = Step(model, self.inputs, self.dropout_p)
        return self._made[rival]


def cases(config: LongformerConfig, *, lengths: Sequence[int], global_tokens: int, dropout_p: float) -> list[Case]:
    """One step at each length, in float32."""
    found = []
    for tokens in lengths:
        steps = Steps(config, tokens, global_tokens, dropout_p)
        found.append(
            Case(
                name=f"training step, {tokens} tokens, {global_tokens} global, float32",
                settings={
                    "shape": [1, tokens],
                    "global_tokens": global_tokens,
                    "dtype": "float32",
                    "dropout": dropout_p,
                    "optimizer": "AdamW, fused",
                    "threads": torch.get_num_threads(),
                    "config": config.to_dict(),
                },
                dtype=torch.float32,
                builders={name: partial(contender, name, partial(steps.get, name)) for name in (OURS, *RIVALS)},
                items=(tokens, "tokens"),
            )
        )
    return found
