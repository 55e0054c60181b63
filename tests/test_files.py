"""Files: what is wrong with one that is read is said in one sentence; one that is written is whole or as it was."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from longformer import (
    CheckpointError,
    ConfigError,
    DataError,
    LongformerConfig,
    LongformerTokenizer,
    claims,
    errors,
    file_kinds,
    files,
    new_files,
)
from longformer.answering.squad import read_predictions, read_squad
from longformer.checkpoints.weights import find_weights
from longformer.errors import LongformerError
from longformer.files import (
    check_outputs,
    parse_json,
    read_document,
    read_json,
    read_text,
    replace_file,
    write_file,
    write_json,
    write_text,
)

BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (BOM, "is empty"),
        (b'{"a": ', "is not valid JSON: Expecting value, at column 7"),
        (b"{} {}", "is not valid JSON: Extra data"),
        (b'{"a": "\xe9"}', r"is not UTF-8 text: byte 0xe9 at offset 7; it seems to be WINDOWS-1252 text: conv"),
        ('{"a": 1}'.encode("utf-16-le"), r"is not plain text; it seems to be UTF-16LE text without its mark: convert"),
        (
            b"<!DOCTYPE html>",
            "is not valid JSON: .*; it is a web page, perhaps one",
        ),
        (b"version https://git-lfs.github.com/spec/v1", "is not valid JSON: .*; it is a Git LFS pointer: run"),
        (b"\xff\xfe{\x00}", r"begins as UTF-16 text and goes on otherwise, at byte 4"),
        ("[1]".encode("utf-16"), "holds a list; it must be an object"),
        (b"[" * 100_000, "is nested too deep to be read as JSON"),
        (b'{"a": ' * 100_000, "is nested too deep to be read as JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", r"holds an integer of more than \d+ digits"),
        (b"[1]", "holds a list; it must be an object"),
        (b"null", "holds null; it must be an object"),
        (b"12", "holds 12; it must be an object"),
        (b'"' + b"x" * 99 + b'"', r'holds "x{56}\.\.\.; it must be an object'),
    ],
)
def test_json_that_is_none(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    for error in (DataError, CheckpointError):
        with pytest.raises(error, match=rf"file\.json {message}") as caught:
            read_json(path, error=error)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_every_reader_says_it_alike(tmp_path: Path) -> None:
    """A file that is nested too deep, wherever JSON is read."""
    for name in ("config.json", "squad.json", "tokenizer.json", "model.safetensors.index.json"):
        (tmp_path / name).write_bytes(b'{"data": ' * 100_000)
    readers: list[tuple[type[LongformerError], str, Any]] = [
        (ConfigError, "config.json", lambda: LongformerConfig.from_file(tmp_path / "config.json")),
        (DataError, "squad.json", lambda: read_squad(tmp_path / "squad.json")),
        (DataError, "squad.json", lambda: read_predictions(tmp_path / "squad.json")),
        (CheckpointError, "tokenizer.json", lambda: LongformerTokenizer.from_pretrained(tmp_path)),
        (CheckpointError, "model.safetensors.index.json", lambda: find_weights(tmp_path)),
    ]
    for error, name, read in readers:
        with pytest.raises(error, match=f"{name} is nested too deep"):
            read()


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(BOM + b'{"a": "x"}\r\n')
    assert read_text(tmp_path / "a") == '{"a": "x"}\r\n'
    assert read_json(tmp_path / "a") == {"a": "x"}


def test_a_document_keeps_its_byte_order_mark(tmp_path: Path) -> None:
    """Which ``open`` reads as a character too, so that offsets are those of what it gives."""
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "a").write_bytes("Zoë\r\n".encode(encoding))
        kept = "utf-16" if encoding == "utf-16" else "utf-8"
        assert read_document(str(tmp_path / "a")) == (tmp_path / "a").read_bytes().decode(kept)
        assert read_text(tmp_path / "a") == "Zoë\r\n"


@pytest.mark.parametrize("data", [b"plain", gzip.compress(b"plain", mtime=0)])
def test_a_gzip_file_is_read_where_that_is_asked(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.json").write_bytes(data)
    assert read_text(tmp_path / "a.json", unzip=True) == "plain"
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(data))
    writer.start()
    assert read_text(tmp_path / "pipe", unzip=True) == "plain"
    writer.join()
    if data != b"plain":
        with pytest.raises(DataError, match="it seems to be gzip: unpack it with `gunzip"):
            read_text(tmp_path / "a.json")


def test_a_gzip_file_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be small and hold more than the memory does."""
    (tmp_path / "bomb").write_bytes(gzip.compress(bytes(2**20)))
    monkeypatch.setattr(files, "LARGEST", 2**16)
    with pytest.raises(DataError, match="bomb is too large: at most 65,536 bytes can be read"):
        read_text(tmp_path / "bomb", unzip=True)


