"""The sequence format against sequences made by the authors' parsers.

`sequences_bpe.json` holds ids from the real CLIP and Llama tokenizers, which do not
travel with the tests. `Recorded` stands in for them: it knows the ids of exactly those
texts that the authors' code tokenised, and fails on any other, so segment borders are
checked as well as ids and kinds. `sequences_words.json` holds the inputs of the tiny
golden models, with word-level vocabularies that are rebuilt here.
"""

import json
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vtscale_jax.templates import TEMPLATES, segments
from vtscale_jax.tokens import (
    QueryLayout,
    answer_sequences,
    as_prompt,
    fusion_sequence,
    fusion_slots,
    llm_sequence,
    llm_slots,
    loss_targets,
)
from vtscale_jax.types import Kind, Record, TokenSequence, Turn

pytestmark = pytest.mark.goldens

FIRST_QUERY_ID = 49408
FIXED = "Describe the image."
CHATS = ("llama-2-vision", "llama-2", "vicuna_v1.1")
IMAGE = "page.png"
CASES = [
    f"N{n}_S{s}_asp{special}"
    for n, s in ((16, 8), (1, 1))
    for special in (1, 0)
]  # fmt: skip


@dataclass(eq=False)  # so it is hashable
class Recorded:
    """A tokenizer that knows the ids of some texts and fails on all others."""

    ids: dict[str, list[int]]
    eos_token_id: int
    pad_token_id: int | None = None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return self.ids[text]


@pytest.fixture(scope="module")
def bpe(golden_dir):
    return json.loads((golden_dir / "sequences_bpe.json").read_text())


@pytest.fixture(scope="module")
def words(golden_dir):
    return json.loads((golden_dir / "sequences_words.json").read_text())


@pytest.fixture(scope="module")
def clip(bpe):
    """The CLIP tokenizer, as far as recorded."""
    case = bpe["cases"]["N16_S8_asp1_user_query"]
    questions, answers = bpe["messages"][::2], bpe["messages"][1::2]
    ids = dict(zip(questions, _runs(case["fusion_query_train"], "QUE"), strict=True))
    for text, row in zip(answers, case["answers_1_1"], strict=True):
        ids[text] = _runs(row, "ANS")[0]
    ids["[INST] " + questions[0]] = _runs(case["infer_llama-2_query"], "QUE")[0]
    fixed = bpe["cases"]["N16_S8_asp1_vision_query_fixed_text"]["fusion_query_train"]
    ids[FIXED] = _runs(fixed, "QUE")[0]
    return Recorded(ids, bpe["fusion_specials"]["eos"], bpe["fusion_specials"]["pad"])


@pytest.fixture(scope="module")
def llama(bpe):
    """The Llama tokenizer, as far as recorded; it has no pad token."""
    case = bpe["cases"]["N16_S8_asp1_user_query"]
    ids = {}
    for name in CHATS:
        texts = [tuple(pair) for pair in bpe["segments"][name]]
        runs = _runs(
            case[f"llm_train_{name}"], "BOS", "SYS", "QUE", "INST", "ANS", "EOS"
        )
        for i, (text, kind) in enumerate(texts):
            if i + 1 < len(texts) and texts[i + 1][1] == kind:
                # Two segments of one kind are one run in the golden: " " is one token.
                assert text == " "
                ids[text], runs[0] = runs[0][:1], runs[0][1:]
            else:
                ids[text] = runs.pop(0)
        assert not runs
    override = _runs(bpe["infer_system_override_llm"], "SYS", "QUE")
    ids["[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n"], ids["Hi"] = override
    empty = _runs(bpe["llm_empty_first_answer"], "QUE")
    ids["Q one?"], ids["Q two?"] = empty
    return Recorded(ids, bpe["llm_specials"]["eos"])


def _runs(golden, *kinds):
    """Ids of the runs of the given kinds, in order."""
    at, found = 0, []
    for kind, length in golden["layout"]:
        if kind in kinds:
            found.append(golden["ids"][at : at + length])
        at += length
    return found


def _record(messages, image=IMAGE, system=None):
    answers = [*messages[1::2], ""]
    turns = tuple(map(Turn, messages[::2], answers))
    return Record("sample-7", image, turns, system)


def _layout(case):
    first = FIRST_QUERY_ID if "asp1" in case else None
    return QueryLayout(16, 8, first) if "N16" in case else QueryLayout(1, 1, first)


def _shape(sequence):
    """The golden's form of the kinds: [["QUE", 7], ["QED", 15], ...]."""
    return [[Kind(k).name, len(list(g))] for k, g in groupby(sequence.kinds.tolist())]


