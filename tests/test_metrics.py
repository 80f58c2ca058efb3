"""Accumulators and sinks: what is written, and what a resumed run leaves."""

import io
import math

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from vtscale_jax import metrics
from vtscale_jax.loss_watch import TrainingStopped, check_loss
from vtscale_jax.metrics import (
    MalformedFile,
    MetricsLog,
    Throughput,
    read_jsonl,
    wilson_interval,
)


class Clock:
    """A clock that moves only when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def log_to(folder, **options):
    options = {"total_steps": 100, "stream": io.StringIO(), **options}
    return MetricsLog(folder, **options)


def steps_in(folder):
    return [(r["step"], r["split"]) for r in read_jsonl(folder / "metrics.jsonl")]


def tensorboard_events(folder):
    """Events of all files, read by the record format: length, crc, bytes, crc."""
    events = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            events.append(Event.FromString(data[at + 12 : at + 12 + size]))
            at += 12 + size + 4
    return events


def test_one_write_feeds_all_three_sinks(tmp_path):
    stream = io.StringIO()
    with log_to(tmp_path, stream=stream) as log:
        log.write(10, loss=np.float32(2.5), mfu=0.25, samples_per_s=40)
        log.write(10, split="heldout", loss=3.0, **{"accuracy/read": 0.5})
    assert read_jsonl(tmp_path / "metrics.jsonl") == [
        {"step": 10, "split": "train", "loss": 2.5, "mfu": 0.25, "samples_per_s": 40},
        {"step": 10, "split": "heldout", "loss": 3.0, "accuracy/read": 0.5},
    ]
    scalars = {
        (value.tag, event.step): value.simple_value
        for event in tensorboard_events(tmp_path)
        for value in event.summary.value
    }
    assert scalars == {
        ("train/loss", 10): 2.5,
        ("train/mfu", 10): 0.25,
        ("train/samples_per_s", 10): 40.0,
        ("heldout/loss", 10): 3.0,
        ("heldout/accuracy/read", 10): 0.5,
    }
    train, heldout = stream.getvalue().splitlines()
    assert train == "step 10/100  loss 2.5, 40 samples/s, MFU 25.0%  ETA ?"
    assert heldout == "step 10/100  heldout  loss 3, read 50.0%"


def test_each_row_is_in_the_file_before_the_next_one(tmp_path):
    log = log_to(tmp_path)
    for step in (1, 2, 3):
        log.write(step, loss=1.0)
        assert len(read_jsonl(tmp_path / "metrics.jsonl")) == step
    log.close()


def test_resume_drops_later_rows_and_the_torn_line(tmp_path):
    with log_to(tmp_path) as log:
        for step in (10, 20, 30):
            log.write(step, loss=1.0 / step)
        log.write(20, split="heldout", loss=0.5)
        log.write(30, split="heldout", loss=0.4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "spl')
    before = read_rows_text(tmp_path)
    with log_to(tmp_path, restored_step=20) as log:
        assert steps_in(tmp_path) == [(10, "train"), (20, "train"), (20, "heldout")]
        log.write(30, loss=0.25)
    assert steps_in(tmp_path)[-1] == (30, "train")
    assert read_jsonl(tmp_path / "metrics.jsonl")[-1]["loss"] == 0.25
    assert len(set(steps_in(tmp_path))) == len(steps_in(tmp_path))
    # What is kept is kept to the byte, and no draft is left behind.
    assert read_rows_text(tmp_path)[:2] == before[:2]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "metrics.jsonl",
        "tensorboard",
    ]
    # TensorBoard is told to hide what the first run wrote after step 20.
    assert [e.step for e in tensorboard_events(tmp_path) if e.session_log.status] == [
        0,
        21,
    ]


def read_rows_text(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


def test_fresh_start_drops_all_rows(tmp_path):
    with log_to(tmp_path) as log:
        log.write(0, split="heldout", loss=1.0)
    with log_to(tmp_path) as log:
        log.write(0, split="heldout", loss=2.0)
    assert [r["loss"] for r in read_jsonl(tmp_path / "metrics.jsonl")] == [2.0]
    # Negative control: restored from step 0, the row of step 0 stays.
    with log_to(tmp_path, restored_step=0):
        assert steps_in(tmp_path) == [(0, "heldout")]


def test_a_step_is_never_written_twice(tmp_path):
    with log_to(tmp_path) as log:
        log.write(10, loss=1.0)
        with pytest.raises(ValueError, match=r"step is 10 .*more than 10"):
            log.write(10, loss=1.0)
    with log_to(tmp_path, restored_step=10) as log:
        with pytest.raises(ValueError, match="more than 10"):
            log.write(5, loss=1.0)
        log.write(10, split="heldout", loss=1.0)
    assert steps_in(tmp_path) == [(10, "train"), (10, "heldout")]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_non_finite_loss_names_the_step(tmp_path, loss):
    with pytest.raises(TrainingStopped, match="step 17"):
        check_loss(17, loss)
    with log_to(tmp_path) as log, pytest.raises(TrainingStopped, match="step 17"):
        log.write(17, loss=loss)
    assert read_jsonl(tmp_path / "metrics.jsonl") == []
    check_loss(17, 1e30)


def test_other_non_finite_values_are_null(tmp_path):
    with log_to(tmp_path) as log:
        log.write(1, loss=1.0, grad_norm=math.inf)
    assert read_jsonl(tmp_path / "metrics.jsonl")[0]["grad_norm"] is None


@pytest.mark.parametrize("value", [[1.0, 2.0], "1.0", None, True])
def test_values_must_be_scalars(tmp_path, value):
    with log_to(tmp_path) as log, pytest.raises(ValueError, match="grad_norm is"):
        log.write(1, loss=1.0, grad_norm=value)


def test_malformed_rows_name_file_and_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "split": "train"}\n{"step": 2,\n{"step": 3}\n')
    with pytest.raises(MalformedFile, match=r"metrics.jsonl, line 2"):
        log_to(tmp_path, restored_step=1)
    path.write_text('{"step": 1}\n{"loss": NaN}\n')
    with pytest.raises(MalformedFile, match=r"line 2.*NaN is not JSON"):
        read_jsonl(path)
    path.write_text('{"step": 1}\n{"st')
    with pytest.raises(MalformedFile, match=r"line 2.*resume the run"):
        read_jsonl(path)
    path.write_text('{"text": "a\u2028b"}\n')
    assert read_jsonl(path) == [{"text": "a\u2028b"}]


def test_a_long_run_prints_few_plain_lines(tmp_path):
    stream, clock = io.StringIO(), Clock()
    with log_to(tmp_path, total_steps=5000, stream=stream, clock=clock) as log:
        for step in range(1, 5001):
            clock.now += 2.0
            log.write(step, loss=1.0)
    lines = stream.getvalue().splitlines()
    assert 90 <= len(lines) <= 110
    assert lines[-1].startswith("step 5000/5000")
    half = next(line for line in lines if line.startswith("step 2501/"))
    assert half.endswith("ETA 1:23:18")  # 2499 steps of 2 s


def test_a_terminal_gets_a_bar(tmp_path):
    stream = Terminal()
    with log_to(tmp_path, stream=stream, restored_step=40) as log:
        log.write(50, loss=1.25, mfu=0.5)
        log.write(100, loss=1.0, mfu=0.5)
    shown = stream.getvalue()
    assert "100/100" in shown
    assert "loss 1, MFU 50.0%" in shown
    assert "\r" in shown


def test_throughput_over_a_sliding_window():
    clock = Clock()
    throughput = Throughput(window=2, clock=clock)
    clock.now += 10
    assert throughput.update(100) == 10.0
    clock.now += 5
    assert throughput.update(200) == 20.0  # 300 in 15 s
    clock.now += 5
    assert throughput.update(100) == 30.0  # the first interval has left the window
    with throughput.paused():
        clock.now += 1000
    clock.now += 5
    assert throughput.update(200) == 30.0
    clock.now += 1000  # Negative control: time outside a pause counts.
    assert throughput.update(200) < 1.0


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17:857-872 (1998), Table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_of_published_cases(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson_interval(trials - successes, trials)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)
    # Negative control: another confidence gives another interval.
    assert wilson_interval(successes, trials, 0.9) != pytest.approx(
        (low, high), abs=5e-3
    )


def test_wilson_interval_solves_the_score_equation():
    z = 1.959963984540054
    for successes, trials in [(310, 500), (3, 7), (499, 500)]:
        share = successes / trials
        for end in wilson_interval(successes, trials):
            distance = abs(share - end) / math.sqrt(end * (1 - end) / trials)
            assert distance == pytest.approx(z, rel=1e-9)
    assert wilson_interval(5, 5)[1] == 1.0
    assert wilson_interval(0, 5)[0] == 0.0


@pytest.mark.parametrize(
    ("arguments", "field"),
    [((1, 0), "trials"), ((6, 5), "successes"), ((1, 5, 95.0), "confidence")],
)
def test_wilson_interval_refuses(arguments, field):
    with pytest.raises(ValueError, match=f"{field} is"):
        wilson_interval(*arguments)


def test_restored_step_must_fit(tmp_path):
    with pytest.raises(ValueError, match="restored_step is 200"):
        log_to(tmp_path, restored_step=200)


def test_no_jax_is_imported():
    assert not any(
        getattr(value, "__name__", "").split(".")[0] == "jax"
        for value in vars(metrics).values()
    )