def test_configs_and_tokenizers_with_a_byte_order_mark(tmp_path: Path) -> None:
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "a": 3, "b": 4, "ab": 5}
    (tmp_path / "vocab.json").write_bytes(BOM + json.dumps(vocabulary).encode())
    (tmp_path / "merges.txt").write_bytes(BOM + b"#version: 0.2\r\na b\r\n")
    tokenizer = LongformerTokenizer.from_pretrained(tmp_path)
    assert tokenizer("aba")["input_ids"] == [0, 5, 3, 2]
    tokenizer.save_pretrained(tmp_path / "saved")
    whole = tmp_path / "saved" / "tokenizer.json"
    whole.write_bytes(BOM + whole.read_bytes())
    assert LongformerTokenizer.from_pretrained(tmp_path / "saved")("aba")["input_ids"] == [0, 5, 3, 2]
    LongformerConfig().save(tmp_path / "config.json")
    (tmp_path / "config.json").write_bytes(BOM + (tmp_path / "config.json").read_bytes())
    assert LongformerConfig.from_file(tmp_path / "config.json") == LongformerConfig()


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^no file at '.*absent'$"):
        read_json(tmp_path / "absent")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_json(tmp_path)


def test_a_file_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGEST", 2**25)
    with pytest.raises(DataError, match="/dev/zero is too large: at most 33,554,432 bytes can be read"):
        read_json("/dev/zero")


def test_an_index_of_weights_that_is_none(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    for content, message in (
        ({}, "is no index of weights: its weight_map must give each weight the name of a file"),
        ({"weight_map": ["a"]}, "is no index of weights"),
        ({"weight_map": {}}, "is no index of weights"),
        ({"weight_map": {"a": 3}}, "is no index of weights"),
        ({"weight_map": {"a": "../a"}}, r"must list files of its own folder in weight_map, not \.\./a"),
    ):
        index.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=message):
            find_weights(tmp_path)


def test_text_that_is_no_file() -> None:
    assert parse_json("[1]", "the list", list) == [1]
    with pytest.raises(DataError, match=r"^the list is not valid JSON"):
        parse_json("[", "the list", list)


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")

    def fail(new: Path) -> None:
        new.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"a\.txt cannot be written: No space left on device"):
        write_file(tmp_path / "a.txt", fail, error=CheckpointError)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    with pytest.raises(DataError, match=r"absent/a\.txt cannot be written: No such file"):
        write_text(tmp_path / "absent" / "a.txt", "")


def test_line_ends_and_halves_of_characters(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "a\r\nb\n")
    assert (tmp_path / "a.txt").read_bytes() == b"a\r\nb\n"
    for value in ({"id": "Zürich 🦦"}, {"id \ud800": "x"}):
        write_json(tmp_path / "a.json", value)
        assert read_json(tmp_path / "a.json") == value
    write_json(tmp_path / "a.json", {"id": "Zürich"})
    assert "Zürich" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/file")
    (tmp_path / "second").symlink_to(tmp_path / "link")
    for text in ("new", "newer"):  # the first does not find a file there
        write_text(tmp_path / "second", text)
        assert (tmp_path / "folder" / "file").read_text() == text
    assert (tmp_path / "link").is_symlink() and (tmp_path / "second").is_symlink()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "link", "second"]


