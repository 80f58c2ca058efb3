"""Records of a tab-separated file, one at a time, and where their cells lie in it.

A benchmark's table holds gigabytes of images in its cells, so no more than one record
is in memory, and a cell can be read again by its place. Quotes follow the rules of
pandas' parser: a cell that begins with `"` runs to the next single `"` and may hold
tabs, line ends and doubled quotes; elsewhere a quote is a character like others.
"""

from collections.abc import Iterator
from io import BufferedIOBase
from typing import NamedTuple

_BOM = b"\xef\xbb\xbf"


class TableError(ValueError):
    """A table that is not as its benchmark's should be."""


class Record(NamedTuple):
    """One record: the line it begins on (from 1), its cells as they are written, quotes
    included, and the byte at which each begins."""

    line: int
    cells: list[bytes]
    starts: list[int]


def records(file: BufferedIOBase, name: str) -> Iterator[Record]:
    """The records of a file that is open at its beginning; blank lines are passed over.

    TableError names `name` and the line of a quote that is never closed, and of a
    carriage return outside quotes that ends no line.
    """
    line, offset = 1, 0
    if file.read(len(_BOM)) == _BOM:
        offset = len(_BOM)
    file.seek(offset)
    while first := file.readline():
        raw, lines = bytearray(first), 1
        cells: list[bytes] = []
        starts: list[int] = []
        begin = -1 if _is_blank(raw) else 0
        while begin >= 0:
            quoted = raw[begin : begin + 1] == b'"'
            after = begin
            if quoted:
                after, more = _past_quotes(raw, begin, file)
                lines += more
                if after < 0:
                    raise TableError(
                        f"{name}, line {line}: cell {len(cells) + 1} begins with a "
                        "quote that is never closed; the file may be cut off: fetch "
                        "it again"
                    )
            end = len(raw) - _terminator(raw)
            tab = raw.find(b"\t", after, end)
            cell = bytes(raw[begin : end if tab < 0 else tab])
            if b"\r" in cell[after - begin :]:
                raise TableError(
                    f"{name}, line {line}: a carriage return outside quotes, expected "
                    "lines that end with a line feed; save the file with such line ends"
                )
            cells.append(cell)
            starts.append(offset + begin)
            begin = -1 if tab < 0 else tab + 1
        if cells:
            yield Record(line, cells, starts)
        line, offset = line + lines, offset + len(raw)


def unquoted(cell: bytes) -> bytes:
    """What a cell says, from how it is written."""
    if not cell.startswith(b'"'):
        return cell
    end = _closing_quote(cell, 1)
    return cell[1:end].replace(b'""', b'"') + cell[end + 1 :]


def _past_quotes(raw: bytearray, begin: int, file: BufferedIOBase) -> tuple[int, int]:
    """Where the quoted cell at `begin` has its closing quote behind it (-1: never), and
    how many further lines of the file were added to `raw` to find it."""
    more, search = 0, begin + 1
    while (quote := _closing_quote(raw, search)) < 0:
        # A line ends with a line feed, so no doubled quote is torn apart here.
        search = len(raw)
        following = file.readline()
        if not following:
            return -1, more
        raw += following
        more += 1
    return quote + 1, more


def _closing_quote(raw: bytes | bytearray, search: int) -> int:
    while (quote := raw.find(b'"', search)) >= 0:
        if raw[quote + 1 : quote + 2] != b'"':
            return quote
        search = quote + 2
    return -1


def _terminator(raw: bytearray) -> int:
    return 2 if raw.endswith(b"\r\n") else 1 if raw.endswith(b"\n") else 0


def _is_blank(raw: bytearray) -> bool:
    # Short lines only: a copy of a line with an image is not needed to see it is none.
    return len(raw) < 1000 and not raw.strip(b" \r\n")
