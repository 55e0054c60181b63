"""Files of labelled texts: read as they are written, and refused with file and line where they are not."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from longformer import DataError, LongformerConfig, LongformerError
from longformer.classifying.labels import Labels, labels_of_head, problem_type_of
from longformer.classifying.texts import read_labelled_texts, read_texts

REGRESSION, SINGLE, SEVERAL = "regression", "single_label_classification", "multi_label_classification"


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8", newline="")
    return str(folder / name)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv(tmp_path: Path, end: str) -> None:
    """Quoted cells hold commas, quotes and lines; other columns and empty lines are passed over."""
    rows = ["label,id,text", 'good,1,"One, ""two""', 'three"', "", "bad,2,Four</s>"]
    found = read_labelled_texts(write(tmp_path, "a.csv", "\ufeff" + end.join(rows) + end))
    assert [row.text.text for row in found] == [f'One, "two"{end}three', "Four</s>"]
    assert [(row.label, row.text.line) for row in found] == [("good", 2), ("bad", 5)]
    assert read_texts(tmp_path / "a.csv") == [row.text for row in found]


def test_a_cell_as_long_as_a_document(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    text = 300_000 * "a"
    assert read_texts(write(tmp_path, "a.csv", f"text\n{text}\n"))[0].text == text
    assert csv.field_size_limit() == limit


def test_json_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "One", "label": 1}\n\n{"text": "Two", "label": 2, "more": []}\n')
    assert [(row.text.text, row.label, row.text.line) for row in read_labelled_texts(path)] == [
        ("One", 1, 1),
        ("Two", 2, 3),
    ]


@pytest.mark.parametrize(
    ("name", "text", "kind", "names", "targets"),
    [
        ("a.csv", "text,label\nA,b\nB,a\nC,b\n", SINGLE, ("a", "b"), [1, 0, 1]),
        ("a.csv", "text,label\nA,10\nB,9\n", SINGLE, ("9", "10"), [1, 0]),
        ("a.csv", "text,label\nA,1\nB,other\n", SINGLE, ("1", "other"), [0, 1]),
        ("a.csv", "text,label\nA,1.5\nB,-2\nC,.5e1\n", REGRESSION, ("value",), [1.5, -2, 5]),
        ("a.csv", "text,labels\nA,a | b\nB,\nC,b\n", SEVERAL, ("a", "b"), [[1, 1], [0, 0], [0, 1]]),
        ("a.jsonl", '{"text": "A", "label": 1.0}\n{"text": "B", "label": 2}', REGRESSION, ("value",), [1, 2]),
        ("a.jsonl", '{"text": "A", "label": 3}\n{"text": "B", "label": 2}', SINGLE, ("2", "3"), [1, 0]),
        ("a.jsonl", '{"text": "A", "labels": ["x", 7]}\n{"text": "B", "labels": []}', SEVERAL, ("7", "x"),
         [[1, 1], [0, 0]]),
    ],
)  # fmt: skip
def test_labels(tmp_path: Path, name: str, text: str, kind: str, names: tuple[str, ...], targets: list[Any]) -> None:
    texts = read_labelled_texts(write(tmp_path, name, text))
    labels = Labels.of_texts(texts, None)
    assert labels == Labels(kind, names)
    found = labels.targets(texts)
    assert found.tolist() == targets
    assert found.dtype == (torch.int64 if kind == SINGLE else torch.float32)


def test_a_problem_type_of_ones_own_choice(tmp_path: Path) -> None:
    texts = read_labelled_texts(write(tmp_path, "a.csv", "text,label\nA,3.1\nB,3.10\nC,3.1\n"))
    assert Labels.of_texts(texts, SINGLE) == Labels(SINGLE, ("3.1", "3.10"))
    assert Labels.of_texts(texts, SEVERAL).targets(texts).tolist() == [[1, 0], [0, 1], [1, 0]]
    whole = read_labelled_texts(write(tmp_path, "b.csv", "text,label\nA,3\nB,4\n"))
    assert Labels.of_texts(whole, REGRESSION).targets(whole).tolist() == [3, 4]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "a.csv holds no texts"),
        ("a.csv", "text,label\n", "a.csv holds no texts"),
        ("a.txt", "A", "a.txt is neither a .csv nor a .jsonl file"),
        ("a.csv", "A,good\n", "a.csv, line 1: has no column 'text', but 'A', 'good'; the first line must name"),
        ("a.csv", "text;label\nA;good\n", "name the columns, with commas between them and between the cells"),
        ("a.csv", "text,text\n", "line 1: has the column 'text' twice"),
        ("a.csv", "text\nA\n", "a.csv, line 2: there is neither 'label' nor 'labels'"),
        ("a.csv", "text,label,labels\nA,b,c\n", "line 2: there is both 'label' and 'labels'"),
        ("a.csv", "text,label\nA,b\nC\n", "a.csv, line 3: has 1 cells; there are 2 columns"),
        ("a.csv", 'text,label\nA,b\n"C,d\n', "a.csv, line 3: is not valid CSV"),
        ("a.csv", "text,label\n ,b\n", "a.csv, line 2: 'text' is empty"),
        ("a.csv", "text,label\nA,\n", "a.csv, line 2: 'label' is empty"),
        ("a.csv", "text,labels\nA,b||c\n", "a.csv, line 2: 'labels' holds an empty string"),
        ("a.csv", "text,labels\nA,b|b\n", "line 2: 'labels' holds 'b' twice"),
        ("a.jsonl", '{"text": "A", "label": "b"}\n{"text"', "a.jsonl, line 2, is not valid JSON"),
        ("a.jsonl", '{"label": "b"}', "a.jsonl, line 1: 'text' is missing"),
        ("a.jsonl", '{"text": 3, "label": "b"}', "line 1: 'text' is 3; it must be a string"),
        ("a.jsonl", '{"text": "A", "label": true}', "line 1: 'label' is true; it must be a string or a number"),
        ("a.jsonl", '{"text": "A", "label": ["b"]}', "line 1: 'label' is a list; .* of labels is called 'labels'"),
        ("a.jsonl", '{"text": "A", "labels": "b"}', "line 1: 'labels' is \"b\"; it must be a list"),
        ("a.jsonl", '{"text": "A", "labels": [1.5]}', "line 1: 'labels' holds 1.5; it may hold names and whole"),
    ],
)  # fmt: skip
def test_malformed(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_labelled_texts(write(tmp_path, name, text))


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        (["1.5", "good"], None, "a.csv, line 3: the label is a name, but in .*a.csv, line 2 it is a number"),
        (["a", "a"], None, r"a.csv: all 2 texts have the same label \(a\); give texts of others too"),
        (["1.5", "1.5"], None, r"all 2 texts have the same label \(1.5\)"),
        (["a", "2"], REGRESSION, "a.csv, line 2: the label is 'a'; for regression it must be a finite number"),
        (["2", "1e39"], REGRESSION, "a.csv, line 3: the label is 1e[+]39; for regression"),
    ],
)
def test_labels_that_cannot_be(tmp_path: Path, labels: list[str], kind: str | None, message: str) -> None:
    texts = read_labelled_texts(write(tmp_path, "a.csv", "text,label\n" + "".join(f"A,{x}\n" for x in labels)))
    with pytest.raises(DataError, match=message):
        Labels.of_texts(texts, kind)


def test_lists_beside_names(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "A", "labels": ["a", "b"]}\n{"text": "B", "label": "a"}')
    texts = read_labelled_texts(path)
    with pytest.raises(DataError, match=r"line 2: the label is a name, but in .* line 1 it is a list of labels;"):
        problem_type_of(texts)
    assert Labels.of_texts(texts, SEVERAL).targets(texts).tolist() == [[1, 1], [1, 0]]
    with pytest.raises(
        DataError, match="line 1: there are 2 labels; for single_label_classification there must be one"
    ):
        Labels.of_texts(texts, SINGLE)


def test_labels_of_a_head(tmp_path: Path) -> None:
    config = LongformerConfig(label_names=("no", "yes"))
    labels = labels_of_head(config, None, "model")
    assert labels == Labels(SINGLE, ("no", "yes"))
    texts = read_labelled_texts(write(tmp_path, "a.csv", "text,label\nA,yes\nB,maybe\n"))
    with pytest.raises(DataError, match=r"a\.csv, line 3: the label 'maybe' is unknown; there are 'no', 'yes'"):
        labels.targets(texts)
    with pytest.raises(LongformerError, match="problem_type is regression, and the head of model is for single_label"):
        labels_of_head(config, REGRESSION, "model")
    assert labels_of_head(config.replace(num_labels=1), None, "model").problem_type == REGRESSION
    with pytest.raises(LongformerError, match="the head of model predicts 2 numbers"):
        labels_of_head(config.replace(problem_type=REGRESSION), None, "model")


def test_a_label_of_thousands_of_digits(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"text,label\na b,2.5\nc d,1{5000 * '0'}\n")
    with pytest.raises(DataError, match=r"line 3: the label has 5001 digits"):
        read_labelled_texts(tmp_path / "t.csv")
