"""The rows of large JSON files one by one, in flat memory.

The elements of an array are cut out with Python's own scanner, as `json.loads` would
read them. (ijson's fast backend replaces half of a surrogate pair by another character
without a word; here it stays, so that the check of the text finds it.)
"""

import codecs
import json
from collections.abc import Iterator
from io import BufferedIOBase

from vtscale_jax.data.units import Row, shown

CHUNK = 1 << 20  # bytes
LONGEST = 1 << 26  # characters of one element; more is a bracket that never closes
DEEPEST = 32  # levels of a row; rows have four, and functions of Python have a limit
_SPACE = " \t\r\n"


class InputError(ValueError):
    """An input file that cannot be read to its end."""


def array_rows(file: BufferedIOBase, name: str) -> Iterator[Row]:
    """The elements of a JSON array, numbered from 1.

    Raises InputError, naming the file, the element and its place, where the file is no
    array, is cut off, or is not valid JSON or UTF-8: what follows cannot be told.
    """
    text = _Text(file, name)
    if text.next_character() != "[":
        found = shown(text.around())
        raise InputError(
            f"{name}: begins with {found}, expected a JSON array, [{{…}}, …]. A file of"
            " lines or a packed one is none: unpack it, or name its own SOURCE."
        )
    text.skip(1)
    number = 0
    if text.next_character() == "]":
        text.skip(1)
    else:
        while True:
            number += 1
            yield _row(number, text.value(number))
            mark = text.next_character()
            text.skip(1)
            if mark == "]":
                break
            if mark != ",":
                raise text.error(number, 'expected "," or "]" after it')
    if text.next_character():
        raise text.error(number, "expected the end of the file after it")


def line_rows(file: BufferedIOBase) -> Iterator[Row]:
    """The JSON values of a file of lines, numbered by line from 1; blank lines are
    passed over. A line that is no JSON becomes a Row with a fault."""
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            yield Row(number, None, f"{shown(line[:50])}: {error}")
        else:
            yield _row(number, value)


def _row(number: int, value: object) -> Row:
    level = [value]
    for _ in range(DEEPEST):
        inner = [one for one in level if isinstance(one, dict | list)]
        if not inner:
            return Row(number, value)
        lists = [one.values() if isinstance(one, dict) else one for one in inner]
        level = [one for values in lists for one in values]
    return Row(number, None, f"nested more than {DEEPEST} levels deep")


class _Text:
    """The characters of a file from a place on; what lies before is let go."""

    def __init__(self, file: BufferedIOBase, name: str):
        self._file, self._name = file, name
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._scan = json.JSONDecoder().raw_decode
        self._text, self._at, self._passed, self._ended = "", 0, 0, False

    def next_character(self) -> str:
        """The next character that is no space; "" at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def skip(self, number: int) -> None:
        self._at += number

    def around(self) -> str:
        return self._text[self._at : self._at + 40]

    def value(self, number: int) -> object:
        """The JSON value that comes next, element `number`."""
        self.next_character()
        wanted = 0
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except RecursionError as error:
                raise self.error(number, "nested too deeply") from error
            except ValueError as error:
                # Cut off or wrong: more of the file tells, up to a limit.
                if self._ended or len(self._text) - self._at > LONGEST:
                    raise self.error(number, str(error)) from error
            else:
                # A number at the very end may go on: 12 of 123, 1 of 1e+5.
                if len(self._text) - end > len("e+") or self._ended:
                    self._at = end
                    return value
            # Twice as much as last time, so that a long element is scanned few times.
            wanted = max(2 * wanted, CHUNK)
            before = len(self._text) - self._at
            while len(self._text) - self._at < before + wanted and self._more():
                pass

    def error(self, number: int, why: str) -> InputError:
        place = f"character {self._passed + self._at:,}"
        return InputError(
            f"{self._name}: element {number} of the array, near {place}"
            f" ({shown(self.around())}): {why}. The file is damaged or was not"
            " fetched to its end: fetch it again."
        )

    def _more(self) -> bool:
        """Reads on; False at the end of the file."""
        if self._ended:
            return False
        data = self._file.read(CHUNK)
        self._ended = not data
        try:
            text = self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self._name}: is not UTF-8: {error}. A packed file (.zip, .gz) is to "
                "be unpacked; another is damaged: fetch it again."
            ) from error
        self._passed += self._at
        self._text, self._at = self._text[self._at :] + text, 0
        return bool(text) or not self._ended
