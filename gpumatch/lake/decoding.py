"""Bytes of unknown encoding in, text out, or `Unreadable`.

Pure and deterministic: the same bytes are the same text on every machine. A byte-order mark decides; then UTF-8, if all
of it is; then the share of non-ASCII letters says whether Western Europe's encoding is likely enough.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable

from gpumatch.lake.rules import Unreadable

# If bytes above 127 are less than this share of the letters, they count as accented letters among plain ones. French
# has up to 9%, Czech 16%, three accents in a header of eight letters 38%; Cyrillic, Greek and Asian texts 60% and more.
HIGH_SHARE = 0.4
# How much charset-normalizer looks at: more is slower and not more certain.
SNIFFED_BYTES = 1 << 16
# For UTF-16 without a mark more than this share and this number of units must be ASCII (digits, delimiters, line ends);
# with fewer it is binary data.
_ZERO_SHARE, _ZEROS = 0.3, 3

_MARKS = {  # the longer ones first: UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_MARK_STARTS = tuple(_MARKS)
# Without isolation, charset-normalizer also offers EBCDIC and DOS encodings, which no table of today is in.
_CHARSETS = [
    "cp1251", "koi8_r", "mac_cyrillic", "cp1253", "cp1255", "cp1256", "cp1254", "cp1250", "cp1257", "cp1258", "cp1252",
    "cp874", "cp932", "euc_jp", "gb18030", "big5", "cp949",
]  # fmt: skip
WESTERN, MENDED = "western", "mended utf-8"
_WESTERN_TABLE = "".join(
    bytes([byte]).decode("cp1252", "ignore") or bytes([byte]).decode("latin-1") for byte in range(256)
)
_ASCII = bytes(range(128))
# The bytes of Windows-1252's punctuation and signs (€ … ‘ ’ “ ” • – — ™ nbsp £ § © « ® ° ± µ » ¼ and such), which say
# nothing of the letters; in other encodings these bytes are a few letters of many.
_WESTERN_SIGNS = bytes.fromhex("80 85 91 92 93 94 95 96 97 99 a0 a3 a7 a9 ab ae b0 b1 b2 b3 b5 b7 bb bc bd be")
_ASCII_LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def decode(data: bytes) -> tuple[str, str]:
    """Return all of a file as text without its byte-order mark, and the encoding.

    Raises:
        Unreadable: it is not in the encoding that its mark names, or contains NUL characters.
    """
    if not data.startswith(_MARK_STARTS):
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            pass
        else:
            if "\0" not in text:
                return text.lstrip("\ufeff"), "utf-8"
    encoding = encoding_of(data, complete=True)
    decoded = decoder(encoding)(data, True)
    refuse_nul(decoded, data)
    return decoded, encoding


def encoding_of(data: bytes, *, complete: bool) -> str:
    """Return the encoding of the start of a file, or of all of it if it is complete."""
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            return encoding
    for encoding, zeros, others in (("utf-16-le", data[1::2], data[::2]), ("utf-16-be", data[::2], data[1::2])):
        if zeros.count(0) > max(_ZEROS, _ZERO_SHARE * len(zeros)) and 0 not in others:
            return encoding
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data, complete)
    except UnicodeDecodeError:
        return other_encoding(data)
    return "utf-8"


def other_encoding(data: bytes) -> str:
    """Return the encoding of text that is not all UTF-8."""
    mended = data.decode("utf-8", "replace")
    broken = mended.count("\ufffd")
    valid = len(mended) - len(mended.encode("ascii", "ignore")) - broken
    cut = broken == 1 and mended.endswith("\ufffd")  # cut within the last character
    if valid > (0 if cut else 10 * broken):
        return MENDED  # no other encoding gives that many valid sequences by chance
    high = len(data.translate(None, _ASCII + _WESTERN_SIGNS))
    plain = len(data) - len(data.translate(None, _ASCII_LETTERS))
    return WESTERN if high < HIGH_SHARE * (high + plain) else _guessed(data)


def _guessed(data: bytes) -> str:
    """Ask charset-normalizer about the first lines that are not all ASCII."""
    from charset_normalizer import from_bytes  # most lakes never need it

    first = len(data) - len(data.lstrip(_ASCII))
    start = data.rfind(b"\n", 0, first) + 1
    sample = data[start : start + SNIFFED_BYTES]
    end = sample.rfind(b"\n") + 1 if len(data) > start + SNIFFED_BYTES else 0
    best = from_bytes(sample[: end or None], cp_isolation=_CHARSETS).best()
    return WESTERN if best is None or best.encoding == "cp1252" else str(best.encoding)


def decoder(encoding: str) -> Callable[[bytes, bool], str]:
    """Return a function from the next bytes, and whether they are the last, to text without a byte-order mark.

    Only "utf-8" lets its UnicodeDecodeError out, since another encoding can then be tried.
    """
    if encoding == WESTERN:
        return lambda data, final: codecs.charmap_decode(data, "strict", _WESTERN_TABLE)[0]
    kind = "utf-8" if encoding == MENDED else encoding
    errors = "strict" if kind.startswith("utf-") and encoding != MENDED else "replace"
    step = codecs.getincrementaldecoder(kind)(errors).decode
    fresh = True

    def decode_next(data: bytes, final: bool) -> str:
        nonlocal fresh
        try:
            text = step(data, final)
        except UnicodeDecodeError as error:
            if encoding == "utf-8":
                raise
            raise Unreadable("encoding", f"no {encoding.upper()}: {error.reason}") from error
        if fresh and text:
            text, fresh = text.lstrip("\ufeff"), False
        return text

    return decode_next


def replaces(encoding: str) -> bool:
    """Tell an encoding whose undefined bytes become U+FFFD from one that has none."""
    return encoding == MENDED or not (encoding == WESTERN or encoding.startswith("utf-"))


def refuse_nul(text: str, data: bytes = b"") -> None:
    """Refuse NUL characters.

    Raises:
        Unreadable: there is one.
    """
    if "\0" in text:
        where = data.index(0) if 0 in data else text.index("\0")
        raise Unreadable("nul-bytes", f"a NUL byte at offset {where}")
