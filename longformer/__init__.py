"""Longformer from scratch: the transformer for long documents (Beltagy, Peters and Cohan 2020, arXiv 2004.05150)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from longformer.config import LongformerConfig
from longformer.errors import CheckpointError, ConfigError, DataError, LongformerError

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

# Importing torch takes seconds, and `longformer --help` has no need of it: these come when they are first asked for.
_HOMES = {
    "Answer": "question_answering",
    "LongformerForMaskedLM": "heads",
    "LongformerForQuestionAnswering": "heads",
    "LongformerModel": "model",
    "LongformerTokenizer": "tokenizer",
    "QuestionAnswerer": "question_answering",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