def _unpadded(golden):
    keep = sum(length for kind, length in golden["layout"] if kind != "PAD")
    layout = [run for run in golden["layout"] if run[0] != "PAD"]
    return golden["ids"][:keep], layout


def _assert_same(sequence, golden):
    ids, layout = _unpadded(golden)
    assert _shape(sequence) == layout
    assert sequence.ids.tolist() == ids
    assert sequence.ids.shape == sequence.kinds.shape
    assert not np.any(sequence.kinds & Kind.PAD)


def test_kinds_are_the_authors_bit_flags(bpe):
    assert {kind.name: kind.value for kind in Kind} == bpe["type_codes"]


@pytest.mark.parametrize("case", CASES)
def test_fusion_sequences(case, bpe, clip):
    record, layout = _record(bpe["messages"]), _layout(case)
    goldens = bpe["cases"]
    asked = goldens[f"{case}_user_query"]
    _assert_same(fusion_sequence(record, clip, layout), asked["fusion_query_train"])
    drop = goldens[f"{case}_vision_query_drop"]["fusion_query_train"]
    _assert_same(fusion_sequence(record, clip, layout, question="dropped"), drop)
    fixed = fusion_sequence(record, clip, layout, question="fixed", fixed_text=FIXED)
    _assert_same(
        fixed, goldens[f"{case}_vision_query_fixed_text"]["fusion_query_train"]
    )
    other = QueryLayout(2, 1, layout.first_query_id)
    with pytest.raises(AssertionError):
        _assert_same(fusion_sequence(record, clip, other), asked["fusion_query_train"])


@pytest.mark.parametrize("case", CASES)
def test_fusion_sequences_of_the_authors_inference(case, bpe, clip):
    prompt, layout = as_prompt(_record(bpe["messages"])), _layout(case)
    asked = fusion_sequence(prompt, clip, layout)
    for name in ("llama-2-vision", "llama-2"):
        golden = bpe["cases"][f"{case}_user_query"][f"infer_{name}_query"]
        made = fusion_sequence(
            prompt, clip, layout, question="templated", template=name
        )
        _assert_same(made, golden)
        same_as_training = made.ids.tolist() == asked.ids.tolist()
        assert same_as_training == (name == "llama-2-vision")
        for mode in ("drop", "fixed_text"):
            variant = bpe["cases"][f"{case}_vision_query_{mode}"]
            assert variant[f"infer_{name}_query"] == variant["fusion_query_train"], (
                "inference differs from training in a question-free variant"
            )


