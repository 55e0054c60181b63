"""Published values of the released weights, wherever those can be had. Sources are named where the figures stand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from reference import TINY, reference_config
from tolerances import PUBLISHED_LOGIT, PUBLISHED_LOSS, PUBLISHED_SCORE, PUBLISHED_STATE, PUBLISHED_SUM
from torch import Tensor
from torch.nn import functional as F

from longformer import (
    LongformerForMaskedLM,
    LongformerForQuestionAnswering,
    LongformerModel,
    LongformerTokenizer,
    QuestionAnswerer,
)
from longformer.answering.scores import evaluate
from longformer.answering.squad import read_squad
from longformer.checkpoints.weights import find_weights, read_tensors

BASE = "allenai/longformer-base-4096"
SQUAD = "valhalla/longformer-base-4096-finetuned-squadv1"
HELLO = [20920, 232, 328, 1437]  # " Hello world! "

Locate = Callable[[str], str]


def masked_lm_scores(hidden: Tensor, weights: dict[str, Tensor], eps: float) -> Tensor:
    """(..., C) to (..., vocabulary): the masked-LM head, applied by hand as the package has none."""
    x = F.gelu(F.linear(hidden, weights["lm_head.dense.weight"], weights["lm_head.dense.bias"]))
    x = F.layer_norm(x, x.shape[-1:], weights["lm_head.layer_norm.weight"], weights["lm_head.layer_norm.bias"], eps=eps)
    return F.linear(x, weights["longformer.embeddings.word_embeddings.weight"], weights["lm_head.bias"])


def test_the_head_applied_by_hand_is_the_reference_s(tmp_path: Path) -> None:
    """So that the released masked-LM figures test what they name; this runs everywhere."""
    reference = transformers.LongformerForMaskedLM(reference_config(TINY)).eval()
    with torch.no_grad():
        for weight in reference.parameters():
            weight.normal_(std=0.2)
        reference.save_pretrained(tmp_path)
        ids = torch.randint(3, TINY.vocab_size, (1, 20))
        model = LongformerModel.from_pretrained(tmp_path, add_pooling_layer=False)
        weights = read_tensors(find_weights(tmp_path))
        scores = masked_lm_scores(model(ids).last_hidden_state, weights, TINY.layer_norm_eps)
        expected = reference(ids).logits
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.released
@pytest.mark.parametrize("masked", [False, True])
def test_base_on_a_short_text(released: Locate, masked: bool) -> None:
    """transformers, tests/models/longformer, LongformerModelIntegrationTest.test_inference_no_head."""
    model = LongformerModel.from_pretrained(released(BASE), add_pooling_layer=False)
    ids = torch.tensor([[0, *HELLO, 2]])
    with torch.no_grad():
        states = model(ids, attention_mask=torch.ones_like(ids) if masked else None).last_hidden_state
    expected = torch.tensor([0.0549, 0.1087, -0.1119, -0.0368, 0.0250])
    torch.testing.assert_close(states[0, 0, -5:], expected, rtol=0, atol=PUBLISHED_STATE)


@pytest.mark.released
def test_base_on_a_long_text(released: Locate) -> None:
    """The same, test_inference_no_head_long."""
    model = LongformerModel.from_pretrained(released(BASE), add_pooling_layer=False)
    ids = torch.tensor([[0, *HELLO * 1000, 2]])
    globals_ = torch.zeros_like(ids)
    globals_[:, [1, 4, 21]] = 1
    with torch.no_grad():
        states = model(ids, global_attention_mask=globals_).last_hidden_state.double()
    assert float(states.sum()) == pytest.approx(74585.8594, rel=PUBLISHED_SUM)
    assert float(states.mean()) == pytest.approx(0.0243, abs=PUBLISHED_STATE)


@pytest.mark.released
@pytest.mark.slow
def test_masked_lm_on_a_long_text(released: Locate) -> None:
    """The same, test_inference_masked_lm_long."""
    where = released(BASE)
    model = LongformerModel.from_pretrained(where, add_pooling_layer=False)
    ids = torch.tensor([[0, *HELLO * 1000, 2]])
    with torch.no_grad():
        weights = read_tensors(find_weights(where))
        scores = masked_lm_scores(model(ids).last_hidden_state, weights, model.config.layer_norm_eps)[0]
    assert float(F.cross_entropy(scores, ids[0])) == pytest.approx(0.0074, abs=PUBLISHED_STATE)
    assert float(scores.sum(dtype=torch.float64)) == pytest.approx(-6.1048e08, rel=PUBLISHED_SUM)
    assert float(scores.mean(dtype=torch.float64)) == pytest.approx(-3.0348, rel=PUBLISHED_SUM)


@pytest.mark.released
@pytest.mark.slow
def test_another_long_text(released: Locate) -> None:
    """allenai/longformer, tests/test_integration.py. The tokenizer of that year may have begun with either id."""
    model = LongformerModel.from_pretrained(released(BASE), add_pooling_layer=False)
    ids = torch.tensor([[*(HELLO * 1024)[:4095], 2]])
    globals_ = torch.zeros_like(ids)
    globals_[:, [1, 4, 21]] = 1
    sums = []
    for first in (31414, HELLO[0]):
        ids[0, 0] = first
        with torch.no_grad():
            sums.append(float(model(ids, global_attention_mask=globals_).last_hidden_state.double().sum()))
    assert any(found == pytest.approx(76193.671875, rel=PUBLISHED_SUM) for found in sums), sums


@pytest.mark.released
def test_masked_words_of_a_padded_batch(released: Locate) -> None:
    """guillaume-be/rust-bert, tests/longformer.rs: no attention mask, so that padding is read; token 0 is global."""
    where = released(BASE)
    tokenizer, model = LongformerTokenizer.from_pretrained(where), LongformerForMaskedLM.from_pretrained(where)
    # That tokenizer lets <mask> take in the space before it, which files of vocabulary and merges alone do not say.
    rows = [
        tokenizer(text)["input_ids"] for text in ("Looks like one<mask> is missing", "It was a very nice and<mask> day")
    ]
    ids = torch.tensor([row + [1] * (10 - len(row)) for row in rows])
    globals_ = torch.zeros_like(ids)
    globals_[:, 0] = 1
    with torch.no_grad():
        scores = model(ids, global_attention_mask=globals_).logits
    for row, place, word, score in ((0, 4, "\u0120eye", 11.7605), (1, 7, "\u0120sunny", 17.0088)):
        best, number = scores[row, place].max(dim=0)
        assert tokenizer.convert_ids_to_tokens([int(number)]) == [word]
        assert float(best) == pytest.approx(score, abs=PUBLISHED_STATE)


@pytest.mark.released
@pytest.mark.parametrize(
    ("question", "text", "characters", "score"),
    [
        ("Where does Amy live ?", "Amy lives in Amsterdam", (13, 22), 0.8060),
        ("Where does Eric live", "While Amy lives in Amsterdam, Eric is in The Hague.", (41, 50), 0.7503),
    ],
)
def test_answers_of_another_port(
    released: Locate, question: str, text: str, characters: tuple[int, int], score: float
) -> None:
    """The same. Its characters count the space before the answer; its score masks all but the context first."""
    where = released(SQUAD)
    model = LongformerForQuestionAnswering.from_pretrained(where)
    encoding = LongformerTokenizer.from_pretrained(where)(question, text, return_tensors="pt")
    ids = encoding["input_ids"]
    with torch.no_grad():
        start, end = model(ids, attention_mask=encoding["attention_mask"])
    context = torch.zeros_like(ids, dtype=torch.bool)
    context[0, int((ids[0] == 2).nonzero()[1]) + 1 : -1] = True
    start, end = (x.masked_fill(~context, -torch.inf).softmax(-1)[0] for x in (start, end))
    assert float(start.max() * end.max()) == pytest.approx(score, abs=PUBLISHED_STATE)
    answer = QuestionAnswerer.from_pretrained(where).answer(question, text)[0]
    assert (answer.start, answer.end) == characters


def with_the_port_s_head(source: str) -> tuple[LongformerForQuestionAnswering, Tensor]:
    """HJHGJGHHG/Paddle-Longformer: "Who was Jim Henson?", "Jim Henson was a nice puppet", a head from a NumPy seed.

    The head's bias is not recorded there; 0, both frameworks' default, is presumed.
    """
    model = LongformerForQuestionAnswering.from_pretrained(source, new_head=True)
    weight = np.random.RandomState(42).normal(0, 0.02, (768, 2)).astype(np.float32).T
    ids = [0, 12375, 21, 2488, 289, 13919, 116, 2, 2, 24021, 289, 13919, 21, 10, 2579, 29771, 2]
    with torch.no_grad():
        model.qa_outputs.weight.copy_(torch.tensor(weight))
        model.qa_outputs.bias.zero_()
    return model, torch.tensor([ids])


@pytest.mark.released
@pytest.mark.slow
def test_training_steps_of_another_port(released: Locate) -> None:
    """The same, STEP3 and STEP4: ten steps without dropout, and their losses. The answer is from token 14 to 15."""
    model, ids = with_the_port_s_head(released(BASE))
    expected = [
        2.8488464, 2.5981014, 2.2220347, 1.7252916, 1.0631231,
        0.5897783, 0.33095133, 0.17567185, 0.09731495, 0.05802451,
    ]  # fmt: skip
    step = AdamWOf2020(model, rate=3e-5, decay=0.01)
    losses = []
    for _ in expected:
        loss = model(ids, start_positions=torch.tensor([14]), end_positions=torch.tensor([15])).loss
        losses.append(loss.item())
        model.zero_grad()
        loss.backward()
        step()
    assert losses[0] == pytest.approx(expected[0], abs=PUBLISHED_LOGIT)
    assert losses == pytest.approx(expected, rel=PUBLISHED_LOSS)


class AdamWOf2020:
    """transformers' AdamW of that year: its epsilon is added before the bias is corrected, its decay comes last."""

    def __init__(self, model: torch.nn.Module, *, rate: float, decay: float) -> None:
        self.rate, self.count = rate, 0
        self.parameters = [
            (p, 0.0 if name.endswith(("bias", "LayerNorm.weight")) else decay, torch.zeros_like(p), torch.zeros_like(p))
            for name, p in model.named_parameters()
        ]

    @torch.no_grad()
    def __call__(self) -> None:
        """One step, with betas 0.9 and 0.999."""
        self.count += 1
        rate = self.rate * (1 - 0.999**self.count) ** 0.5 / (1 - 0.9**self.count)
        for parameter, decay, first, second in self.parameters:
            if parameter.grad is not None:
                first.lerp_(parameter.grad, 0.1)
                second.lerp_(parameter.grad.square(), 0.001)
                parameter.addcdiv_(first, second.sqrt().add_(1e-6), value=-rate)
                parameter.mul_(1 - self.rate * decay)


