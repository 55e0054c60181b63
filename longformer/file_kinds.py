"""What a file that is no plain text seems to be, and the command that makes text of it."""

from __future__ import annotations

import codecs
import re
import unicodedata
from itertools import pairwise
from typing import NamedTuple

SAMPLE = 2**16  # bytes of a file that are looked at


class Kind(NamedTuple):
    """name: what the file seems to be. remedy: what to do, with ``{}`` where the file's name stands."""

    name: str
    remedy: str


# What files begin with. The commands are those that come with most systems.
_BEGINNINGS = {
    b"%PDF-": Kind("a PDF", "take its text out with `pdftotext {} text.txt`"),
    b"%!PS": Kind("PostScript", "take its text out with `ps2ascii {} text.txt`"),
    b"{\\rtf": Kind("RTF", "take its text out with `pandoc -f rtf -t plain {} -o text.txt`"),
    b"\xd0\xcf\x11\xe0": Kind("an old Word, Excel or PowerPoint file", "open it there and save it as plain text"),
    b"\x1f\x8b": Kind("gzip", "unpack it with `gunzip -c {} > text.txt`"),
    b"BZh": Kind("bzip2", "unpack it with `bunzip2 -c {} > text.txt`"),
    b"\xfd7zXZ\x00": Kind("xz", "unpack it with `xz -dc {} > text.txt`"),
    b"\x28\xb5\x2f\xfd": Kind("zstd", "unpack it with `zstd -dc {} > text.txt`"),
    b"7z\xbc\xaf\x27\x1c": Kind("7-Zip", "unpack it with `7z x {}`"),
    b"\x89PNG": Kind("a PNG picture", "read the text in it with `tesseract {} text`"),
    b"\xff\xd8\xff": Kind("a JPEG picture", "read the text in it with `tesseract {} text`"),
    b"\x7fELF": Kind("a program", "give a text file"),
    b"SQLite format 3\x00": Kind("an SQLite database", "export the texts in it as files"),
    b"PAR1": Kind("Parquet", "export the texts in it as JSON lines"),
    b"\x80\x02": Kind("a pickle", "give a text file"),
}
# What a zip file holds, by names that stand near its beginning.
_ZIPPED = {
    b"word/": Kind("DOCX", "take its text out with `pandoc -f docx -t plain {} -o text.txt`"),
    b"opendocument.text": Kind("ODT", "take its text out with `pandoc -f odt -t plain {} -o text.txt`"),
    b"epub+zip": Kind("EPUB", "take its text out with `pandoc -f epub -t plain {} -o text.txt`"),
    b"xl/": Kind("XLSX", "open it there and save it as plain text"),
    b"ppt/": Kind("PPTX", "open it there and save it as plain text"),
}
_ZIP = Kind("zip", "unpack it with `unzip {}`")
_TAR = Kind("tar", "unpack it with `tar -xf {}`")
_BINARY = Kind("no text at all", "give a text file")
_CUT = Kind("UTF-8 that ends within a character", "it was cut short: fetch it again")
_FAULTY = Kind(
    "UTF-8 with a few wrong bytes", "leave these out with `iconv -c -f UTF-8 -t UTF-8 {} > text.txt`, or fetch it again"
)
_UNKNOWN = Kind(
    "text in another encoding",
    "`file --mime-encoding {}` guesses which; then convert it with `iconv -f FROM -t UTF-8 {} > text.txt`, with that "
    "encoding in place of FROM",
)
_CONVERT = "convert it with `iconv -f %s -t UTF-8 {} > text.txt`, and look whether its letters are right"
# Encodings that are told by the most frequent characters of a language, which decoding by another one does not give:
# those characters, and the share of all characters beyond ASCII that they must have.
_KANA = "のにはをたがでてとしれさいなあるらりくこんっすまもかきよう、。", 0.4
_CYRILLIC = "оеаинтсрвл", 0.55
_FREQUENT = {
    "SHIFT_JIS": _KANA,
    "EUC-JP": _KANA,
    "WINDOWS-1251": _CYRILLIC,
    "KOI8-R": _CYRILLIC,
    "GB18030": ("的一是不了在人有我他这中大来上国，。", 0.15),
    "BIG5": ("的一是不了在人有我他這中大來上國，。", 0.15),
    "EUC-KR": ("이다는을를의에가고지은하도로한서사나그어인", 0.25),
}
# Windows-1252 has no language of its own. These characters are in the texts of Western Europe. Polish, Romanian and
# Turkish in encodings of their own show others when they are decoded by it.
_WESTERN = frozenset("àáâãäåæçèéêëìíîïñòóôõöøœùúûüßÀÁÂÄÅÆÇÈÉÊËÍÎÑÓÔÖØÚÛÜŒ“”„‘’‚«»‹›–—…•·°§©®™€£¡¿\xa0")
_MOST_WESTERN = 0.08  # most letters beyond ASCII, as a share of all: Czech and Hungarian have more
HTML = re.compile(
    rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)