@pytest.mark.parametrize("case", CASES)
def test_answer_sequences(case, bpe, clip):
    record, golden = _record(bpe["messages"]), bpe["cases"][f"{case}_user_query"]
    rows = answer_sequences(record, clip, max_length=40)
    for row, expected in zip(rows, golden["answers_1_1"], strict=True):
        _assert_same(row, expected)
    with_slots = answer_sequences(record, clip, max_length=40, layout=_layout(case))
    for row, expected in zip(with_slots, golden["answers_with_same_N_S"], strict=True):
        _assert_same(row, expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", CHATS)
def test_llm_sequences(case, name, bpe, llama):
    record, layout = _record(bpe["messages"]), _layout(case)
    assert [[t, k.name] for t, k in segments(record, name)] == bpe["segments"][name]
    golden = bpe["cases"][f"{case}_user_query"]
    made = llm_sequence(record, llama, name, layout)
    _assert_same(made, golden[f"llm_train_{name}"])

    positions, targets = loss_targets(made)
    expected = golden[f"llm_train_{name}"]["loss_target_positions"]
    assert (positions + 1).tolist() == expected
    assert targets.tolist() == made.ids[expected].tolist()

    prompt = llm_sequence(as_prompt(record), llama, name, layout)
    if f"infer_{name}_llm" in golden:
        _assert_same(prompt, golden[f"infer_{name}_llm"])
    with pytest.raises(AssertionError):
        _assert_same(prompt, golden[f"llm_train_{name}"])


def test_llm_sequence_options(bpe, llama):
    layout = QueryLayout(4, 3)
    made = llm_sequence(
        _record(["Hi"], system="Be brief."), llama, "llama-2-vision", layout
    )
    _assert_same(made, bpe["infer_system_override_llm"])
    unanswered = _record(["Q one?", "", "Q two?"])
    made = llm_sequence(unanswered, llama, "llama-2-vision", layout)
    _assert_same(made, bpe["llm_empty_first_answer"])
    # A system text makes the two llama-2 formats one; "" makes them the other.
    for system in ("Be brief.", ""):
        record = _record(["Hi", "Hello"], system=system)
        assert segments(record, "llama-2") == segments(record, "llama-2-vision")


def test_sample_without_image(bpe, clip, llama):
    record, layout = _record(bpe["messages"], image=None), QueryLayout(16, 8, 49408)
    fusion = fusion_sequence(record, clip, layout)
    _assert_same(fusion, bpe["no_image_query"])
    llm = llm_sequence(record, llama, "llama-2-vision", layout)
    _assert_same(llm, bpe["no_image_llm"])
    assert len(fusion_slots(fusion)) == len(llm_slots(llm)) == 0
    for row, golden in zip(
        answer_sequences(record, clip, max_length=40, layout=layout),
        bpe["no_image_answers_layout"],
        strict=True,
    ):
        assert _shape(row) == [run for run in golden if run[0] != "PAD"]
    empty = fusion_sequence(record, clip, layout, question="dropped")
    assert empty.ids.shape == empty.kinds.shape == (0,)


def test_answers_keep_eos_when_truncated(bpe, clip):
    record = _record(bpe["messages"])
    with pytest.raises(ValueError, match=r"sample-7.*answer 0 has 6.*text.max_length"):
        answer_sequences(record, clip, max_length=5)
    rows = answer_sequences(record, clip, max_length=5, truncate=True)
    assert [len(row.ids) for row in rows] == [5, 5, 5]
    lost = 0
    for row, golden in zip(rows, bpe["answers_truncated_to_5"], strict=True):
        # The reference cuts ⟨eos⟩ off two of the three.
        assert row.kinds[-1] == Kind.EOS and row.ids[-1] == clip.eos_token_id
        assert row.ids[:-1].tolist() == golden["ids"][:4]
        lost += golden["layout"] == [["ANS", 5]]
    assert lost == 2
    # The reference's other parser truncates as done here, but starts with ⟨bos⟩.
    other = bpe["UCDP_CLIPAnswer_other_parser_max6"]
    assert [row.ids.tolist() for row in rows] == [g["ids"][1:] for g in other]


def test_padding_of_the_reference_is_left_out(bpe, clip):
    golden = bpe["drop_with_fill_ends_5"]
    made = fusion_sequence(
        _record(bpe["messages"]), clip, _layout("N16_asp1"), question="dropped"
    )
    _assert_same(made, golden)
    assert len(golden["ids"]) == len(made.ids) + 5


# --- the word-level vocabularies of the tiny golden models ---------------------------


def word_tokenizer(vocab, eos):
    special = [word for word in vocab if word.startswith("<") and word.endswith(">")]
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, pad_token=eos)


@pytest.fixture(scope="module")
def tiny_clip(words):
    return word_tokenizer(words["fusion_vocab"], "<|endoftext|>")


@pytest.fixture(scope="module")
def tiny_llama(words):
    return word_tokenizer(words["llm_vocab"], "</s>")


def _row(golden, name, row):
    """A row of a golden batch without its padding."""
    ids, kinds = (np.array(golden[f"in__{name}_{x}"][row]) for x in ("ids", "tps"))
    keep = kinds != Kind.PAD
    return ids[keep].tolist(), kinds[keep].tolist()


def _pair(sequence):
    return sequence.ids.tolist(), sequence.kinds.tolist()


def _tiny_layout(settings):
    first = 52 if settings["append_special_padding"] else None
    return QueryLayout(
        settings["length_que_end"], settings["length_que_end_short"], first
    )


def _question(settings):
    return "asked" if settings["_drop_and_replaced_query"] is None else "dropped"


TINY = [
    *(("clip", case) for case in ("main", "n1", "sharedpad", "dropquery")),
    *(("vlm", case) for case in ("main", "n1", "sharedpad", "dropquery")),
    ("vlm", "noimage_row"),
]


@pytest.mark.parametrize(("part", "case"), TINY)
def test_inputs_of_the_golden_models(part, case, words, tiny_clip, tiny_llama):
    golden, answer = words[part][case], 0
    layout, mode = _tiny_layout(golden["settings"]), _question(golden["settings"])
    for row, messages in enumerate(words["conversations"]):
        image = IMAGE if row in golden["in__crop_index"] else None
        record = _record(messages, image)
        fusion = fusion_sequence(record, tiny_clip, layout, question=mode)
        assert _pair(fusion) == _row(golden, "que_input", row)
        if part == "clip":
            for made in answer_sequences(record, tiny_clip, max_length=40):
                assert _pair(made) == _row(golden, "ans_input", answer)
                answer += 1
        else:
            llm = llm_sequence(record, tiny_llama, words["template"], layout)
            assert _pair(llm) == _row(golden, "input", row)
            positions, targets = loss_targets(llm)
            labels = np.array(golden["shifted_labels"][row])
            assert positions.tolist() == np.flatnonzero(labels != -100).tolist()
            assert targets.tolist() == labels[labels != -100].tolist()
        wrong = QueryLayout(layout.num_queries + 1, 1, layout.first_query_id)
        if image is not None:
            other = fusion_sequence(record, tiny_clip, wrong, question=mode)
            assert _pair(other) != _row(golden, "que_input", row)
    assert answer == (4 if part == "clip" else 0)