def test_that_optimiser_is_adamw() -> None:
    """But for its epsilon, which does not matter where gradients are large."""
    torch.manual_seed(0)
    ours, torchs = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    torchs.load_state_dict(ours.state_dict())
    step = AdamWOf2020(ours, rate=1e-3, decay=0.0)
    optimizer = torch.optim.AdamW(torchs.parameters(), lr=1e-3, weight_decay=0.0, eps=1e-12)
    for _ in range(10):
        x = torch.randn(4, 5)
        for model, advance in ((ours, step), (torchs, optimizer.step)):
            model.zero_grad()
            (1e4 * model(x)).square().sum().backward()
            advance()
    torch.testing.assert_close(ours.weight, torchs.weight, rtol=1e-5, atol=1e-6)


@pytest.mark.released
def test_logits_of_another_port(released: Locate) -> None:
    model, ids = with_the_port_s_head(released(BASE))
    with torch.no_grad():
        start_logits, _ = model(ids)
    expected = [
        -0.451106458902359,
        -0.27003082633018494,
        -0.4617392420768738,
        -0.3412560522556305,
        -0.3718094229698181,
        -0.4527381658554077,
        -0.4080933928489685,
        -0.4578230679035187,
        -0.47503507137298584,
        -0.3717327415943146,
        -0.4136091470718384,
        -0.44156402349472046,
        -0.49758124351501465,
        -0.32657140493392944,
        -0.4504765570163727,
        -0.4046976566314697,
        -0.4985448122024536,
    ]
    torch.testing.assert_close(start_logits[0], torch.tensor(expected), rtol=0, atol=PUBLISHED_LOGIT)


