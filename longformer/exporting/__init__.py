"""Models outside of this package: exported programs of torch, and ONNX with linear memory and the same answers.

Read in this order: ``program`` (a model as a graph of torch's operators), ``graph`` (that graph as an ONNX file),
``check`` (the file against the model), ``runtime`` (a file run by ONNX Runtime). The command: ``cli``.
"""

from typing import TYPE_CHECKING

from longformer.lazy import lazily

if TYPE_CHECKING:
    from longformer.exporting.graph import export
    from longformer.exporting.program import export_program
    from longformer.exporting.runtime import OnnxModel

__all__ = ["OnnxModel", "export", "export_program"]

_HOMES = {"OnnxModel": "runtime", "export": "graph", "export_program": "program"}
__getattr__, __dir__ = lazily(__name__, globals(), _HOMES)
