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


def largest_page(source: BinaryIO, metadata: Any, columns: Collection[str], name: str) -> int:
    """Bytes of the largest page of a Parquet file when it is unpacked; no value is larger than the page that it is in.

    Args:
        source: the file, which can seek.
        metadata: pyarrow's, of the file.
        columns: those that are read.
        name: of the file, for errors.

    Raises:
        CorpusError: if a page is larger than `MAX_PAGE`, or its header is none.
    """
    largest = 0
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(number)
            if chunk.path_in_schema.partition(".")[0] in columns:
                largest = max(largest, *_page_sizes(source, chunk, name), 0)
    return largest


def _page_sizes(source: BinaryIO, chunk: Any, name: str) -> Iterator[int]:
    """How large each page of a column chunk is when it is unpacked."""
    starts = (chunk.data_page_offset, chunk.dictionary_page_offset if chunk.has_dictionary_page else None)
    place = min(start for start in starts if start)
    end = place + chunk.total_compressed_size
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
        try:
            fields, length = _thrift(data)
            unpacked, packed = fields[2], fields[3]
        except (IndexError, KeyError, ValueError):
            unpacked = packed = length = -1
        if min(unpacked, packed) >= 0:
            return length, unpacked, packed
        if len(data) < size or size >= _MAX_HEADER:
            raise CorpusError(f"{name}: damaged or cut off (no page at byte {place:,}); fetch it again")
        size *= 16


def _thrift(data: bytes) -> tuple[dict[int, int], int]:
    """The whole numbers of a struct in Thrift's compact protocol, by field, and how many bytes the struct has.

    https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
    """
    place = 0

    def byte() -> int:
        nonlocal place
        place += 1
        return data[place - 1]

    def whole() -> int:
        number = shift = 0
        while (part := byte()) > 127 and shift < 63:
            number |= (part & 127) << shift
            shift += 7
        return number | part << shift

    def signed() -> int:
        number = whole()
        return number >> 1 ^ -(number & 1)

    def skip(kind: int, depth: int) -> None:
        nonlocal place
        if kind in (4, 5, 6):
            whole()
        elif kind == 8:
            length = whole()
            place += length
        elif kind in (9, 10):
            head = byte()
            for _ in range(whole() if head >> 4 == 15 else head >> 4):
                if head & 15 in (1, 2):
                    byte()
                else:
                    skip(head & 15, depth)
        elif kind == 12:
            struct_at(depth + 1)
        elif kind in (3, 7):
            place += 1 if kind == 3 else 8
        elif kind not in (1, 2):
            raise ValueError(kind)

    def struct_at(depth: int) -> dict[int, int]:
        found, field = {}, 0
        if depth > _MAX_DEPTH or place > len(data):
            raise ValueError(depth)
        while head := byte():
            field = field + (head >> 4) if head >> 4 else signed()
            if head & 15 in (4, 5, 6):
                found[field] = signed()
            else:
                skip(head & 15, depth)
        return found

    found = struct_at(0)
    return found, place


def checked_messages(source: BinaryIO, name: str) -> Iterator[bytes]:
    """The messages of an Arrow stream, none of which takes too much when it is unpacked.

    Args:
        source: the stream, or a file that is at its first message.
        name: of the file, for errors.

    Raises:
        CorpusError: if a compressed batch, or a dictionary, takes more than `MAX_BATCH` bytes.
    """
    import pyarrow

    messages = pyarrow.ipc.MessageReader.open_stream(source)
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