@pytest.mark.released
def test_the_model_card_s_example(released: Locate) -> None:
    """Model card of the checkpoint: the answer that its own lines print."""
    where = released(SQUAD)
    tokenizer = LongformerTokenizer.from_pretrained(where)
    model = LongformerForQuestionAnswering.from_pretrained(where)
    text = "Huggingface has democratized NLP. Huge thanks to Huggingface for this."
    question = "What has Huggingface done ?"
    encoding = tokenizer(question, text, return_tensors="pt")
    with torch.no_grad():
        start_scores, end_scores = model(encoding["input_ids"], attention_mask=encoding["attention_mask"])
    tokens = tokenizer.convert_ids_to_tokens(encoding["input_ids"][0].tolist())
    answer = tokens[int(start_scores.argmax()) : int(end_scores.argmax()) + 1]
    assert tokenizer.decode(tokenizer.convert_tokens_to_ids(answer)).strip() == "democratized NLP"
    assert QuestionAnswerer(model, tokenizer).answer(question, text)[0].text == "democratized NLP"


@pytest.mark.released
@pytest.mark.slow
@pytest.mark.timeout(0)
def test_squad_scores(released: Locate) -> None:
    """Model card of the checkpoint, over all 10,570 questions of dev-v1.1.json."""
    where = released(SQUAD)
    path = os.environ.get("LONGFORMER_SQUAD_DEV")
    if path is None:
        pytest.skip("SQuAD v1.1 dev: set LONGFORMER_SQUAD_DEV to the whole dev-v1.1.json (takes hours without a GPU)")
    examples = read_squad(path)
    assert len(examples) == 10570
    answerer = QuestionAnswerer.from_pretrained(where, device="cuda" if torch.cuda.is_available() else "cpu")
    answers = answerer.answer_batch([(example.question, example.context) for example in examples])
    predictions = {example.id: found[0].text for example, found in zip(examples, answers, strict=True)}
    scores = evaluate(examples, predictions)
    assert scores["exact_match"] == pytest.approx(85.1466, abs=PUBLISHED_SCORE)
    assert scores["f1"] == pytest.approx(91.5415, abs=PUBLISHED_SCORE)
