"""The stream over many samples: one order for any hosts, and flat memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_loader import ADAPT, LAYOUT, SPEC, VIEW, Samples

from vtscale_jax.collate import BatchSpec
from vtscale_jax.encoders import Workers
from vtscale_jax.loader import Stream
from vtscale_jax.phases import samples_hash, total_hash
from vtscale_jax.types import Record, Shards, Turn

SIZE, STEPS = 40, 250  # 10,000 samples
LARGE = BatchSpec(SIZE, SPEC.tokens_per_crop, (SIZE * 2,), (48,), (8,), (48,), (16,))


class Pages(Samples):
    """4,000 records of one turn, and one small view unless only their order matters."""

    def __init__(self, seen=False):
        super().__init__(4000)
        self.seen = seen

    def __getitem__(self, index):
        pixels = None
        if self.seen:
            pixels = np.full((VIEW, VIEW, 3), index % 256, np.uint8)
        turn = Turn(f"what is digit {index % 90} ?", f"{index % 100}")
        return Record(f"page-{index}", pixels, (turn,))


def pages_stream(seen=False, **more):
    return Stream(
        Pages(seen), ADAPT, LARGE, layout=LAYOUT, seed=3, num_threads=1, **more
    )


def fed_by(host, hosts, *, cut=None, encoder=None):
    """The hash of all that one of `hosts` is fed, as a row of `total_hash`; the stream
    is thrown away after `cut` steps, and another restored."""
    shards = Shards((host,), hosts)
    rows, total = shards.rows(SIZE), 0
    batches = iter(pages_stream(shards=shards, encoder=encoder))
    for step in range(STEPS):
        if step == cut:
            state = json.dumps(batches.state())
            batches.close()
            batches = iter(pages_stream(shards=shards))
            batches.restore(json.loads(state))
        fed = next(batches)
        assert len(fed.ids) == len(rows)
        total = (total + samples_hash(step, rows, fed.ids)) % 2**64
    batches.close()
    return [host, total >> 32, total & 0xFFFFFFFF]


@pytest.fixture(scope="module")
def expected():
    """The hash of 10,000 samples, from the order alone."""
    straight, total = pages_stream(), 0
    for step in range(STEPS):
        ids = [f"page-{index}" for index in straight.order(step)]
        total += samples_hash(step, range(SIZE), ids)
    return total % 2**64


FEWER = [pytest.param(hosts, marks=pytest.mark.long) for hosts in (1, 2)]


@pytest.mark.parametrize("hosts", [*FEWER, 4])
def test_ten_thousand_samples_are_the_same_for_any_number_of_hosts(hosts, expected):
    # The kill comes at another step on every host.
    cuts = np.random.default_rng(hosts).integers(1, STEPS, hosts).tolist()
    rows = [fed_by(host, hosts, cut=cut) for host, cut in enumerate(cuts)]
    assert total_hash(np.array(rows, np.uint32)) == expected
    # One host that feeds the wrong rows is seen.
    rows[0][2] ^= 1
    assert total_hash(np.array(rows, np.uint32)) != expected


@pytest.mark.slow
def test_worker_processes_feed_the_same_ten_thousand(expected):
    workers = Workers(Pages(), ADAPT, 2)
    row = fed_by(0, 1, encoder=workers)
    workers.close()
    assert total_hash(np.array([row], np.uint32)) == expected


GROWTH = """
import resource, sys
sys.path.insert(0, {tests!r})
from test_loader_scale import SIZE, pages_stream
kept = []
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20
for step, fed in zip(range(1 + {samples} // SIZE), pages_stream(True), strict=False):
    if {hoard}:
        kept.append(fed.batch.fusion.crops)
    if step == 50:
        before = resident()
print(resident() - before)
"""


def growth(samples, *, hoard):
    """MiB that a process grows by, from its 2,000th sample to the last."""
    tests = str(Path(__file__).parent)
    code = GROWTH.format(tests=tests, samples=samples, hoard=hoard)
    made = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    return float(made.stdout.split()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat_over_twenty_thousand_samples():
    assert growth(20_000, hoard=False) < 20
    # What the test would see if batches were kept: 350 MiB, of these 10,000 some 155.
    assert growth(10_000, hoard=True) > 100
