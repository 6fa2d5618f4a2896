"""Bytes that are no UTF-8, and how readers that would stop at them are made to go on.

The readers of `datasets` end a whole file, and so a run, at one wrong byte. Here such a place is
read as MARK, by which its document is known, and refused. It mends nothing: what is marked is lost.
"""

import codecs
import re

MARK = "\ufdd0\ufdd1 not UTF-8 \ufdd1\ufdd0"
"""Stands where bytes could not be read; four characters in it that no text may contain."""
HANDLER = "mark_undecodable"
"""Name of the error handler, for whoever decodes with Python."""
JSON_ENCODING = "utf8-marked-json"
"""Name of an encoding that is UTF-8, where halves of surrogate pairs written as \\uXXXX are marked
too: they are JSON but no text."""

# Each alternative takes a whole escape, so that the second half of "\\\\" begins none.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)"
)
_MAYBE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def _mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return MARK, error.end


def _mark_escape(found: re.Match[bytes]) -> bytes:
    return MARK.encode() if found[1] else found[0]


def _decode_json(data: bytes, errors: str = "strict") -> tuple[str, int]:
    """The codec's decoder; `errors` is ignored, since HANDLER is what it is for."""
    raw = bytes(data)
    if _MAYBE_SURROGATE.search(raw):
        raw = _ESCAPE.sub(_mark_escape, raw)
    return raw.decode(errors=HANDLER), len(data)


def _find(name: str) -> codecs.CodecInfo | None:
    if name.replace("_", "-") != JSON_ENCODING:
        return None
    return codecs.CodecInfo(codecs.utf_8_encode, _decode_json, name=JSON_ENCODING)


codecs.register_error(HANDLER, _mark)
codecs.register(_find)
