"""Texts classified: files of labelled texts, labels from a model, and how good they are.

Read on in this order: ``classifier`` (texts in, labels out), ``texts`` (files of texts), ``labels`` (what the labels in
a file mean to a model), ``scores`` and ``cli``.
"""

from typing import TYPE_CHECKING

from longformer.lazy import lazily

if TYPE_CHECKING:
    from longformer.classifying.classifier import Classification, TextClassifier

__all__ = ["Classification", "TextClassifier"]

_HOMES = {"Classification": "classifier", "TextClassifier": "classifier"}
__getattr__, __dir__ = lazily(__name__, globals(), _HOMES)
