"""How files are changed: by bytes, and safetensors through their headers."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

NASTY = (
    *(b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xe2\x80\xae", b"\x1b[2J", b"\r", b"\n\n", b"'", b'"'),
    *(b"9" * 5000, b"1e999", b"-1", b"0.5", b"NaN", b"null", b"true", b"2147483648", b"18446744073709551616"),
    *(b"{", b"[]", b'""', b"[" * 3000, b'{"a":' * 3000, b"&a [*a, *a]", b"\\ud800", b"!!python/object:os.system"),
    *(b"=1+1", b"../../x", b"<script>", b"%s%n"),
)


def mutated(data: bytes, chance: random.Random, others: Sequence[bytes]) -> bytes:
    """A file after one or a few mutations; one of a safetensors file may go through its header."""
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        if len(data) > 8 and data[8:9] == b"{" and chance.random() < 0.4:
            data = with_other_header(data, chance)
        else:
            data = with_other_bytes(data, chance, others)
    return data


def with_other_bytes(data: bytes, chance: random.Random, others: Sequence[bytes]) -> bytes:
    """One mutation that knows no format."""
    start = chance.randrange(len(data) + 1)
    stop = min(len(data), start + int(10 ** chance.uniform(0, 3)))
    other = chance.choice(others)
    kind = chance.randrange(12)
    if kind <= 3 and data:  # one bit, anywhere or among the first
        place = chance.randrange(len(data)) if kind else chance.randrange(min(len(data), 400))
        return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]
    return {
        4: lambda: data[:start],
        5: lambda: data[:start] + data[stop:],
        6: lambda: data[:start] + bytes(stop - start) + data[stop:],
        7: lambda: data[:stop] + data[start:],
        8: lambda: data[:start] + chance.choice(NASTY) + data[start:],
        9: lambda: data[:start] + chance.choice(NASTY) + data[stop:],
        10: lambda: data[:start] + other[min(start, len(other)) :],
        11: lambda: data + chance.choice(NASTY),
    }.get(kind, lambda: data[:start] + chance.randbytes(stop - start) + data[stop:])()


def with_other_header(data: bytes, chance: random.Random) -> bytes:
    """A safetensors file whose header says something else, in JSON that is whole."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        said = json.loads(header["__metadata__"]["plnd"])
    except (ValueError, KeyError, TypeError):
        return data[: chance.randrange(len(data))]
    inner = chance.random() < 0.7
    changed = said if inner else header
    while True:  # to a random place within
        keys = list(changed) if isinstance(changed, dict) else list(range(len(changed)))
        if not keys:
            break
        key = chance.choice(keys)
        if isinstance(changed[key], (dict, list)) and changed[key] and chance.random() < 0.8:
            changed = changed[key]
            continue
        values = (
            None,
            -1,
            0,
            1,
            2**31,
            2**64,
            10**400,
            0.5,
            "",
            "x",
            "é\ud800"[:1],
            [],
            {},
            [[[]]],
            True,
            "I64",
            [0, 8],
            1e308,
        )
        if chance.random() < 0.2:
            del changed[key]
        else:
            changed[key] = chance.choice(values)
        break
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    if inner and chance.random() < 0.2:
        text = text[:-1] + f',"{chance.choice(list(said or ["a"]))}":{chance.choice(("0", "[]", "null"))}}}'
    if isinstance(header.get("__metadata__"), dict):
        header["__metadata__"]["plnd"] = text
    new = json.dumps(header, ensure_ascii=False).encode(errors="replace")
    return len(new).to_bytes(8, "little") + new + data[8 + length :]
