"""Encoding, batching and the stream: static shapes, order, resume, shards, errors."""

import json
from dataclasses import replace

import numpy as np
import pytest
from test_tokens import word_tokenizer

from vtscale_jax.buckets import fit_buckets
from vtscale_jax.collate import BatchSpec, Encoded, collate
from vtscale_jax.encoding import Encoding, SampleError, encode
from vtscale_jax.loader import Stream
from vtscale_jax.tokens import (
    QueryLayout,
    answer_sequences,
    fusion_sequence,
    llm_sequence,
)
from vtscale_jax.types import Kind, Record, Shards, Turn
from vtscale_jax.views import make_views

VIEW, TOKENS = 28, 5
VOCAB = ["<s>", "</s>", "<unk>", "answer", ":", "what", "is", "digit", "?", "page"]
VOCAB = {word: i for i, word in enumerate([*VOCAB, *map(str, range(100))])}
WORDS = word_tokenizer(VOCAB, "</s>")
LAYOUT = QueryLayout(3, 2, first_query_id=200)
ALIGN = Encoding("align", WORDS, VIEW, 2, max_answer_length=16)
ADAPT = Encoding("adapt", WORDS, VIEW, 2, llm_tokenizer=WORDS, template="plain")
SPEC = BatchSpec(
    batch_size=4,
    tokens_per_crop=TOKENS,
    crops=(6, 12),
    fusion_length=(32, 48),
    query_slots=(8,),
    llm_length=(24, 48),
    loss_positions=(8, 16),
    answers=(12,),
    answer_length=(8,),
)


def sample(number, image=True):
    """A record whose answers name it; sizes and numbers of turns vary."""
    width = VIEW * (1 + number % 2)
    pixels = np.full((VIEW, width, 3), number, np.uint8) if image else None
    turns = [
        Turn(f"what is digit {turn} ?", f"{number} " * (1 + number % 3))
        for turn in range(1 + number % 3)
    ]
    return Record(f"sample-{number}", pixels, tuple(turns))


class Samples:
    """A source of `size` records; counts nothing, remembers nothing."""

    fingerprint = "samples"

    def __init__(self, size, wordless=None):
        self.size, self.wordless = size, wordless

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if not 0 <= index < self.size:
            raise IndexError(index)
        record = sample(index)
        if index == self.wordless:
            record = record._replace(turns=(Turn("page ?", ""),))
        return record

    def longest(self, number):
        return list(range(self.size))[-number:]


def stream(**changes):
    arguments = {"source": Samples(30), "encoding": ADAPT, "spec": SPEC}
    arguments |= {"layout": LAYOUT, "seed": 5, "num_threads": 0}
    arguments |= changes
    return Stream(
        arguments.pop("source"),
        arguments.pop("encoding"),
        arguments.pop("spec"),
        **arguments,
    )


def leaves(batch):
    """Named arrays of a batch."""
    parts = {k: part for k, part in batch._asdict().items() if part is not None}
    return {
        f"{part}.{name}": array
        for part, value in parts.items()
        for name, array in value._asdict().items()
        if array is not None
    }


def assert_equal(batch, other):
    mine, theirs = leaves(batch), leaves(other)
    assert mine.keys() == theirs.keys()
    for name, array in mine.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def same(batch, other):
    mine, theirs = leaves(batch), leaves(other)
    return all(np.array_equal(array, theirs[name]) for name, array in mine.items())


# --- one sample ----------------------------------------------------------------------


def test_encode_joins_views_and_sequences():
    record = sample(5)
    adapt = encode(record, ADAPT, LAYOUT)
    views = make_views(record.image, view_size=VIEW, max_local_views=2)
    assert np.array_equal(adapt.crops, views) and len(views) == 3
    for made, expected in (
        (adapt.fusion, fusion_sequence(record, WORDS, LAYOUT)),
        (adapt.llm, llm_sequence(record, WORDS, "plain", LAYOUT)),
    ):
        assert np.array_equal(made.ids, expected.ids)
        assert np.array_equal(made.kinds, expected.kinds)
    assert adapt.answers is None
    align = encode(record, ALIGN, LAYOUT)
    assert align.llm is None
    expected = answer_sequences(record, WORDS, max_length=16)
    assert [a.ids.tolist() for a in align.answers] == [a.ids.tolist() for a in expected]
    dropped = encode(record, replace(ADAPT, question="dropped"), LAYOUT)
    assert not np.any(dropped.fusion.kinds & Kind.QUE)
    assert np.array_equal(dropped.llm.ids, adapt.llm.ids)


