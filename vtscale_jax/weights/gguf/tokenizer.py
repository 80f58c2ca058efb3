r"""The tokenizer inside a GGUF file, built with the `tokenizers` library.

Two kinds are known, by `tokenizer.ggml.model`:

- `gpt2`: byte-level BPE. The file has tokens and merges; how text is split before
  merging is only named (`tokenizer.ggml.pre`), so the patterns are a table here.
- `llama`: SentencePiece BPE. The file has tokens and scores: the adjacent pair whose
  joint token has the highest score is merged first, what is in no token becomes bytes
  (<0x0A>), spaces are ▁, and one is put in front of the text.

Decoding gives the text back exactly, except for what the tokenizers themselves lose:
`qwen2` composes letters and accents (NFC); `llama` cannot tell ▁ from a space, and
shows the space that it puts in front of text which follows a special token.

Sources: llama.cpp's `llama-vocab.cpp` for the names and patterns; the tokenizer.json
files of the models' authors, which transformers reads, for everything else.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gguf.constants import Keys
from gguf.constants import TokenType as Kind
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

from vtscale_jax.weights.gguf.file import GGUFError

NAMES = Keys.Tokenizer
SPACE = "▁"


class Splitter(NamedTuple):
    """What stands before the merges of a byte-level BPE.

    Each pattern splits what the ones before it left: matches stand alone, and so does
    the text between them. `whole_words`: a word that is a token is not merged from its
    bytes. `adds_bos` is meant where the file does not say. `composes`: NFC first.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    adds_bos: bool = False
    composes: bool = False


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# As GPT-4's, which differs from GPT-2's in case, line ends and numbers.
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = GPT4.replace("%s", "{1,3}")
QWEN2 = GPT4.replace("%s", "")

SPLITTERS = {
    "gpt-2": Splitter((GPT2,)),
    "smollm": Splitter((r"\p{N}", GPT2)),
    "llama-bpe": Splitter((LLAMA3,), whole_words=True, adds_bos=True),
    "llama3": Splitter((LLAMA3,), whole_words=True, adds_bos=True),
    "llama-v3": Splitter((LLAMA3,), whole_words=True, adds_bos=True),
    "dbrx": Splitter((LLAMA3,)),
    "qwen2": Splitter((QWEN2,), composes=True),
    "default": Splitter((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
}

# Phi-3's special tokens take the white space after them, all but these. Files do not
# say so; llama.cpp knows it by the model's name too.
STRIPPING_MODELS = ("phi-3", "phi3")
NOT_STRIPPING = ("<unk>", "<s>", "<|endoftext|>")


def build_tokenizer(metadata: Mapping[str, Any], where: str) -> PreTrainedTokenizerFast:
    """The tokenizer that a GGUF file's metadata describes.

    `where` is the file, for messages. Control tokens are special tokens, user-defined
    ones are found whole but not hidden. bos, eos, unk and pad are set where the file
    names them, the chat template where it has one.

    Raises GGUFError for a kind of tokenizer or splitter that is not known, and for
    lists that are missing or contradict each other.
    """
    kind = metadata.get(NAMES.MODEL)
    if kind not in BUILDERS:
        raise GGUFError(
            f"{where}: {NAMES.MODEL} is {kind!r}, expected one of "
            f"{', '.join(BUILDERS)}; use the tokenizer of the model's Hugging Face "
            "folder."
        )
    tokens = _list(metadata, NAMES.LIST, where)
    types = _list(metadata, NAMES.TOKEN_TYPE, where, len(tokens))
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        twice = sorted({token for i, token in enumerate(tokens) if vocab[token] != i})
        raise GGUFError(
            f"{where}: {NAMES.LIST} holds tokens twice: {twice[:5]}; expected each "
            "once; convert the model anew."
        )
    named = _named_tokens(metadata, tokens, types, where)
    tokenizer, adds_bos = BUILDERS[kind](metadata, vocab, types, named, where)
    tokenizer.add_tokens(_added_tokens(metadata, tokens, types))
    ends = {
        "bos": bool(metadata.get(NAMES.ADD_BOS, adds_bos)),
        "eos": bool(metadata.get(NAMES.ADD_EOS, False)),
    }
    for name, added in ends.items():
        if added and f"{name}_token" not in named:
            raise GGUFError(
                f"{where}: tokenizer.ggml.add_{name}_token is on, but {name}_token_id "
                "is missing; convert the model anew."
            )
    tokenizer.post_processor = _template(named, vocab, **ends)
    architecture = metadata.get(Keys.General.ARCHITECTURE)
    length = metadata.get(f"{architecture}.context_length")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=metadata.get(NAMES.CHAT_TEMPLATE),
        clean_up_tokenization_spaces=False,
        add_bos_token=ends["bos"],
        add_eos_token=ends["eos"],
        **({"model_max_length": length} if length else {}),
        **named,
    )


def _byte_level(
    metadata: Mapping[str, Any],
    vocab: dict[str, int],
    types: Sequence[int],
    named: Mapping[str, str],
    where: str,
) -> tuple[Tokenizer, bool]:
    """Byte-level BPE, and whether it puts bos in front by default."""
    pre = metadata.get(NAMES.PRE)
    if pre not in SPLITTERS:
        raise GGUFError(
            f"{where}: {NAMES.PRE} is {pre!r}, expected one of {', '.join(SPLITTERS)}; "
            "without it text would be split otherwise than in training. Use the "
            "tokenizer of the model's Hugging Face folder, or convert it anew."
        )
    splitter = SPLITTERS[pre]
    # A space inside a token is written Ġ, so the one space is between the two.
    pairs = [tuple(merge.split(" ")) for merge in _list(metadata, NAMES.MERGES, where)]
    merges = [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
    known = [pair for pair in merges if _are_tokens(pair, vocab)]
    if len(known) != len(pairs):
        bad = next(p for p in pairs if len(p) != 2 or not _are_tokens(p, vocab))
        raise GGUFError(
            f"{where}: {NAMES.MERGES} holds {' '.join(bad)!r}, expected two tokens "
            "which together are a third; convert the model anew."
        )
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=known, ignore_merges=splitter.whole_words)
    )
    if splitter.composes:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(
                pre_tokenizers.Split(Regex(pattern), "isolated")
                for pattern in splitter.patterns
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, splitter.adds_bos


def _are_tokens(pair: Sequence[str], vocab: Mapping[str, int]) -> bool:
    return all(part in vocab for part in (*pair, "".join(pair)))


def _sentencepiece(
    metadata: Mapping[str, Any],
    vocab: dict[str, int],
    types: Sequence[int],
    named: Mapping[str, str],
    where: str,
) -> tuple[Tokenizer, bool]:
    """SentencePiece BPE, and that it puts bos in front by default."""
    if metadata.get(NAMES.REMOVE_EXTRA_WS, False):
        raise GGUFError(
            f"{where}: {NAMES.REMOVE_EXTRA_WS} is on, which no Llama has and which is "
            "not supported; use the tokenizer of the model's Hugging Face folder."
        )
    scores = _list(metadata, NAMES.SCORES, where, len(vocab))
    # Only ordinary pieces are made by merging; the others are found whole, or never.
    pieces = {token: scores[i] for token, i in vocab.items() if types[i] == Kind.NORMAL}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=merges_by_score(pieces),
            unk_token=named.get("unk_token"),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = bool(metadata.get(NAMES.ADD_PREFIX, True))
    spaces = normalizers.Replace(" ", SPACE)
    front = [normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*front, spaces])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if prefix else []),
        ]
    )
    return tokenizer, True