@pytest.mark.parametrize("case", ["gen_single", "gen_multi"])
def test_prompts_of_the_golden_generation(case, words, tiny_clip, tiny_llama):
    golden, messages = words["vlm"][case], words["generation_messages"][case]
    record, layout = _record(messages), QueryLayout(4, 3, 52)
    llm = llm_sequence(record, tiny_llama, words["template"], layout)
    assert _pair(llm) == _row(golden, "input", 0)
    fusion = fusion_sequence(record, tiny_clip, layout)
    assert _pair(fusion) == _row(golden, "que_input", 0)
    full = next(
        _record(c) for c in words["conversations"] if c[: len(messages)] == messages
    )
    prompt = as_prompt(full, turn=len(messages) // 2)
    assert llm_sequence(prompt, tiny_llama, words["template"], layout).ids.tolist() == (
        llm.ids.tolist()
    )


# --- properties ----------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("system", [None, "", "be helpful and detailed ."])
@pytest.mark.parametrize("queries", [(1, 1), (5, 2), (5, 5)])
def test_every_template(name, system, queries, words, tiny_clip, tiny_llama):
    layout = QueryLayout(*queries, first_query_id=100)
    record = _record(words["conversations"][1], system=system)
    llm = llm_sequence(record, tiny_llama, name, layout)
    fusion = fusion_sequence(record, tiny_clip, layout)
    for sequence in (llm, fusion):
        assert not np.any(sequence.kinds & Kind.PAD)
        assert sequence.ids.dtype == sequence.kinds.dtype == np.int32
    # Fusion outputs (placeholders and ⟨eos⟩) match LLM slots, question by question.
    outputs = np.split(fusion_slots(fusion), np.flatnonzero(_ends(fusion)) + 1)[:-1]
    blocks = np.split(llm_slots(llm), np.flatnonzero(np.diff(llm_slots(llm)) > 1) + 1)
    counts = [layout.count(turn) for turn in range(3)]
    assert list(map(len, outputs)) == list(map(len, blocks)) == counts
    assert layout.total(3) == sum(counts)
    # Each block stands directly before its question.
    for block in blocks:
        assert llm.kinds[block[-1] + 1] == Kind.QUE
    # Prompts are prefixes, and every answer is trained on.
    for turn in range(3):
        prompt = llm_sequence(as_prompt(record, turn), tiny_llama, name, layout)
        assert prompt.ids.tolist() == llm.ids[: len(prompt.ids)].tolist()
        assert prompt.kinds[-1] == Kind.INST and llm.kinds[len(prompt.ids)] == Kind.ANS
        assert len(prompt.ids) - 1 in loss_targets(llm)[0]
    positions, targets = loss_targets(llm)
    assert np.all(llm.kinds[positions + 1] & (Kind.ANS | Kind.EOS))
    assert not np.any(llm.kinds[positions + 1] & (Kind.QED | Kind.INST | Kind.QUE))
    assert np.array_equal(targets, llm.ids[positions + 1])


def _ends(fusion):
    return fusion.kinds[fusion_slots(fusion)] == Kind.EOS


def test_plain_template_word_by_word():
    record = Record(
        "x", IMAGE, (Turn("how many", "two"), Turn("where", "")), "be brief"
    )
    vocab = ["<s>", "</s>", "<unk>", "be", "brief", "how", "many", "two", "where"]
    vocab = {word: i for i, word in enumerate([*vocab, "answer", ":"])}
    tokenizer = word_tokenizer(vocab, "</s>")
    made = llm_sequence(record, tokenizer, "plain", QueryLayout(2, 1))
    text = "<s> be brief </s> </s> how many answer : two </s> </s> where answer :"
    assert tokenizer.convert_ids_to_tokens(made.ids.tolist()) == text.split()
    assert _shape(made) == [
        ["BOS", 1], ["SYS", 2], ["QED", 2], ["QUE", 2], ["INST", 2], ["ANS", 1],
        ["EOS", 1], ["QED", 1], ["QUE", 1], ["INST", 2],
    ]  # fmt: skip
    silent = llm_sequence(
        record._replace(system=None), tokenizer, "plain", QueryLayout(2, 1)
    )
    assert silent.ids.tolist() == [made.ids[0], *made.ids[3:]]


def test_chatml_segments():
    record = Record("x", IMAGE, (Turn("Hi?", "Yes."), Turn("Why?", "So.")), "S")
    text = "".join(segment.text for segment in segments(record, "chatml"))
    assert text == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n"
        "<|im_start|>assistant\nYes.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\nSo.<|im_end|>\n"
    )


