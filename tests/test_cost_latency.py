"""What `cost latency` times, in which order, and what it makes of the times. No test
asks how long anything took."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cost_timings import A100, changed, config, honest, paper

from vtscale_jax import paths
from vtscale_jax.compilation import CompileClock
from vtscale_jax.cost import latency, programs, subject
from vtscale_jax.cost.__main__ import main
from vtscale_jax.cost.audit import IMPOSSIBLE
from vtscale_jax.cost.commands.latency import recorded_peak
from vtscale_jax.cost.latency import LatencyError, measure, repeat
from vtscale_jax.cost.rows import TOO_FEW, higher, judge, work_of
from vtscale_jax.cost.subject import SubjectError, of_config, picture_of, sizes_of
from vtscale_jax.cost.timing import order
from vtscale_jax.run_folder import RunFolder

# ml_collections loads config files so.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")

LAYERS = {
    f"model__{tower}__blocks__num_layers": 1
    for tower in ("vision", "fusion", "llm", "text")
}
QUERIES = (1, 12)
SEED = 3  # its first round goes from 12 to 1
PICTURE = picture_of("96x64")


def small(**more):
    return config("embedded", **LAYERS, **more)


@pytest.fixture(scope="module")
def model():
    return of_config(small(), QUERIES, PICTURE, question_tokens=20)


@pytest.fixture(scope="module")
def measured(model, tmp_path_factory):
    """Two rounds, in two launches."""
    folder = tmp_path_factory.mktemp("latency")
    told = []
    measure(model, rounds=1, new_tokens=8, seed=SEED, folder=folder, tick=told.append)
    assert told == ["warm-up"] * 2 + ["repetition"] * 2
    return measure(model, rounds=2, new_tokens=8, seed=SEED, folder=folder), folder


def test_every_round_has_every_m_in_the_order_of_its_number(measured):
    found, _ = measured
    assert len(found.rounds) == 2
    for number, repetitions in enumerate(found.rounds):
        asked = [one.num_queries for one in repetitions]
        assert asked == order(QUERIES, number, SEED) == [[12, 1], [1, 12]][number]
    assert [one.num_queries for one in found.of(12)] == [12, 12]


def test_parts_are_those_of_the_first_token_and_lie_in_the_whole(measured):
    found, _ = measured
    for one in found.of(1) + found.of(12):
        assert tuple(one.parts) == latency.PARTS
        assert min(one.parts.values()) > 0  # every part was needed
        assert 0 < one.first_token <= one.whole
        assert one.decode > 0


def test_the_same_command_goes_on_and_keeps_what_there_is(model, measured):
    found, folder = measured
    assert found.launches == [1, 2]
    before = (folder / latency.RESULT).read_text()
    again = measure(model, rounds=2, new_tokens=8, seed=SEED, folder=folder)
    assert again.rounds == found.rounds and again.memory == found.memory
    assert (folder / latency.RESULT).read_text() == before
    first = measure(model, rounds=1, new_tokens=8, seed=SEED, folder=folder)
    assert first.rounds == found.rounds[:1]


def test_a_folder_is_not_mixed_with_another_measurement(model, measured):
    _, folder = measured
    before = (folder / latency.RESULT).read_text()
    with pytest.raises(LatencyError, match="new_tokens: 8 when it was begun, 16 now"):
        measure(model, rounds=3, new_tokens=16, seed=SEED, folder=folder)
    other = dataclasses.replace(model, queries=(1,))
    with pytest.raises(LatencyError, match="num_queries: "):
        measure(other, rounds=3, new_tokens=8, seed=SEED, folder=folder)
    assert (folder / latency.RESULT).read_text() == before


@pytest.mark.parametrize(
    "rounds, new_tokens, told",
    [
        (0, 8, "--repetitions is 0"),
        (1, 12, "--new_tokens is 12, expected a multiple of 8"),
        (1, 0, "--new_tokens is 0"),
    ],
)
def test_sizes_that_cannot_be_are_refused(model, tmp_path, rounds, new_tokens, told):
    with pytest.raises(LatencyError, match=told):
        measure(model, rounds=rounds, new_tokens=new_tokens, folder=tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.fixture
def clock():
    found = CompileClock()
    yield found
    found.close()


def test_a_repetition_that_compiles_is_an_error(model, measured, clock):
    same = (model.question, 1, 8, clock)
    repeat(lambda: model.conversation(1, 9), *same)  # all is compiled

    def begin():
        jax.jit(lambda x: x + jnp.float32(3.25))(np.float32(1))
        return model.conversation(1, 9)

    with pytest.raises(LatencyError, match="M = 1: 1 programs were compiled"):
        repeat(begin, *same)


def test_an_answer_that_ends_by_itself_is_an_error(model, measured, clock):
    for _ in model.conversation(1, 17).ask(model.question):
        pass
    with pytest.raises(LatencyError, match="has 17 tokens, expected 9"):
        repeat(lambda: model.conversation(1, 17), model.question, 1, 8, clock)


def test_an_interrupted_round_is_made_anew(model, tmp_path):
    def stop(what):
        told.append(what)
        if told.count("repetition") == 3:
            raise KeyboardInterrupt

    told = []
    with pytest.raises(KeyboardInterrupt):
        measure(model, rounds=3, new_tokens=8, seed=SEED, folder=tmp_path, tick=stop)
    assert latency.rounds_left(tmp_path) == 1
    done = measure(model, rounds=3, new_tokens=8, seed=SEED, folder=tmp_path)
    assert done.launches == [1, 2, 2]
    assert all(len(found) == 2 for found in done.rounds)


@pytest.mark.parametrize("num_queries", QUERIES)
def test_sizes_are_those_that_a_conversation_has(model, measured, num_queries):
    talk = model.conversation(num_queries, 9)
    for _ in talk.ask(model.question):
        pass
    prompt = model.prompt(num_queries)
    assert prompt.real.prompt_tokens == talk.timing.num_tokens == num_queries + 20
    assert talk._fused == prompt.real.fusion_tokens(model.model)
    assert prompt.padded.prompt_tokens == 32
    assert len(talk._vectors) == num_queries
    assert prompt.real.grid == (2, 3)  # 96 × 64 in squares of 32


def test_the_template_counts_with_the_words_of_the_question():
    given = small(data__template="llama-2-vision")
    found = sizes_of(given, (4,), PICTURE, question_tokens=64)
    assert found.prompt(4).real.prompt_tokens == 68
    assert given.num_queries == 4
    with pytest.raises(SubjectError, match="--question_tokens is 8, but the template"):
        sizes_of(given, (4,), PICTURE, question_tokens=8)


def test_weights_have_the_dtypes_of_the_settings():
    given = small(model__dtype="bfloat16", model__llm_param_dtype="bfloat16")
    found = of_config(given, (2,), PICTURE, question_tokens=20)
    dtypes = {
        name: {leaf.dtype.name for leaf in jax.tree.leaves(tree)}
        for name, tree in found.params.items()
    }
    assert dtypes.pop("llm") == {"bfloat16"}
    assert set(dtypes) == {"vision", "fusion", "projector"}
    assert all(kinds == {"float32"} for kinds in dtypes.values())
    head = np.asarray(found.params["llm"]["head"].astype(jnp.float32))
    assert head.std() == pytest.approx(subject.INIT_STD, rel=0.05)


def test_memory_by_the_compiler_holds_all_parameters_and_grows_with_m(model):
    few, many = (programs.compiled_peak(model, m, 9) for m in (1, 12))
    assert programs.tree_bytes(model.params) < few <= many
    wide = programs.compiled_peak(dataclasses.replace(model, queries=(400,)), 400, 9)
    assert wide > many


@pytest.fixture
def compiled():
    """Names of the programs that are compiled while a test runs."""
    found = []

    def listen(event, seconds, fun_name="", **_):
        if event.endswith("/backend_compile_duration"):
            found.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def test_what_is_compiled_ahead_is_what_conversations_run(compiled):
    def talk(num_queries):
        compiled.clear()
        for _ in found.conversation(num_queries, 9).ask(found.question):
            pass
        return large & set(compiled)

    large = {f"jit({name})" for name in ("look", "fuse", "read", "write")}
    # Another model than that of the other tests: nothing of it is compiled yet.
    found = of_config(
        small(model__fusion__blocks__mlp_width=96, model__llm__blocks__mlp_width=96),
        *((5, 41), PICTURE),
        question_tokens=23,
    )
    # Looking, and for each M fusing, reading and writing with other room.
    assert programs.compile_ahead(found, 9) == 7
    assert [compiled.count(name) for name in sorted(large)] == [2, 1, 2, 2]
    assert talk(5) == talk(41) == set()
    # Negative control: an M for which nothing was compiled.
    assert talk(90) == {"jit(fuse)", "jit(read)"}  # its room is that of 41


@pytest.mark.parametrize("text", ["0x4", "none.png"])
def test_an_image_that_is_none_is_said(text):
    with pytest.raises(ValueError, match="expected sizes|none.png"):
        picture_of(text)


def test_a_run_answers_no_m_beyond_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(subject, "run_config", lambda folder: config("embedded"))
    with pytest.raises(SubjectError, match="--num_queries 8,16: .* has learnt 4"):
        subject.of_run(tmp_path, (1, 8, 16), PICTURE, subject.QUESTION)


def test_honest_times_pass_and_have_their_numbers():
    model = paper()
    judged = judge(honest(model, 30), model, A100)
    assert [row.num_queries for row in judged.rows] == [1, 256, 768]
    assert all(row.verdict == "possible" for row in judged.rows)
    assert not judged.impossible and len(judged.pairs) == 3
    row = judged.rows[-1]
    # Half of the limit was taken: prefill is bound by arithmetic, decoding by memory.
    assert row.rates["prefill"].flops_share == pytest.approx(0.5, rel=0.02)
    assert row.rates["decode"].bytes_share == pytest.approx(0.5, rel=0.02)
    assert row.padded_tokens == 1024 and row.prompt_tokens == 832
    assert row.decode_tokens_per_s == pytest.approx(32 / row.decode.median)
    # Without padding, by hand: the blocks' weights and whole attention of 832 tokens.
    by_hand = 832 * 12_952_010_752 + 32 * 4 * 832**2 * 4096
    assert row.flops["prefill"][0] == by_hand


def test_an_absurdly_low_peak_rejects_every_row():
    """Negative control of the verdict."""
    model = paper()
    low = A100._replace(name="a slow device", flops=1e9, bandwidth=1e9, cache=0)
    judged = judge(honest(model, 3), model, low)
    for row in judged.rows:
        assert row.verdict.startswith("rejected: vision in ")
        assert "a slow device takes" in row.verdict and "decode in" in row.verdict
    assert {pair.verdict for pair in judged.pairs} == {TOO_FEW}


@pytest.mark.parametrize("part", ["vision", "fusion", "prefill", "decode"])
def test_one_part_that_is_too_fast_rejects_its_row_alone(part):
    model = paper()
    found = changed(honest(model, 5), 256, part, 0.4)  # from twice its limit to 0.8
    judged = {row.num_queries: row for row in judge(found, model, A100).rows}
    assert judged[256].verdict.startswith(f"rejected: {part} in ")
    assert not judged[1].rejected and not judged[768].rejected
    # Views and text are the host's: the device's peak says nothing of them.
    assert not judge(changed(found, 1, "views", 1e-6), model, A100).rows[0].rejected


def test_the_peak_is_the_most_that_was_seen():
    busy = A100._replace(flops=1e12, bandwidth=2e12)
    assert higher(A100, busy) == higher(busy, A100) == A100._replace(bandwidth=2e12)


def test_the_pair_test_finds_times_that_do_not_grow():
    model = paper()
    same = honest(model, 30)
    waiting = changed(same, 256, "prefill", 3.0)  # as long as 768 tokens take, or more
    pairs = {(p.n_a, p.n_b): p.verdict for p in judge(waiting, model, A100).pairs}
    assert pairs[256, 768] == IMPOSSIBLE and pairs[1, 256] != IMPOSSIBLE
    few = judge(honest(model, 9), model, A100)
    assert {pair.verdict for pair in few.pairs} == {TOO_FEW}


def test_rows_padded_to_one_length_accuse_nobody():
    """400 and 440 query tokens are both computed as 512, in equal time."""
    model = paper((400, 440))
    assert {model.prompt(m).padded.prompt_tokens for m in (400, 440)} == {512}
    (pair,) = judge(honest(model, 30, spread=0.001), model, A100).pairs
    assert pair.verdict != IMPOSSIBLE
    assert abs(pair.least_extra_s) < 1e-5  # the projector's, which are not padded
    assert pair.weight_flops == 0


def test_time_between_the_parts_is_noted():
    model = paper((1, 8))
    found = honest(model, 3)
    rounds = [
        [
            one._replace(whole=1.2 * one.whole) if one.num_queries == 8 else one
            for one in r
        ]
        for r in found.rounds
    ]
    judged = judge(found._replace(rounds=rounds), model, A100)
    assert judged.rows[0].notes == ()
    assert "of the time to the first token lies between" in judged.rows[1].notes[0]


WORDS = [f"--config.{k.replace('__', '.')}={v}" for k, v in LAYERS.items()]


def command(*words):
    return main(["latency", *words])


def test_the_command_writes_all_that_it_names(capsys, tmp_path):
    folder = tmp_path / "out"
    words = ["--config", "configs/base.py:m=4", "--image", "96x64", *WORDS]
    words += ["--num_queries", "12,1", "--question_tokens", "20", "--out", str(folder)]
    status = command(*words, "--repetitions", "2", "--new_tokens", "8")
    out, err = capsys.readouterr()
    assert status == 0, err
    assert "Only 2 repetitions" in out and f"Report: {folder / 'report.html'}" in out
    assert "python -m vtscale_jax.cost audit TABLE.csv" in out
    names = "latency.json table6.csv table7.csv ttft.png ttft.svg report.html".split()
    assert all((folder / name).stat().st_size > 100 for name in names)
    content = json.loads((folder / "latency.json").read_text())
    assert len(content["rounds"]) == 2 and content["inputs"]["num_queries"] == [1, 12]
    assert {row["num_queries"] for row in content["rows"]} == {1, 12}
    for row in content["rows"]:
        assert set(row["rates"]) == {"vision", "fusion", "prefill", "decode"}
        told = f"rejected: {row['rejected']}" if row["rejected"] else "possible"
        assert row["verdict"] == told
        for part in row["rates"].values():
            assert part["flops"] > 0 and part["bytes"] > 0 and part["least_s"] > 0
    assert content["memory_how"] == programs.COMPILED  # a CPU does not count
    table = (folder / "table6.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in table] == ["n_l", "1", "12"]
    # The same again measures nothing: the repetitions are those that are there.
    assert command(*words, "--repetitions", "2", "--new_tokens", "8", "--json") == 0
    again = json.loads((folder / "latency.json").read_text())
    assert again["rounds"] == content["rounds"]
    shown = capsys.readouterr().out.splitlines()[-1]
    assert [row["num_queries"] for row in json.loads(shown)] == [1, 12]


@pytest.mark.parametrize(
    "words, told",
    [
        (["--config", "configs/m8.py", "--num_queries", "1,x"], "--num_queries is"),
        (["--config", "configs/m8.py", "--num_queries", "4,4"], "each once"),
        (["--config", "configs/m8.py", "--num_queries", "0"], "of at least 1"),
        (["--config", "configs/m8.py", "--repetitions", "0"], "--repetitions is 0"),
        (["--config", "configs/m8.py", "--question", "what"], "--question goes with"),
        (["--run", "none", "--question_tokens", "9"], "--question_tokens goes with"),
        (["--run", "none", "--config.seed=1"], "--config.seed=1 goes with --config"),
        (["--run", "none"], "--run none has no config.json"),
    ],
)
def test_what_is_wrong_with_the_command_is_said(capsys, words, told):
    assert command(*words) == 1
    assert told in capsys.readouterr().err


def test_int8_weights_are_int8_and_counted_so():
    sizes = {"question_tokens": 20}
    near = of_config(small(model__llm_int8=True), (1,), PICTURE, **sizes)
    flat = paths.flatten(near.params["llm"])
    kernels = [leaf for path, leaf in flat.items() if path.endswith("kernel_int8")]
    assert len(kernels) == 7 and all(leaf.dtype == jnp.int8 for leaf in kernels)
    whole = sum(leaf.size for leaf in kernels)
    exact = sizes_of(small(), (1,), PICTURE, **sizes)
    decode = [work_of(one, 1, 8).decode for one in (exact, near)]
    scales = [leaf for path, leaf in flat.items() if path.endswith("kernel_scale")]
    fewer = 3 * whole - 4 * sum(leaf.size for leaf in scales)
    assert decode[0].bytes - decode[1].bytes == fewer
    assert decode[0].flops == decode[1].flops


def test_the_highest_peak_of_all_launches_counts(measured, tmp_path):
    found, _ = measured
    now = A100._replace(source="measured", flops=5.0, bandwidth=50.0)
    assert recorded_peak(tmp_path, now) == now
    before = now._replace(flops=7.0, bandwidth=20.0)
    noted = latency.as_json(found) | {"peak": before._asdict()}
    RunFolder(tmp_path).write(latency.RESULT, noted)
    assert recorded_peak(tmp_path, now) == now._replace(flops=7.0)
    other = now._replace(name="another device")
    assert recorded_peak(tmp_path, other) == other
