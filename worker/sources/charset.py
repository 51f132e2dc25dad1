"""The characters of a page: which encoding its bytes are in, by the HTML standard (section 13.2.3.2). Pure.

A byte order mark wins over the Content-Type header, that over a meta element in the first 1,024 bytes, that over
UTF-8; what is not UTF-8 after all is windows-1252, as browsers in the West have it.
"""

import codecs
import email.message

from selectolax.lexbor import LexborHTMLParser

HEAD_BYTES = 1024

_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xfe\xff", "utf-16-be"), (b"\xff\xfe", "utf-16-le"))
# Labels that mean more than Python's codecs of the same name (the Encoding standard, section 4.2).
_LABELS = {
    "ascii": "cp1252",
    "latin1": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
    "tis-620": "cp874",
}
_REFUSED = frozenset({"utf-7", "idna", "punycode", "unicode-escape", "raw-unicode-escape"})
"""Codecs of text that no page is written in."""


def decode(body: bytes, content_type: str) -> str:
    """The text of a page. What cannot be decoded becomes U+FFFD."""
    for mark, name in _MARKS:
        if body.startswith(mark):
            return body[len(mark) :].decode(name, "replace")
    declared = _codec(_charset_of(content_type)) or _declared_inside(body[:HEAD_BYTES])
    if declared is not None:
        return body.decode(declared, "replace")
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body.decode("cp1252", "replace")


def media_type(content_type: str) -> str:
    """The type of a Content-Type header, in lower case and without parameters."""
    return content_type.partition(";")[0].strip().lower()


def _declared_inside(head: bytes) -> str | None:
    """What the first meta element says that says anything: UTF-16 cannot be right there, since it was read."""
    for meta in LexborHTMLParser(head.decode("latin-1")).css("meta"):
        attributes = meta.attributes
        label = attributes.get("charset")
        if label is None and (attributes.get("http-equiv") or "").lower() == "content-type":
            label = _charset_of(attributes.get("content") or "")
        codec = _codec(label or "")
        if codec is not None:
            return "utf-8" if codec.startswith("utf-16") else codec
    return None


def _charset_of(content_type: str) -> str:
    message = email.message.Message()
    message["Content-Type"] = " ".join(content_type.split())
    found = message.get_param("charset", "")
    return found if isinstance(found, str) else found[2]


def _codec(label: str) -> str | None:
    """Python's name of an encoding of text; None: there is none of this label."""
    label = label.strip().strip("\"'").lower().removeprefix("x-")
    if not label.isascii() or not label or "\0" in label:
        return None
    try:
        name = codecs.lookup({"sjis": "shift_jis"}.get(label, label)).name
        b"x".decode(name, "replace")  # Some codecs are not of text.
    except (LookupError, UnicodeError):  # "undefined" and "idna" decode nothing.
        return None
    return None if name in _REFUSED else _LABELS.get(name, name)
