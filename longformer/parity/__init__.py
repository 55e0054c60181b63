"""Parity as a tool: record what a model computes, compare two runs, name the first value where they differ, and why.

Read in this order. Recording: ``table`` (the names of the values), ``layout`` (how each kind of model lays them out),
``probabilities``, ``recorder``, ``compiled``, ``format`` (traces and their files). Judging: ``operations``,
``rounding`` (the truth and the noise), ``noise``, ``measure``, ``places``, ``names``, ``comparison``; modules one by
one: ``stages``, ``local``, ``replay``, ``modules``. Explaining: ``scene``, ``attention_replay`` and ``sites`` (what a
run should have computed), ``slips``, ``linear_slips``, ``attention_slips`` and ``head_slips`` (known mistakes),
``hints``. The command: ``samples``, ``runs``, ``contest``, ``report``, ``page``, ``cli``. Any models: ``any_model``,
``code_files``, ``pairing``, ``models``. Trainings: ``steps``. For tests: ``testing``.
"""

from typing import TYPE_CHECKING

from longformer.lazy import lazily

if TYPE_CHECKING:
    from longformer.parity.comparison import Comparison, compare
    from longformer.parity.format import Trace, read_trace
    from longformer.parity.models import compare_models
    from longformer.parity.recorder import trace
    from longformer.parity.rounding import Truth
    from longformer.parity.steps import Training, compare_steps, trace_steps
    from longformer.parity.table import Table, Value
    from longformer.parity.testing import assert_parity, assert_within_rounding

__all__ = [
    "Comparison",
    "Table",
    "Trace",
    "Training",
    "Truth",
    "Value",
    "assert_parity",
    "assert_within_rounding",
    "compare",
    "compare_models",
    "compare_steps",
    "read_trace",
    "trace",
    "trace_steps",
]

_HOMES = {
    "Comparison": "comparison",
    "Table": "table",
    "Trace": "format",
    "Training": "steps",
    "Truth": "rounding",
    "Value": "table",
    "assert_parity": "testing",
    "assert_within_rounding": "testing",
    "compare": "comparison",
    "compare_models": "models",
    "compare_steps": "steps",
    "read_trace": "format",
    "trace": "recorder",
    "trace_steps": "steps",
}
__getattr__, __dir__ = lazily(__name__, globals(), _HOMES)
