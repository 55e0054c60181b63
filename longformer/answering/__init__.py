"""Questions answered over documents of any length, and how good the answers are.

Read on in this order: ``answerer`` (question and document in, answers out), ``windows`` (what the model reads),
``spans`` (what it makes of it), ``texts`` (words and characters), ``settings``, ``mode``; then ``squad`` and ``forms``
(files of questions), ``scores`` and ``v2`` (how good answers are), ``evaluation``, ``cli``, ``files_cli`` and
``scoring_cli``.
"""

from typing import TYPE_CHECKING

from longformer.lazy import lazily

if TYPE_CHECKING:
    from longformer.answering.answerer import QuestionAnswerer
    from longformer.answering.settings import AnswerSettings
    from longformer.answering.spans import Answer

__all__ = ["Answer", "AnswerSettings", "QuestionAnswerer"]

_HOMES = {"Answer": "spans", "AnswerSettings": "settings", "QuestionAnswerer": "answerer"}
__getattr__, __dir__ = lazily(__name__, globals(), _HOMES)
