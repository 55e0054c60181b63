"""The model over several processes: DDP, which copies it, or FSDP2, which shards it; and its state, whole again.

Sharded are the weights between steps, the gradients and AdamW's moments. The model is made whole on each device before
it is sharded, and is gathered whole again for evaluations and checkpoints, so that the weights must fit a device.
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

from longformer.distributed import Processes, full
from longformer.models.pretrained import Pretrained
from longformer.training.options import TrainingOptions


class Parallel:
    """A model on its device and, under torchrun, over its processes.

    Args:
        model: with the same weights in all processes.
        options: ``parallel`` and ``impl`` are read.
        group: the processes.
        some_unused: whether a step may leave parameters without a gradient, as it does the global projections where no
            token is global. DDP has to be told, and looks for them then.
    """

    def __init__(
        self, model: Pretrained, options: TrainingOptions, group: Processes, *, some_unused: bool = False
    ) -> None:
        self.group, self.impl = group, options.impl
        self.kind, self.config = type(model), model.config
        self.model = model.to(group.device)
        self.sharded = group.joined and options.parallel == "fsdp"
        self.run: Any = self.model
        if self.sharded:
            _shard(self.model, group)
        elif group.size > 1:
            self.run = DistributedDataParallel(self.model, find_unused_parameters=some_unused)

    @contextmanager
    def accumulating(self, *, last: bool) -> Iterator[None]:
        """Exchange gradients in the ``last`` part of a step only."""
        if self.sharded:
            self.run.set_requires_gradient_sync(last)
        if last or not isinstance(self.run, DistributedDataParallel):
            yield
        else:
            with self.run.no_sync():
                yield

    def weights(self) -> dict[str, Tensor]:
        """All weights, whole, under the checkpoint's names; all processes must call this."""
        return {name: full(tensor) for name, tensor in self.model.state_dict().items()}

    @contextmanager
    def plain(self) -> Iterator[Pretrained]:
        """The model in ``eval()`` mode as one module that needs no other process."""
        if not self.sharded:
            self.model.eval()
            try:
                yield self.model
            finally:
                self.model.train()
            return
        with torch.device("meta"):
            model = self.kind(self.config, impl=self.impl)
        model.load_state_dict(self.weights(), assign=True)
        yield model.eval()

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """AdamW's moments and steps by parameter; nothing for a parameter that never had a gradient."""
        tensors = {}
        for name, parameter in self.model.named_parameters():
            for kind, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{kind}/{name}"] = full(value).cpu()
        return tensors

    def restore(self, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
        """Put weights (``model/NAME``) and optimiser state of a checkpoint, which the first process has, in place."""
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
        """A tensor of the first process in all, laid out as the parameter that it belongs to."""
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

    # It warns of outputs that are views, such as the two logits, lest one change them in place; nobody does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(group.device.type, (group.size,))
    base: Any = getattr(model, model.base_model_prefix)
    for layer in base.encoder.layer:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
