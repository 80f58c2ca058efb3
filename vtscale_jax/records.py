"""Raw sample -> validated `types.Record` (spec: data, sections 2 and 9).

A raw sample is one object of the prepared JSONL:

    {"image": "coco/1.jpg", "messages": [{"role": "user", "content": "What colour?"},
                                         {"role": "assistant", "content": "Red"}]}

`image` is a path, null or the word "none" in any case. Optional are "id" (string) and
"system" (string) beside them, and "family" (string) in a message, which names the kind
of question. Any other key is an error, so that a mistyped one is not lost.

Quirk 10 of the specification, decided against parity: the authors' code turns several
texts of one benchmark message into alternating user and assistant turns, and keeps only
the last of several images. Both change what is asked without a word, so a list as
`content` or as `image` is an error here, and the remedy is in its text.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from vtscale_jax.types import Record, Turn

# In this order; a conversation starts with the first and alternates.
ROLES = ("user", "assistant")


class RecordError(ValueError):
    """A raw sample that does not have the form of a record."""


def parse_record(
    raw: Any,
    *,
    record_id: str,
    image_root: str | Path | None = None,
    require_image: bool = False,
    require_answer: bool = True,
) -> Record:
    """One raw sample (a decoded JSON object, see the module's docstring) -> Record.

    `record_id` names the sample in errors, and is the Record's id unless the sample has
    an "id". With `image_root` the image must be a relative path below it and the Record
    holds the joined path; whether the file is there is for `images.load_image` to find.
    A link that leads out of the root is refused. The root may be remote
    (`gs://bucket/folder`); an image by itself may not, so that no record names a
    server. The bytes of an image file and RGB arrays `[height, width, 3]` uint8 are
    allowed as image too.

    Messages alternate, starting from the user, and none is empty or blank.
    `require_answer` is for training: every question has its answer, so their number is
    even. Without it the last question may stand alone (its answer is "").

    Raises RecordError naming the record, the field, what was got and expected, and the
    remedy.
    """
    fields = _fields(raw, record_id)
    image = _image(fields["image"], record_id, image_root)
    if image_root is not None and isinstance(image, str):
        _check_links(image, record_id, image_root)
    if image is None and require_image:
        _fail(record_id, "image", "none", "an image", "Drop text-only samples first.")
    messages = _messages(fields["messages"], record_id)
    turns = _turns(messages, record_id, require_answer)
    return Record(fields.get("id", record_id), image, turns, fields.get("system"))


def read_jsonl(path: str | Path) -> Iterator[tuple[int, Any]]:
    """The JSON values of a JSONL file, each with its line number from 1; blank lines
    are passed over. Raises RecordError naming file and line for one that is no JSON."""
    for number, _, line in _lines(Path(path)):
        yield number, _decoded(line, f"{path}:{number}")


def is_address(path: str) -> bool:
    """Whether this names a remote file or folder: it begins with a scheme and ://."""
    scheme, found, _ = path.partition("://")
    return bool(found) and scheme.isalnum()


class JSONLSource:
    """The records of a JSONL file by index: `len(source)`, `source[i]`.

    Opening it reads the file once, checks every line, and keeps the byte offsets of the
    rows that pass the authors' filter (spec: data, section 9): at least 2 messages,
    `min_chars` to `max_chars` characters over all messages (both included; the system
    prompt does not count), and an image where `require_image` is set. `rejected` counts
    the rows that did not pass by reason; a row that is not a valid record is a
    RecordError, as it is for the authors. `fingerprint` is the SHA-256 of all rows.

    A record's id is its "id", or "<file name>:<line>". The file is opened anew for each
    record and nothing is shared, so the source may be pickled to worker processes and
    used from threads.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        image_root: str | Path | None = None,
        require_image: bool = False,
        min_chars: int = 25,
        max_chars: int = 5000,
    ):
        if not 0 <= min_chars <= max_chars:
            raise RecordError(
                f"min_chars, max_chars: got {min_chars} and {max_chars}; expected"
                " 0 <= min_chars <= max_chars."
            )
        self.path = Path(path)
        self.image_root = image_root
        self.require_image = require_image
        self.min_chars = min_chars
        self.max_chars = max_chars
        self.rejected: Counter[str] = Counter()
        offsets, numbers, sizes = [], [], []
        digest = hashlib.sha256()
        for number, offset, line in _lines(self.path):
            digest.update(line)
            record_id = f"{self.path.name}:{number}"
            fields = _fields(_decoded(line, f"{self.path}:{number}"), record_id)
            messages = _messages(fields["messages"], record_id)
            chars = sum(len(message["content"]) for message in messages)
            reason = self._reason_to_reject(fields, messages, chars, record_id)
            if reason:
                self.rejected[reason] += 1
            else:
                offsets.append(offset)
                numbers.append(number)
                sizes.append((len(messages), chars))
        self._offsets = np.asarray(offsets, np.int64)
        self._numbers = np.asarray(numbers, np.int64)
        self._sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
        self._state = _file_state(self.path)
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Record:
        """Record `index`, counted from 0 over the rows kept; negative ones count from
        the end. Raises IndexError beyond them, and RecordError when the file has
        changed since it was opened."""
        offset, number = int(self._offsets[index]), int(self._numbers[index])
        if _file_state(self.path) != self._state:
            raise RecordError(
                f"{self.path}: got a file changed since it was opened; expected its"
                " size and modification time to stay. Open the source again."
            )
        with self.path.open("rb") as file:
            file.seek(offset)
            line = file.readline()
        raw = _decoded(line, f"{self.path}:{number}")
        record_id = f"{self.path.name}:{number}"
        return parse_record(raw, record_id=record_id, image_root=self.image_root)

    def __repr__(self) -> str:
        return (
            f"JSONLSource({str(self.path)!r}, {len(self)} records,"
            f" rejected={dict(self.rejected)})"
        )

    def longest(self, number: int) -> list[int]:
        """Indices of the `number` records with the most messages, and of the `number`
        with the most characters: what the shapes of batches must hold."""
        order = np.argsort(self._sizes, axis=0, kind="stable")[-number:]
        return sorted(set(order.ravel().tolist()))

    def _reason_to_reject(
        self,
        fields: dict[str, Any],
        messages: list[dict[str, Any]],
        chars: int,
        record_id: str,
    ) -> str | None:
        if len(messages) < 2:
            return "fewer than 2 messages"
        if chars < self.min_chars:
            return f"fewer than {self.min_chars} characters"
        if chars > self.max_chars:
            return f"more than {self.max_chars} characters"
        _turns(messages, record_id, require_answer=True)
        image = _image(fields["image"], record_id, self.image_root)
        if self.require_image and image is None:
            return "no image"
        return None


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(line number from 1, byte offset, line) of every line that is not blank."""
    if not path.is_file():
        raise RecordError(f"{path}: no such file; expected a JSONL file of records.")
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, offset, line
            offset += len(line)


def _file_state(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _decoded(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RecordError(
            f"{where}: got {line[:60]!r} ({error}); expected one JSON object in UTF-8"
            " on the line. Repair or delete the line."
        ) from error


def _fields(raw: Any, record_id: str) -> dict[str, Any]:
    form = 'an object with "image" and "messages"'
    _check_keys(raw, ("image", "messages"), ("id", "system"), record_id, "", form)
    for key in ("id", "system"):
        if key in raw:
            _check_text(raw[key], record_id, key)
    if raw.get("id") == "":
        _fail(record_id, "id", '""', "a name", "Name it, or leave the key out.")
    return raw


def _image(
    image: Any, record_id: str, root: str | Path | None
) -> str | bytes | np.ndarray | None:
    if image is None or (isinstance(image, str) and image.lower() == "none"):
        return None
    if isinstance(image, bytes):
        return image
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
            got = f"{image.dtype} pixels of shape {image.shape}"
            expected = "uint8 RGB, [height, width, 3]"
            _fail(record_id, "image", got, expected, "Scale to 0..255 and convert.")
        return image
    if isinstance(image, list | tuple):
        remedy = "Join them into one picture, or make one record of each."
        _fail(record_id, "image", f"a list of {len(image)}", "one image", remedy)
    expected = "a path, null or RGB pixels"
    remedy = "Give the image file's path, or null for a sample without image."
    if not isinstance(image, str) or not image.strip() or "\0" in image:
        _fail(record_id, "image", _shown(image), expected, remedy)
    _check_text(image, record_id, "image")
    if is_address(image):
        expected = "a path"
        remedy = "Give its bucket and folder as image_root, and the path below them."
        _fail(record_id, "image", _shown(image), expected, remedy)
    if root is None:
        return image
    # os.path, as pathlib takes a third of the time to open a source.
    if os.path.isabs(image) or ".." in image.split("/"):
        expected = f"a path below image_root {str(root)!r}"
        remedy = "Make it relative to the root, or leave image_root out."
        _fail(record_id, "image", _shown(image), expected, remedy)
    if is_address(str(root)):
        return f"{str(root).rstrip('/')}/{image}"
    return os.path.join(root, image)


def _check_links(path: str, record_id: str, root: str | Path) -> None:
    """Not done when a source is opened: each record would cost a look at the disk."""
    if is_address(str(root)):
        return
    real, above = os.path.realpath(path), os.path.realpath(root)
    if os.path.commonpath([real, above]) != above:
        got = f"{path!r}, a link to {real!r}"
        remedy = "Copy or mount the files below the root, or choose a root above both."
        _fail(record_id, "image", got, f"a file below image_root {str(root)!r}", remedy)


def _messages(messages: Any, record_id: str) -> list[dict[str, Any]]:
    """Checks each message by itself; their order is checked by `_turns`."""
    if not isinstance(messages, list):
        remedy = "Write them as a JSON array."
        _fail(record_id, "messages", _shown(messages), "a list of messages", remedy)
    form = 'an object with "role" and "content"'
    for index, message in enumerate(messages):
        field = f"messages[{index}]"
        _check_keys(message, ("role", "content"), ("family",), record_id, field, form)
        role, content = message["role"], message["content"]
        if role not in ROLES:
            remedy = 'A system prompt goes into the record\'s "system".'
            expected = '"user" or "assistant"'
            _fail(record_id, f"{field}.role", _shown(role), expected, remedy)
        if isinstance(content, list | tuple):
            got = f"a list of {len(content)} parts"
            remedy = "Join its texts into one string; name the image in the record."
            _fail(record_id, f"{field}.content", got, "one string", remedy)
        _check_text(content, record_id, f"{field}.content")
        if "family" in message:
            _check_text(message["family"], record_id, f"{field}.family")
    return messages


def _turns(
    messages: list[dict[str, Any]], record_id: str, require_answer: bool
) -> tuple[Turn, ...]:
    if not messages:
        remedy = "Give it one, or drop the record."
        _fail(record_id, "messages", "none", "at least one question", remedy)
    for index, message in enumerate(messages):
        field, role = f"messages[{index}]", ROLES[index % 2]
        if message["role"] != role:
            remedy = "Roles alternate, starting from the user: join or drop messages."
            got = _shown(message["role"])
            _fail(record_id, f"{field}.role", got, f'"{role}"', remedy)
        if not message["content"].strip():
            part = "a question" if role == "user" else "an answer"
            got = _shown(message["content"])
            remedy = "Fill it in, or drop the question together with its answer."
            _fail(record_id, f"{field}.content", got, part, remedy)
    if len(messages) % 2 and require_answer:
        got = f"{len(messages)} messages, the last a question without answer"
        remedy = "Drop the last question; to have it answered, require_answer=False."
        _fail(record_id, "messages", got, "an even number of messages", remedy)
    answers = [*messages[1::2], *([{"content": ""}] if len(messages) % 2 else [])]
    turns = []
    for index, (asked, answered) in enumerate(zip(messages[::2], answers, strict=True)):
        family = asked.get("family", answered.get("family", ""))
        if answered.get("family", family) != family:
            field = f"messages[{2 * index + 1}].family"
            got, remedy = _shown(answered["family"]), "Name it once, with the question."
            _fail(record_id, field, got, f"{family!r} as its question has", remedy)
        turns.append(Turn(asked["content"], answered["content"], family))
    return tuple(turns)


def _check_keys(
    value: Any,
    required: tuple[str, ...],
    optional: tuple[str, ...],
    record_id: str,
    field: str,
    form: str,
) -> None:
    if not isinstance(value, dict):
        _fail(record_id, field, _shown(value), form, "Write it as a JSON object.")
    missing = [key for key in required if key not in value]
    if missing:
        got = f"no {_listed(missing)}; its keys are {_listed(value) or 'none'}"
        hint = (
            ' A sample without image has "image": null.' if "image" in missing else ""
        )
        _fail(record_id, field, got, form, f"Add {_listed(missing)}.{hint}")
    unknown = [key for key in value if key not in required + optional]
    if unknown:
        allowed = f"only {_listed(required + optional)}"
        got = f"unknown {_listed(unknown)}"
        _fail(record_id, field, got, allowed, "Rename or remove what is unknown.")


def _check_text(value: Any, record_id: str, field: str) -> None:
    if not isinstance(value, str):
        _fail(record_id, field, _shown(value), "a string", "Write it in quotes.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON may escape half of a surrogate pair, which no tokenizer can encode.
        remedy = "Remove or complete the \\ud800-\\udfff escape."
        _fail(record_id, field, f"broken Unicode ({error})", "valid Unicode", remedy)


def _shown(value: Any) -> str:
    text = repr(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return text if isinstance(value, str) else f"{type(value).__name__} {text}"


def _listed(keys: Any) -> str:
    return ", ".join(f'"{key}"' for key in keys)


def _fail(record_id: str, field: str, got: str, expected: str, remedy: str) -> NoReturn:
    where = f"record {record_id!r}" + (f", {field}" if field else "")
    raise RecordError(f"{where}: got {got}; expected {expected}. {remedy}")
