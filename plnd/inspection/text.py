"""Tokens as text that people can read: in their context, with what cannot be seen made visible."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

BROKEN = "\ufffd"
"""What decoders put for bytes that are no whole character."""
_LONGEST = 3
"""Bytes that a character can have after its first one."""
_SIGNS = {"\n": "↵", "\r": "␍", "\t": "⇥"}
_JOINERS = "\u200c\u200d"
"""Which Persian, Hindi and emoji need, and which move nothing."""
_AS_THEMSELVES = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_BYTES = {chr(byte): byte for byte in _AS_THEMSELVES} | {
    chr(0x100 + place): byte for place, byte in enumerate(sorted({*range(0x100)} - {*_AS_THEMSELVES}))
}
"""The letters that stand for bytes in the names that GPT-2's and all byte-level tokenizers give to tokens."""


def visible(text: str) -> str:
    """A text without characters that steer: line ends and tabs as signs, other controls as their numbers.

    Controls of a terminal and of the direction of writing, separators of lines, and halves of surrogate pairs: printed
    or shown as they are, they would change what stands around them, or could not be written at all.
    """
    return "".join(_SIGNS.get(letter) or (_number(letter) if _steers(letter) else letter) for letter in text)


def visible_token(text: str) -> str:
    """The same of one token, with the spaces at its ends as signs."""
    inner = text.strip(" ")
    if not inner:
        return "␣" * len(text)
    before, after = (len(text) - len(text.lstrip(" ")), len(text) - len(text.rstrip(" ")))
    return "␣" * before + visible(inner) + "␣" * after


def token_text(tokenizer: Any, token: int) -> str:
    """A token by itself, with the space before it; bytes that are no whole character as their numbers, `<0xE4>`."""
    if not 0 <= token < len(tokenizer):
        return f"[{token}]"
    once, twice = _decoded(tokenizer, [token]), _decoded(tokenizer, [token, token])
    text = twice[len(once) :] if twice.startswith(once) else once  # decoders drop a space at the beginning of a text
    return _name(tokenizer.convert_ids_to_tokens(token)) if BROKEN in text or not text else text


def in_context(tokenizer: Any, ids: Sequence[int], position: int, around: int) -> tuple[str, str, str]:
    """What stands before a token, the token, and what stands after it.

    A token that is a part of a character is shown as the whole character, and so are parts where the context ends.

    Args:
        tokenizer: of the model.
        ids: the document's.
        position: of the token.
        around: tokens shown before and after.
    """
    start, stop = _whole_characters(tokenizer, ids, max(0, position - around), min(len(ids), position + 1 + around))
    before = _decoded(tokenizer, ids[start:position]).rstrip(BROKEN)
    end = position + 1
    through = _decoded(tokenizer, ids[start:end])
    while through.endswith(BROKEN) and end < stop:
        end += 1
        through = _decoded(tokenizer, ids[start:end])
    whole = _decoded(tokenizer, ids[start:stop])
    token, after = _rest(before, through), _rest(through, whole).rstrip(BROKEN)
    return before.lstrip(BROKEN) if start else before, token or token_text(tokenizer, ids[position]), after


def _whole_characters(tokenizer: Any, ids: Sequence[int], start: int, stop: int) -> tuple[int, int]:
    """A piece of a document that is made longer where it begins or ends within a character, by three tokens at most."""
    first, last = max(0, start - _LONGEST), min(len(ids), stop + _LONGEST)
    while start > first and _decoded(tokenizer, ids[start:stop]).startswith(BROKEN):
        start -= 1
    while stop < last and _decoded(tokenizer, ids[start:stop]).endswith(BROKEN):
        stop += 1
    return start, stop


def _rest(beginning: str, text: str) -> str:
    """What follows on a beginning, as far as the two agree."""
    same = 0
    for one, other in zip(beginning, text, strict=False):
        if one != other:
            break
        same += 1
    return text[same:]


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def _name(name: Any) -> str:
    """A tokenizer's own name for a token; of one that is made of bytes, these, where they are text as text."""
    name = str(name)
    if not {*name} <= {*_BYTES}:
        return name
    text = bytes(_BYTES[letter] for letter in name).decode("utf-8", "surrogateescape")
    return "".join(f"<0x{ord(x) - 0xDC00:02X}>" if 0xDC80 <= ord(x) <= 0xDCFF else x for x in text)


def _steers(letter: str) -> bool:
    return letter not in _JOINERS and unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _number(letter: str) -> str:
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
