"""Worker processes, and records whose image cannot be read."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_runs import small_config
from test_loader import ADAPT, ALIGN, LAYOUT, SPEC, Samples, assert_equal, same, stream
from worker_questions import leave, modules

from vtscale_jax import settings
from vtscale_jax.assemble import assemble, open_source
from vtscale_jax.encoders import Here, Unreadable, Workers, WorkersError
from vtscale_jax.encoding import SampleError, empty_sample
from vtscale_jax.types import Kind


class Broken(Samples):
    """Samples of which some name a file that is not there."""

    def __init__(self, size, *broken):
        super().__init__(size)
        self.all_broken = broken

    def __getitem__(self, index):
        record = super().__getitem__(index)
        if index in self.all_broken:
            return record._replace(image=f"no/such/{index}.png")
        return record


@pytest.fixture(scope="module")
def two_workers():
    workers = Workers(Broken(30, 4, 17), ADAPT, 2)
    yield workers
    workers.close()


def test_workers_make_the_samples_that_this_process_makes(two_workers):
    here = Here(Broken(30, 4, 17), ADAPT)
    indices = [7, 4, 0, 29, 12, 17]
    theirs, ours = (e.encoded(indices, LAYOUT) for e in (two_workers, here))
    assert [one.id for one in theirs] == [f"sample-{i}" for i in indices]
    for made, expected in zip(theirs, ours, strict=True):
        assert type(made) is type(expected)
        if isinstance(expected, Unreadable):
            assert made == expected and "no/such/" in made.reason
            continue
        assert np.array_equal(made.crops, expected.crops)
        for mine, other in ((made.fusion, expected.fusion), (made.llm, expected.llm)):
            assert np.array_equal(mine.ids, other.ids)
            assert np.array_equal(mine.kinds, other.kinds)


def test_a_stream_with_workers_feeds_the_same_batches(two_workers):
    source = Broken(30, 4, 17)
    straight = stream(source=source)
    with_workers = stream(source=source, encoder=two_workers, num_threads=2)
    for step, fed in zip(range(7), with_workers, strict=False):
        assert_equal(fed.batch, straight.batch(step))
        assert fed.ids == straight.fed(step).ids
        assert fed.skipped == straight.fed(step).skipped
    assert not same(straight.batch(0), straight.batch(1))


def test_workers_never_import_jax():
    """Those of a real run: Digit Pages and the shipped tokenizer."""
    config = small_config(data__num_workers=1)
    model = settings.model_config(config, "float32")
    parts = assemble(config, model.vision)
    workers = parts.encoder(open_source(config, "train"))
    assert isinstance(workers, Workers)
    (made,) = workers.encoded([3], parts.layout(4))
    there = set(workers.ask(modules))
    workers.close()
    assert len(made.crops) == 10
    assert {"vtscale_jax.encoding", "transformers", "PIL.Image"} <= there
    assert not {"jax", "jaxlib", "flax", "torch", "grain", "tensorflow"} & there
    assert "jax" in modules()


def test_a_worker_that_dies_is_an_error_that_says_so():
    workers = Workers(Samples(30), ADAPT, 1)
    with pytest.raises(Exception, match="terminated|terminate"):
        workers.ask(leave)
    with pytest.raises(WorkersError, match="data.num_workers"):
        workers.encoded([1], LAYOUT)
    workers.close()


KILLED = """\
import os, signal
from test_loader import ADAPT, Samples
from vtscale_jax.encoders import Workers

workers = Workers(Samples(9), ADAPT, 1)
print(workers.ask(os.getpid), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_process_that_is_killed():
    tests = Path(__file__).parent
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{tests}:{tests.parent}"},
    )
    assert child.stdout is not None
    worker = int(child.stdout.readline())
    try:
        # Ends when nobody holds the output open any more.
        child.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        os.kill(worker, signal.SIGKILL)
        child.communicate()
        pytest.fail("the worker is still there")
    assert child.returncode == -signal.SIGKILL


def test_errors_of_workers_name_the_record(two_workers):
    with pytest.raises(SampleError, match="record 99 of the source"):
        two_workers.encoded([99], LAYOUT)
    with pytest.raises(SampleError, match="'sample-3': question 0"):
        Here([Samples(9)[3]._replace(turns=(("", "1", ""),))], ADAPT)  # not a Turn
        wrong = Samples(9)[3]
        wrong = wrong._replace(turns=(wrong.turns[0]._replace(question=""),))
        Here([wrong], ADAPT).encoded([0], LAYOUT)


@pytest.mark.parametrize("encoding", [ADAPT, ALIGN])
def test_the_row_of_an_unreadable_image_is_empty(encoding):
    whole = stream(source=Samples(8), encoding=encoding, seed=None).fed(1)
    fed = stream(source=Broken(8, 6), encoding=encoding, seed=None).fed(1)
    assert fed.ids == whole.ids == tuple(f"sample-{i}" for i in range(4, 8))
    ((row, one),) = fed.skipped
    assert (row, one.id) == (2, "sample-6") and not whole.skipped
    fusion = fed.batch.fusion
    assert np.all(fusion.kinds[2] == Kind.PAD) and 2 not in fusion.crop_row
    if encoding is ADAPT:
        assert not fed.batch.llm.loss_mask[2].any()
        assert np.all(fed.batch.llm.kinds[2] == Kind.PAD)
        kept = [0, 1, 3]
        length = fed.batch.llm.ids.shape[1]
        there = whole.batch.llm.ids[kept, :length]
        assert np.array_equal(fed.batch.llm.ids[kept], there)
    else:
        used = fed.batch.answers.question_row[fed.batch.answers.mask]
        assert set(used.tolist()) == {0, 1, 3}
        there = whole.batch.answers.question_row[whole.batch.answers.mask]
        assert set(there.tolist()) == {0, 1, 2, 3}


def test_only_images_are_passed_over():
    class Gone(Samples):
        def __getitem__(self, index):
            if index == 2:
                raise OSError("the disk is gone")
            return super().__getitem__(index)

    with pytest.raises(SampleError, match=r"record 2 of the source: the disk is gone"):
        stream(source=Gone(8), seed=None).fed(0)
    with pytest.raises(SampleError, match="has no image"):
        Here([Samples(9)[3]._replace(image=None)], ALIGN).encoded([0], LAYOUT)


def test_an_empty_sample_fits_every_bucket():
    for encoding in (ADAPT, ALIGN, replace(ADAPT, view_size=14)):
        made = empty_sample("x", encoding)
        assert made.crops.shape == (0, encoding.view_size, encoding.view_size, 3)
        assert len(made.fusion.ids) == 0
    assert SPEC.batch_size == 4
