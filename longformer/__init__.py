"""Longformer from scratch: the transformer for long documents (Beltagy, Peters and Cohan 2020, arXiv 2004.05150)."""

import os.path
from typing import TYPE_CHECKING

from longformer.lazy import lazily

if os.path.isfile(os.path.join(os.path.dirname(__file__), "kernels")):  # a link that was checked out as a text
    raise ImportError(
        "longformer/kernels is a file and should be a link to the folder kernels: git on Windows makes none "
        "unless told to. Run `git config core.symlinks true` and `git checkout -- longformer/kernels`, or "
        "`pip install .`"
    )

if TYPE_CHECKING:
    from longformer.answering.answerer import QuestionAnswerer
    from longformer.answering.settings import AnswerSettings
    from longformer.answering.spans import Answer
    from longformer.classifying.classifier import Classification, TextClassifier
    from longformer.config import LongformerConfig
    from longformer.editing.changes import edit
    from longformer.errors import CheckpointError, ConfigError, DataError, LongformerError
    from longformer.exporting.graph import export
    from longformer.models.attention import attentions_to_dense
    from longformer.models.encoder import LongformerModel
    from longformer.models.heads import (
        LongformerForMaskedLM,
        LongformerForMultipleChoice,
        LongformerForQuestionAnswering,
        LongformerForSequenceClassification,
        LongformerForTokenClassification,
    )
    from longformer.parity.recorder import trace
    from longformer.tokenizer import LongformerTokenizer

__all__ = [
    "Answer",
    "AnswerSettings",
    "CheckpointError",
    "Classification",
    "ConfigError",
    "DataError",
    "LongformerConfig",
    "LongformerError",
    "LongformerForMaskedLM",
    "LongformerForMultipleChoice",
    "LongformerForQuestionAnswering",
    "LongformerForSequenceClassification",
    "LongformerForTokenClassification",
    "LongformerModel",
    "LongformerTokenizer",
    "QuestionAnswerer",
    "TextClassifier",
    "attentions_to_dense",
    "edit",
    "export",
    "trace",
]
__version__ = "0.1.0"

_HOMES = {
    "Answer": "answering.spans",
    "AnswerSettings": "answering.settings",
    "CheckpointError": "errors",
    "Classification": "classifying.classifier",
    "ConfigError": "errors",
    "DataError": "errors",
    "LongformerConfig": "config",
    "LongformerError": "errors",
    "LongformerForMaskedLM": "models.heads",
    "LongformerForMultipleChoice": "models.heads",
    "LongformerForQuestionAnswering": "models.heads",
    "LongformerForSequenceClassification": "models.heads",
    "LongformerForTokenClassification": "models.heads",
    "LongformerModel": "models.encoder",
    "LongformerTokenizer": "tokenizer",
    "QuestionAnswerer": "answering.answerer",
    "TextClassifier": "classifying.classifier",
    "attentions_to_dense": "models.attention",
    "edit": "editing.changes",
    "export": "exporting.graph",
    "trace": "parity.recorder",
}
__getattr__, __dir__ = lazily(__name__, globals(), _HOMES)
