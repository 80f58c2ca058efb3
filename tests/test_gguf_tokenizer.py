"""Tokenizers out of GGUF metadata, against merging from scratch and transformers' own.

The small vocabularies are trained here; the text is this file and a few lines that are
hard to split. SmolLM2's is read from the real file where it was fetched.
"""

import random
from pathlib import Path

import pytest
import regex
from gguf import GGUFReader
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import GPT2Tokenizer, LlamaTokenizer, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2 import tokenization_qwen2
from transformers.tokenization_utils_base import generate_merges

from vtscale_jax.weights import fetch
from vtscale_jax.weights.gguf.file import GGUFError
from vtscale_jax.weights.gguf.model import open_gguf
from vtscale_jax.weights.gguf.tokenizer import (
    LLAMA3,
    QWEN2,
    SPLITTERS,
    build_tokenizer,
    merges_by_score,
)

SOURCE = Path(__file__).read_text()
TEXTS = [
    "",
    " ",
    "What is the capital of France?",
    "I'll say it's THEY'RE don't WE'VE 'tis o'clock 'S 'LL",
    "1 12 123 1234 12345678 3.14159 1,000,000 ½ ² Ⅷ ١٢٣ ४५ 2024-01-31T09:05",
    "a  b   c    d\te\t\tf\n\ng \n h\r\n\r\n  i   \n   ",
    "   leading and trailing   ",
    "\n\n\nlines\n\n",
    "def f(x):\n    if x > 0:\n        return x ** 2  # twice\n\treturn None\n",
    "naïve café ÅÄÖ straße ﬁne ǆ İi ſ Ωμέγα привет мир",
    "日本語のテキスト 中文 한국어 हिन्दी ภาษาไทย עברית العربية",
    "😀 👩‍👩‍👧‍👦 🏳️‍🌈 ❤️‍🔥 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff",
    "zero\u200bwidth nbsp\u00a0ideographic\u3000end\u2028line \x00\x01\x7f",
    "https://example.org/a?b=c&d=%20#e <a href='x'>y</a> {\"k\": [1, 2]} $x^2$ a_b",
    "...!!!???---===+++^^^~~~|||$$$<<<>>>",
    SOURCE[:3000],
]
# Letter and accent apart: NFC composes them.
DECOMPOSED = "cafe\u0301 A\u030a n\u0303"


def random_texts(count, seed=0):
    rng = random.Random(seed)
    letters = "".join(TEXTS) + " \n\t" * 40 + "abcdefgh0123" * 10
    return ["".join(rng.choices(letters, k=rng.randint(1, 60))) for _ in range(count)]


# ---- byte-level BPE from scratch -----------------------------------------------------


