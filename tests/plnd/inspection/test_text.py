"""Tokens as text: contexts that join up, parts of characters shown whole, and nothing that steers."""

from __future__ import annotations

import unicodedata

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from plnd.inspection.text import in_context, token_text, visible, visible_token


def bytewise(merges: tuple[tuple[str, str], ...] = ()) -> PreTrainedTokenizerFast:
    """A token a byte, as GPT-2 writes bytes, and further ones by merging."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: n for n, letter in enumerate([*letters, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def pieces() -> PreTrainedTokenizerFast:
    """Pieces that begin with a mark for the space before them, as SentencePiece writes them."""
    tokenizer = Tokenizer(models.WordLevel({"▁the": 0, "▁house": 1, "s": 2, "<unk>": 3}, unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TEXT = "a 天地b"  # bytes 0, 1, 2-4, 5-7, 8


@pytest.mark.parametrize(
    "position, expected",
    [
        (0, ("", "a", " 天地b")),
        (1, ("a", " ", "天地b")),
        (2, ("a ", "天", "地b")),
        (3, ("a ", "天", "地b")),
        (4, ("a ", "天", "地b")),
        (7, ("a 天", "地", "b")),
        (8, ("a 天地", "b", "")),
    ],
)
def test_a_part_of_a_character_is_shown_as_the_whole(position, expected):
    """Whichever byte of a Chinese character a token is, the character is marked, once, in its context."""
    tokenizer = bytewise()
    ids = tokenizer(TEXT)["input_ids"]
    assert len(ids) == 9
    assert in_context(tokenizer, ids, position, 12) == expected


def test_a_context_that_is_cut_has_no_broken_characters():
    """Where a window begins or ends within a character, that character is there in full."""
    tokenizer = bytewise()
    ids = tokenizer("天地人和")["input_ids"]
    assert in_context(tokenizer, ids, 4, 4) == ("天", "地", "人")
    assert in_context(tokenizer, ids, 4, 3) == ("天", "地", "人")
    assert in_context(tokenizer, ids, 5, 1) == ("", "地", "人")
    for around in range(1, 8):
        for position in range(len(ids)):
            before, token, after = in_context(tokenizer, ids, position, around)
            assert token == "天地人和"[position // 3] and before + token + after in "天地人和"


def test_contexts_are_as_long_as_was_asked():
    """So many tokens before and after, fewer at the ends of a document."""
    tokenizer = bytewise()
    ids = tokenizer("abcdefgh")["input_ids"]
    assert in_context(tokenizer, ids, 4, 2) == ("cd", "e", "fg")
    assert in_context(tokenizer, ids, 0, 2) == ("", "a", "bc")
    assert in_context(tokenizer, ids, 7, 2) == ("fg", "h", "")


def test_spaces_of_tokens_are_kept():
    """A token shows the space before it, also where decoders drop that of a text's first token."""
    tokenizer = pieces()
    assert tokenizer.decode([1]) == "house" and token_text(tokenizer, 1) == " house"
    assert token_text(tokenizer, 2) == "s"
    assert in_context(tokenizer, [0, 1, 2], 1, 5) == ("the", " house", "s")
    assert token_text(bytewise((("Ġ", "a"),)), 256) == " a"


def test_tokens_that_are_no_text_have_a_name():
    """Bytes of a character have their numbers, not the letters that stand for bytes in tokenizers' files.

    A row of the unembedding without a token has its own number.
    """
    tokenizer = bytewise((("å", "¤"), ("Ġ", "å"), ("¤", "©"), ("©", "a")))
    assert tokenizer.convert_ids_to_tokens(256) == "å¤"
    assert [token_text(tokenizer, n) for n in (256, 257, 258, 259)] == [
        "<0xE5><0xA4>",
        " <0xE5>",
        "<0xA4><0xA9>",
        "<0xA9>a",
    ]
    for letter, byte in byte_letters().items():
        assert token_text(tokenizer, tokenizer.convert_tokens_to_ids(letter)) == (
            chr(byte) if byte < 0x80 else f"<0x{byte:02X}>"
        )
    assert token_text(tokenizer, 5000) == "[5000]"


def byte_letters() -> dict[str, int]:
    """What the letters of the alphabet stand for, as the tokenizers library itself writes single bytes."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found = {}
    for number in (*range(0x80), *range(0xA0, 0x100)):
        written = split.pre_tokenize_str(chr(number))[0][0]
        for letter, byte in zip(written, chr(number).encode(), strict=True):
            found[letter] = byte
    return found


def test_a_name_that_is_not_made_of_bytes_stays():
    """A byte of a SentencePiece tokenizer is already called by its number, and other names are left alone."""
    tokenizer = Tokenizer(models.WordLevel({"<0xE5>": 0, "▁\ufffd": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert token_text(fast, 0) == "<0xE5>"
    assert token_text(fast, 1) == "▁\ufffd"


STEERING = [
    "\x1b[31mred\x1b[0m",
    "a\x00b",
    "\x9b2J",
    "\u202egnp.exe",
    "\u2066x\u2069",
    "\u2028",
    "\ud800",
    "a\rb",
    "\x7f",
]


@pytest.mark.parametrize("text", STEERING)
def test_nothing_that_steers_is_left(text):
    """Controls of terminals and of writing direction, line separators and half pairs are spelled out."""
    for shown in (visible(text), visible_token(text)):
        assert not {unicodedata.category(letter) for letter in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
        shown.encode("utf-8")


def test_what_can_be_seen_is_left_as_it_is():
    """Scripts, marks and the joiners that Persian and emoji need; line ends and tabs have signs."""
    for text in ("中国 русский עברית العربية हिन्दी", "می‌خواهم", "👩‍💻", "<b>&amp;"):
        assert visible(text) == text
    assert visible("a\n\tb\x1b") == "a↵⇥b\\x1b"
    assert (visible_token("  a b "), visible_token(" "), visible_token("")) == ("␣␣a b␣", "␣", "")
