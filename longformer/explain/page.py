"""An explanation as one HTML page that needs no network and no other file."""

from __future__ import annotations

import base64
import html
import json
import re
import zlib
from importlib.resources import files
from pathlib import Path
from typing import Any

from longformer.explain.explanation import Explanation
from longformer.explain.faithfulness import RANDOM, Curves
from longformer.explain.packing import RATIO, STEP, levels
from longformer.files import write_text

TITLES = {
    "integrated-gradients": "integrated gradients",
    "attention-gradient": "attention × gradient",
    "rollout": "rollout",
}


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
    return re.sub("@@([A-Z]+)@@", lambda match: parts[match[1]], template)  # all at once: a part may hold such a mark


def _script(data: Any) -> str:
    """JSON for a script element, escaped: a ``</script>`` in the document must not end that element."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(explanation: Explanation) -> dict[str, Any]:
    passage = explanation.passage
    return {
        "texts": passage.texts,
        "gaps": passage.gaps,
        "tail": passage.tail,
        "kinds": passage.kinds,
        "globals": [mean.global_index.tolist() for mean in explanation.means],
        "windows": [pattern.window for pattern in explanation.patterns],
        "dilations": [pattern.gaps(len(explanation.packed[0].share)) for pattern in explanation.patterns],
        "heads": len(explanation.packed[0].share),
        "ratio": RATIO,
        "lengths": [packed.lengths for packed in explanation.packed],
        "answers": [
            {"text": answer.text, "probability": round(answer.probability, 6), "span": span}
            for answer, span in zip(explanation.answers, passage.spans, strict=True)
        ],
        "start": [round(x, 3) for x in explanation.start_logits.tolist()],
        "end": [round(x, 3) for x in explanation.end_logits.tolist()],
        "asked": explanation.default_globals,
        "methods": [_method(explanation, name) for name in explanation.attributions],
        "curves": None if explanation.curves is None else _curves(explanation.curves),
        "verdict": "" if explanation.curves is None else _verdict(explanation.curves),
        "window": _window(explanation),
        "about": _about(explanation),
    }


def _window(explanation: Explanation) -> str:
    """A sentence that says which part of the document the page shows."""
    passage = explanation.passage
    if passage.windows == 1:
        return f"The whole document, {passage.total:,} tokens, read at once."
    return (
        f"Tokens {passage.first + 1:,} to {passage.stop:,} of the document's {passage.total:,}. The model reads "
        f"{len(passage.ids):,} tokens at once, with the question, so it reads the document in {passage.windows} "
        f"overlapping windows. This is window {passage.window + 1}, which scores the best answer. The probabilities "
        "are over all windows."
    )


def _about(explanation: Explanation) -> list[str]:
    packed, limits = explanation.packed, explanation.limits
    share = sum(sum(layer.share) / len(layer.share) for layer in packed) / len(packed)
    kept, every = sum(layer.entries for layer in packed), explanation.count
    threshold = RATIO**-explanation.lowest
    return [
        f"Attention: of {every:,} probabilities this page holds the {kept:,} that matter most, which carry "
        f"{share:.1%} of all attention. It keeps the probabilities of at least {threshold:.2g}, but for each token in "
        f"each head no fewer than {limits.least} and no more than {limits.most}; for a global token it keeps the "
        f"largest {limits.most_global:,}. Each is rounded by at most {STEP:.1%}. A mean is taken over what is kept.",
        "A token sees its window, which includes the token itself, and the global tokens, in one softmax. A global "
        f"token sees every token. {_globals(explanation)}{_dilated(explanation)}",
        "Rollout (Abnar and Zuidema 2020): each layer counts as half its attention, the mean of its heads, and half "
        "the residual connection, and the layers are multiplied. Rollout says from where something could have come, "
        "not that it decided. Attention by itself explains nothing either: it is what the model computed with.",
        "Which tokens count: integrated gradients (Sundararajan et al. 2017) divide the score among the tokens. "
        "Attention × gradient (Chefer et al. 2021) is a rollout of each probability times what it does to the score. "
        "Whether they are right is tried: the tokens that count most are taken out, by the padding token in their "
        "place, or put in where all are taken out. A good method makes the score fall and rise at once.",
        "Scores are logits. An answer's probability is that of its span among all spans: a span's score is its start "
        "score plus its end score, and one softmax is taken over the whole document. An answer that was completed to "
        "whole words has the probability of the span that it was made of.",
    ]


def _globals(explanation: Explanation) -> str:
    """A sentence that says which tokens are global."""
    if explanation.default_globals:
        return "The question's tokens and the first token are global."
    count = len(explanation.global_index)
    chosen = {0: "No token is", 1: "One token is"}.get(count, f"{count:,} tokens are")
    return f"{chosen} global, as this answerer chooses; they are underlined."


def _method(explanation: Explanation, name: str) -> dict[str, Any]:
    """What the page holds of one attribution: its name, its unit, a note, and the numbers of start and end."""
    both, curves = explanation.attributions[name], explanation.curves
    assert curves is not None
    difference = curves.of[name].deletion[0] - curves.of[name].deletion[-1]
    notes = {
        "integrated-gradients": f"Its parts sum to {float(both.sum()):.2f}; all tokens together make {difference:.2f}.",
        "attention-gradient": "It sees what goes through attention and raises the score.",
        "rollout": "It does not look at the score.",
    }
    return {
        "name": name,
        "title": TITLES[name],
        "unit": "score" if name == "integrated-gradients" else "share",
        "note": notes[name],
        "values": [[float(f"{x:.3g}") for x in side] for side in both.tolist()],
    }


def _curves(curves: Curves) -> dict[str, Any]:
    def rounded(values: list[float]) -> list[float]:
        return [round(x, 3) for x in values]

    each = {
        name: {"deletion": rounded(curve.deletion), "insertion": rounded(curve.insertion)}
        for name, curve in curves.of.items()
    }
    return {"counts": curves.counts, "of": each}


def _verdict(curves: Curves) -> str:
    """Sentences that say which method names best what the answer's score hangs on."""
    place = min(2, len(curves.counts) - 2)
    without = {name: curve.deletion[place] for name, curve in curves.of.items()}
    by_method = ", ".join(f"{score:.1f} by {TITLES[name]}" for name, score in without.items() if name != RANDOM)
    whole, nothing = curves.of[RANDOM].deletion[0], curves.of[RANDOM].deletion[-1]
    count = curves.counts[place]
    tokens = f"the {count:,} tokens" if count > 1 else "the token"
    found = (
        "No method does better than chance: none of them says what this answer hangs on."
        if curves.best == RANDOM
        else f"Best at naming what this answer hangs on, over both curves, is {TITLES[curves.best]}."
    )
    return (
        f"The best answer scores {whole:.1f}, and {nothing:.1f} without any token of question and document. Without "
        f"{tokens} that count most it scores {by_method}; without as many drawn by chance {without[RANDOM]:.1f}. "
        f"{found}"
    )


def _dilated(explanation: Explanation) -> str:
    """Sentences that say which heads' windows have gaps; "" where none has."""
    sentences = ""
    layers = [pattern.gaps(len(explanation.packed[0].share)) for pattern in explanation.patterns]
    for gap in sorted({gap for gaps in layers for gap in gaps} - {1}):
        where = []
        for number, gaps in enumerate(layers):
            heads = [str(head) for head, other in enumerate(gaps) if other == gap]
            if heads:
                every = len(heads) == len(gaps)
                where.append(f"layer {number}" if every else f"layer {number} (heads {', '.join(heads)})")
        sentences += f" With gaps, one token in {gap:,}, are the windows of {'; '.join(where)}."
    return sentences