def byte_letters():
    """The letter that stands for each byte: itself if visible, else from Ā on."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]
    letters = {b: chr(b) for b in visible}
    return letters | {b: chr(256 + i) for i, b in enumerate(hidden)}


def split(text, patterns):
    """Each pattern cuts every part into matches and what is between them."""
    parts = [text]
    for pattern in patterns:
        cut = []
        for part in parts:
            at = 0
            for match in regex.finditer(pattern, part):
                cut += [part[at : match.start()], match.group()]
                at = match.end()
            cut.append(part[at:])
        parts = [part for part in cut if part]
    return parts


def merge_from_scratch(parts, rank):
    """Merges the pair of the lowest rank, the leftmost of equals, as long as it can."""
    parts = list(parts)
    while True:
        ranks = [rank(*pair) for pair in zip(parts, parts[1:], strict=False)]
        found = [(r, i) for i, r in enumerate(ranks) if r is not None]
        if not found:
            return parts
        i = min(found)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def byte_level_ids(text, patterns, vocab, ranks, whole_words=False):
    letters, ids = byte_letters(), []
    for word in split(text, patterns):
        coded = "".join(letters[b] for b in word.encode())
        if whole_words and coded in vocab:
            ids.append(vocab[coded])
            continue
        parts = merge_from_scratch(coded, lambda a, b: ranks.get((a, b)))
        ids += [vocab[part] for part in parts]
    return ids


# As the models' authors split, written apart from the table.
CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
GPT2 = CONTRACTIONS + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PATTERNS = {
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "llama-bpe": [TikTokenConverter(vocab_file="").pattern],
    "qwen2": [tokenization_qwen2.PRETOKENIZE_REGEX],
    "default": [r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9]{3}"],
}
SPECIAL = ["<|end|>", "<|start|>", "<|tool|>"]


def train(pre_tokenizer, alphabet, normalizer=None):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([SOURCE, *TEXTS], trainer)
    made = tokenizer.get_vocab()
    pieces = sorted(made, key=made.get)
    return [piece for piece in pieces if piece not in SPECIAL]


@pytest.fixture(scope="module")
def byte_level():
    """Metadata of a byte-level BPE; its `pre` is to be chosen."""
    pieces = train(
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.ByteLevel.alphabet(),
    )
    merges = generate_merges({piece: i for i, piece in enumerate(pieces)}, None)
    return {
        "general.architecture": "llama",
        "llama.context_length": 100_000,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*SPECIAL, *pieces],
        "tokenizer.ggml.token_type": [3, 3, 4] + [1] * len(pieces),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 0,
    }


def vocab_and_merges(metadata):
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(x.split(" ")) for x in metadata["tokenizer.ggml.merges"]]
    return {token: i for i, token in enumerate(tokens)}, merges


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("pre", PATTERNS)
def test_byte_level_against_scratch(byte_level, pre):
    tokenizer = build_tokenizer({**byte_level, "tokenizer.ggml.pre": pre}, "file")
    vocab, merges = vocab_and_merges(byte_level)
    ranks = {pair: i for i, pair in enumerate(merges)}
    others = 0
    for text in [*TEXTS, *random_texts(60)]:
        if pre == "qwen2":
            text = normalizers.NFC().normalize_str(text)
        ids = encode(tokenizer, text)
        whole = pre == "llama-bpe"
        assert ids == byte_level_ids(text, PATTERNS[pre], vocab, ranks, whole), text
        assert tokenizer.decode(ids) == text
        # Negative control: split otherwise, some text has other ids.
        wrong = PATTERNS["smollm" if pre != "smollm" else "gpt-2"]
        others += ids != byte_level_ids(text, wrong, vocab, ranks, whole)
    assert others > 0


def test_splitters_are_those_of_transformers_and_tokenizers(byte_level):
    assert tokenization_qwen2.PRETOKENIZE_REGEX == QWEN2
    assert TikTokenConverter(vocab_file="").pattern == LLAMA3
    for name in ("llama3", "llama-v3", "llama-bpe"):
        assert SPLITTERS[name] == SPLITTERS["llama-bpe"]
    digits = pre_tokenizers.Digits(individual_digits=True)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs = {"gpt-2": gpt2, "smollm": pre_tokenizers.Sequence([digits, gpt2])}
    for pre, expected in theirs.items():
        metadata = {**byte_level, "tokenizer.ggml.pre": pre}
        backend = build_tokenizer(metadata, "file").backend_tokenizer
        for text in [*TEXTS, *random_texts(200)]:
            found = backend.pre_tokenizer.pre_tokenize_str(text)
            assert found == expected.pre_tokenize_str(text)


@pytest.mark.parametrize(
    "pre, kind", [("gpt-2", GPT2Tokenizer), ("qwen2", Qwen2Tokenizer)]
)
def test_byte_level_against_transformers(byte_level, pre, kind):
    tokenizer = build_tokenizer({**byte_level, "tokenizer.ggml.pre": pre}, "file")
    vocab, merges = vocab_and_merges(byte_level)
    special = dict.fromkeys(("unk_token", "bos_token", "eos_token"), SPECIAL[0])
    theirs = kind(vocab=vocab, merges=merges, **special)
    for text in [*TEXTS, *random_texts(200), DECOMPOSED]:
        assert encode(tokenizer, text) == encode(theirs, text)
    composed = tokenizer.decode(encode(tokenizer, DECOMPOSED))
    assert (composed == DECOMPOSED) == (pre == "gpt-2")


def test_llama3_takes_whole_words(byte_level):
    # A token that no merges lead to is found all the same, but only as a whole word.
    tokens = [*byte_level["tokenizer.ggml.tokens"], "Ġzqzq"]
    metadata = {
        **byte_level,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [*byte_level["tokenizer.ggml.token_type"], 1],
    }
    for pre in ("llama-bpe", "dbrx"):
        tokenizer = build_tokenizer({**metadata, "tokenizer.ggml.pre": pre}, "file")
        ids = encode(tokenizer, "a zqzq zqzqz")
        assert ids.count(len(tokens) - 1) == (pre == "llama-bpe")
        # Llama 3 has bos in front, unless the file says otherwise.
        assert (tokenizer.encode("a")[0] == 1) == (pre == "llama-bpe")
    off = {**metadata, "tokenizer.ggml.pre": "llama-bpe"}
    tokenizer = build_tokenizer({**off, "tokenizer.ggml.add_bos_token": False}, "file")
    assert tokenizer.encode("a") == encode(tokenizer, "a")


def test_special_tokens_in_text(byte_level):
    tokenizer = build_tokenizer(byte_level, "file")
    text = "<|start|>user\nHi <|tool|> there<|end|>"
    ids = encode(tokenizer, text)
    assert [ids[0], ids[-1]] == [1, 0] and ids.count(2) == 1
    assert tokenizer.decode(ids) == text
    # Control tokens can be hidden, user-defined ones are text.
    shown = tokenizer.decode(ids, skip_special_tokens=True)
    assert shown == "user\nHi <|tool|> there"
    assert set(tokenizer.all_special_ids) == {0, 1}
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|start|>", "<|end|>")
    assert tokenizer.pad_token_id == 0 and tokenizer.unk_token is None
    assert tokenizer.model_max_length == 100_000
    # Spelt otherwise it is ordinary text.
    assert 1 not in encode(tokenizer, "<| start|>")


def test_bos_and_eos_where_the_file_says_so(byte_level):
    flags = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    tokenizer = build_tokenizer({**byte_level, **flags}, "file")
    plain = encode(tokenizer, "a b")
    assert tokenizer.encode("a b") == [1, *plain, 0]
    assert tokenizer("a b", "a b").input_ids == [1, *plain, 0, 1, *plain, 0]
    assert tokenizer.add_bos_token and tokenizer.add_eos_token
    assert build_tokenizer(byte_level, "file").encode("a b") == plain


def test_chat_template(byte_level):
    template = (
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}"
        "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[bot]{% endif %}"
    )
    metadata = {**byte_level, "tokenizer.chat_template": template}
    tokenizer = build_tokenizer(metadata, "file")
    chat = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=False
    )
    assert text == "<|start|>[user] Hi<|end|>[bot]"
    with pytest.raises(ValueError, match="chat_template"):
        build_tokenizer(byte_level, "file").apply_chat_template(chat, tokenize=False)


def test_saved_and_loaded_it_is_the_same(byte_level, tmp_path):
    flags = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.pre": "qwen2"}
    tokenizer = build_tokenizer({**byte_level, **flags}, "file")
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    for text in [*TEXTS, "<|start|>a<|tool|>b<|end|>"]:
        assert again.encode(text) == tokenizer.encode(text)


# ---- SentencePiece -------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentencepiece():
    """Metadata in Llama's order: unk, bos, eos, bytes, pieces by score, letters."""
    spaces = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    pieces = train(pre_tokenizers.Split("\n", "isolated"), [], spaces)
    letters = [piece for piece in pieces if len(piece) == 1]
    # Not every letter of the texts: the others must become bytes.
    letters = [x for x in letters if x.isascii() or x in "▁é日"]
    merged = [p for p in pieces if len(p) > 1 and set(p) <= set(letters)]
    coded = [f"<0x{b:02X}>" for b in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *coded, *merged, *letters]
    scores = [0.0] * 259 + [-float(i) for i in range(len(merged) + len(letters))]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [2, 3, 3]
        + [6] * 256
        + [1] * len(merged + letters),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def sentencepiece_ids(text, metadata, prefix=True):
    """Merges the adjacent pair with the best joint piece, by the scores themselves."""
    tokens = metadata["tokenizer.ggml.tokens"]
    vocab = {token: i for i, token in enumerate(tokens)}
    scores = metadata["tokenizer.ggml.scores"]
    pieces = {token: scores[i] for token, i in vocab.items() if i >= 259}
    text = ("▁" if prefix and text else "") + text.replace(" ", "▁")

    def rank(left, right):
        joint = left + right
        return -pieces[joint] if joint in pieces else None

    ids = []
    for part in merge_from_scratch(text, rank):
        known = part in pieces
        coded = [vocab[f"<0x{b:02X}>"] for b in part.encode()]
        ids += [vocab[part]] if known else coded
    return ids


