"""Pictures with matplotlib (the extra ``plot``): patterns, probabilities, and curves of errors, costs and scores.

Every function draws into axes, or a figure, that it is given, so that you can put pictures together as you like. What
is drawn is what the kernels compute: who attends to whom comes from :class:`longformer.kernels.AttentionPattern`.

Read in this order: ``patterns`` (also how a pattern is given), ``gallery``, ``probabilities``, ``curves``.
"""

from longformer.plotting.curves import draw_cost, draw_depth, draw_precision_recall, draw_values_by_kind
from longformer.plotting.gallery import draw_gallery, save_gallery
from longformer.plotting.patterns import (
    COLOURS,
    attention_kinds,
    draw_pattern,
    draw_patterns,
    draw_receptive_field,
    receptive_field,
    save_patterns,
)
from longformer.plotting.probabilities import dense_probabilities, draw_probabilities

__all__ = [
    "COLOURS",
    "attention_kinds",
    "dense_probabilities",
    "draw_cost",
    "draw_depth",
    "draw_gallery",
    "draw_pattern",
    "draw_patterns",
    "draw_precision_recall",
    "draw_probabilities",
    "draw_receptive_field",
    "draw_values_by_kind",
    "receptive_field",
    "save_gallery",
    "save_patterns",
]
