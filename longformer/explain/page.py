"""An explanation as one HTML page that needs nothing else: no network, no files beside it."""

from __future__ import annotations

import base64
import html
import json
import re
import zlib
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

from longformer.explain.explanation import Explanation
from longformer.explain.packing import RATIO, STEP, levels
from longformer.files import write_text


def write_page(path: str | Path, explanation: Explanation) -> None:
    """Write the page, whole or not at all. Raises DataError where that fails."""
    write_text(path, page(explanation))


def page(explanation: Explanation) -> str:
    """The page's text."""
    blocks = {f"layer-{i}": packed.data for i, packed in enumerate(explanation.packed)}
    blocks["rollout"] = zlib.compress(levels(explanation.rollout.numpy()).tobytes(), 9)
    parts = {
        "TITLE": html.escape(explanation.question.strip()),
        "BLOCKS": "\n".join(
            f'<script type="text/plain" id="{name}">{base64.b64encode(block).decode()}</script>'
            for name, block in blocks.items()
        ),
        "DATA": _script(_data(explanation)),
    }
    template = (files("longformer.explain") / "page.html").read_text(encoding="utf-8")
    return re.sub("@@([A-Z]+)@@", lambda match: parts[match[1]], template)  # in one go: a part may hold such a mark


def _script(data: Any) -> str:
    """JSON inside a script element: a document's own ``</script>`` must not end it."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(explanation: Explanation) -> dict[str, Any]:
    passage = explanation.passage
    return {
        "texts": passage.texts,
        "gaps": passage.gaps,
        "tail": passage.tail,
        "kinds": passage.kinds,
        "globals": explanation.patterns[0].global_index.tolist(),
        "windows": [pattern.window for pattern in explanation.patterns],
        "dilations": [pattern.dilation for pattern in explanation.patterns],
        "heads": len(explanation.packed[0].share),
        "ratio": RATIO,
        "lengths": [packed.lengths for packed in explanation.packed],
        "answers": [
            {"text": answer.text, "probability": round(answer.probability, 6), "span": span}
            for answer, span in zip(explanation.answers, passage.spans, strict=True)
        ],
        "start": [round(x, 3) for x in explanation.start_logits.tolist()],
        "end": [round(x, 3) for x in explanation.end_logits.tolist()],
        "window": _window(explanation),
        "about": _about(explanation),
    }


def _window(explanation: Explanation) -> str:
    """Which part of the document is here."""
    passage = explanation.passage
    if passage.windows == 1:
        return f"The whole document, {passage.total:,} tokens, read at once."
    return (
        f"Tokens {passage.first + 1:,} to {passage.stop:,} of the document's {passage.total:,}: the model reads "
        f"{len(passage.ids):,} tokens at once, question included, and so the document in {passage.windows} overlapping "
        f"windows. This is window {passage.window + 1}, which scores the best answer; probabilities are over all."
    )


def _about(explanation: Explanation) -> list[str]:
    packed, limits = explanation.packed, explanation.limits
    share = sum(sum(layer.share) / len(layer.share) for layer in packed) / len(packed)
    kept, every = sum(layer.entries for layer in packed), entries(explanation)
    threshold = RATIO**-explanation.lowest
    return [
        f"Attention: of {every:,} probabilities this page holds the {kept:,} that matter most, which carry "
        f"{share:.1%} of all attention: those from {threshold:.2g} on, but of each token in each head at least "
        f"{limits.least} and at most {limits.most}, and of a global token the largest {limits.most_global:,}. Each is "
        f"rounded by at most {STEP:.1%}. A mean is taken over what is kept.",
        "A token sees its window, itself included, and the global tokens, in one softmax; a global token sees every "
        f"token. Global are the question's tokens and the first.{_dilated(explanation)}",
        "Rollout (Abnar and Zuidema 2020): each layer is taken for half its attention, the mean of its heads, and half "
        "the residual connection, and all are multiplied. It says from where something could have come, not that it "
        "decided. Attention is no explanation by itself either: it is what the model computed with.",
        "Scores are logits. An answer's probability is that of its span among all spans: start score plus end score, "
        "in one softmax over the whole document.",
    ]


def entries(explanation: Explanation) -> int:
    """How many attention probabilities there are, over all layers and heads."""
    total, seq_len = 0, len(explanation.passage.ids)
    for pattern in explanation.patterns:
        (left, right), index = pattern.window, set(pattern.global_index.tolist())
        for gap, heads in Counter(pattern.dilation).items():
            for i in range(seq_len):
                before, after = min(left, i // gap), min(right, (seq_len - 1 - i) // gap)
                outside = sum((g - i) % gap != 0 or not -before * gap <= g - i <= after * gap for g in index)
                total += (seq_len if i in index else before + 1 + after + outside) * heads
    return total


def _dilated(explanation: Explanation) -> str:
    """Says which heads' windows have gaps; "" where none has."""
    said = ""
    for gap in sorted({d for pattern in explanation.patterns for d in pattern.dilation} - {1}):
        where = []
        for number, pattern in enumerate(explanation.patterns, 1):
            heads = [str(head) for head, d in enumerate(pattern.dilation, 1) if d == gap]
            if heads:
                every = len(heads) == len(pattern.dilation)
                where.append(f"layer {number}" if every else f"layer {number} (heads {', '.join(heads)})")
        said += f" With gaps, one token in {gap:,}, are the windows of {'; '.join(where)}."
    return said
