"""What becomes of a row: records that are kept, and parts that are left out, each with
its reason.

Every message of the input is accounted for: it is in a record that is kept, was cut
from one (`Kept.cut`), or belongs to something left out (`Left.messages`).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

USER, ASSISTANT = "user", "assistant"

# Why something is left out. The report counts by these words.
NOT_JSON = "not JSON"
MALFORMED = "malformed row"
UNKNOWN_ROLE = "unknown role"
NOT_ALTERNATING = "roles do not alternate"
UNANSWERED = "question without answer"
EMPTY = "empty message"
BROKEN_UNICODE = "broken Unicode"
BOX = "box that is no number"
OCR_TOKENS = "OCR tokens in the prompt"
NO_IMAGE = "no image (text only)"
SEVERAL_IMAGES = "several images"
SHORT_QUESTION = "first message under 4 characters"
TOO_SHORT = "too few characters"
TOO_LONG = "too many characters"
NOT_A_RECORD = "not a valid record"
DUPLICATE = "duplicate"


class Rejected(ValueError):
    """A row, or a part of one, that cannot become a record."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Row(NamedTuple):
    """A row of the input: its number (from 1; of a file of lines, its line), what it
    holds, and in place of that why it cannot be read."""

    number: int
    raw: Any
    fault: str | None = None


class Image(NamedTuple):
    """What a conversion knows of an image: its path below the root and its size in
    pixels."""

    path: str
    width: int
    height: int


class Kept(NamedTuple):
    """A record to be. `boxes` were rewritten, `cut` messages left off its end, `notes`
    are worth counting; `part` names it among the records of its row, `id` is its own
    name where the input has one."""

    messages: list[dict[str, Any]]
    part: str = ""
    id: str | None = None
    system: str | None = None
    boxes: int = 0
    cut: int = 0
    notes: tuple[str, ...] = ()


class Left(NamedTuple):
    """What is left out: a "row", or an "entry" or "pair" of one; how many messages it
    had."""

    reason: str
    detail: str
    unit: str
    messages: int


def shown(value: Any) -> str:
    """A value in a message: at most 60 characters of it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def listed(value: Any, field: str) -> list[Any]:
    """`value`, if it is a list; else Rejected names the field."""
    if not isinstance(value, list):
        raise Rejected(MALFORMED, f"{field} is {shown(value)}, expected a list")
    return value


def count(value: Any) -> int:
    """How many messages a field of the input has; none where it is no list."""
    return len(value) if isinstance(value, list) else 0


def text(value: Any, field: str) -> str:
    """`value`, if it is text that can be encoded; else Rejected names the field."""
    if not isinstance(value, str):
        raise Rejected(MALFORMED, f"{field} is {shown(value)}, expected a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Rejected(BROKEN_UNICODE, f"{field}: {error}") from error
    return value


def messages_of(
    value: Any,
    field: str,
    *,
    keys: tuple[str, str] = ("role", "content"),
    roles: Mapping[str, str],
    edit: Callable[[str], str] = str,
) -> list[dict[str, Any]]:
    """The messages of a conversation in the form of records: `keys` name the role and
    the text in the input, `roles` translates roles, `edit` changes each text. Other
    keys of a message are not read.

    Raises Rejected for what is no list of messages and for unknown roles; that they
    alternate is for `check_messages` to see, after a tail was cut.
    """
    who, what = keys
    found = []
    for index, message in enumerate(listed(value, field)):
        place = f"{field}[{index}]"
        if not isinstance(message, dict) or who not in message or what not in message:
            expected = f'an object with "{who}" and "{what}"'
            raise Rejected(
                MALFORMED, f"{place} is {shown(message)}, expected {expected}"
            )
        role = message[who]
        if not isinstance(role, str) or role not in roles:
            known = " or ".join(f'"{one}"' for one in roles)
            raise Rejected(UNKNOWN_ROLE, f"{place}: {shown(role)}, expected {known}")
        content = edit(text(message[what], f"{place}.{what}"))
        found.append({"role": roles[role], "content": content})
    return found


def check_messages(messages: list[dict[str, Any]]) -> None:
    """Raises Rejected unless messages alternate from the user, none is blank, and every
    question has its answer."""
    for index, message in enumerate(messages):
        expected = (USER, ASSISTANT)[index % 2]
        if message["role"] != expected:
            got = f"message {index + 1} is of the {message['role']}"
            raise Rejected(NOT_ALTERNATING, f"{got}, expected the {expected}")
        if not message["content"].strip():
            raise Rejected(EMPTY, f"message {index + 1}, of the {expected}")
    if not messages:
        raise Rejected(EMPTY, "there are no messages")
    if len(messages) % 2:
        raise Rejected(UNANSWERED, f"{len(messages)} messages, the last a question")
