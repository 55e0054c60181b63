"""The model over several processes: DDP copies it, FSDP2 shards it. Its complete state is gathered when it is needed.

FSDP2 shards the gradients, AdamW's moments and, between steps, the weights. Every device holds all weights before the
model is sharded, and again for evaluations and checkpoints. So all weights must fit one device.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from longformer.distributed import Processes, unsharded
from longformer.models.pretrained import Pretrained
from longformer.training.options import TrainingOptions


class Parallel:
    """A model on its device and, under torchrun, over its processes.

    Args:
        model: with the same weights in all processes.
        options: ``parallel`` and ``impl`` are read.
        group: the processes.
    """

    def __init__(self, model: Pretrained, options: TrainingOptions, group: Processes) -> None:
        self.group, self.impl = group, options.impl
        self.model_class, self.config = type(model), model.config
        self.model = model.to(group.device)
        self.sharded = group.joined and options.parallel == "fsdp"
        self.wrapped: Any = self.model
        if self.sharded:
            _shard(self.model, group)
        elif group.size > 1:
            self.wrapped = DistributedDataParallel(self.model)

    @contextmanager
    def accumulating(self, *, last: bool) -> Iterator[None]:
        """Exchange gradients between the processes in the ``last`` part of a step only."""
        if self.sharded:
            self.wrapped.set_requires_gradient_sync(last)
        if last or not isinstance(self.wrapped, DistributedDataParallel):
            yield
        else:
            with self.wrapped.no_sync():
                yield

    def weights(self) -> dict[str, Tensor]:
        """All weights, complete, under the checkpoint's names. All processes must call this."""
        return {name: unsharded(tensor) for name, tensor in self.model.state_dict().items()}

    @contextmanager
    def for_evaluation(self) -> Iterator[Pretrained]:
        """The model in ``eval()`` mode, complete in each process, so that it can run without the others."""
        if not self.sharded:
            self.model.eval()
            try:
                yield self.model
            finally:
                self.model.train()
            return
        with torch.device("meta"):
            model = self.model_class(self.config, impl=self.impl)
        model.load_state_dict(self.weights(), assign=True)
        yield model.eval()

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """AdamW's moments and steps by parameter. A parameter that never had a gradient has none."""
        tensors = {}
        for name, parameter in self.model.named_parameters():
            for kind, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{kind}/{name}"] = unsharded(value).cpu()
        return tensors

    def restore(self, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
        """Load the weights (``model/NAME``) and the optimiser state of a checkpoint.

        Args:
            tensors: the checkpoint's, in the first process; empty in the others.
        """
        names = self.group.gather(sorted(name for name in tensors if not name.startswith("rng/")))[0]
        parameters = dict(self.model.named_parameters())
        for entry in names:
            kind, name = entry.split("/", 1)
            parameter = parameters[name]
            value = self._from_first(tensors.get(entry), parameter, scalar=kind == "step")
            with torch.no_grad():
                if kind == "model":
                    parameter.copy_(value)
                else:
                    optimizer.state[parameter][kind] = value

    def _from_first(self, tensor: Tensor | None, like: Any, *, scalar: bool) -> Tensor:
        """The first process's tensor, in every process. It is sharded as the parameter ``like`` is."""
        device = self.group.device
        if tensor is None:
            tensor = torch.empty(()) if scalar else torch.empty(like.shape, dtype=like.dtype)
        tensor = tensor.to(device)
        if self.group.size > 1:
            tensor = tensor.contiguous()
            dist.broadcast(tensor, 0)
        if scalar or not hasattr(like, "device_mesh"):
            return tensor
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(tensor, like.device_mesh, like.placements)


def _shard(model: Pretrained, group: Processes) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # FSDP2 warns that outputs which are views, such as the two logits, must not be changed in place. Nobody does so.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(group.device.type, (group.size,))
    base: Any = getattr(model, model.base_model_prefix)
    for layer in base.encoder.layer:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
