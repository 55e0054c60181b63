"""Change what a model computes while it runs: the writing twin of :mod:`longformer.parity`'s ``trace``.

Read in this order: ``changes`` (of values), ``effects`` (what ablating heads, or patching values from one run into
another, does to a result).
"""

from typing import TYPE_CHECKING

from longformer.lazy import lazily

if TYPE_CHECKING:
    from longformer.editing.changes import Edit, edit
    from longformer.editing.effects import Effects, ablate_heads, patch_values

__all__ = ["Edit", "Effects", "ablate_heads", "edit", "patch_values"]

_HOMES = {
    "Edit": "changes",
    "Effects": "effects",
    "ablate_heads": "effects",
    "edit": "changes",
    "patch_values": "effects",
}
__getattr__, __dir__ = lazily(__name__, globals(), _HOMES)