def plain_texts(count):
    return [x for x in [*TEXTS, *random_texts(count)] if "▁" not in x]


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_against_scratch(sentencepiece, prefix):
    metadata = {**sentencepiece, "tokenizer.ggml.add_space_prefix": prefix}
    tokenizer = build_tokenizer(metadata, "file")
    bytes_used = others = 0
    for text in plain_texts(60):
        ids = encode(tokenizer, text)
        assert ids == sentencepiece_ids(text, metadata, prefix), text
        assert tokenizer.decode(ids) == text
        bytes_used += any(3 <= i < 259 for i in ids)
        others += ids != sentencepiece_ids(text, metadata, not prefix)
    assert bytes_used > 5 and others > 5


def test_sentencepiece_against_transformers(sentencepiece):
    tokenizer = build_tokenizer(sentencepiece, "file")
    tokens = sentencepiece["tokenizer.ggml.tokens"]
    vocab = {token: i for i, token in enumerate(tokens)}
    scores = dict(zip(tokens, sentencepiece["tokenizer.ggml.scores"], strict=True))
    special = [t for t, i in vocab.items() if i < 259]
    merges = generate_merges(vocab, scores, skip_tokens=special)
    pieces = {token: scores[token] for token in tokens[259:]}
    assert merges_by_score(pieces) == merges and len(merges) > 500
    theirs = LlamaTokenizer(vocab=vocab, merges=merges, add_bos_token=True)
    for text in plain_texts(200):
        if text.startswith(" "):
            # It puts no ▁ in front of a space; SentencePiece does.
            continue
        assert encode(tokenizer, text) == encode(theirs, text)
        assert tokenizer.encode(text) == theirs.encode(text)
        assert tokenizer.encode(text)[0] == 1


