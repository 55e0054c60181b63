"""Questions answered over documents of any length, and how good the answers are.

Read on in this order: ``answerer`` (question and document in, answers out), ``windows`` (what the model reads),
``settings``, ``mode``; then ``squad`` (files of questions), ``scores``, ``evaluation`` and ``cli``.
"""

from typing import TYPE_CHECKING

from longformer.lazy import lazily

if TYPE_CHECKING:
    from longformer.answering.answerer import Answer, QuestionAnswerer
    from longformer.answering.settings import AnswerSettings

__all__ = ["Answer", "AnswerSettings", "QuestionAnswerer"]

_HOMES = {"Answer": "answerer", "AnswerSettings": "settings", "QuestionAnswerer": "answerer"}
__getattr__, __dir__ = lazily(__name__, globals(), _HOMES)