def test_boxes_move_to_the_padded_square_in_training_only():
    pixels = np.zeros((VIEW, 2 * VIEW, 3), np.uint8)
    turns = (Turn("what is <bbox>0,0,999,999</bbox> ?", "page <bbox>0,0,0,0</bbox>"),)
    record, tokens = Record("box", pixels, turns), []

    class Spy:
        eos_token_id, pad_token_id = 1, 1

        def encode(self, text, *, add_special_tokens):
            tokens.append(text)
            return [5]

    training = replace(ADAPT, fusion_tokenizer=Spy(), llm_tokenizer=Spy())
    encode(record, training, LAYOUT)
    # Twice as wide as high: the image is the middle half of the square.
    assert tokens[0] == "what is <bbox>0,249,999,749</bbox> ?"
    assert "page <bbox>0,249,0,249</bbox>" in tokens
    tokens.clear()
    encode(record, replace(training, prompts=True), LAYOUT)
    assert tokens[0] == turns[0].question and turns[0].answer in tokens


@pytest.mark.parametrize(
    ("record", "encoding", "message"),
    [
        (sample(3, image=False), ALIGN, r"'sample-3' has no image.*stage align"),
        (
            sample(3, image=False),
            replace(ADAPT, require_image=True),
            r"'sample-3' has no image.*require_image",
        ),
        (
            sample(3)._replace(image="no/such/file.png"),
            ADAPT,
            r"'sample-3'.*no/such/file.png",
        ),
        (
            sample(3)._replace(turns=(Turn("page ?", ""),)),
            ADAPT,
            r"'sample-3': its last answer is empty.*prompts=True",
        ),
        (
            sample(3)._replace(turns=(Turn("page ?", "1 " * 16),)),
            ALIGN,
            r"'sample-3': answer 0 has 16 tokens.*the text tower has 16 positions",
        ),
        (sample(3)._replace(turns=(Turn("", "1"),)), ADAPT, r"'sample-3': question 0"),
        (sample(3)._replace(turns=()), ADAPT, r"'sample-3' has no turns"),
    ],
)
def test_bad_samples_raise_with_their_id(record, encoding, message):
    with pytest.raises(SampleError, match=message):
        encode(record, encoding, LAYOUT)


def test_wrong_encodings():
    with pytest.raises(ValueError, match="stage is 'stage2', expected one of"):
        replace(ADAPT, stage="stage2")
    with pytest.raises(ValueError, match="stage adapt needs template"):
        replace(ADAPT, template=None)
    with pytest.raises(ValueError, match="stage align needs max_answer_length"):
        replace(ALIGN, max_answer_length=None)


# --- one batch -----------------------------------------------------------------------


