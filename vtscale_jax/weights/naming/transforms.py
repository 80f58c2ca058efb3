"""How an array lies in a checkpoint and how it lies here: permutations of its axes.

Because nothing but axes changes places, a part of our array is a part of theirs: for
"transpose", our columns 0–9 are their rows 0–9. So a device's shard can be read alone.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class Transform(NamedTuple):
    """Our axis k is their axis `axes[k]`, of `rank` axes in all.

    Axes of theirs that are not named have length 1 and are dropped here. Without axes
    the two are alike, at any rank.
    """

    axes: tuple[int, ...] | None = None
    rank: int = 0

    def per_axis(self, ours: Sequence[T], single: T) -> tuple[T, ...]:
        """What we say of each of our axes (a length, a slice, a mesh axis), in their
        order; `single` is said of the axes that only they have.

            TRANSFORMS["conv"].per_axis("HWIO", "?")  ->  ("O", "I", "H", "W")

        Raises ValueError when `ours` has another number of axes.
        """
        if self.axes is None:
            return tuple(ours)
        if len(ours) != len(self.axes):
            raise ValueError(f"got {len(ours)} axes, expected {len(self.axes)}")
        theirs = [single] * self.rank
        for k, axis in enumerate(self.axes):
            theirs[axis] = ours[k]
        return tuple(theirs)

    def to_ours(self, theirs: Any) -> Any:
        """Our array (NumPy or JAX) from theirs; a view of a NumPy array."""
        if self.axes is None:
            return theirs
        kept = sorted(self.axes)
        bare = theirs.reshape([theirs.shape[axis] for axis in kept])
        return bare.transpose([kept.index(axis) for axis in self.axes])

    def to_theirs(self, ours: Any) -> Any:
        """Their array from ours; undoes `to_ours`."""
        if self.axes is None:
            return ours
        turned = ours.transpose([self.axes.index(axis) for axis in sorted(self.axes)])
        return turned.reshape(self.per_axis(ours.shape, 1))


TRANSFORMS = {
    "same": Transform(),
    # PyTorch's Linear keeps [out, in], ours [in, out].
    "transpose": Transform((1, 0), rank=2),
    # Convolution: OIHW there, HWIO here.
    "conv": Transform((2, 3, 1, 0), rank=4),
    # The newline token is [1, 1, D] there, [D] here.
    "squeeze": Transform((2,), rank=3),
}
