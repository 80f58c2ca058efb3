"""Which part of a tensor is asked for, and the error of the files that hold them."""

Shape = tuple[int, ...]
Index = tuple[slice, ...]


class TensorFileError(ValueError):
    """A file of tensors that is missing, damaged, or unlike what its index says."""


def slice_bounds(shape: Shape, index: Index | None) -> list[tuple[int, int]]:
    """(start, stop) along every axis of the part that an index cuts out.

    An index has one slice of step 1 per axis; later axes may be left out, and None is
    the whole tensor: `slice_bounds((4, 6), (slice(1, 3),))  ->  [(1, 3), (0, 6)]`.

    Raises ValueError for more slices than axes, and for steps other than 1.
    """
    given = index or ()
    if len(given) > len(shape) or any(s.step not in (None, 1) for s in given):
        raise ValueError(
            f"index: got {given} for the shape {shape}, expected at most one slice of "
            "step 1 per axis"
        )
    every = (*given, *[slice(None)] * (len(shape) - len(given)))
    bounds = [s.indices(length)[:2] for s, length in zip(every, shape, strict=True)]
    return [(start, max(start, stop)) for start, stop in bounds]