def test_scores_and_not_order_decide(sentencepiece):
    # Negative control: with other scores the same text has other ids.
    scores = sentencepiece["tokenizer.ggml.scores"]
    turned = {**sentencepiece, "tokenizer.ggml.scores": [-x for x in scores]}
    first, second = (build_tokenizer(x, "file") for x in (sentencepiece, turned))
    assert encode(first, SOURCE[:500]) != encode(second, SOURCE[:500])
    assert encode(second, SOURCE[:500]) == sentencepiece_ids(SOURCE[:500], turned)
    pieces = {"a": -1.0, "b": -2.0, "ab": -3.0, "aab": -4.0}
    assert merges_by_score(pieces) == [("a", "b"), ("a", "ab")]


def test_sentencepiece_special_tokens(sentencepiece):
    tokenizer = build_tokenizer(sentencepiece, "file")
    ids = encode(tokenizer, "hi</s><s>hi")
    # As llama.cpp and Llama's own tokenizer.json: ▁ in front of each text.
    part = sentencepiece_ids("hi", sentencepiece)
    assert ids == [*part, 2, 1, *part]
    assert set(tokenizer.all_special_ids) == {0, 1, 2}
    assert tokenizer.unk_token == "<unk>"


def test_phi3_strips_white_space_after_special_tokens(sentencepiece):
    tokens = [*sentencepiece["tokenizer.ggml.tokens"], "<|end|>"]
    metadata = {
        **sentencepiece,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [*sentencepiece["tokenizer.ggml.token_type"], 3],
        "tokenizer.ggml.scores": [*sentencepiece["tokenizer.ggml.scores"], -1e3],
    }
    last = len(tokens) - 1
    part = sentencepiece_ids("a", sentencepiece)
    text = "<|end|> \na<s>\na"
    for name, strips in (("Phi 3 Mini", False), ("Phi-3-mini-4k-instruct", True)):
        named = {**metadata, "general.name": name}
        ids = encode(build_tokenizer(named, "file"), text)
        assert (ids[: 1 + len(part)] == [last, *part]) == strips
        assert ids[-2 - len(part) :] != [1, *part]  # <s> never strips