def test_collate_matches_the_golden_batches(golden_dir):
    """Packing of crops, text and loss positions as in the authors' forward pass."""
    words = json.loads((golden_dir / "sequences_words.json").read_text())
    clip = word_tokenizer(words["fusion_vocab"], "<|endoftext|>")
    llama = word_tokenizer(words["llm_vocab"], "</s>")
    layout = QueryLayout(4, 3, first_query_id=52)
    for case in ("main", "noimage_row"):
        golden = words["vlm"][case]
        samples = []
        for row, messages in enumerate(words["conversations"]):
            num_crops = golden["in__crop_index"].count(row)
            image = "page.png" if num_crops else None
            turns = tuple(map(Turn, messages[::2], messages[1::2]))
            record = Record(f"row-{row}", image, turns)
            samples.append(
                Encoded(
                    record.id,
                    np.full((num_crops, 2, 2, 3), row, np.float32),
                    fusion_sequence(record, clip, layout),
                    llm_sequence(record, llama, words["template"], layout),
                )
            )
        spec = BatchSpec(2, 5, (5,), (44,), (10,), (98,), (13,))
        fusion, llm, _ = collate(samples, spec)
        # Our packing has the same kinds; ids are 0 where the golden row has no text.
        golden_kinds = np.array(golden["backbone_tps"])
        width = golden_kinds.shape[1]
        assert np.array_equal(fusion.kinds[:, :width], golden_kinds)
        assert np.all(fusion.kinds[:, width:] == Kind.PAD)
        for row in range(2):
            text = fusion.kinds[row] & ~(Kind.IMG | Kind.PAD) != 0
            golden_ids = np.array(golden["in__que_input_ids"][row])
            assert fusion.ids[row][text].tolist() == golden_ids[: text.sum()].tolist()
            assert not np.any(fusion.ids[row][~text])
        real = fusion.crop_row < 2
        assert fusion.crop_row[real].tolist() == golden["in__crop_index"]
        assert np.all(fusion.crop_row[~real] == 2)
        assert np.array_equal(fusion.crops[real, 0, 0, 0], fusion.crop_row[real])
        # Row-major selections are the same as those by mask in the reference.
        outputs = np.argwhere(golden_kinds & (Kind.QED | Kind.EOS))
        found = [(b, p) for b in range(2) for p in fusion.slots[b] if p < 44]
        assert found == [tuple(pair) for pair in outputs.tolist()]
        blocks = np.argwhere(np.array(golden["in__input_tps"]) & Kind.QED)
        found = [(b, p) for b in range(2) for p in llm.slots[b] if p < 98]
        assert found == [tuple(pair) for pair in blocks.tolist()]
        labels = np.array(golden["shifted_labels"])
        rows, columns = np.nonzero(llm.loss_mask)
        picked = llm.loss_positions[rows, columns]
        assert [*zip(rows, picked, strict=True)] == [
            tuple(pair) for pair in np.argwhere(labels != -100)
        ]
        assert np.array_equal(llm.loss_targets[rows, columns], labels[labels != -100])
        # Control: one token more per crop moves the text.
        wider = collate(samples, replace(spec, tokens_per_crop=6, fusion_length=(47,)))
        assert not np.array_equal(wider.fusion.kinds[:, :width], golden_kinds)


def test_rows_of_a_batch():
    """Crops, ranks, slots and fillers of a batch of mixed samples."""
    records = [sample(0), sample(7, image=False), sample(5)]
    samples = [encode(record, ADAPT, LAYOUT) for record in records]
    fusion, llm, answers = collate(samples, SPEC)
    assert answers is None
    assert fusion.crop_row.tolist() == [0, 0, 2, 2, 2, 4]
    assert fusion.crop_rank.tolist() == [0, 1, 0, 1, 2, 0]
    assert np.array_equal(fusion.crops[2:5], samples[2].crops)
    assert not fusion.crops[5].any()
    assert fusion.ids.shape == (3, 48) and fusion.slots.shape == (3, 8)
    assert np.all(fusion.kinds[1] == Kind.PAD) and np.all(fusion.slots[1] == 48)
    assert np.all(llm.slots[1] == 48) and llm.loss_mask[1].any()
    for row in (0, 2):
        used = fusion.slots[row][fusion.slots[row] < 48]
        assert len(used) == LAYOUT.total(len(records[row].turns))
        assert np.all(fusion.kinds[row, used] & (Kind.QED | Kind.EOS))
        assert np.all(fusion.kinds[row, : TOKENS * len(samples[row].crops)] == Kind.IMG)
        targets = llm.slots[row][llm.slots[row] < 48]
        assert len(targets) == len(used)
        assert np.all(llm.kinds[row, targets] == Kind.QED)
    for row, encoded in enumerate(samples):
        length = len(encoded.llm.ids)
        assert np.array_equal(llm.ids[row, :length], encoded.llm.ids)
        assert np.all(llm.kinds[row, length:] == Kind.PAD)
        where = llm.loss_positions[row][llm.loss_mask[row]]
        what = llm.loss_targets[row][llm.loss_mask[row]]
        assert np.array_equal(llm.ids[row, where + 1], what)


def test_answers_point_at_their_questions():
    samples = [encode(sample(n), ALIGN, LAYOUT) for n in (1, 2)]
    fusion, llm, answers = collate(samples, SPEC, rows=(2, 3))
    assert llm is None
    assert answers.mask.tolist() == [True] * 5 + [False] * 7
    assert answers.question_row[:5].tolist() == [2, 2, 3, 3, 3]
    assert answers.question_slot[:5].tolist() == [2, 4, 2, 4, 6]
    assert fusion.crop_row[:3].tolist() == [2, 2, 2]
    for r in range(5):
        row = answers.question_row[r] - 2
        position = fusion.slots[row, answers.question_slot[r]]
        assert fusion.kinds[row, position] == Kind.EOS
        assert answers.kinds[r, answers.eos[r]] == Kind.EOS
        assert WORDS.decode(answers.ids[r, 0]) == str(row + 1)
        assert np.all(answers.kinds[r, answers.eos[r] + 1 :] == Kind.PAD)
    assert np.all(answers.kinds[5:] == Kind.PAD)


