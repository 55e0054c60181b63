"""Why an answer was chosen: attention, rollout, scores and attributions that are tested, as a page or a still picture.

Read in this order: ``explanation`` (what is computed, from the question to the result), ``passage`` (what the model
reads), ``probabilities`` (attention, head by head), ``rollout``, ``attribution`` (which tokens count), ``faithfulness``
(whether they do), ``packing`` (attention made small enough for a page), ``page`` and ``picture`` (what is drawn);
``cli`` is the command.
"""

from typing import TYPE_CHECKING

from longformer.lazy import lazily

if TYPE_CHECKING:
    from longformer.explain.explanation import Explanation, explain
    from longformer.explain.methods import METHODS
    from longformer.explain.page import write_page
    from longformer.explain.picture import write_picture

__all__ = ["METHODS", "Explanation", "explain", "write_page", "write_picture"]

_HOMES = {
    "METHODS": "methods",
    "Explanation": "explanation",
    "explain": "explanation",
    "write_page": "page",
    "write_picture": "picture",
}
__getattr__, __dir__ = lazily(__name__, globals(), _HOMES)
