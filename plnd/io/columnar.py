"""What a Parquet or Arrow file takes when it is unpacked, found before any of it is, so that a bomb is refused.

Both say for every piece that is unpacked at once how large it will be: Parquet in the header of each page, Arrow in
front of each buffer of a batch. Their library believes that and has no limit. A file that says too little is refused
by the library, which unpacks no more than is said.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

from plnd.errors import CorpusError

MAX_PAGE = 2**27
"""Bytes of a page; writers make them of one MiB, some of a hundred MB."""
MAX_BATCH = 2**30
"""Bytes that all rows of one compressed Arrow batch take."""
ROW_BYTES = 2**28
"""Bytes of the rows that are in memory together, unless one has more."""
_MAX_HEADER = 2**24
_MAX_DEPTH = 16


def rows_at_once(largest: int, most: int) -> int:
    """How many rows, at most `most`, can be in memory together if a value has no more than `largest` bytes."""
    return max(1, min(most, ROW_BYTES // max(1, largest)))


def largest_page(source: BinaryIO, columns: Collection[str], name: str) -> int:
    """Bytes of the largest page of a Parquet file when it is unpacked; no value is larger than the page that it is in.

    The footer is read here, too: pyarrow's objects of it end the process where a column's statistics are damaged.

    Args:
        source: the file, which can seek, and has a footer.
        columns: those that are read.
        name: of the file, for errors.

    Raises:
        CorpusError: if a page is larger than `MAX_PAGE`, or the footer or the header of a page is none.
    """
    source.seek(-8, 2)
    length = int.from_bytes(source.read(4), "little")
    source.seek(-8 - length, 2)
    try:
        groups = _Thrift(source.read(length)).struct(_FOOTER)[4]
        chunks = [column[3] for group in groups for column in group[1]]
        chosen = [chunk for chunk in chunks if chunk[3][0].decode() in columns]
        places = [(min(filter(None, (chunk[9], chunk.get(11)))), chunk[7]) for chunk in chosen]
        if min(min(place) for place in places or [(0, 0)]) < 0:
            raise ValueError("a place before the file")
    except (IndexError, KeyError, ValueError):
        raise CorpusError(f"{name}: damaged or cut off (no footer); fetch it again") from None
    return max((size for start, length in places for size in _page_sizes(source, start, length, name)), default=0)


_COLUMN: dict[int, Any] = {3: [bytes], 7: int, 9: int, 11: int}
"""Fields of ColumnMetaData: path, compressed size, places of the first data page and the dictionary page."""
_FOOTER: dict[int, Any] = {4: [{1: [{3: _COLUMN}]}]}
"""Of FileMetaData, the row groups; of RowGroup, the columns; of ColumnChunk, its metadata."""
_PAGE: dict[int, Any] = {2: int, 3: int}
"""Fields of PageHeader: bytes of the page, unpacked and as it is in the file."""


def _page_sizes(source: BinaryIO, place: int, length: int, name: str) -> Iterator[int]:
    """How large each page of a column chunk is when it is unpacked."""
    end = place + length
    while place < end:
        header, unpacked, packed = _page_header(source, place, name)
        if unpacked > MAX_PAGE:
            raise CorpusError(f"{name}: a page of {unpacked:,} bytes unpacked, {_most(MAX_PAGE)} write smaller pages")
        yield unpacked
        place += header + packed


def _most(limit: int) -> str:
    return f"expected at most {limit:,};"


def _page_header(source: BinaryIO, place: int, name: str) -> tuple[int, int, int]:
    """The bytes of a page's header, and those of the page, unpacked and as it is in the file."""
    size = 2**10
    while True:
        source.seek(place)
        data = source.read(size)
        header = _Thrift(data)
        try:
            fields = header.struct(_PAGE)
            unpacked, packed = fields[2], fields[3]
        except (IndexError, KeyError, ValueError):
            unpacked = packed = -1
        if min(unpacked, packed) >= 0:
            return header.place, unpacked, packed
        if len(data) < size or size >= _MAX_HEADER:
            raise CorpusError(f"{name}: damaged or cut off (no page at byte {place:,}); fetch it again")
        size *= 16


_KINDS: dict[type, tuple[int, ...]] = {int: (4, 5, 6), bytes: (8,), list: (9, 10), dict: (12,)}
"""The protocol's types of what can be wanted."""