BUILDERS = {"gpt2": _byte_level, "llama": _sentencepiece}


def merges_by_score(pieces: Mapping[str, float]) -> list[tuple[str, str]]:
    """All ways to make a piece of two others, the highest score first.

    SentencePiece merges the pair with the best joint piece, the leftmost of equals. A
    list of merges has no equals, so of one piece's splits the one with the longer left
    part comes first, as in transformers' conversion.

        {"a": -1, "b": -2, "ab": -3, "aab": -4}   gives   (a, b), (a, ab)
    """
    found = [
        (score, piece[:i], piece[i:])
        for piece, score in pieces.items()
        for i in range(1, len(piece))
        if piece[:i] in pieces and piece[i:] in pieces
    ]
    # The sort is stable: what is equal in all three stays in the order of the ids.
    found.sort(key=lambda merge: (-merge[0], -len(merge[1]), -len(merge[2])))
    return [(left, right) for _, left, right in found]


def _list(
    metadata: Mapping[str, Any], key: str, where: str, size: int | None = None
) -> list:
    values = metadata.get(key)
    if not isinstance(values, list) or size not in (None, len(values)):
        got = f"has {len(values)} entries" if isinstance(values, list) else "is missing"
        wanted = "a list" if size is None else f"one entry for each of {size} tokens"
        raise GGUFError(
            f"{where}: {key} {got}, expected {wanted}; the file holds no complete "
            "tokenizer; convert the model anew, or use its Hugging Face folder."
        )
    return values


def _named_tokens(
    metadata: Mapping[str, Any], tokens: list[str], types: list[int], where: str
) -> dict[str, str]:
    """bos_token, eos_token, unk_token and pad_token, as far as the file names them."""
    keys = {"bos": NAMES.BOS_ID, "eos": NAMES.EOS_ID, "pad": NAMES.PAD_ID}
    ids = {name: metadata.get(key) for name, key in keys.items()}
    unknown = [i for i, kind in enumerate(types) if kind == Kind.UNKNOWN]
    ids["unk"] = metadata.get(NAMES.UNK_ID, unknown[0] if unknown else None)
    for name, i in ids.items():
        if i is not None and not 0 <= i < len(tokens):
            raise GGUFError(
                f"{where}: the {name} token is number {i}, expected one of the "
                f"{len(tokens)} tokens; convert the model anew."
            )
    return {f"{name}_token": tokens[i] for name, i in ids.items() if i is not None}


def _added_tokens(
    metadata: Mapping[str, Any], tokens: list[str], types: list[int]
) -> list[AddedToken]:
    """Tokens that are found whole in the text, before anything is split or merged."""
    model = str(metadata.get(Keys.General.NAME, "")).lower()
    strips = any(name in model for name in STRIPPING_MODELS)
    return [
        AddedToken(
            token,
            special=kind != Kind.USER_DEFINED,
            normalized=False,
            rstrip=strips and token not in NOT_STRIPPING,
        )
        for token, kind in zip(tokens, types, strict=True)
        if kind in (Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED)
    ]


def _template(
    named: Mapping[str, str], vocab: Mapping[str, int], *, bos: bool, eos: bool
) -> processors.TemplateProcessing:
    """Puts bos before and eos behind each text, where asked for."""
    start = [f"{named['bos_token']}:%d"] if bos else []
    end = [f"{named['eos_token']}:%d"] if eos else []
    single, second = (
        [part.replace("%d", str(i)) for part in (*start, f"${text}:%d", *end)]
        for i, text in enumerate("AB")
    )
    used = [named["bos_token"]] * bos + [named["eos_token"]] * eos
    return processors.TemplateProcessing(
        single=single,
        pair=[*single, *second],
        special_tokens=[(token, vocab[token]) for token in dict.fromkeys(used)],
    )
