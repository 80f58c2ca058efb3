"""Tokenizers written to folders, and the authors' placeholder tokens in and out.

The authors give every learnable query a token of the fusion model's tokenizer,
`<|placeholder_qed_0|>` and on (spec: learnable queries). Here queries are no tokens:
`fusion/queries` is a table of its own, whose row j has the id after the text ids.
"""

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PLACEHOLDER = "<|placeholder_qed_{}|>"
IS_PLACEHOLDER = r"<\|placeholder_qed_(\d+)\|>"
# Fills ids between the last token and the first query, where the text table is longer
# than the tokenizer; such a token never occurs in a text.
UNUSED = "<|unused_{}|>"
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token")
NO_LIMIT = 10**9  # a tokenizer without a limit says a number far beyond this


class TokenizerError(ValueError):
    """A tokenizer that does not fit the model, or cannot be written."""


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`, which AutoTokenizer reads in
    transformers 4.44 (the authors' version) as in 5.

    Raises TokenizerError for a tokenizer that is not one of the `tokenizers` library.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = _content(tokenizer)
    model = content["model"]
    pairs = [merge for merge in model.get("merges") or [] if not isinstance(merge, str)]
    # Before its version 0.20 the library knew merges as "a b" only, which can say all
    # of them as long as no token has a space in it.
    if pairs and not any(" " in part for pair in pairs for part in pair):
        model["merges"] = [" ".join(pair) for pair in model["merges"]]
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": bool(tokenizer.clean_up_tokenization_spaces),
        **_special(tokenizer),
    }
    if tokenizer.model_max_length < NO_LIMIT:
        settings["model_max_length"] = tokenizer.model_max_length
    if tokenizer.chat_template:
        settings["chat_template"] = tokenizer.chat_template
    for name, value in (("tokenizer", content), ("tokenizer_config", settings)):
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


def placeholder_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the placeholder tokens in order of their numbers; empty without any.

    Raises TokenizerError unless they are the last ids, one after the other from number
    0 on: only then are the rows of a table cut into text and queries.
    """
    vocab = tokenizer.get_vocab()
    found = {re.fullmatch(IS_PLACEHOLDER, word): n for word, n in vocab.items()}
    numbered = {int(match[1]): n for match, n in found.items() if match}
    if not numbered:
        return []
    ids = [numbered[number] for number in sorted(numbered)]
    first, last = ids[0], max(vocab.values())
    if sorted(numbered) != list(range(len(ids))) or ids != list(range(first, last + 1)):
        raise TokenizerError(
            f"placeholder tokens: got {len(ids)} with the numbers {min(numbered)} to "
            f"{max(numbered)} and ids {first} to {ids[-1]}, where {last} is the "
            "tokenizer's last id; expected numbers from 0 on, in order and with its "
            "last ids; take the tokenizer of the checkpoint"
        )
    return ids


def without_placeholders(
    tokenizer: PreTrainedTokenizerBase,
) -> PreTrainedTokenizerFast:
    """A copy that lacks the placeholder tokens; every other id stays what it is.

    Raises TokenizerError as `placeholder_ids` does.
    """
    gone = set(placeholder_ids(tokenizer))
    content = _content(tokenizer)
    added = content.get("added_tokens") or []
    content["added_tokens"] = [token for token in added if token["id"] not in gone]
    words = content["model"].get("vocab")
    if isinstance(words, dict):
        kept = {word: number for word, number in words.items() if number not in gone}
        content["model"]["vocab"] = kept
    made = _rebuilt(content, tokenizer)
    before = {w: n for w, n in tokenizer.get_vocab().items() if n not in gone}
    if made.get_vocab() != before:
        raise TokenizerError(
            "placeholder tokens: they could not be taken out of the tokenizer, whose "
            f"model is a {content['model'].get('type')}; expected them as added "
            "tokens, or as words of a dictionary"
        )
    return made


def with_placeholders(
    tokenizer: PreTrainedTokenizerBase, first_query_id: int, number: int
) -> PreTrainedTokenizerFast:
    """A copy with `number` placeholder tokens, whose ids begin at `first_query_id`.

    They are ordinary added tokens, as the authors' parser makes them. Raises
    TokenizerError when the tokenizer has an id from `first_query_id` on already.
    """
    made = _rebuilt(_content(tokenizer), tokenizer)
    largest = max(made.get_vocab().values())
    if largest >= first_query_id:
        raise TokenizerError(
            f"first_query_id: got {first_query_id}, but the tokenizer's ids reach "
            f"{largest}; expected the rows of the queries behind them: give the "
            "tokenizer that belongs to the weights"
        )
    unused = range(largest + 1, first_query_id)
    made.add_tokens([UNUSED.format(i) for i in unused])
    placeholders = [PLACEHOLDER.format(i) for i in range(number)]
    made.add_tokens(placeholders)
    vocab = made.get_vocab()
    ids = [vocab[word] for word in placeholders]
    if ids != list(range(first_query_id, first_query_id + number)):
        raise TokenizerError(
            f"placeholder tokens: got the ids {ids[:3]}…, expected {number} from "
            f"{first_query_id} on; the tokenizer knows some of these words already"
        )
    return made


def _content(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The tokenizer as a tokenizer.json, without settings of single calls."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise TokenizerError(
            f"tokenizer: got a {type(tokenizer).__name__}, expected one of the "
            "`tokenizers` library (a tokenizer.json); convert it with transformers"
        )
    return {**json.loads(backend.to_str()), "truncation": None, "padding": None}


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    named = {name: getattr(tokenizer, name, None) for name in SPECIAL}
    return {name: str(token) for name, token in named.items() if token is not None}


def _rebuilt(
    content: dict[str, Any], like: PreTrainedTokenizerBase
) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        clean_up_tokenization_spaces=like.clean_up_tokenization_spaces,
        model_max_length=like.model_max_length,
        chat_template=like.chat_template,
        **_special(like),
    )