def test_the_smallest_bucket_that_fits_is_taken():
    short = [encode(sample(0), ADAPT, LAYOUT)]
    long = [encode(sample(n), ADAPT, LAYOUT) for n in (5, 5, 5)]
    small, large = collate(short, SPEC), collate(long, SPEC)
    assert small.fusion.crops.shape[0] == 6 and large.fusion.crops.shape[0] == 12
    assert small.fusion.ids.shape[1] == 32 and large.fusion.ids.shape[1] == 48
    assert small.llm.ids.shape[1] == 24 and large.llm.ids.shape[1] == 48
    forced = collate(short, SPEC.largest())
    assert {k: v.shape[1:] for k, v in leaves(forced).items()} == {
        k: v.shape[1:] for k, v in leaves(large).items()
    }
    # A bucket is padding only: the rows say the same.
    assert np.array_equal(forced.fusion.ids[:, :32], small.fusion.ids)


@pytest.mark.parametrize(
    ("axis", "sizes", "message"),
    [
        (
            "fusion_length",
            (32,),
            r"hold \(32,\) fusion_length, but sample 'sam",
        ),
        (
            "llm_length",
            (16, 24),
            r"'sample-5' needs 41: start it again with a larger --config.data.headroom",
        ),
        ("loss_positions", (), r"hold no loss_positions"),
        ("query_slots", (3,), r"query_slots, but sample 'sample-5' needs 7"),
        ("crops", (4,), r"crops, but 2 samples need 5 together, sample 'sample-5'"),
    ],
)
def test_samples_that_do_not_fit(axis, sizes, message):
    samples = [encode(sample(n), ADAPT, LAYOUT) for n in (0, 5)]
    assert collate(samples, SPEC).fusion.ids.shape == (2, 48)
    with pytest.raises(ValueError, match=message):
        collate(samples, replace(SPEC, **{axis: sizes}))


def test_samples_must_go_together():
    good = encode(sample(1), ADAPT, LAYOUT)
    other = encode(sample(1), ADAPT, QueryLayout(4, 2, 200))
    with pytest.raises(ValueError, match=r"'sample-1' has 5 fusion outputs for 6"):
        collate([good._replace(llm=other.llm)], SPEC)
    align = encode(sample(2), ALIGN, LAYOUT)
    with pytest.raises(ValueError, match=r"'sample-2' has .*for one stage"):
        collate([good, align], SPEC)


def test_shapes_are_bounded_and_printed():
    assert SPEC.num_shapes("adapt") == 16 and SPEC.num_shapes("align") == 4
    assert SPEC.largest().num_shapes("finetune") == 1
    line = SPEC.describe("adapt")
    assert "S 24|48" in line and line.endswith("at most 16 shapes")
    assert "L " not in line and "L 8" in SPEC.describe("align")
    with pytest.raises(
        ValueError, match=r"BatchSpec.crops is \(4, 2\), expected positive"
    ):
        replace(SPEC, crops=(4, 2))


@pytest.mark.parametrize("encoding", [ALIGN, ADAPT])
def test_fitted_buckets_hold_the_data(encoding):
    probe = [encode(sample(n), encoding, LAYOUT) for n in range(6)]
    spec = fit_buckets(probe, batch_size=4, tokens_per_crop=TOKENS)
    assert spec.num_shapes(encoding.stage) <= 8
    made = stream(encoding=encoding, spec=spec)
    shapes = set()
    for step in range(12):
        batch = made.batch(step)
        shapes.add(tuple(array.shape for array in leaves(batch).values()))
        assert batch.fusion.slots.shape[1] == 7
    assert len(shapes) <= spec.num_shapes(encoding.stage)
    spread = fit_buckets(probe, batch_size=4, tokens_per_crop=TOKENS, devices=5)
    assert spread.crops[-1] % 5 == 0 and spread.crops[-1] >= spec.crops[-1]
    with pytest.raises(ValueError, match="no samples to probe"):
        fit_buckets([], batch_size=4, tokens_per_crop=TOKENS)


