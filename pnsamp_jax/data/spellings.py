"""Spellings of ids, as tables that people and spreadsheets write have them."""

import re
import unicodedata

DASHES = "\u2010-\u2015\u2212\ufe58\ufe63\uff0d"  # and the minus sign of word processors, as part of a pattern
SEPARATOR = rf"[\s_\-{DASHES}]+"


def bare(text: str) -> str:
    """Return what different spellings of an id have in common, so that those of one id are equal.

    Left out are case, blanks, hyphens, underscores, invisible characters, the leading zeros of each number, and the
    decimal that a spreadsheet adds to a whole number. Between two digits a separator stays: 1-11 and 11-1 are two. So
    do zeros behind a point: 1.1 may be a spreadsheet's 1.10, and not 1.01.
    """
    text = _visible(unicodedata.normalize("NFKC", text)).casefold().strip()
    if text.removesuffix(".0").isdecimal():
        text = text.removesuffix(".0")
    text = re.sub(rf"(?<=\d){SEPARATOR}(?=\d)", "-", text)
    text = re.sub(rf"(?<!\d){SEPARATOR}|{SEPARATOR}(?!\d)", "", text)
    return re.sub(r"(?<!\d)(?<!\d[.,])0+(?=\d)", "", text)


def with_minus(text: str) -> str:
    """Return a text with a plain minus sign in place of each dash that stands before a number."""
    return re.sub(rf"[{DASHES}](?=[.,]?\d)", "-", text)


def difference(one: str, other: str) -> str:
    """Return how two spellings of an id differ, as "'P1' and 'p1' differ only in ..."."""
    shown = f"'{one}' and '{other}'"
    if _visible(unicodedata.normalize("NFC", one)) == _visible(unicodedata.normalize("NFC", other)):
        return (
            f"{shown} look alike, but are written with other characters, {one!a} and {other!a} (other Unicode forms, "
            "or an invisible one)"
        )
    return f"{shown} differ only in case, blanks, hyphens, underscores, leading zeros or a final .0"


def _visible(text: str) -> str:
    """Return a text without characters that are not shown, such as a zero-width space or a byte order mark."""
    return "".join(character for character in text if unicodedata.category(character) != "Cf")