def test_queries_nest():
    """Follow-up questions reuse the first rows, and so do smaller layouts."""
    large, small = QueryLayout(64, 8, 1000), QueryLayout(16, 4, 1000)
    first = large.placeholder_ids(0, pad_id=0)
    assert first == list(range(1000, 1063))
    for layout, turn in ((large, 1), (large, 5), (small, 0), (small, 1)):
        ids = layout.placeholder_ids(turn, pad_id=0)
        assert ids == first[: layout.count(turn) - 1]
    assert QueryLayout(3).placeholder_ids(0, pad_id=9) == [9, 9]
    assert QueryLayout(1, 1, 1000).placeholder_ids(0, pad_id=9) == []


def test_default_of_followup_queries():
    assert [QueryLayout(m).num_followup_queries for m in (1, 7, 8, 768)] == [1, 7, 8, 8]


@pytest.mark.parametrize(
    "sizes, message",
    [
        ((1, 8), r"num_followup_queries is 8 with num_queries 1.*set num_followup"),
        ((0, None), r"num_queries is 0.*set num_queries to 1"),
        ((4, 0), r"num_followup_queries is 0"),
    ],
)
def test_wrong_layouts(sizes, message):
    with pytest.raises(ValueError, match=message):
        QueryLayout(*sizes)


def test_errors_name_the_sample_and_the_remedy(clip, llama):
    layout, asked = QueryLayout(2), _record(["What animals are in the image?"])
    with pytest.raises(ValueError, match=r"template is 'llama-9', expected one of"):
        llm_sequence(asked, llama, "llama-9", layout)
    with pytest.raises(ValueError, match=r"sample 'sample-7': question 1 is empty"):
        fusion_sequence(_record(["Hi", "A", ""]), clip, layout)
    with pytest.raises(ValueError, match=r"sample 'sample-7' has no turns"):
        llm_sequence(_record([]), llama, "llama-2", layout)
    with pytest.raises(ValueError, match=r"answer 0 is empty; stage align"):
        answer_sequences(asked, clip, max_length=9)
    with pytest.raises(ValueError, match=r"question is 'vq', expected one of"):
        fusion_sequence(asked, clip, layout, question="vq")
    with pytest.raises(ValueError, match=r"question='fixed' and only then"):
        fusion_sequence(asked, clip, layout, question="fixed")
    with pytest.raises(ValueError, match=r"needs a template"):
        fusion_sequence(asked, clip, layout, question="templated")
    with pytest.raises(ValueError, match=r"Recorded has no eos_token_id"):
        fusion_sequence(asked, Recorded(clip.ids, None), layout)


def test_loss_targets_of_an_empty_answer():
    kinds = np.array([Kind.BOS, Kind.QUE, Kind.INST], np.int32)
    positions, targets = loss_targets(
        TokenSequence(np.arange(3, dtype=np.int32), kinds)
    )
    assert positions.shape == targets.shape == (0,)


def test_texts_that_come_again_are_not_tokenised_again():
    class Counting:
        eos_token_id, pad_token_id = 1, 1

        def __init__(self, first):
            self.first, self.asked = first, []

        def encode(self, text, *, add_special_tokens):
            self.asked.append(text)
            return [self.first, len(text)]

    layout = QueryLayout(num_queries=2, num_followup_queries=1)
    one, other = Counting(5), Counting(6)
    records = [
        Record(name, None, (Turn(f"what is {name} ?", ""),)) for name in ("a", "b", "a")
    ]
    found = [llm_sequence(record, one, "plain", layout) for record in records]
    assert len(one.asked) == len(set(one.asked))  # each text once
    assert sum("what is" in text for text in one.asked) == 2
    assert np.array_equal(found[0].ids, found[2].ids)
    # Another tokenizer is asked itself.
    assert 6 in llm_sequence(records[0], other, "plain", layout).ids.tolist()
    assert set(other.asked) < set(one.asked)
