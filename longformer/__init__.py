"""Longformer from scratch: the transformer for long documents (Beltagy, Peters and Cohan 2020, arXiv 2004.05150)."""

from typing import TYPE_CHECKING

from longformer.config import LongformerConfig
from longformer.errors import CheckpointError, ConfigError, DataError, LongformerError
from longformer.lazy import lazily

if TYPE_CHECKING:
    from longformer.answering.answerer import QuestionAnswerer
    from longformer.answering.settings import AnswerSettings
    from longformer.answering.spans import Answer
    from longformer.models.encoder import LongformerModel
    from longformer.models.heads import LongformerForMaskedLM, LongformerForQuestionAnswering
    from longformer.tokenizer import LongformerTokenizer

__all__ = [
    "Answer",
    "AnswerSettings",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "LongformerConfig",
    "LongformerError",
    "LongformerForMaskedLM",
    "LongformerForQuestionAnswering",
    "LongformerModel",
    "LongformerTokenizer",
    "QuestionAnswerer",
]
__version__ = "0.1.0"

_HOMES = {
    "Answer": "answering.spans",
    "AnswerSettings": "answering.settings",
    "LongformerForMaskedLM": "models.heads",
    "LongformerForQuestionAnswering": "models.heads",
    "LongformerModel": "models.encoder",
    "LongformerTokenizer": "tokenizer",
    "QuestionAnswerer": "answering.answerer",
}
__getattr__, __dir__ = lazily(__name__, globals(), _HOMES)
