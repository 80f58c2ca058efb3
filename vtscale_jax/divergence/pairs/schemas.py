"""One row of a file of pairs as a `Pair`, or as a `BadRow` that says what is wrong.

See `rows` for the two schemas.
"""

from typing import Any, NamedTuple

# Why a row is not used. The first seven are found in files, the others when a row is
# made tokens.
REASONS = (
    *("not JSON", "missing field", "wrong type", "broken text"),
    *("empty branch", "prefix mismatch", "same branches"),
    *("over-long", "refused by template", "unknown words"),
    *("unreadable image", "not finite"),
)
ROLES = ("system", "user", "assistant")

Message = tuple[str, str]


class PairsError(ValueError):
    """A file of pairs that cannot be used, or a tokenizer that cannot write them."""


class Pair(NamedTuple):
    """Two answers to one prompt.

    `line` is the line of the file, from 1, or the row of a Parquet file, from 1.
    `messages` are (role, content) of the prompt, a system message first if there is
    one; `chosen` is the text of branch A, `rejected` that of branch B.
    """

    line: int
    messages: tuple[Message, ...]
    chosen: str
    rejected: str


class BadRow(NamedTuple):
    """A row that is not used: its `line` as in `Pair`, one of `REASONS`, and what
    exactly was found there."""

    line: int
    reason: str
    detail: str


class _Found(Exception):
    """What is wrong with the row being read."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def pair_of(line: int, raw: Any) -> Pair | BadRow:
    """The pair that a decoded row holds, or why it holds none."""
    try:
        if not isinstance(raw, dict):
            raise _wrong("the row", raw, "an object with chosen and rejected")
        messages, chosen, rejected = _parts(raw)
    except _Found as found:
        return BadRow(line, found.reason, str(found))
    if chosen == rejected:
        return BadRow(line, "same branches", "chosen equals rejected, so D is 0")
    return Pair(line, messages, chosen, rejected)


def _parts(raw: dict[str, Any]) -> tuple[tuple[Message, ...], str, str]:
    # In Parquet a field that a row lacks is null.
    raw = {name: value for name, value in raw.items() if value is not None}
    for name in ("chosen", "rejected"):
        if name not in raw:
            raise _Found("missing field", f"{name}: not there; {_keys(raw)}")
    chosen, rejected = raw["chosen"], raw["rejected"]
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise _wrong("rejected", rejected, "a string or a chat list, as chosen is")
    if isinstance(chosen, list):
        before, chosen, rejected = _from_chats(raw)
    else:
        chosen, rejected = _text("chosen", chosen), _text("rejected", rejected)
        before = _prompt(raw)
        if before is None:
            raise _Found(
                "missing field", f"question or prompt: not there; {_keys(raw)}"
            )
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer.strip():
            raise _Found("empty branch", f"{name}: got {answer!r}, expected an answer")
    before = _with_system(before, _text("system", raw.get("system", "")))
    if not any(role == "user" and content.strip() for role, content in before):
        raise _Found("missing field", "prompt: it has no question, or an empty one")
    return before, chosen, rejected


def _prompt(raw: dict[str, Any]) -> tuple[Message, ...] | None:
    """What `question` or `prompt` holds, as messages; None when neither is there."""
    given = [name for name in ("question", "prompt") if name in raw]
    if not given:
        return None
    if len(given) == 2 and raw["question"] != raw["prompt"]:
        raise _Found("wrong type", "question and prompt are both there, and differ")
    name = given[0]
    if isinstance(raw[name], list):
        return _chat(name, raw[name])
    return (("user", _text(name, raw[name])),)


def _from_chats(raw: dict[str, Any]) -> tuple[tuple[Message, ...], str, str]:
    """(prompt, chosen, rejected) where both branches are chat lists."""
    prompt = _prompt(raw)
    sides = {}
    for name in ("chosen", "rejected"):
        chat = _chat(name, raw[name])
        if not chat or chat[-1][0] != "assistant":
            got = f"its last role is {chat[-1][0]}" if chat else "it has no message"
            raise _Found("empty branch", f"{name}: {got}, expected assistant")
        sides[name] = _joined(name, prompt or (), chat)
    chosen, rejected = sides["chosen"], sides["rejected"]
    if chosen[:-1] != rejected[:-1]:
        pairs = zip(chosen[:-1], rejected[:-1], strict=False)
        same = next((i for i, (x, y) in enumerate(pairs) if x != y), None)
        place = min(len(chosen), len(rejected)) if same is None else same + 1
        raise _Found(
            "prefix mismatch", f"chosen and rejected differ from message {place} on"
        )
    return chosen[:-1], chosen[-1][1], rejected[-1][1]


def _joined(
    name: str, prompt: tuple[Message, ...], chat: tuple[Message, ...]
) -> tuple[Message, ...]:
    """The whole conversation: some data sets have a prompt, and repeat it in both
    branches."""
    said = chat[1:] if chat[0][0] == "system" else chat
    asked = prompt[1:] if prompt and prompt[0][0] == "system" else prompt
    if said[: len(asked)] == asked:
        return chat
    if said[0][0] == "user":
        raise _Found(
            "prefix mismatch",
            f"{name} is a conversation that begins without the prompt",
        )
    return (*prompt, *chat)


def _chat(name: str, chat: list[Any]) -> tuple[Message, ...]:
    messages = []
    for place, message in enumerate(chat):
        field = f"{name}[{place}]"
        if not isinstance(message, dict):
            raise _wrong(field, message, "an object with role and content")
        for key in ("role", "content"):
            if message.get(key) is None:
                raise _Found("missing field", f"{field}.{key}: not there")
        role = _text(f"{field}.role", message["role"])
        if role not in ROLES or (role == "system" and place):
            expected = f"one of {', '.join(ROLES)}, system only as the first"
            raise _Found(
                "wrong type", f"{field}.role: got {role!r}, expected {expected}"
            )
        messages.append((role, _text(f"{field}.content", message["content"])))
    return tuple(messages)


def _with_system(before: tuple[Message, ...], system: str) -> tuple[Message, ...]:
    """The prompt with its system text first; an empty one is none."""
    own = before[0][1] if before and before[0][0] == "system" else ""
    rest = before[1:] if before and before[0][0] == "system" else before
    if own.strip() and system.strip() and own != system:
        raise _Found(
            "prefix mismatch", "system differs from the system message of the chat"
        )
    text = own if own.strip() else system
    return (("system", text), *rest) if text.strip() else rest


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(field, value, "a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON may escape half of a surrogate pair, which no tokenizer can encode.
        raise _Found("broken text", f"{field}: {error.reason}") from error
    return value


def _wrong(field: str, value: Any, expected: str) -> _Found:
    got = f"{type(value).__name__} {shown(value)}"
    return _Found("wrong type", f"{field}: got {got}, expected {expected}")


def _keys(raw: dict[str, Any]) -> str:
    return f"the row has {', '.join(map(shown, raw)) or 'nothing'}"


def shown(value: Any) -> str:
    """A value as a message shows it: at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
