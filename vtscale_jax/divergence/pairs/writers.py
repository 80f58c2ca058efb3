"""What writes a pair as token ids: a chat template, a plain form, or our formats.

The prefix is tokenised by itself, and so is each answer, without special tokens of the
tokenizer's own. So both branches follow exactly the same ids, and a model that was
asked the question would start from these ids too; tokenised together, an answer's
first letters could change the last token of the prefix.

A branch is the answer alone: the marker that ends a turn is no part of it, because
every one of its n positions is to be content.
"""

import datetime
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jinja2
from transformers import PreTrainedTokenizerBase

from vtscale_jax.divergence.pairs.schemas import BadRow, Message, Pair, PairsError
from vtscale_jax.templates import TEMPLATES
from vtscale_jax.tokens import QueryLayout, llm_sequence
from vtscale_jax.types import Record, Turn

TEXT_FORM = "{system}\n\n{question}\n\n"
# Llama 3 writes the day into its system text. Pairs must be the same ids every day, so
# templates that take a day get the one that Llama 3.1's has as its default.
DAY = datetime.date(2024, 7, 26)
SYSTEM_MOVED = "system moved"
# Stands for an answer, to see what a template writes around it; a letter at either
# end, so that no template trims it, and characters that no template has.
STAND_IN = "a\ue000\ue001z"


class Written(NamedTuple):
    """Ids of a pair as a writer makes them, of any lengths."""

    prefix: list[int]
    a: list[int]
    b: list[int]
    notes: tuple[str, ...] = ()


Writer = Callable[[Pair], Written | BadRow]


def writer_for(tokenizer: PreTrainedTokenizerBase, prompt_form: str = "chat") -> Writer:
    """What writes pairs for a tokenizer.

    "chat":  its own chat template (`ChatWriter`)
    "text":  system text and question with blank lines between, for base models
             (`TextWriter` with TEXT_FORM); so is any form that holds "{question}"
    a name of `vtscale_jax.templates`: that format ("plain" for the embedded model)

    Raises PairsError where the tokenizer has no template, and for an unknown name.
    """
    if prompt_form == "chat":
        return ChatWriter(tokenizer)
    if prompt_form == "text":
        return TextWriter(tokenizer, TEXT_FORM)
    if "{question}" in prompt_form:
        return TextWriter(tokenizer, prompt_form)
    if prompt_form in TEMPLATES:
        return TemplateWriter(tokenizer, prompt_form)
    raise PairsError(
        f"prompt_form is {prompt_form!r}, expected chat, text, a form that holds "
        f"{{question}}, or one of {', '.join(sorted(TEMPLATES))}"
    )


