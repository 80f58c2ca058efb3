"""The closed vocabulary of Digit Pages and its word-level tokenizer.

The order of WORDS is part of every shipped weight: never reorder it; a new word would
need new weights.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
SPECIAL = (UNKNOWN, BEGIN, END)  # ids 0, 1, 2, as in Llama

# Sorted; ids 3, 4, ... Questions, answers, written-out pages and the chat template.
_SORTED = (
    ", . 0 1 2 3 4 5 6 7 8 9 : ; ? a all answer any are at b bottom c cell center "
    "choose column count d describe digit digits does every from how in is left list "
    "many middle name no none often on order page pick question read right row show "
    "shows stand stands tell the there to top what which yes"
)
WORDS = tuple(_SORTED.split())


def check_words(text: str) -> tuple[str, ...]:
    """The words of a text as the tokenizer splits it at spaces.

    Raises ValueError naming the words that the vocabulary lacks, if any.
    """
    words = tuple(text.lower().split())
    unknown = sorted(set(words) - set(WORDS))
    if unknown:
        raise ValueError(
            f"text: got words {unknown} in {text!r}, expected words of the closed "
            "vocabulary of Digit Pages; reword it (see WORDS), with spaces around "
            "punctuation"
        )
    return words


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The word-level tokenizer: lower-cased, split at spaces, one id per word.

    Padding is `</s>`; no special token is added on encoding. Punctuation is split off
    words too, so "there?" reads as "there ?".

        build_tokenizer().encode("Is there any 5 ?")  ->  5 ids
    """
    ids = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,  # would glue " ?" to the word before
    )


def save_tokenizer(folder: str | Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json` into `folder`.

    Raises ValueError if `folder` is a file.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"folder: got the file {path}, expected a folder to write to")
    path.mkdir(parents=True, exist_ok=True)
    build_tokenizer().backend_tokenizer.save(str(path / "tokenizer.json"))
    # Not `save_pretrained`: transformers 5 writes a class name that 4 does not know.
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "pad_token": END,
        "unk_token": UNKNOWN,
    }
    text = json.dumps(settings, indent=2) + "\n"
    (path / "tokenizer_config.json").write_text(text, encoding="utf-8")