def test_fitted_buckets_know_what_the_probe_does_not_show():
    probe = [encode(sample(n), ALIGN, LAYOUT) for n in range(6)]
    given = {"batch_size": 4, "tokens_per_crop": TOKENS}
    seen = fit_buckets(probe, **given)
    wide = fit_buckets(probe, **given, most_crops=10)
    assert seen.crops[-1] < wide.crops[-1] == 4 * 10
    more = 10 - max(len(one.crops) for one in probe)
    grown = wide.fusion_length[-1] - seen.fusion_length[-1]
    assert abs(grown - more * TOKENS) < 16  # rounding
    assert fit_buckets(probe, **given, longest_answer=7).answer_length == (7,)
    roomy = fit_buckets(probe, **given, headroom=30.0)
    assert roomy.answer_length[-1] > seen.answer_length[-1] > 7


# --- the stream ----------------------------------------------------------------------


def test_order_is_a_function_of_seed_and_step():
    first, second = stream(), stream(num_threads=2)
    for step, (mine, theirs) in enumerate(zip(first, second, strict=False)):
        assert_equal(mine.batch, theirs.batch)
        assert_equal(mine.batch, stream().batch(step))
        if step == 9:
            break
    assert not same(stream().batch(0), stream(seed=6).batch(0))
    assert not same(stream().batch(0), stream().batch(1))


def test_epochs_cover_every_record_once():
    made = stream(source=Samples(10), epochs=2)
    assert made.num_steps == 5
    order = np.concatenate([made.order(step) for step in range(5)])
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10].tolist() != order[10:].tolist()
    assert len(list(made)) == 5
    plain = stream(seed=None, epochs=1)
    assert plain.order(1).tolist() == [4, 5, 6, 7]
    # An incomplete last batch is left out.
    assert plain.num_steps == 7 and "30 records, 7 steps" in plain.describe()
    assert "endless" in stream().describe()


def test_one_record_repeats():
    made = stream(source=Samples(1))
    assert made.order(3).tolist() == [0, 0, 0, 0]


def test_subset_is_a_fixed_random_part():
    made = stream(subset=(3, 0.3), epochs=4)
    used = np.concatenate([made.order(step) for step in range(made.num_steps)])
    kept = set(used.tolist())
    assert len(kept) == 9 and len(used) == 36
    other = stream(subset=(3, 0.3), epochs=4, seed=6)
    assert kept == {i for step in range(9) for i in other.order(step).tolist()}
    again = stream(subset=(4, 0.3), epochs=4)
    assert kept != {i for step in range(9) for i in again.order(step).tolist()}
    with pytest.raises(ValueError, match=r"subset is \(3, 1.5\).*fraction <= 1"):
        stream(subset=(3, 1.5))
    with pytest.raises(ValueError, match="3 records over 1 epochs give no batch of 4"):
        stream(subset=(3, 0.1), epochs=1)


@pytest.mark.parametrize("num_threads", [0, 2])
def test_resume_equals_uninterrupted(num_threads):
    straight = iter(stream(num_threads=num_threads))
    batches = [next(straight).batch for _ in range(8)]
    state = None
    first = iter(stream(num_threads=num_threads))
    for step in range(5):
        assert_equal(next(first).batch, batches[step])
        if step == 2:
            state = json.loads(json.dumps(first.state()))
    assert state["step"] == 3 and first.step == 5
    resumed = iter(stream(num_threads=num_threads))
    resumed.restore(state)
    assert not same(batches[2], batches[3])
    for step in range(3, 8):
        assert_equal(next(resumed).batch, batches[step])
    first.restore(state)
    assert_equal(next(first).batch, batches[3])
    for iterator in (straight, first, resumed):
        iterator.close()


def test_state_of_another_order_is_refused():
    state = iter(stream()).state()
    for change in ({"seed": 6}, {"subset": (1, 0.5)}, {"source": Samples(29)}):
        with pytest.raises(ValueError, match="would come in another order: use the"):
            iter(stream(**change)).restore(state)
    with pytest.raises(ValueError, match="saved by another version"):
        iter(stream()).restore({"step": 1})
    with pytest.raises(ValueError, match="step is 99, expected 0 to 7"):
        iter(stream(epochs=1)).restore(state | {"step": 99})