def test_a_file_that_others_have_open_keeps_what_they_see(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with (tmp_path / "a").open() as file:
        write_text(tmp_path / "a", "new")
        assert file.read() == "old"


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_text(tmp_path / "pipe", "x" * 200_000)
    reader.join()
    assert found == ["x" * 200_000]
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 1


def test_a_device_is_written_into() -> None:
    replace_file("/dev/null", lambda new: new.write_bytes(b"x"))
    assert Path("/dev/null").is_char_device()


def test_what_is_printed_after_a_file_to_standard_output_stands_behind_it(tmp_path: Path) -> None:
    """Opened anew, it would begin where the process's own writing is still to come."""
    script = "print('a'); from longformer.files import write_text; write_text('/dev/stdout', 'b\\n'); print('c')"
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", script], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "a\nb\nc\n"


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "private"
    path.touch(0o600)
    files.write_text(path, "x")
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("path", ["/dev/stdout", "/proc/self/fd/1", "/dev/fd/1", "link"])
@pytest.mark.parametrize("before", ["", "before\n"])
def test_standard_output_that_is_a_file(tmp_path: Path, path: str, before: str) -> None:
    """Where the shell has redirected it, /dev/stdout leads to a file, which must not be replaced under the shell."""
    (tmp_path / "link").symlink_to("/dev/stdout")
    (tmp_path / "out").write_text(before)
    script = f"from longformer.files import *; check_outputs([{path!r}]); write_text({path!r}, 'x')"
    with (tmp_path / "out").open("a") as out:
        subprocess.run([sys.executable, "-c", script], stdout=out, check=True, cwd=tmp_path)
        out.write("behind")
    assert (tmp_path / "out").read_text() == f"{before}xbehind"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, cwd=tmp_path)
    assert done.stdout == b"x"
    assert (tmp_path / "link").is_symlink()


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("in.json").write_text("{}")
    Path("folder").mkdir()
    Path("soft.json").symlink_to("in.json")
    Path("hard.json").hardlink_to("in.json")
    Path("dangling.json").symlink_to("folder/new.json")
    Path("lost.json").symlink_to("nowhere/new.json")
    return tmp_path


@pytest.mark.parametrize("path", ["in.json", "./in.json", "folder/../in.json", "soft.json", "hard.json", "absolute"])
def test_an_output_that_is_an_input(there: Path, path: str) -> None:
    path = str(there / "in.json") if path == "absolute" else path
    with pytest.raises(DataError, match=r"is read by this command, and would be overwritten; give another file to"):
        check_outputs([path], ["other.json", "in.json"])


