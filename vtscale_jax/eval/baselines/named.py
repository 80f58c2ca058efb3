"""The reducers by name."""

from vtscale_jax.eval.baselines.controls import Downsample, NoReduction, Pool, Random
from vtscale_jax.eval.baselines.reducers import Reducer, ReducerError
from vtscale_jax.eval.baselines.visionzip import VisionZip
from vtscale_jax.eval.baselines.vispruner import VisPruner

NAMES = ("none", "downsample", "pool", "random", "vispruner", "visionzip")
_KINDS = {
    "none": NoReduction,
    "downsample": Downsample,
    "pool": Pool,
    "random": Random,
    "vispruner": VisPruner,
    "visionzip": VisionZip,
}


def named(name: str, *, important: float = 0.5, contextual: int = 10) -> Reducer:
    """The reducer of that name, one of `NAMES`.

    `important` is VisPruner's share of tokens taken by attention, `contextual` how many
    of VisionZip's tokens are merged ones; the others have no options. Raises
    ReducerError for another name or an option out of range.
    """
    if name not in _KINDS:
        raise ReducerError(
            f"reducer.name: got {name!r}, expected one of {', '.join(NAMES)}"
        )
    if name == "vispruner":
        return VisPruner(important=important)
    if name == "visionzip":
        return VisionZip(contextual=contextual)
    return _KINDS[name]()
