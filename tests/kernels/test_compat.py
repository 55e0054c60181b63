"""Private names of torch: what holds where a torch lacks one, and that none is used elsewhere."""

from __future__ import annotations

import importlib.util
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import longformer
from longformer.kernels import choose, compat, sliding_window_attention


def loaded_again() -> ModuleType:
    """``compat.py`` as it comes out of the torch of the moment; the package keeps its own."""
    spec = importlib.util.spec_from_file_location("compat_again", str(compat.__file__))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_transform_is_seen() -> None:
    seen = []

    def function(x: torch.Tensor) -> torch.Tensor:
        seen.append(compat.in_transform())
        return x.sum()

    x = torch.randn(3)
    assert not compat.in_transform()
    torch.func.grad(function)(x)
    torch.func.vmap(function)(x[None])
    torch.func.jvp(function, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        function(x)
    assert seen == [True] * 4 and not compat.in_transform()


@pytest.mark.parametrize(
    ("root", "name"), [(torch._C._functorch, "maybe_current_level"), (torch.autograd.forward_ad, "_current_level")]
)
def test_a_torch_that_does_not_tell_of_transforms(root: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then one may be at work, and everything goes by autograd, which is right in any case."""
    query = torch.randn(1, 1, 8, 4)
    expected = sliding_window_attention(query, query, query, (2, 2))
    monkeypatch.delattr(root, name)
    assert loaded_again().in_transform()
    monkeypatch.setattr(compat, "in_transform", lambda: True)
    assert torch.equal(sliding_window_attention(query, query, query, (2, 2)), expected)


def test_tracing_by_jit_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def function(x: torch.Tensor) -> torch.Tensor:
        seen.append(compat.is_jit_tracing())
        return x + 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(function, torch.randn(3), check_trace=False)
    assert seen == [True] and not compat.is_jit_tracing()
    monkeypatch.delattr(torch._C, "_get_tracing_state")
    assert not compat.is_jit_tracing()


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


def test_a_mode_and_a_global_hook_are_seen() -> None:
    assert not compat.is_watched()
    with Watching():
        assert compat.is_watched()
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert compat.is_watched()
    hook.remove()
    assert not compat.is_watched()


@pytest.mark.parametrize(
    ("root", "name"),
    [(torch.utils._python_dispatch, "_get_current_dispatch_mode"), (torch.nn.modules.module, "_has_any_global_hook")],
)
def test_a_torch_that_does_not_tell_who_watches(root: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(root, name)
        assert compat.is_watched()


def test_a_graph_stops_where_a_condition_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        compat.assert_in_graph((x > 0).all(), "all must be above 0")
        return x + 1

    def compiled() -> Any:
        torch._dynamo.reset()
        return torch.compile(function, fullgraph=True, backend="aot_eager")

    below = torch.tensor([1.0, -1.0])
    assert torch.equal(function(below), below + 1)  # eager mode asks nothing
    with pytest.raises(RuntimeError, match="all must be above 0"):
        compiled()(below)
    monkeypatch.delattr(torch, "_assert_async")
    assert torch.equal(compiled()(below), below + 1)


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> ModuleType:
    """``compat.py`` of a torch whose operators lack some names."""
    kept = {"aten": {"_scaled_dot_product_flash_attention_for_cpu"}, "mkldnn": {"_linear_pointwise"}}
    ops = {
        space: SimpleNamespace(**{name: getattr(getattr(torch.ops, space), name) for name in found - set(names)})
        for space, found in kept.items()
        if space not in names
    }
    monkeypatch.setattr(torch, "ops", SimpleNamespace(**ops))
    return loaded_again()


def test_a_torch_without_fused_attention_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        absent = without(patch, "_scaled_dot_product_flash_attention_for_cpu")
    assert absent.flash_attention_for_cpu is None and absent.linear_pointwise is not None
    monkeypatch.setattr(compat, "flash_attention_for_cpu", None)
    monkeypatch.setattr(compat, "has_matrix_units", lambda dtype: dtype == torch.bfloat16)
    query = torch.randn(1, 1, 8, 4)
    why = "this torch has no fused attention with a log-sum-exp on cpu"
    assert choose(query.bfloat16()) == ("blocked", why)
    with pytest.raises(ValueError, match='impl is "fused", and this torch has no fused attention'):
        choose(query, impl="fused")
    out = sliding_window_attention(query, query, query, (2, 2))
    torch.testing.assert_close(out, sliding_window_attention(query, query, query, (2, 2), impl="reference"))


@pytest.mark.parametrize("names", [("_linear_pointwise",), ("mkldnn",)])
def test_a_torch_without_onednn(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        absent = without(patch, *names)
        assert absent.linear_pointwise is None
        assert not absent.has_bf16_mkldnn()
    assert isinstance(compat.has_bf16_mkldnn(), bool)


def test_a_torch_without_partial_cuda_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "Tag", SimpleNamespace(core=torch.Tag.core))
    assert loaded_again().OUTSIDE_CUDA_GRAPHS == {}


def test_a_torch_whose_compiler_has_no_limit_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_dynamo", SimpleNamespace(config=SimpleNamespace(patch=lambda **_: pytest.fail("set"))))
    with compat.room_for_graphs(100):
        pass


def test_a_compiler_error_is_known_by_where_it_comes_from() -> None:
    from torch._dynamo.exc import BackendCompilerFailed, Unsupported

    assert issubclass(BackendCompilerFailed, RuntimeError)
    assert compat.is_compiler_error(Unsupported("x")) and not compat.is_compiler_error(RuntimeError("x"))


def test_private_names_stand_in_one_file() -> None:
    private = re.compile(r"torch(\.\w+)*\._(?!_)\w+|from torch[\w.]* import _|forward_ad\._|mkldnn\._")
    package = Path(str(longformer.__file__)).parent
    files = [*package.glob("**/*.py"), *(package / "kernels").glob("*.py")]
    assert {path.name for path in files if private.search(path.read_text())} == {"compat.py"}


def test_a_torch_without_fakes_named_tuples_or_donated_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTensorMode():
        fake = torch.empty(2)
    assert compat.is_fake(fake) and not compat.is_fake(torch.empty(2))
    monkeypatch.setattr(torch, "_subclasses", SimpleNamespace())
    monkeypatch.setattr(torch.utils, "_pytree", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torch._functorch.config", None)
    monkeypatch.delattr(torch._functorch, "config")
    assert not compat.is_fake(fake)
    compat.register_output(tuple, "nothing happens")
    with compat.kept_buffers():
        pass