def test_standard_input_that_is_a_file(there: Path) -> None:
    code = "from longformer.files import check_outputs; check_outputs(['in.json'], ['-'])"
    with open("in.json") as given:
        done = subprocess.run([sys.executable, "-c", code], stdin=given, capture_output=True, text=True)
    assert "in.json is the same file as /dev/stdin, which is read by this command" in done.stderr


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["a.json", "./a.json"], r"a\.json is written by this command already; give another file"),
        (["dangling.json", "folder/new.json"], r"new\.json is the same file as dangling\.json, which is written by"),
        (["folder"], "folder is a folder; give a file to write to"),
        ([""], "'' names no file to write"),
        (["new/"], "'new/' names no file to write"),
        (["nowhere/a.json"], r"there is no folder 'nowhere' to write a\.json into; make it first"),
        (["lost.json"], r"there is no folder '.*nowhere' to write new\.json into"),
    ],
)
def test_outputs_that_cannot_be_written(there: Path, paths: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_outputs(paths)


def test_outputs_that_can_be_written(there: Path) -> None:
    check_outputs(["a.json", "in.json", "dangling.json", "/dev/null"], ["-", "absent.json", "/dev/null"])
    assert not Path("a.json").exists()


PDF, DOCX = b"%PDF-1.7\nplain ASCII, which is valid UTF-8", b"PK\x03\x04\x14\x00\x06\x00word/document.xml"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (PDF, "a PDF: take its text out with `pdftotext 'a file' text.txt`"),
        (DOCX, "DOCX: take its text out with `pandoc -f docx -t plain 'a file' -o text.txt`"),
        (b"PK\x03\x04 other", "zip: unpack it with `unzip 'a file'`"),
        (b"\x1f\x8b\x08\x00", "gzip: unpack it with `gunzip -c 'a file' > text.txt`"),
        ("He said: no.".encode("utf-16-le"), "UTF-16LE text without its mark: convert it with `iconv -f UTF-16LE"),
        ("He said: no.".encode("utf-16-be"), "UTF-16BE text without its mark: convert it with `iconv -f UTF-16BE"),
        ("“Zürich”, he said.".encode("cp1252"), "WINDOWS-1252 text: convert it with `iconv -f WINDOWS-1252 -t UTF-8"),
        ("これは日本語の文章です。".encode("shift-jis"), "SHIFT_JIS text: convert it with `iconv -f SHIFT_JIS"),
        ("这是一个中文句子，在这里。".encode("gb18030"), "GB18030 text: convert it with `iconv -f GB18030 -t UTF-8"),
        ("Привет, как у вас дела? Мы здесь.".encode("cp1251"), "WINDOWS-1251 text: .* look whether its letters are"),
        ("Привет, как у вас дела? Мы здесь.".encode("koi8-r"), "KOI8-R text: convert it with `iconv -f KOI8-R"),
        (
            "Η Αθήνα είναι πρωτεύουσα.".encode("cp1253"),
            "text in another encoding: `file --mime-encoding 'a file'` ",
        ),
        (
            "Příliš žluťoučký kůň".encode("cp1250"),
            "text in another .*; then convert it with `iconv -f FROM -t UTF-8",
        ),
        ("Zürich".encode()[:2], "UTF-8 that ends within a character: it was cut short: fetch it again"),
        ("Zürich, Genève, Bâle; ".encode() * 20 + b"\xff" + b" and so on" * 9, "UTF-8 with a few wrong bytes: leave"),
        (bytes(range(256)) * 4, "no text at all: give a text file"),
    ],
)
def test_what_a_file_seems_to_be(content: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a file").write_bytes(content)
    for read in (read_text, files.read_document):
        with pytest.raises(DataError, match=rf"^a file is not (plain|UTF-8) text.*; it seems to be {said}"):
            read("a file")


ENGLISH = "A long text in English may hold a word or two of another language, or a name. " * 3
IN_OTHER_LANGUAGES = [
    "Berlin ist die größte Stadt des Landes, über drei Millionen leben in „ihr“.",
    "Paris est la plus grande ville du pays, créée il y a très longtemps, où vivent deux millions d’habitants.",
    "Helsinki on Suomen pääkaupunki. Se on maan suurin kaupunki, jossa elää yli kuusisataa tuhatta ihmistä.",
    "Warszawa jest stolicą Polski. To największe miasto kraju, w którym mieszka prawie dwa miliony ludzi.",
    "Praha je hlavní město České republiky. Je to největší město země, kde žije více než milion lidí.",
    "Ankara Türkiye'nin başkentidir. Ülkenin en büyük ikinci şehridir, ve beş milyondan fazla insan yaşıyor.",
    "Москва является столицей России. Это крупнейший город страны, и в нём живёт более двенадцати миллионов.",
    "Київ є столицею України. Це найбільше місто країни, і в ньому живе майже три мільйони людей.",
    "Η Αθήνα είναι η πρωτεύουσα της Ελλάδας. Είναι η μεγαλύτερη πόλη της χώρας.",
    "ירושלים היא העיר הגדולה בארץ.",
    "القاهرة هي أكبر مدينة في البلاد.",
    "東京は日本の首都です。国で一番大きな都市で、千三百万人以上の人が住んでいます。",
    "北京是中国的首都。它是中国第二大城市，有两千多万人口。我们在这里的生活很好，他是不了解这个国家的人。",
    "臺北是臺灣的首都。它是一個大城市，有兩百多萬人口。我們在這裡的生活很好，他是不了解這個國家的人。",
    "서울은 대한민국의 수도이다. 이 나라에서 가장 큰 도시이고 거의 천만 명의 사람이 살고 있다.",
]
ENCODINGS = """cp1250 cp1251 cp1252 cp1253 cp1254 cp1255 cp1256 iso8859-1 iso8859-2 iso8859-5 iso8859-6 iso8859-7
    iso8859-9 iso8859-15 cp437 cp850 cp852 cp866 mac_roman mac_latin2 mac_cyrillic koi8-r koi8-u shift_jis euc-jp gb2312
    gb18030 big5 euc-kr""".split()


@pytest.mark.parametrize("text", IN_OTHER_LANGUAGES)
@pytest.mark.parametrize("before", ["", ENGLISH], ids=["alone", "in English"])
def test_an_encoding_is_guessed_right_or_not_at_all(text: str, before: str) -> None:
    text, guessed = before + text, 0
    for encoding in ENCODINGS:
        data = text.encode(encoding, "replace")
        if b"?" in data:  # it has not all the letters
            continue
        wrong = next(i for i in range(len(data)) if data[i] > 127)
        kind = file_kinds.encoding_of(data, wrong)
        if kind.name != "text in another encoding":
            guessed += 1
            assert data.decode(kind.name.removesuffix(" text")) == text, (encoding, kind.name)
    western = "München Zürich Malmö größte où très pääkaupunki".split()
    assert guessed or not any(word in text for word in western)


@pytest.mark.parametrize(
    ("name", "safe"), [("-x.txt", "./-x.txt"), ("a b.txt", "'a b.txt'"), ("-", "FILE"), (Path("-"), "./-")]
)
def test_a_name_in_advice_is_safe_to_paste(
    name: str | Path, safe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(PDF)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(PDF)))
    with pytest.raises(DataError, match=re.escape(f"with `pdftotext {safe} text.txt`")):
        read_text(name)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_encodings_that_say_what_they_are(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a").write_bytes("Zürich, 北京\r\n".encode(encoding))
    assert read_text(tmp_path / "a") == "Zürich, 北京\r\n"
    (tmp_path / "a").write_bytes("Zürich".encode("utf-16")[:-1])
    with pytest.raises(DataError, match="begins as UTF-16 text and goes on otherwise, at byte"):
        read_text(tmp_path / "a")


def test_a_web_page_is_read_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "page").write_text("<!-- saved -->\n<!DOCTYPE html><html><p>Zürich</p>")
    assert read_document(str(tmp_path / "page")).endswith("<p>Zürich</p>")
    assert "seems to be a web page: its markup is read as text" in caplog.text
    (tmp_path / "page").write_text("Of <html> and <body> this text speaks.")
    caplog.clear()
    files.read_document(str(tmp_path / "page"))
    assert not caplog.records