# ---- what is refused -----------------------------------------------------------------

GGML = "tokenizer.ggml."
REFUSED = [
    ({"model": "bert"}, "'bert', expected one of gpt2, llama"),
    ({"model": None}, "tokenizer.ggml.model is None"),
    ({"pre": "deepseek-llm"}, "'deepseek-llm', expected one of gpt-2, smollm"),
    ({"pre": None}, "tokenizer.ggml.pre is None"),
    ({"tokens": None}, "tokenizer.ggml.tokens is missing"),
    ({"token_type": None}, "tokenizer.ggml.token_type is missing"),
    ({"token_type": [1, 1]}, "token_type has 2 entries, expected one entry for each"),
    ({"merges": None}, "tokenizer.ggml.merges is missing"),
    ({"merges": ["a b", "a zzzz"]}, "holds 'a zzzz', expected two tokens"),
    ({"merges": ["a"]}, "holds 'a', expected two tokens"),
    ({"model": "llama"}, "tokenizer.ggml.scores is missing"),
    ({"eos_token_id": 10**6}, "the eos token is number 1000000"),
    ({"bos_token_id": None, "add_bos_token": True}, "bos_token_id is missing"),
]


@pytest.mark.parametrize("change, words", REFUSED, ids=str)
def test_refused(byte_level, change, words):
    metadata = {**byte_level, **{GGML + key: value for key, value in change.items()}}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    with pytest.raises(GGUFError) as caught:
        build_tokenizer(metadata, "some/file.gguf")
    assert words in str(caught.value) and "some/file.gguf" in str(caught.value)


def test_refused_lists(byte_level, sentencepiece):
    tokens = list(byte_level["tokenizer.ggml.tokens"])
    tokens[7] = tokens[8]
    with pytest.raises(GGUFError, match="holds tokens twice"):
        build_tokenizer({**byte_level, "tokenizer.ggml.tokens": tokens}, "file")
    metadata = {**sentencepiece, "tokenizer.ggml.remove_extra_whitespaces": True}
    with pytest.raises(GGUFError, match="remove_extra_whitespaces"):
        build_tokenizer(metadata, "file")


# ---- the real file -------------------------------------------------------------------


@pytest.mark.real_model
def test_real_smollm2():
    path = fetch.find("smollm2-135m")
    if path is None:
        pytest.skip("run: python -m vtscale_jax.weights fetch smollm2-135m")
    tokenizer = open_gguf(path).tokenizer()
    fields = GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [x.split(" ") for x in fields["tokenizer.ggml.merges"].contents()]
    vocab = {token: i for i, token in enumerate(tokens)}
    ranks = {(a, b): i for i, (a, b) in enumerate(merges)}
    assert len(tokenizer) == len(tokens) == 49152
    for text in [*TEXTS, *random_texts(100), DECOMPOSED]:
        ids = encode(tokenizer, text)
        assert ids == byte_level_ids(text, PATTERNS["smollm"], vocab, ranks), text
        assert tokenizer.decode(ids) == text
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=False
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by "
        "Hugging Face<|im_end|>\n<|im_start|>user\nWhat is the capital of France?"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = encode(tokenizer, text)
    assert ids[:3] == [1, 9690, 198] and ids.count(1) == 3 and ids.count(2) == 2
    assert tokenizer.decode(ids) == text
    hidden = tokenizer.decode(ids, skip_special_tokens=True)
    assert "<|" not in hidden and hidden.endswith("assistant\n")
