"""DistributedDataParallel, which is not asked to look for unused parameters, gives the gradients of one process.

Processes may have global tokens or none, each another number of them, and other ones in the next step.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from distributed_steps import TARGETS, run_alone, run_joined
from training_runs import in_processes

pytestmark = [pytest.mark.xdist_group("processes that share their gradients"), pytest.mark.slow]


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gradients of all models, by one pair of processes."""
    folder = tmp_path_factory.mktemp("joined")
    cases = [(name, again) for name in TARGETS for again in (False, True)]
    assert in_processes(run_joined, [(cases, folder)] * 2) == [None, None]
    return folder


@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed again"])
@pytest.mark.parametrize("name", TARGETS)
def test_gradients_of_two_processes_are_those_of_one(name: str, again: bool, joined: Path) -> None:
    expected = run_alone(name)
    for rank in range(2):
        found = torch.load(joined / f"{name}-{again}-{rank}.pt")
        for case, steps in expected.items():
            for step, (x, y) in enumerate(zip(found[case], steps, strict=True)):
                for key, grad in y.items():
                    where = f"process {rank}, {case}, step {step}: {key}: "
                    torch.testing.assert_close(
                        x[key], grad, rtol=1e-8, atol=1e-11, msg=lambda text, where=where: where + text
                    )
    joined_later = [grad for key, grad in expected["one process"][2].items() if "value_global.weight" in key]
    assert joined_later and all(grad.any() for grad in joined_later)