@pytest.mark.parametrize("path", ["a\0b", "a\ud800b"])
def test_names_that_no_file_has(path: str) -> None:
    for use in (read_text, lambda path: write_text(path, ""), lambda path: check_outputs([path])):
        with pytest.raises(DataError, match=r"names no file: there is (a NUL|half a) character in it"):
            use(path)


def test_standard_streams(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'{"a": 1}')))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), write_through=True))
    assert read_json("-") == {"a": 1}
    sys.stdout.write("before ")
    write_text("-", "é")
    assert sys.stdout.buffer.getvalue() == "before é".encode()
    assert list(tmp_path.iterdir()) == []
    write_text(Path("-"), "x")  # a Path is a file's
    write_text("./-", "y")
    assert read_text(Path("-")) == "y"
    check_outputs(["-"], ["-", "-/../-"])
    with pytest.raises(DataError, match="standard input can be read only once"):
        check_outputs([], ["-", "-"])
    with pytest.raises(DataError, match="- is written by this command already"):
        check_outputs(["-", "-"])
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataError, match="standard input is closed"):
        read_text("-")


@pytest.mark.parametrize(("number", "stream"), [(0, "in"), (1, "out")])
def test_a_standard_stream_has_many_names(tmp_path: Path, number: int, stream: str) -> None:
    ask = (new_files.is_standard_input, new_files.is_standard_output)
    (tmp_path / "link").symlink_to(f"/dev/std{stream}")
    names = [f"/dev/std{stream}", f"/dev/fd/{number}", f"/proc/self/fd/{number}", str(tmp_path / "link")]
    for name in names:
        assert ask[number](name) and ask[number](Path(name)) and not ask[1 - number](name), name
    assert ask[number]("-") and not ask[number](Path("-"))
    for other in ("/dev/stderr", "/dev/fd/11", "/dev/null", "-x", "stdout", "", "a\0b", str(tmp_path / "absent")):
        assert not ask[number](other), other
    if number == 1:
        for one in names:
            for two in ("-", *names):
                with pytest.raises(DataError, match="is written by this command already"):
                    check_outputs([one, two])
    else:
        for one in names:
            with pytest.raises(
                DataError, match=rf"read only once, but it is named 2 times \({one}, -\); give files for"
            ):
                check_outputs([], [one, "x", "-"])


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127])
def test_names_as_long_as_they_may_be(tmp_path: Path, name: str) -> None:
    check_outputs([tmp_path / name])
    for text in ("old", "new"):
        write_text(tmp_path / name, text)
        assert read_text(tmp_path / name) == text
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(DataError, match="the file's name is too long; give one of 255 bytes"):
        check_outputs([tmp_path / f"{name}nn"])
    unfinished = claims.unfinished(tmp_path / name)
    unfinished.touch()
    assert claims.abandoned(tmp_path, [name]) == [unfinished]


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for use in (read_text, lambda path: write_text(path, ""), lambda path: check_outputs([path])):
        with pytest.raises(DataError, match="Too many levels of symbolic links"):
            use(tmp_path / "a")
    assert (tmp_path / "a").is_symlink()


