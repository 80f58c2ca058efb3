"""Pairs as token ids, by chat templates, plain forms and our own formats."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import vtscale_jax
from vtscale_jax.divergence.pairs.rows import read_pairs
from vtscale_jax.divergence.pairs.schemas import REASONS, BadRow, Pair, PairsError
from vtscale_jax.divergence.pairs.tokens import (
    Lengths,
    Tally,
    TokenPair,
    token_pairs,
)
from vtscale_jax.divergence.pairs.writers import (
    ChatWriter,
    TemplateWriter,
    TextWriter,
    Written,
    writer_for,
)
from vtscale_jax.divergence.pairs.written_pages import PageWriter, page_pairs
from vtscale_jax.embedded.pretrain_llm import encode
from vtscale_jax.embedded.text_pages import TextPages, TextRecord
from vtscale_jax.embedded.vocabulary import build_tokenizer
from vtscale_jax.types import Turn
from vtscale_jax.weights import fetch
from vtscale_jax.weights.pretrained import open_pretrained

ASKED = (("user", "two plus two ?"),)
PAIR = Pair(3, ASKED, "four it is", "five I say")
# What templates on the hub do, in few words: "<role> text <end>".
PLAIN = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TRIMMED = PLAIN.replace("m.content", "m.content | trim")
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}" + PLAIN
)
DROPS_SYSTEM = PLAIN.replace(
    "{% for m in messages %}",
    "{% for m in messages if m.role != 'system' %}",
)
ONE_TURN = (
    "{% if messages | length > 2 %}{{ raise_exception('one turn only') }}{% endif %}"
    + PLAIN
)
# Qwen 3 writes an empty thought before the last answer, and none into the prompt.
THINKS = PLAIN.replace(
    "> {{",
    "> {% if loop.last and m.role == 'assistant' %}<think> </think>\n{% endif %}{{",
)
SHOUTS = PLAIN.replace("m.content", "(m.content | upper)")
CUTS = PLAIN.replace("m.content", "m.content.split('<think>')[-1]")
OTHER_START = "{% if not add_generation_prompt %}<whole> {% endif %}" + PLAIN
DAILY = "today is {{ date_string or strftime_now('%d %b %Y') }} . " + PLAIN


class Letters(PreTrainedTokenizerFast):
    """One id per character, so that ids are texts; `own_space` as SentencePiece has."""

    def __init__(self, template=None, own_space=False):
        letters = [chr(n) for n in (10, *range(32, 127))] + ["▁"]
        ids = {letter: number for number, letter in enumerate(["<unk>", *letters])}
        tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
        if own_space:
            tokenizer.normalizer = normalizers.Sequence(
                [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            )
        tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        tokenizer.decoder = decoders.Fuse()
        super().__init__(tokenizer_object=tokenizer, unk_token="<unk>")
        self.chat_template = template


def texts(written):
    """Prefix, a and b as texts, of ids made by `Letters`."""
    assert isinstance(written, Written | TokenPair), written
    letters = Letters()
    return tuple(
        "".join(letters.convert_ids_to_tokens(list(map(int, ids))))
        for ids in (written.prefix, written.a, written.b)
    )


def wrote(template, pair=PAIR, **options):
    return ChatWriter(Letters(template, **options))(pair)


def test_a_branch_is_the_answer_without_the_marker_of_its_end():
    before = "<user> two plus two ? <end> <assistant>"
    assert texts(wrote(PLAIN)) == (before, " four it is", " five I say")
    # The words of the prompt in an answer, and a one-letter answer, are no problem.
    odd = PAIR._replace(chosen="<assistant> e", rejected="e")
    assert texts(wrote(PLAIN, odd)) == (before, " <assistant> e", " e")


def test_answers_are_trimmed_where_the_template_trims():
    spaced = PAIR._replace(chosen=" four \n", rejected="\nfive")
    assert texts(wrote(TRIMMED, spaced))[1:] == (" four", " five")
    assert texts(wrote(PLAIN, spaced))[1:] == ("  four \n", " \nfive")


def test_text_before_the_answer_goes_to_the_prefix():
    prefix, a, b = texts(wrote(THINKS))
    assert prefix.endswith("<assistant> <think> </think>\n")
    assert (a, b) == ("four it is", "five I say")


def test_a_tokenizer_with_a_space_of_its_own_gets_no_second_one():
    prefix, a, b = texts(wrote(PLAIN, own_space=True))
    assert prefix.startswith("▁<user>▁two")
    assert (a, b) == ("▁four▁it▁is", "▁five▁I▁say")


SYSTEM = PAIR._replace(messages=(("system", "be brief"), *ASKED))


def test_a_system_text_is_moved_where_the_template_has_no_place_for_it():
    kept = wrote(PLAIN, SYSTEM)
    assert texts(kept)[0].startswith("<system> be brief <end> <user> two")
    assert kept.notes == ()
    moved = "<user> be brief\n\ntwo plus two ? <end> <assistant>"
    for template in (NO_SYSTEM, DROPS_SYSTEM):
        found = wrote(template, SYSTEM)
        assert texts(found)[0] == moved and found.notes == ("system moved",)
        assert wrote(template).notes == ()
    tally = Tally()
    rows = [SYSTEM, PAIR, SYSTEM, BadRow(9, "not JSON", "")]
    found = token_pairs(rows, ChatWriter(Letters(NO_SYSTEM)))
    assert [pair.line for pair in tally.good(found)] == [3, 3, 3]
    assert (tally.total, tally.notes) == (4, {"system moved": 2})
    assert [row.line for row in tally.bad] == [9]


def test_what_a_template_refuses_is_a_bad_row_with_its_words():
    long = PAIR._replace(messages=(*ASKED, ("assistant", "four"), ("user", "sure ?")))
    found = wrote(ONE_TURN, long)
    assert found == BadRow(3, "refused by template", "one turn only")
    assert isinstance(wrote(PLAIN, long), Written)
    found = wrote(SHOUTS)
    assert found.reason == "refused by template" and "changes" in found.detail
    # Some templates cut a thought out of an answer.
    found = wrote(CUTS, PAIR._replace(rejected="<think> five"))
    assert found.reason == "refused by template" and "<think> five" in found.detail
    assert isinstance(wrote(CUTS), Written)


def test_a_whole_that_begins_otherwise_is_a_prefix_mismatch():
    found = wrote(OTHER_START)
    assert (found.line, found.reason) == (3, "prefix mismatch")


def test_the_day_is_the_same_every_day():
    assert texts(wrote(DAILY))[0].startswith("today is 26 Jul 2024 . <user>")


def test_a_tokenizer_without_template_says_what_to_do():
    with pytest.raises(PairsError, match="no chat template.*--prompt_form text"):
        writer_for(Letters())
    with pytest.raises(PairsError, match="prompt_form is 'mistral'.*plain"):
        writer_for(Letters(PLAIN), "mistral")
    with pytest.raises(PairsError, match="holds {question}"):
        TextWriter(Letters(), "{system}")
    with pytest.raises(PairsError, match="template is 'none'"):
        TemplateWriter(Letters(), "none")


def test_plain_text():
    write = writer_for(Letters(), "text")
    assert texts(write(SYSTEM)) == (
        *("be brief\n\ntwo plus two ?\n\n", "four it is", "five I say"),
    )
    assert texts(write(PAIR))[0] == "two plus two ?\n\n"
    odd = SYSTEM._replace(messages=(("system", "{question} {x}"), ("user", "{system}")))
    assert texts(write(odd))[0] == "{question} {x}\n\n{system}\n\n"
    long = SYSTEM._replace(messages=(*SYSTEM.messages, ("assistant", "4"), *ASKED))
    text = "be brief\n\ntwo plus two ?\n\n4\n\ntwo plus two ?\n\n"
    assert texts(write(long))[0] == text


def test_a_form_of_ones_own_loses_no_system_text():
    write = writer_for(Letters(), "Q: {question}\nA:")
    assert texts(write(PAIR))[0] == "Q: two plus two ?\nA:"
    found = write(SYSTEM)
    assert texts(found)[0] == "Q: be brief\n\ntwo plus two ?\nA:"
    assert found.notes == ("system moved",)


def test_plain_text_begins_as_the_tokenizer_does():
    from tokenizers.processors import TemplateProcessing

    tokenizer = Letters()
    plain = writer_for(tokenizer, "text")(PAIR)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    assert writer_for(tokenizer, "text")(PAIR) == plain
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    assert writer_for(tokenizer, "text")(PAIR).prefix == [bos, *plain.prefix]
    assert writer_for(tokenizer, "text")(PAIR).a == plain.a


def fitted(pair=PAIR, **lengths):
    write = writer_for(Letters(), "text")
    (found,) = token_pairs([pair], write, Lengths(**lengths))
    return found


def test_both_branches_have_the_length_of_the_shorter_and_at_most_n():
    pair = PAIR._replace(chosen="four, I should think")
    whole = fitted(pair)
    assert texts(whole) == ("two plus two ?\n\n", "four, I sh", "five I say")
    assert whole.notes == () and whole.a.dtype == whole.prefix.dtype == np.int32
    cut = fitted(pair, max_length=6)
    assert texts(cut)[1:] == ("four, ", "five I") and cut.notes == ("cut",)
    assert fitted(pair, max_length=10).notes == ()


def test_branches_that_agree_as_far_as_both_go_are_the_same():
    pair = PAIR._replace(chosen="four it isn't")
    assert texts(fitted(pair))[1:] == ("four it is", "five I say")
    same = fitted(PAIR._replace(rejected="four it isn't"))
    assert (same.line, same.reason) == (3, "same branches")
    assert "all 10 tokens" in same.detail
    later = PAIR._replace(rejected="four, so")
    assert fitted(later, max_length=4).reason == "same branches"
    assert texts(fitted(later, max_length=5))[2] == "four,"


def test_what_is_longer_than_allowed():
    # 16 tokens of prefix and 10 of each branch.
    assert isinstance(fitted(max_prefix=16, limit=26), TokenPair)
    found = fitted(max_prefix=15)
    assert found.reason == "over-long" and "16 tokens, at most 15" in found.detail
    found = fitted(limit=25)
    assert found.reason == "over-long" and "16 + 10" in found.detail
    assert isinstance(fitted(max_length=9, limit=25), TokenPair)
    for name in ("max_length", "max_prefix", "limit"):
        with pytest.raises(PairsError, match=f"{name} is 0"):
            token_pairs([PAIR], writer_for(Letters(), "text"), Lengths(**{name: 0}))


def test_bad_rows_pass_through_and_tokenless_answers_are_found():
    bad = BadRow(1, "not JSON", "x")
    write = writer_for(build_tokenizer(), "plain")
    blank = Pair(2, (("user", "read the page"),), "1 2", "\t")
    assert list(token_pairs([bad, blank], write)) == [
        bad,
        BadRow(2, "empty branch", "rejected has no tokens"),
    ]
    assert {"empty branch", "over-long", "unknown words"} <= set(REASONS)


def test_words_that_a_tokenizer_does_not_know():
    found = fitted(PAIR._replace(rejected="fünf"))
    assert found.reason == "unknown words" and "1 of 4" in found.detail
    assert "rejected" in found.detail
    found = fitted(PAIR._replace(messages=(("user", "née"),)))
    assert found.reason == "unknown words" and "prefix" in found.detail
    write = writer_for(build_tokenizer(), "plain")
    assert write(PAIR).reason == "unknown words"


SHIPPED = vtscale_jax.__path__[0] + "/embedded/weights"


@pytest.fixture(scope="module")
def embedded():
    return AutoTokenizer.from_pretrained(SHIPPED)


def test_the_embedded_model_reads_what_it_was_trained_on(embedded):
    turn = Turn("read all digits in order", "3 7 5", "read")
    record = TextRecord("3 none 7 5", ("",), (turn,), "grid", (3, None, 7, 5))
    ids, _, weights = encode(record, embedded.get_vocab())
    pair = Pair(
        1, (("system", record.page), ("user", turn.question)), turn.answer, "7 5 3"
    )
    (found,) = token_pairs([pair], writer_for(embedded, "plain"))
    assert [*found.prefix, *found.a, embedded.eos_token_id] == ids
    assert len(found.prefix) == weights.index(next(filter(None, weights)))
    assert embedded.decode(found.b) == "7 5 3"


def test_formats_take_questions_and_answers_in_turn(embedded):
    write = writer_for(embedded, "plain")
    talk = (("user", "read the page"), ("assistant", "3 7"), ("user", "count all 3"))
    text = embedded.decode(write(Pair(1, talk, "1", "2")).prefix)
    assert text == "<s> read the page answer : 3 7 </s> count all 3 answer :"
    for wrong in (talk[:2], talk[1:], (talk[0], talk[2])):
        found = write(Pair(1, wrong, "1", "2"))
        assert found.reason == "refused by template"
    assert write(Pair(1, (*talk[:2], ("user", "")), "1", "2")).reason == "missing field"


@pytest.mark.parametrize("said", ["strftime_now('%d %b %Y')", "date_string"])
def test_a_template_that_writes_the_day_writes_always_the_same(said):
    """Else the ids would be others tomorrow, and an interrupted measurement mixed."""
    letters = Letters("{{ " + said + " }} " + PLAIN)
    found = ChatWriter(letters)(PAIR)
    text = "".join(letters.convert_ids_to_tokens(found.prefix))
    assert text.startswith("26 Jul 2024 "), text


def written(index: int) -> str:
    return TextPages(10_000, 7, style_shares=(0.5, 0.5, 0.0))[index].page


def test_written_pages_are_pairs_of_the_embedded_model(embedded):
    made = list(page_pairs(written, 12, least_words=30))
    tally = Tally()
    rows = token_pairs(made, PageWriter(embedded), Lengths(64))
    found = list(tally.good(rows))
    assert not tally.bad and len(found) == 12
    known = [page for page in map(written, range(2000)) if len(page.split()) >= 30]
    for pair, ids in zip(made, found, strict=True):
        assert {pair.chosen, pair.rejected} <= set(known)
        assert ids.prefix.tolist() == [embedded.bos_token_id]
        assert 30 <= len(ids.a) <= 64 and ids.a[0] != ids.b[0]
        assert embedded.decode(ids.a).split() == pair.chosen.split()[: len(ids.a)]
        assert embedded.decode(ids.b).split() == pair.rejected.split()[: len(ids.b)]
    assert len({pair.chosen for pair in made}) == 12
    assert [pair.line for pair in made] == list(range(1, 13))
    with pytest.raises(PairsError, match="at least 1 pair"):
        page_pairs(written, 0)


def test_pages_of_other_words_are_left_out(embedded):
    write = PageWriter(embedded)
    for chosen, rejected, which in (
        ("3 7", "zebra", "second"),
        ("zebra", "3", "first"),
    ):
        found = write(Pair(4, (("user", "page"),), chosen, rejected))
        assert (found.line, found.reason) == (4, "unknown words")
        assert which in found.detail


NAME = "smollm2-135m"


def real(test):
    """Marks a test of the tokenizer and chat template of a real model."""
    found = fetch.find(NAME) is not None
    reason = f"run: python -m vtscale_jax.weights fetch {NAME}"
    return pytest.mark.real_model(pytest.mark.skipif(not found, reason=reason)(test))


@pytest.fixture(scope="module")
def smol():
    return open_pretrained("model", NAME).tokenizer()


@real
def test_the_prefix_is_what_generation_starts_from(smol):
    pair = SYSTEM._replace(chosen="It is 4, of course.", rejected="Five!\n")
    (found,) = token_pairs([pair], writer_for(smol))
    assert smol.decode(found.prefix) == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n"
        "two plus two ?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert found.prefix.tolist() == smol.apply_chat_template(
        [{"role": r, "content": c} for r, c in pair.messages],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert smol.decode(found.b) == "Five!\n"
    assert smol.decode(found.a) == "It is "[: len(smol.decode(found.a))]
    assert len(found.a) == len(found.b) > 1
    assert found.notes == ()


@real
def test_every_shipped_pair_is_used_and_long(smol):
    from vtscale_jax.divergence.pairs.answers import SHIPPED

    tally = Tally()
    rows = list(read_pairs(SHIPPED))
    found = list(tally.good(token_pairs(rows, writer_for(smol))))
    assert len(found) == tally.total == 512 and not tally.bad
    n = np.array([len(pair.a) for pair in found])
    assert n.min() > 120 and np.median(n) >= 190 and (n >= 256).sum() >= 40
    first = [np.flatnonzero(pair.a != pair.b)[0] for pair in found]
    assert max(first) <= 3 and np.mean(np.equal(first, 0)) > 0.9
    ends = {smol.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|im_start|>")}
    assert not any(ends & {*pair.a.tolist(), *pair.b.tolist()} for pair in found)
    # As the whole conversation is tokenised at once, so it is in parts.
    for pair, row in list(zip(found, rows, strict=True))[::37]:
        chat = (*row.messages, ("assistant", row.chosen))
        ids = smol.apply_chat_template(
            [{"role": r, "content": c} for r, c in chat], return_dict=False
        )
        parts = [*pair.prefix.tolist(), *pair.a.tolist()]
        assert ids[: len(parts)] == parts
