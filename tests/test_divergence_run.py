"""Whole measurements: the same file from any number of processes and interruptions."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from running import ROOT, free_port
from xla_flags import xla_flags

from vtscale_jax.divergence import measure as measuring
from vtscale_jax.divergence.__main__ import main
from vtscale_jax.divergence.curves import pair_curves
from vtscale_jax.divergence.measure import How
from vtscale_jax.divergence.pairs.rows import BadRow, PairsError
from vtscale_jax.divergence.pairs.tokens import Lengths
from vtscale_jax.divergence.pairs.written_pages import PageWriter, page_pairs
from vtscale_jax.divergence.parts import Parts, PartsError
from vtscale_jax.divergence.result import CURVES, read_result
from vtscale_jax.divergence.run import Job, OtherMeasurement, finished, run_measurement
from vtscale_jax.divergence.states import Rows, branch_states
from vtscale_jax.divergence.text_branches import TextBranches
from vtscale_jax.embedded.text_pages import TextPages
from vtscale_jax.parallel.hosts.processes import start
from vtscale_jax.train import ALONE
from vtscale_jax.weights.embedded_llm import load_embedded_llm

ROWS, N = 30, 16


@pytest.fixture(scope="module")
def llm():
    return load_embedded_llm()


def mesh(devices: int = 1) -> Mesh:
    return Mesh(np.array(jax.devices()[:devices]), ("data",))


def on_mesh(params, devices: int = 1):
    everywhere = jax.sharding.PartitionSpec()
    return jax.device_put(params, jax.sharding.NamedSharding(mesh(devices), everywhere))


def rows():
    """Pairs of pages in words: the shorter ones end before N."""
    pages = TextPages(10_000, 7, style_shares=(0.5, 0.5, 0.0))
    return page_pairs(lambda i: pages[i].page, ROWS, least_words=4)


def source(llm, *, kind=TextBranches, devices: int = 1, read=rows, limit=None, **more):
    return kind(
        read,
        PageWriter(llm.tokenizer),
        Lengths(N, 64, limit),
        where="made-up pairs",
        params=on_mesh(llm.params, devices),
        config=llm.config,
        final=True,
        mesh=mesh(devices),
        batch_size=4,
        chunk_rows=8,
        **more,
    )


def job(name: str = "tiny", **more) -> Job:
    fields = {
        "name": name,
        "kind": "text",
        "layer": "final",
        "num_positions": N,
        "how": How(swaps=2),
        "replicates": 50,
        "seed": 0,
        "inputs": {"pairs_sha256": "made up"},
        "about": {"llm": "tiny"},
        "pairs": "made-up pairs",
        "max_bad_share": 0.1,
    }
    return Job(**(fields | more))


def run(source, job, out: Path) -> Path:
    said = []
    processes = start(about={}, cluster=ALONE)
    return run_measurement(source, job, out, processes, said.append)


def test_result_is_that_of_pairs_taken_one_by_one(llm, tmp_path):
    """The mean over pairs of curves of states that are read one pair at a time."""
    result = read_result(run(source(llm), job(), tmp_path))
    write = PageWriter(llm.tokenizer)
    curves, lengths = [], []
    for pair in rows():
        written = write(pair)
        n = min(len(written.a), len(written.b), N)
        ids = [np.array([x], np.int32) for x in (written.prefix, written.a, written.b)]
        prefix, a, b = map(jax.numpy.asarray, ids)
        one = Rows(
            prefix,
            *(jax.numpy.array([prefix.shape[1]]), a[:, :n], b[:, :n]),
            jax.numpy.array([n]),
        )
        states = branch_states(llm.params, one, config=llm.config, final=True)
        found = pair_curves(*states, kernel="reference")
        curves.append(found)
        lengths.append(n)
    for n in range(1, N + 1):
        reach = [c for c, length in zip(curves, lengths, strict=True) if length >= n]
        assert result.counts[n - 1] == len(reach)
        for name in CURVES[:6]:
            values = [float(getattr(c, name)[0, n - 1]) for c in reach]
            expected = np.mean(values) if values else np.nan
            got = result.curve(name).mean[n - 1]
            np.testing.assert_allclose(got, expected, rtol=2e-4, atol=1e-5)
    assert result.largest_norm == pytest.approx(
        max(float(c.norm[0]) for c in curves), rel=1e-5
    )
    cosines = sum(length * (length - 1) // 2 for length in lengths)
    assert result.histograms["cross_aa"].sum() == cosines
    assert result.histograms["cross_ab"].sum() == 2 * cosines
    assert result.histograms["equal"].sum() == sum(lengths)
    assert result.null is not None and result.null["swaps"] == 2
    assert result.pairs["used"] == ROWS and not result.pairs["bad"]
    assert not (tmp_path / "tiny.parts").exists()


@pytest.mark.parametrize("devices", [2, 8])
def test_any_number_of_devices_gives_the_same(llm, tmp_path, devices):
    whole = read_result(run(source(llm), job(), tmp_path / "1"))
    shared = read_result(run(source(llm, devices=devices), job(), tmp_path / "n"))
    for name in CURVES:
        for one, other in zip(whole.curve(name), shared.curve(name), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(whole.counts, shared.counts)
    for name, counts in whole.histograms.items():
        assert abs(counts - shared.histograms[name]).sum() <= counts.sum() / 1000 + 2
    np.testing.assert_allclose(
        np.array(whole.null["mean"], float),
        np.array(shared.null["mean"], float),
        atol=1e-6,
    )
    assert whole.pairs == shared.pairs


class Interrupted(Exception):
    pass


def test_interrupted_measurement_goes_on(llm, tmp_path, monkeypatch):
    """Two of four chunks, then the rest: the same bytes, and only what is missing."""
    whole = run(source(llm), job(), tmp_path / "whole").read_bytes()
    measured = []
    honest = measuring.measure_chunk

    def until(limit, *arguments):
        if len(measured) == limit:
            raise Interrupted
        measured.append(arguments)
        return honest(*arguments)

    out = tmp_path / "part"
    patched = "vtscale_jax.divergence.run.measure_chunk"
    monkeypatch.setattr(patched, functools.partial(until, 2))
    with pytest.raises(Interrupted):
        run(source(llm), job(), out)
    assert not (out / "tiny.json").exists()
    # A file that was being written when it ended.
    (out / "tiny.parts" / ".000002.npz.partial").write_bytes(b"torn")
    monkeypatch.setattr(patched, functools.partial(until, 9))
    assert run(source(llm), job(), out).read_bytes() == whole
    assert len(measured) == 4
    assert not (out / "tiny.parts").exists()


def interrupted(llm, out, monkeypatch, job):
    """One chunk, and the settings of its job."""
    honest, measured = measuring.measure_chunk, []

    def once(*arguments):
        if measured:
            raise Interrupted
        measured.append(arguments)
        return honest(*arguments)

    monkeypatch.setattr("vtscale_jax.divergence.run.measure_chunk", once)
    with pytest.raises(Interrupted):
        run(source(llm), job, out)
    monkeypatch.undo()


def test_parts_of_another_measurement_are_not_mixed_in(llm, tmp_path, monkeypatch):
    interrupted(llm, tmp_path, monkeypatch, job(how=How(swaps=1)))
    with pytest.raises(PartsError, match=r"(?s)swaps: 1 there, 2 now.*--out"):
        run(source(llm), job(), tmp_path)
    # Parts whose settings are gone may be anyone's.
    (tmp_path / "tiny.parts" / "settings.json").unlink()
    with pytest.raises(PartsError, match="holds part of a measurement with other"):
        run(source(llm), job(), tmp_path)


def test_the_bootstrap_may_change_while_chunks_are_measured(llm, tmp_path, monkeypatch):
    """No chunk knows of its seed."""
    interrupted(llm, tmp_path, monkeypatch, job())
    later = job(seed=1, replicates=60)
    found = run(source(llm), later, tmp_path).read_bytes()
    assert found == run(source(llm), later, tmp_path / "whole").read_bytes()


def test_settings_without_parts_are_replaced(llm, tmp_path):
    """A mistyped option does not stand in the way of the right one."""
    parts = Parts(tmp_path / "tiny.parts")
    with parts.claimed({"kind": "text", "seed": 1}):
        pass
    assert run(source(llm), job(), tmp_path).exists()


def test_one_run_at_a_time(llm, tmp_path):
    parts = Parts(tmp_path / "tiny.parts")
    with (
        parts.claimed({"kind": "text"}),
        pytest.raises(PartsError, match="is in use by another measurement"),
    ):
        run(source(llm), job(), tmp_path)
    assert run(source(llm), job(), tmp_path).exists()


def test_hosts_without_a_shared_folder_say_so(tmp_path):
    parts = Parts(tmp_path / "elsewhere")
    with (
        parts.claimed({}, writes=False),
        pytest.raises(PartsError, match="--out must be a folder that all hosts"),
    ):
        parts.check_shared(patience_s=0.0)


def test_pairs_with_states_that_are_not_finite_are_left_out(llm, tmp_path):
    """They are listed, and the others are what they are without them."""
    whole = source(llm)

    class Broken(TextBranches):
        """NaN in branch A of each pair that begins as the first of its batch does."""

        def states(self, inputs):
            a, b = whole.states(inputs)
            hit = (inputs.a[:, 0] == inputs.a[0, 0]) & (inputs.lengths > 2)
            return jax.numpy.where(hit[:, None, None], a.at[:, 2].set(np.nan), a), b

    broken = source(llm, kind=Broken)
    result = read_result(run(broken, job(max_bad_share=0.9), tmp_path))
    bad = result.pairs["bad_lines"]["not finite"]
    assert 0 < len(bad) < ROWS and result.counts[0] == ROWS - len(bad)
    good = read_result(run(whole, job(), tmp_path / "whole"))
    assert result.histograms["equal"].sum() < good.histograms["equal"].sum()
    for name in CURVES:
        band = result.curve(name)
        inside = (band.low <= band.mean) & (band.mean <= band.high)
        assert inside[~np.isnan(band.mean)].all(), name
    assert np.isfinite(result.largest_norm)
    with pytest.raises(PairsError, match="not finite: a hidden state is NaN"):
        run(broken, job(), tmp_path / "strict")


def test_damaged_part_is_named(llm, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise Interrupted

    monkeypatch.setattr("vtscale_jax.divergence.run.combine", stop)
    with pytest.raises(Interrupted):
        run(source(llm), job(), tmp_path)
    monkeypatch.undo()
    file = tmp_path / "tiny.parts" / "000001.npz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(PartsError, match=r"000001.npz is damaged.*delete it"):
        run(source(llm), job(), tmp_path)
    with pytest.raises(PartsError, match="000009.npz is gone"):
        Parts(tmp_path / "tiny.parts").read(9)
    file.unlink()
    assert run(source(llm), job(), tmp_path).exists()


def test_finished_is_not_measured_again(llm, tmp_path):
    path = run(source(llm), job(), tmp_path)
    assert finished(path, job())
    assert not finished(tmp_path / "other.json", job())
    assert finished(path, job(about={"llm": "./tiny"}))  # the same by another path
    for change in (
        {"seed": 1},
        {"how": How(swaps=1)},
        {"inputs": {"pairs_sha256": "new"}},
    ):
        with pytest.raises(OtherMeasurement, match="is not written over"):
            finished(path, job(**change))


def spoiled(every: int):
    for number, pair in enumerate(rows(), start=1):
        if number % every == 0:
            yield BadRow(pair.line, "missing field", "chosen")
        else:
            yield pair


def test_bad_rows_are_listed_and_stop_above_their_share(llm, tmp_path):
    result = read_result(
        run(source(llm, read=lambda: spoiled(15), max_bad_share=0.1), job(), tmp_path)
    )
    assert result.pairs["rows"] == ROWS and result.pairs["used"] == ROWS - 2
    assert result.pairs["bad_lines"] == {"missing field": [15, 30]}
    listed = (tmp_path / "tiny.bad_rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in listed] == [15, 30]
    with pytest.raises(PairsError, match=r"6 of 30 rows[\s\S]*line 5: missing field"):
        source(llm, read=lambda: spoiled(5), max_bad_share=0.1)


def test_rows_that_show_bad_as_tokens_stop_at_the_end(llm, tmp_path):
    """Such as rows too long for the model: what was measured stays."""
    long = source(llm, limit=8)
    with pytest.raises(PairsError, match="over-long"):
        run(long, job(), tmp_path)
    assert (tmp_path / "tiny.parts" / "000000.npz").exists()


OPTIONS = "--max_length 12 --replicates 100 --null 1 --batch_size 16"


def write_answers(path: Path, number: int = 300) -> Path:
    """More pairs than a chunk has, in words of the embedded model."""
    rng = np.random.default_rng(0)

    def answer() -> str:
        return " ".join(map(str, rng.integers(0, 10, rng.integers(3, 15))))

    rows = [
        {"question": "read all digits", "chosen": answer(), "rejected": answer()}
        for _ in range(number)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def measure(out: Path, pairs: Path, processes: int) -> list[str]:
    """The command on so many processes with two devices each; what they printed."""
    port, children = free_port(), []
    command = [sys.executable, "-m", "vtscale_jax.divergence", "measure"]
    command += ["--pairs", str(pairs)]
    for index in range(processes):
        environment = os.environ | {"XLA_FLAGS": xla_flags(2)}
        if processes > 1:
            environment |= {
                "VTSCALE_COORDINATOR": f"127.0.0.1:{port}",
                "VTSCALE_NUM_PROCESSES": str(processes),
                "VTSCALE_PROCESS_ID": str(index),
            }
        child = subprocess.Popen(
            [*command, "--out", str(out), *OPTIONS.split()],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        children.append(child)
    outputs = [child.communicate(timeout=300)[0] for child in children]
    assert {child.returncode for child in children} == {0}, "\n".join(outputs)
    return outputs


@pytest.mark.slow
@pytest.mark.long  # test_any_number_of_devices_gives_the_same has one process
def test_two_processes_give_the_same_file_as_one(tmp_path):
    pairs = write_answers(tmp_path / "pairs.jsonl")
    alone = measure(tmp_path / "one", pairs, 1)
    both = measure(tmp_path / "two", pairs, 2)
    name = "embedded.json"
    one = (tmp_path / "one" / name).read_bytes()
    assert one == (tmp_path / "two" / name).read_bytes()
    assert "Next: python -m vtscale_jax.divergence figures" in alone[0]
    assert "Next" in both[0] and "Next" not in both[1]


def test_weights_may_be_shared_out(tmp_path):
    """The same numbers with a copy on each of eight devices and with a part on each."""
    options = ["--num_pairs", "24", "--max_length", "12", "--replicates", "100"]
    for layout in ("replicated", "sharded"):
        out = ["--out", str(tmp_path / layout), "--weights", layout]
        assert main(["measure", *options, *out]) == 0
    one, other = (
        read_result(tmp_path / layout / "embedded.json")
        for layout in ("replicated", "sharded")
    )
    for name in CURVES:
        for x, y in zip(one.curve(name), other.curve(name), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_command_says_what_is_wrong(tmp_path, capsys):
    few = ["--num_pairs", "2", "--out", str(tmp_path)]
    bad = tmp_path / "pairs.jsonl"
    bad.write_text('{"question": "q", "chosen": "a"}\n')
    assert main(["measure", "--pairs", str(bad), "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "line 1: missing field" in said and "--traceback" in said
    assert main(["measure", "--layer", "9", *few]) == 1
    assert "a block of the model, 1 to 4" in capsys.readouterr().err
    assert main(["measure", "--pairs", "none.jsonl", "--out", str(tmp_path)]) == 1
    assert "none.jsonl: there is no such file" in capsys.readouterr().err
    assert main(["measure", "--reduction", "max", "--null", *few]) == 1
    assert "twice as many pairs" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, said",
    [
        ("measure --num_pairs 0", "'0' is no whole number of at least 1"),
        ("measure --null -1", "expected at least 0|no whole number of at least 0"),
        ("measure --replicates 20", "'20' is no whole number of at least 100"),
        ("measure --seed 1.5", "'1.5' is no whole number"),
        ("measure --dtype bfloat16", "--dtype goes with --llm"),
        ("measure --num_queries 4", "--num_queries goes with --run"),
        ("measure --run r --max_length 9", "--max_length goes with a language model"),
        ("measure --kernel reference", "invalid choice: 'reference'"),
        ("theory r.json --metric read", "--metric goes with --scores"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, said, capsys):
    with pytest.raises(SystemExit):
        main(options.split())
    assert re.search(said, capsys.readouterr().err)


def test_as_many_pages_as_asked_for(tmp_path):
    options = ["--num_pairs", "3", "--max_length", "8", "--replicates", "100"]
    assert main(["measure", *options, "--out", str(tmp_path)]) == 0
    result = read_result(tmp_path / "embedded.json")
    assert result.pairs["rows"] == 3 and result.manifest["num_pairs"] == 3
