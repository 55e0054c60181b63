"""With weights that are not random: the shipped checkpoint, as we save it and transformers loads it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import transformers
from reference import Pair, assert_no_further, differences, encode, exact, padded_batch, rms
from tolerances import CORRELATED_MEAN_RATIO, TRAINED_LOGITS, TRAINED_STATES
from torch import Tensor, nn

import longformer
from longformer import LongformerConfig, LongformerForQuestionAnswering, LongformerTokenizer, QuestionAnswerer
from longformer.answering.squad import read_squad
from longformer.parity import Truth, assert_parity, trace

pytestmark = pytest.mark.slow

DOCUMENT = Path(longformer.__file__).parent / "data" / "constitution.txt"
PARTS = 32
QUESTIONS = (
    "In suits at common law, how much must the value in controversy exceed?",
    "How old must a senator be?",
    "Who?",
)


@pytest.fixture(scope="module")
def pair(pretrained_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Ours from the shipped checkpoint, the reference's from what ours then saved, both in float32."""
    ours = LongformerForQuestionAnswering.from_pretrained(pretrained_dir)
    folder = tmp_path_factory.mktemp("saved")
    ours.save_pretrained(folder)
    reference, report = transformers.LongformerForQuestionAnswering.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert {what: names for what, names in report.items() if names} == {}
    return Pair(ours, reference.eval())


@pytest.fixture(scope="module")
def tokenizer(pretrained_dir: Path) -> LongformerTokenizer:
    return LongformerTokenizer.from_pretrained(pretrained_dir)


def rows(tokenizer: LongformerTokenizer, *lengths: int) -> list[Tensor]:
    """A question each, and the first tokens of the document up to the given length of the whole."""
    text = DOCUMENT.read_text(encoding="utf-8")
    found = []
    for question, length in zip(QUESTIONS, lengths, strict=False):
        ids = tokenizer(question, text)["input_ids"]
        assert len(ids) >= length
        found.append(torch.tensor([*ids[: length - 1], tokenizer.sep_token_id]))
    return found


def test_logits_over_several_texts_are_no_further_from_float64(pair: Pair, tokenizer: LongformerTokenizer) -> None:
    """One text's ratio is a single draw of rounding noise. The geometric mean of many is not."""
    truth, ratios = exact(pair, impl="blocked"), []
    for lengths in ((60,), (131,), (200,), (300,), (400,), (512,), (513,), (700,), (513, 512), (60, 200, 131), (1025,)):
        inputs = padded_batch(pair.ours.config, rows(tokenizer, *lengths))
        ours, reference, true = (encode(model, inputs).results for model in (pair.ours, pair.reference, truth))
        ratios += [rms(x - z) / rms(y - z) for x, y, z in zip(ours, reference, true, strict=True)]
    assert math.exp(sum(map(math.log, ratios)) / len(ratios)) <= CORRELATED_MEAN_RATIO, ratios


@pytest.mark.parametrize("lengths", [(60, 200, 131), (513, 512), (1025,), (4096,)], ids=str)
def test_the_same_numbers(pair: Pair, tokenizer: LongformerTokenizer, lengths: tuple[int, ...]) -> None:
    """Every layer and the logits, over real text."""
    inputs = padded_batch(pair.ours.config, rows(tokenizer, *lengths))
    ours, reference = encode(pair.ours, inputs), encode(pair.reference, inputs)
    assert max(differences(ours.states, reference.states)) <= TRAINED_STATES
    assert max(differences(ours.results, reference.results)) <= TRAINED_LOGITS
    assert_no_further(ours, reference, encode(exact(pair, impl="blocked"), inputs), trained=True)


def test_every_value(pair: Pair, tokenizer: LongformerTokenizer) -> None:
    """All that a layer computes, projections and global rows included, is the reference's up to rounding."""
    inputs = padded_batch(pair.ours.config, rows(tokenizer, 60, 131, 90))
    runs = []
    for model in pair:
        with torch.no_grad(), trace(model) as recorded:
            model(**inputs)
        runs.append(recorded)
    assert_parity(*runs, Truth(pair.ours, inputs))


class AsOurs(nn.Module):
    """The reference under the call of our model, so that ``QuestionAnswerer`` takes it for one."""

    def __init__(self, reference: nn.Module, config: LongformerConfig) -> None:
        super().__init__()
        self.reference = reference
        self.config = config

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        output = self.reference(input_ids, attention_mask=attention_mask)
        return output.start_logits, output.end_logits


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "part", [part if part == 0 else pytest.param(part, marks=pytest.mark.exhaustive) for part in range(PARTS)]
)
def test_the_same_answer_to_every_question(
    pair: Pair, tokenizer: LongformerTokenizer, data_dir: Path, part: int
) -> None:
    """In parts, for workers to share: the reference pads every paragraph to 512 tokens, and takes minutes."""
    pairs = [(example.question, example.context) for example in read_squad(data_dir / "xquad-en.json")]
    assert len(pairs) == 758
    pairs = pairs[part::PARTS]
    ours = QuestionAnswerer(pair.ours, tokenizer).answer_batch(pairs)
    reference = QuestionAnswerer(AsOurs(pair.reference, pair.ours.config), tokenizer).answer_batch(pairs)
    assert [answers[0].text for answers in ours] == [answers[0].text for answers in reference]
