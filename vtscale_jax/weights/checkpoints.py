"""Checkpoints of a run, by orbax: asynchronous, the last k and the best are kept.

A checkpoint holds the train state (never the frozen parameters), the place in the data,
and a checksum of the state. Every process writes what its devices hold. Restoring takes
the newest one that can be read and whose checksum is right, onto any mesh and any
number of processes.
"""

import contextlib
import errno
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import type_handlers
from orbax.checkpoint.checkpoint_managers import preservation_policy

from vtscale_jax.step import TrainState
from vtscale_jax.weights.checksums import checksum

BEST_METRIC = "heldout_loss"
# Of an array with a copy on each device every device writes a part, where the parts
# have so many bytes; smaller arrays are written whole by one, which is quicker.
PART = 2**20
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a full disk answers


def _loss(metrics: dict[str, float]) -> float:
    return metrics[BEST_METRIC]


class CheckpointError(ValueError):
    """No checkpoint of a run could be read."""


class DiskFull(ValueError):
    """There was no room for what a run writes."""


@contextlib.contextmanager
def room_in(folder: Path) -> Iterator[None]:
    """Turns what a full disk makes of a write inside into DiskFull."""
    try:
        yield
    except (OSError, ValueError) as error:
        # tensorstore tells the system's number in its text only.
        found = re.search(r"os_error_code='(\d+)'", str(error))
        number = int(found[1]) if found else getattr(error, "errno", None)
        if number not in FULL:
            raise
        raise DiskFull(
            f"the disk of {folder} is full ({errno.errorcode[number]}). The last "
            "checkpoint there is whole: make room, and give the same command again to "
            "go on from it"
        ) from error


class Restored(NamedTuple):
    """A train state and the place in the data that belongs to it."""

    state: TrainState
    data: dict[str, Any]
    step: int


class Checkpoints:
    """The checkpoints of one run folder; use it as a context manager."""

    def __init__(self, folder: str | Path, *, keep: int):
        self._folder = Path(folder).absolute()
        policy = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(n=keep),
                preservation_policy.BestN(get_metric_fn=_loss, reverse=True, n=1),
            ]
        )
        arrays = type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=PART)
        handlers = type_handlers.create_type_handler_registry((jax.Array, arrays))
        self._manager = ocp.CheckpointManager(
            self._folder,
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(type_handler_registry=handlers),
                "data": ocp.JsonCheckpointHandler(),
                "about": ocp.JsonCheckpointHandler(),
            },
            # Only with `best_fn` are the metrics written, to be known after a restart.
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=_loss,
                best_mode="min",
                cleanup_tmp_directories=True,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._manager.close()
        except Exception:
            # A save that failed in the background is reported again at the end; the
            # first report counts.
            if exception[0] is None:
                raise

    def save(
        self,
        state: TrainState,
        data: dict[str, Any],
        *,
        heldout_loss: float,
    ) -> None:
        """Starts saving `state` and returns; a save that was under way is awaited.

        `data` is the loader's state (JSON). The best checkpoint is the one with the
        lowest `heldout_loss`.
        """
        # Of the optimizer's state too: a bit that flips in it would go unseen, and the
        # run would end elsewhere.
        about = {"checksum": checksum(state)}
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(state._asdict()),
                data=ocp.args.JsonSave(data),
                about=ocp.args.JsonSave(about),
            ),
            metrics={BEST_METRIC: float(heldout_loss)},
        )

    def steps(self) -> list[int]:
        """Steps of the checkpoints that were completed, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def wait(self) -> None:
        """Waits for a save under way."""
        self._manager.wait_until_finished()

    def restore_latest(
        self, like: TrainState, everywhere: Callable[[bool], bool] = bool
    ) -> Restored | None:
        """The newest readable checkpoint, placed and shaped as `like` (arrays, or their
        shapes with shardings); None if the run has none.

        One that cannot be read, or whose state does not have the checksum it was saved
        with, is reported on stderr and the one before it is taken. Of several processes
        all take the same one: `everywhere` says whether all of them could read it.
        Raises CheckpointError when every one is broken.
        """
        steps = self.steps()
        for step in steps:
            found, reason = None, "another host could not read it"
            try:
                found = self._read(step, like)
            # Whatever a broken file makes the reader raise, the answer is the same:
            # say so and go back one checkpoint.
            except Exception as error:
                first = str(error).strip().split("\n")[0][:200]
                reason = f"{type(error).__name__}: {first}"
            if everywhere(found is not None) and found is not None:
                restored, expected = found
                actual = checksum(restored.state)
                if actual == expected:
                    return restored
                reason = f"its checksum is {actual[:12]}, not {expected[:12]} as saved"
            print(
                f"checkpoint {self._folder / str(step)} cannot be used ({reason}); "
                "trying the one before it",
                file=sys.stderr,
            )
        if steps:
            raise CheckpointError(
                f"none of the checkpoints {steps} in {self._folder} can be read. "
                "Restore them from a copy, or start the run in another --workdir; "
                "no checkpoint and no row of metrics was written over."
            )
        return None

    def discard_after(self, step: int) -> None:
        """Deletes checkpoints newer than `step` (broken ones, passed over); all
        processes call this together."""
        for newer in [s for s in self.steps() if s > step]:
            self._manager.delete(newer)

    def _read(self, step: int, like: TrainState) -> tuple[Restored, str]:
        """What a checkpoint holds, and the checksum it was saved with."""
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=leaf.sharding
            ),
            like._asdict(),
        )
        lies = ocp.checkpoint_utils.construct_restore_args(shapes)
        found = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeRestore(shapes, restore_args=lies),
                data=ocp.args.JsonRestore(),
                about=ocp.args.JsonRestore(),
            ),
        )
        restored = Restored(TrainState(**found["state"]), found["data"], step)
        return restored, found["about"]["checksum"]
