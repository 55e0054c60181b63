"""Parity as a tool: record what a model computes, compare two runs, name the first value where they part, and why."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longformer.parity.comparison import Comparison, compare
    from longformer.parity.recorder import Trace, read_trace, trace
    from longformer.parity.rounding import Truth
    from longformer.parity.table import Table, Value
    from longformer.parity.testing import assert_parity, assert_within_rounding

__all__ = [
    "Comparison",
    "Table",
    "Trace",
    "Truth",
    "Value",
    "assert_parity",
    "assert_within_rounding",
    "compare",
    "read_trace",
    "trace",
]

# As in longformer/__init__.py: the command line imports this package, and has no need of torch to print its help.
_HOMES = {
    "Comparison": "comparison",
    "Table": "table",
    "Trace": "recorder",
    "Truth": "rounding",
    "Value": "table",
    "assert_parity": "testing",
    "assert_within_rounding": "testing",
    "compare": "comparison",
    "read_trace": "recorder",
    "trace": "recorder",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