class ChatWriter:
    """Writes pairs with the chat template of the tokenizer.

    The prefix is the template's text of the prompt, up to where the answer is to come.
    What follows it in the template's text of the whole conversation is the branch, up
    to the end of the answer; a template that trims answers trims them here. Text that
    it writes before the answer (Qwen 3: an empty thought) goes to the prefix; spaces at
    its end stay with the answer, as parts of its first token.

    A template that refuses or leaves out a system text gets it before the first
    question, with a blank line between, and the pair has the note "system moved".
    What it then refuses, or an answer that it changes otherwise, is "refused by
    template"; a whole conversation that does not begin with the prefix is a "prefix
    mismatch".

    Raises PairsError for a tokenizer without chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise PairsError(
                "the tokenizer has no chat template, so nobody knows how to put a "
                "question to this model: take an instruction-tuned one, set "
                "chat_template in its tokenizer_config.json, or take a plain form "
                "(--prompt_form text)"
            )
        self._tokenizer = tokenizer
        self._template = _of_one_day(tokenizer.chat_template)
        self._own_space = _writes_a_space(tokenizer)

    def __call__(self, pair: Pair) -> Written | BadRow:
        """The ids of a pair."""
        messages, notes = pair.messages, ()
        try:
            prefix, refused = self._prompt(messages)
            if refused:
                messages, notes = _system_moved(messages), (SYSTEM_MOVED,)
                prefix = self._text(messages, prompt=True)
            stand_in = self._text((*messages, ("assistant", STAND_IN)), prompt=False)
            answers = (pair.chosen, pair.rejected)
            wholes = [
                self._text((*messages, ("assistant", answer)), prompt=False)
                for answer in answers
            ]
        except jinja2.TemplateError as error:
            return BadRow(pair.line, "refused by template", str(error))
        begin, found, end = stand_in.partition(STAND_IN)
        if not found:
            detail = "the template changes answers, or leaves them out"
            return BadRow(pair.line, "refused by template", detail)
        if not begin.startswith(prefix):
            detail = "with an answer, the template's text does not begin as without"
            return BadRow(pair.line, "prefix mismatch", detail)
        texts = []
        for answer, whole in zip(answers, wholes, strict=True):
            kept = [
                text for text in (answer, answer.strip()) if whole == begin + text + end
            ]
            if not kept:
                detail = f"the template changes the answer {answer[:40]!r}"
                return BadRow(pair.line, "refused by template", detail)
            texts.append(kept[0])
        prefix = begin.rstrip(" ") if len(begin.rstrip(" ")) > len(prefix) else prefix
        spaces = begin[len(prefix) :]
        if spaces == " " and self._own_space:
            spaces = ""
        a, b = (_ids(self._tokenizer, spaces + text) for text in texts)
        written = Written(_ids(self._tokenizer, prefix), a, b, notes)
        return _known(pair.line, self._tokenizer, written)

    def _prompt(self, messages: tuple[Message, ...]) -> tuple[str, bool]:
        """The text of the prompt, and whether its system text has to be moved."""
        has_system = messages[0][0] == "system"
        try:
            text = self._text(messages, prompt=True)
        except jinja2.TemplateError:
            # It may refuse something else: then it refuses it again, without system.
            if not has_system:
                raise
            return "", True
        return text, has_system and messages[0][1].strip() not in text

    def _text(self, messages: tuple[Message, ...], *, prompt: bool) -> str:
        text: Any = self._tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in messages],
            add_generation_prompt=prompt,
            tokenize=False,
            date_string=DAY.strftime("%d %b %Y"),
            chat_template=self._template,
        )
        return text


def _of_one_day(template: Any) -> Any:
    """A chat template that asks for today's date, with `DAY` in its place. (Functions
    cannot be given to a template; a set of several is left as it is.)"""
    if not isinstance(template, str):
        return None
    asked = r"""strftime_now\(\s*(['"])(.*?)\1\s*\)"""
    return re.sub(asked, lambda call: repr(DAY.strftime(call[2])), template)


class TextWriter:
    """Writes pairs as plain text, for models that know no chat.

    `form` holds "{question}" and may hold "{system}" before it. The question is all
    messages of the prompt but the system text, with blank lines between. Without a
    system text a form with "{system}" begins at its question; a form without gets the
    text before the question, and the pair the note "system moved". The tokenizer's
    ⟨bos⟩ comes first where it puts one before every text. Raises PairsError for a form
    without "{question}".
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, form: str) -> None:
        if "{question}" not in form:
            raise PairsError(
                f"the form is {form!r}, expected one that holds {{question}}, as "
                f"{TEXT_FORM!r}"
            )
        self._tokenizer = tokenizer
        self._form = form
        bos = tokenizer.bos_token_id
        first = list(tokenizer.encode("a"))[:1]
        self._begin = [bos] if bos is not None and first == [bos] else []

    def __call__(self, pair: Pair) -> Written | BadRow:
        """The ids of a pair."""
        system, rest = _apart(pair.messages)
        question, notes = "\n\n".join(content for _, content in rest), ()
        form = self._form
        if system and "{system}" not in form:
            question, notes = f"{system}\n\n{question}", (SYSTEM_MOVED,)
        elif not system and "{system}" in form:
            form = form[form.index("{question}") :]
        values = {"system": system, "question": question}
        # In one pass: a text may itself hold "{question}".
        text = re.sub(r"\{(system|question)\}", lambda found: values[found[1]], form)
        prefix = [*self._begin, *_ids(self._tokenizer, text)]
        a, b = (_ids(self._tokenizer, t) for t in (pair.chosen, pair.rejected))
        written = Written(prefix, a, b, notes)
        return _known(pair.line, self._tokenizer, written)


class TemplateWriter:
    """Writes pairs in a format of `vtscale_jax.templates`, piece by piece.

    The prefix is what `llm_sequence` makes of the prompt, each answer its own tokens.
    Questions and answers of the prompt alternate, or the pair is "refused by template".
    Raises PairsError for an unknown format.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        if template not in TEMPLATES:
            raise PairsError(
                f"template is {template!r}, expected one of {sorted(TEMPLATES)}"
            )
        self._tokenizer: Any = tokenizer
        self._template = template

    def __call__(self, pair: Pair) -> Written | BadRow:
        """The ids of a pair."""
        system, rest = _apart(pair.messages)
        roles = [role for role, _ in rest]
        expected = [("user", "assistant")[place % 2] for place in range(len(rest))]
        if roles != expected or len(roles) % 2 == 0:
            detail = f"the roles are {', '.join(roles)}, expected user first and last"
            return BadRow(pair.line, "refused by template", detail)
        texts = [content for _, content in rest] + [""]
        turns = tuple(map(Turn, texts[::2], texts[1::2]))
        if not all(turn.question for turn in turns):
            return BadRow(
                pair.line, "missing field", "a question of the prompt is empty"
            )
        record = Record(f"line {pair.line}", None, turns, system or None)
        prefix = llm_sequence(record, self._tokenizer, self._template, QueryLayout(1))
        a, b = (_ids(self._tokenizer, t) for t in (pair.chosen, pair.rejected))
        written = Written(prefix.ids.tolist(), a, b)
        return _known(pair.line, self._tokenizer, written)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: Any = tokenizer.encode(text, add_special_tokens=False)
    return list(ids)


def _known(
    line: int, tokenizer: PreTrainedTokenizerBase, written: Written
) -> Written | BadRow:
    """The pair, unless it has words that the tokenizer does not know: another language
    than the model's would be measured as a row of equal tokens."""
    unknown = tokenizer.unk_token_id
    other = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    # Tokenizers that know every word use one token for all of these.
    if unknown is None or unknown in other:
        return written
    for name in ("prefix", "a", "b"):
        ids = getattr(written, name)
        if unknown in ids:
            word = {"a": "chosen", "b": "rejected"}.get(name, name)
            detail = f"{ids.count(unknown)} of {len(ids)} tokens of {word}"
            return BadRow(line, "unknown words", f"{detail} are {tokenizer.unk_token}")
    return written


def _apart(messages: tuple[Message, ...]) -> tuple[str, tuple[Message, ...]]:
    """The system text ("" for none), and the other messages."""
    if messages[0][0] == "system":
        return messages[0][1], messages[1:]
    return "", messages


def _system_moved(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    system, rest = _apart(messages)
    first = next(place for place, (role, _) in enumerate(rest) if role == "user")
    moved = ("user", f"{system}\n\n{rest[first][1]}")
    return (*rest[:first], moved, *rest[first + 1 :])


def _writes_a_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts a space before every text (SentencePiece): one written
    before an answer would then be a second one, a token by itself."""
    first = tokenizer.convert_ids_to_tokens(_ids(tokenizer, "a")[:1])
    return str(first[0]).startswith("▁")