@pytest.mark.parametrize("encoding", [ALIGN, ADAPT])
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_one_global_batch(encoding, hosts):
    whole = stream(encoding=encoding, spec=SPEC.largest())
    shards = [
        stream(encoding=encoding, shards=Shards((i,), hosts)) for i in range(hosts)
    ]
    for step in (0, 3):
        expected = leaves(whole.batch(step))
        parts = [leaves(shard.batch(step)) for shard in shards]
        # All hosts have the same shapes without talking to each other.
        assert len({tuple(a.shape for a in part.values()) for part in parts}) == 1
        joined = {k: np.concatenate([part[k] for part in parts]) for k in expected}
        crops = joined["fusion.crop_row"] < SPEC.batch_size
        answers = joined.get("answers.mask")
        for name, array in joined.items():
            goal, packed = expected[name], None
            if "crop" in name:
                packed, real = crops, expected["fusion.crop_row"] < SPEC.batch_size
            elif name.startswith("answers"):
                packed, real = answers, expected["answers.mask"]
            if packed is not None:
                array, goal = array[packed], goal[real]
            np.testing.assert_array_equal(array, goal, err_msg=name)
    assert not same(shards[0].batch(0), shards[1].batch(0))
    resumed = iter(shards[1])
    resumed.restore(iter(whole).state() | {"step": 3})
    assert_equal(next(resumed).batch, shards[1].batch(3))


def test_wrong_shards():
    with pytest.raises(ValueError, match=r"parts \(4,\) of 4 with data.batch_size 4"):
        stream(shards=Shards((4,), 4))
    with pytest.raises(ValueError, match="the total divides"):
        stream(shards=Shards((0,), 3))


def test_a_host_may_feed_parts_that_are_no_neighbours():
    """On a pod the parts of a batch lie where the torus puts them."""
    whole, apart = stream(spec=SPEC.largest()), Shards((0, 2), 4)
    assert apart.rows(8) == [0, 1, 4, 5] and apart.feeders == 2
    fed, expected = stream(shards=apart).fed(0), whole.fed(0)
    rows = apart.rows(SPEC.batch_size)
    assert fed.ids == tuple(expected.ids[row] for row in rows)
    np.testing.assert_array_equal(fed.batch.llm.ids, expected.batch.llm.ids[rows])
    used = fed.batch.fusion.crop_row < SPEC.batch_size
    assert set(fed.batch.fusion.crop_row[used]) <= set(rows)


def test_layout_may_change_by_phase():
    """A curriculum changes the queries and not the samples."""
    roomy = replace(SPEC, fusion_length=(64,), query_slots=(16,), llm_length=(64,))
    small = stream(spec=roomy)
    large = stream(spec=roomy, layout=QueryLayout(8, 4, 200), start_step=2)
    assert np.array_equal(small.order(2), large.order(2))
    assert not np.array_equal(small.order(1), large.order(2))
    phase = iter(large)
    assert phase.step == 2
    mine, theirs = small.batch(2), next(phase).batch
    assert np.array_equal(mine.fusion.crops, theirs.fusion.crops)
    assert np.array_equal(mine.llm.loss_targets, theirs.llm.loss_targets)
    assert not np.array_equal(mine.fusion.slots, theirs.fusion.slots)
    # Queries nest: the first question's first rows are the same.
    slots = theirs.fusion.slots[0, :2]
    assert theirs.fusion.ids[0, slots].tolist() == [200, 201]
    assert mine.fusion.ids[0, mine.fusion.slots[0, :2]].tolist() == [200, 201]


@pytest.mark.parametrize("num_threads", [0, 2])
def test_a_broken_record_stops_the_stream(num_threads):
    """An unreadable image does not: see test_encoders.py."""
    source = Samples(30, wordless=17)
    made = stream(source=source, seed=None, num_threads=num_threads)
    batches = iter(made)
    for _ in range(4):
        next(batches)
    with pytest.raises(SampleError, match=r"'sample-17': its last answer is empty"):
        next(batches)
    batches.close()

    class Faulty(Samples):
        def __getitem__(self, index):
            raise KeyError("page")

    with pytest.raises(SampleError, match="record 0 of the source: 'page'"):
        stream(source=Faulty(4), seed=None).batch(0)
    with pytest.raises(ValueError, match="the source has no records"):
        stream(source=Samples(0))
