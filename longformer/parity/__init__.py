"""Parity as a tool: record what a model computes, compare two runs, name the first value where they differ, and why.

Read in this order. Recording: ``table`` (the names of the values), ``layout`` (how each kind of model lays them out),
``probabilities``, ``recorder``, ``format`` (traces and their files). Judging: ``operations`` (few digits),
``noise``, ``rounding`` (the truth and its noise), ``measure`` (errors and limits), ``places``, ``comparison``.
Explaining: ``slips`` and ``attention_slips`` (known mistakes), ``hints``. The command: ``samples``, ``runs``,
``contest``, ``report``, ``page``, ``cli``. For tests: ``testing``.
"""

from typing import TYPE_CHECKING

from longformer.lazy import lazily

if TYPE_CHECKING:
    from longformer.parity.comparison import Comparison, compare
    from longformer.parity.format import Trace, read_trace
    from longformer.parity.recorder import trace
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

_HOMES = {
    "Comparison": "comparison",
    "Table": "table",
    "Trace": "format",
    "Truth": "rounding",
    "Value": "table",
    "assert_parity": "testing",
    "assert_within_rounding": "testing",
    "compare": "comparison",
    "read_trace": "format",
    "trace": "recorder",
}
__getattr__, __dir__ = lazily(__name__, globals(), _HOMES)