def what_is(data: bytes) -> Kind | None:
    """What bytes are that are no plain text whatever encoding they are decoded by; None if nothing says so.

    A PDF may well be pure ASCII, and UTF-16 without its mark is valid UTF-8 where it is English.
    """
    sample = data[:SAMPLE]
    if sample.startswith(b"PK\x03\x04"):
        return next((kind for name, kind in _ZIPPED.items() if name in sample or name in data[-SAMPLE:]), _ZIP)
    first = sample.removeprefix(b"\xef\xbb\xbf").lstrip()  # before which readers of PDF and HTML skip space
    for beginning, kind in _BEGINNINGS.items():
        if sample.startswith(beginning) or first.startswith(beginning):
            return kind
    if sample[257:262] == b"ustar":
        return _TAR
    return _unmarked_utf16(sample)


def encoding_of(data: bytes, wrong: int) -> Kind:
    """What bytes are that are no UTF-8, by the first wrong byte at offset ``wrong``."""
    sample = data[max(0, wrong - SAMPLE // 2) : wrong + SAMPLE // 2]
    control = sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in sample)
    if control > len(sample) / 100:
        return _BINARY
    if len(data) - wrong < 4 and _is_begun(data[wrong:]):
        return _CUT
    behind = data[wrong : wrong + SAMPLE].decode("utf-8", "replace").count("\ufffd")
    if sum(byte >= 0xC0 for byte in data[max(0, wrong - SAMPLE) : wrong]) > 8 * behind:  # characters beyond ASCII
        return _FAULTY
    for name in ("WINDOWS-1252", *_FREQUENT):
        text = _decoded(data, name)
        if text is not None and (_is_western(text) if name == "WINDOWS-1252" else _is_usual(text, *_FREQUENT[name])):
            return Kind(f"{name} text", _CONVERT % name)
    return _UNKNOWN


def _is_western(text: str) -> bool:
    """Whether text that was decoded by Windows-1252 is most probably right."""
    beyond = [character for character in text if character > "\x7f"]
    letters = sum(character.isalpha() for character in text)
    return (
        _WESTERN.issuperset(beyond)
        and sum(character.isalpha() for character in beyond) <= max(_MOST_WESTERN * letters, 1)
        and not _is_mixed(text)
        and re.search(r"[^\W\x00-\x7f]{3}|\w[¡¿“”„‚«»•·§°£]+\w", text) is None
    )


def _is_usual(text: str, frequent: str, least: float) -> bool:
    """Whether decoded text has the characters of a language as often as they occur in it, and no odd ones."""
    beyond = [character for character in text if character > "\x7f"]
    odd = any(unicodedata.category(character)[0] in "CS" for character in beyond)
    return not odd and not _is_mixed(text) and sum(map(frequent.__contains__, beyond)) >= max(least * len(beyond), 3)


def _is_mixed(text: str) -> bool:
    """Whether there are words as wrong decoding makes them: a capital letter inside, or half of it Cyrillic."""
    capital = any(one.islower() and other > "\x7f" and other.isupper() for one, other in pairwise(text))
    return capital or re.search(r"[A-Za-z][\u0400-\u04ff]|[\u0400-\u04ff][A-Za-z]", text) is not None


def is_html(data: bytes) -> bool:
    """Whether bytes begin as a web page does."""
    return HTML.match(data[:SAMPLE]) is not None


def _unmarked_utf16(sample: bytes) -> Kind | None:
    if len(sample) < 2 or b"\x00" not in sample:
        return None
    for name, zeros in (("UTF-16LE", sample[1::2]), ("UTF-16BE", sample[::2])):
        if zeros.count(0) * 3 > len(zeros) and sample.count(0) < zeros.count(0) * 1.1:
            return Kind(f"{name} text without its mark", f"convert it with `iconv -f {name} -t UTF-8 {{}} > text.txt`")
    return None


def _is_begun(rest: bytes) -> bool:
    """Whether bytes are the beginning of one character in UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        return decoder.decode(rest) == ""
    except UnicodeDecodeError:
        return False


def _decoded(data: bytes, name: str) -> str | None:
    """The beginning of a text, None where all of it is none in that encoding."""
    try:
        return data.decode(name)[:SAMPLE]
    except UnicodeDecodeError:
        return None