class _Thrift:
    """Bytes in Thrift's compact protocol, of which only what is wanted is kept.

    https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md

    Raises:
        IndexError, ValueError: in every method, if the bytes end before, or are something else.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def struct(self, wanted: dict[int, Any], depth: int = 0) -> dict[int, Any]:
        """The wanted fields of a struct: numbers by `int`, texts by `bytes`, structs by their own fields, lists by
        their one kind of item in a list."""
        found, field = {}, 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._signed()
            value = self._value(head & 15, wanted.get(field), depth + 1)
            if field in wanted:
                found[field] = value
        return found

    def _value(self, kind: int, wanted: Any, depth: int) -> Any:
        """A value of one of the protocol's types, read past if it is not wanted; a list's booleans are bytes."""
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        if wanted is not None and kind not in _KINDS[wanted if isinstance(wanted, type) else type(wanted)]:
            raise ValueError(f"type {kind} where {wanted} was expected")
        if kind in (4, 5, 6):
            return self._signed()
        if kind == 8:
            length = self._whole()
            self.place += length
            return self.data[self.place - length : self.place]
        if kind in (9, 10):
            head = self._byte()
            kind, count = head & 15, self._whole() if head >> 4 == 15 else head >> 4
            item = wanted[0] if wanted else None
            values = (self._value(3 if kind in (1, 2) else kind, item, depth + 1) for _ in range(count))
            return [value for value in values if wanted]
        if kind == 12:
            return self.struct(wanted or {}, depth)
        if kind not in (1, 2, 3, 7):
            raise ValueError(f"type {kind}")
        self.place += {3: 1, 7: 8}.get(kind, 0)
        return None

    def _byte(self) -> int:
        self.place += 1
        return self.data[self.place - 1]

    def _whole(self) -> int:
        number = shift = 0
        while (part := self._byte()) > 127 and shift < 63:
            number |= (part & 127) << shift
            shift += 7
        return number | part << shift

    def _signed(self) -> int:
        number = self._whole()
        return number >> 1 ^ -(number & 1)


class Reluctant:
    """A file that gives what it has, piece by piece; Python's own makes room first for as much as is asked for."""

    def __init__(self, source: BinaryIO) -> None:
        self.source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def read(self, size: int = -1) -> bytes:
        """So many bytes, or those that there are."""
        found = bytearray()
        while size < 0 or len(found) < size:
            block = self.source.read(2**20 if size < 0 else min(2**20, size - len(found)))
            if not block:
                break
            found += block
        return bytes(found)


def checked_messages(source: BinaryIO, name: str) -> Iterator[bytes]:
    """The messages of an Arrow stream, none of which takes too much when it is unpacked.

    Args:
        source: the stream, or a file that is at its first message.
        name: of the file, for errors.

    Raises:
        CorpusError: if a compressed batch, or a dictionary, takes more than `MAX_BATCH` bytes.
    """
    import pyarrow

    messages = pyarrow.ipc.MessageReader.open_stream(Reluctant(source))
    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            return
        try:
            unpacked = sum(_buffer_sizes(memoryview(message.metadata), memoryview(message.body or b"")))
        except (struct.error, IndexError, ValueError):
            raise CorpusError(f"{name}: damaged or cut off (a batch is none); fetch it again") from None
        if unpacked > MAX_BATCH:
            raise CorpusError(f"{name}: a batch of {unpacked:,} bytes unpacked, {_most(MAX_BATCH)} write smaller ones")
        yield message.serialize()


def _buffer_sizes(metadata: memoryview, body: memoryview) -> Iterator[int]:
    """How large each compressed buffer of an Arrow message will be.

    https://github.com/apache/arrow/blob/main/format/Message.fbs, in https://flatbuffers.dev/internals/
    """

    def field(table: int, number: int) -> int:
        """Where a field of a table is; 0 if it is not there."""
        fields = table - struct.unpack_from("<i", metadata, table)[0]
        if struct.unpack_from("<H", metadata, fields)[0] <= 4 + 2 * number:
            return 0
        offset = struct.unpack_from("<H", metadata, fields + 4 + 2 * number)[0]
        return table + offset if offset else 0

    def follow(place: int) -> int:
        return place + struct.unpack_from("<I", metadata, place)[0]

    message = follow(0)
    kind, place = field(message, 1), field(message, 2)
    if not kind or not place:
        return
    batch = follow(place)
    if metadata[kind] == 2:  # a dictionary, whose second field is a batch
        batch = follow(field(batch, 1))
    elif metadata[kind] != 3:
        return
    buffers = field(batch, 2)
    if not field(batch, 3) or not buffers:  # not compressed: as large as in the file
        return
    buffers = follow(buffers)
    for number in range(struct.unpack_from("<I", metadata, buffers)[0]):
        offset, length = struct.unpack_from("<qq", metadata, buffers + 4 + 16 * number)
        if length >= 8:
            yield max(0, struct.unpack_from("<q", body, offset)[0])  # -1: this one is not compressed