def test_several_threads_write_one_file(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(20):
            write_text(tmp_path / "a", str(number) * 50_000)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text = read_text(tmp_path / "a")
    assert len(text) == 50_000 and len(set(text)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_another_process_writes_into(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from longformer.claims import claimed\n"
    script += "with claimed(Path('run')): print('in', flush=True); sys.stdin.readline(); (Path('run') / 'x').touch()"
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
    for end in ("killed", "done"):
        with subprocess.Popen(
            [sys.executable, "-c", script], cwd=tmp_path, stdin=-1, stdout=-1, env=environment
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == b"in\n"
            with (
                pytest.raises(LongformerError, match=f"run is in use by process {process.pid}, which writes into it"),
                claims.claimed(tmp_path / "run"),
            ):
                pass
            if end == "killed":
                process.kill()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["x"]
    with claims.claimed(tmp_path / "other"):
        assert (tmp_path / "other").is_dir()
    assert not (tmp_path / "other").exists()


def test_a_message_is_one_readable_line() -> None:
    words = " ".join(["word"] * 30_000)
    for quoted in ("x" * 100_000, "\x1b[2J\x07" * 1000, "a\nb\r\tc\u2028d", "\ud800\udcff", words):
        message = str(DataError(f"the value is {quoted}; give another"))
        assert message.isprintable() and len(message) <= 2100
        assert message.startswith("the value is ") and message.endswith("; give another")
    assert str(DataError("a\x1bb\ud800")) == "a\\x1bb\\ud800"
    assert errors.quoted(10**5000) == "a value (int) with an integer of thousands of digits"


def test_toml(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(BOM + b"a = 1\n")
    assert files.read_toml(path) == {"a": 1}
    for content, said in (
        (b"a = ", "is not valid TOML: "),
        (b"a = " + b"9" * 5000, "holds an integer of more than"),
        (b"a = " + b"[" * 1_000_000, "is nested too deep to be read as TOML"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"a\.toml {said}"):
            files.read_toml(path)


def test_the_examples_document_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=re.escape(f"the package has it at {files.CONSTITUTION}")):
        read_document("longformer/data/constitution.txt")
    assert read_document(str(files.CONSTITUTION)).startswith("The Constitution")
