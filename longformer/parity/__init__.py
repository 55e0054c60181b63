"""Parity as a tool: record what a model computes, compare two runs, name the first value where they part, and why."""

from longformer.parity.comparison import Comparison, compare
from longformer.parity.recorder import Trace, read_trace, trace
from longformer.parity.rounding import Truth
from longformer.parity.table import Table, Value

__all__ = ["Comparison", "Table", "Trace", "Truth", "Value", "compare", "read_trace", "trace"]
