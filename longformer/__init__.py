"""Longformer from scratch: the transformer for long documents (Beltagy, Peters and Cohan 2020, arXiv 2004.05150)."""

from typing import TYPE_CHECKING

from longformer.config import LongformerConfig
from longformer.errors import CheckpointError, ConfigError, DataError, LongformerError
from longformer.lazy import lazily

if TYPE_CHECKING:
    from longformer.heads import LongformerForMaskedLM, LongformerForQuestionAnswering
    from longformer.model import LongformerModel
    from longformer.question_answering import Answer, QuestionAnswerer
    from longformer.tokenizer import LongformerTokenizer

__all__ = [
    "Answer",
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
    "Answer": "question_answering",
    "LongformerForMaskedLM": "heads",
    "LongformerForQuestionAnswering": "heads",
    "LongformerModel": "model",
    "LongformerTokenizer": "tokenizer",
    "QuestionAnswerer": "question_answering",
}
__getattr__, __dir__ = lazily(__name__, globals(), _HOMES)
