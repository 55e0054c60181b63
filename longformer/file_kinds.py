"""What a file that is no plain text seems to be, and the command that makes text of it."""

from __future__ import annotations

import codecs
import re
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
# Encodings of one or two bytes a character in which strictly decoded text is most probably right. Their order matters:
# in the later ones almost any bytes are characters.
_FOREIGN = ("EUC-JP", "SHIFT_JIS", "EUC-KR", "GB18030", "BIG5")
_FEW = 0.25  # Western European text has fewer bytes beyond ASCII, as a share of its letters
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
    letters = sum(byte > 127 or chr(byte).isalpha() for byte in sample)
    beyond = sum(byte > 127 for byte in sample)
    names = ("WINDOWS-1252", "LATIN1") if beyond <= _FEW * letters or beyond < 4 else (*_FOREIGN, "WINDOWS-1252")
    for name in names:
        if _decodes(data, name):
            sure = "" if name == "WINDOWS-1252" and len(names) == 2 else "perhaps "
            return Kind(f"{sure}{name} text", f"convert it with `iconv -f {name} -t UTF-8 {{}} > text.txt`")
    return _BINARY


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


def _decodes(data: bytes, name: str) -> bool:
    try:
        data.decode(name)
    except UnicodeDecodeError:
        return False
    return True
