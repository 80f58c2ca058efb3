"""Annotated functions of ours are checked while testing; how, is chosen here.

`--jaxtyping-packages` decorates every function with `jaxtyping.jaxtyped`, which binds
the arguments and checks them twice at each call, so that shapes agree with each other.
Most functions have no array in their signature. beartype alone checks these as
strictly, in about a tenth of the time.
"""

import functools
from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype

# The error is the same whoever finds it.
_CONFIG = BeartypeConf(violation_type=jaxtyping.TypeCheckError)


def check_arrays_only(jaxtyped: Callable[..., Any]) -> Callable[..., Any]:
    """`jaxtyped`, but for functions without arrays `beartype`; a function without
    annotations stays as it is."""

    @functools.wraps(jaxtyped)
    def chosen(*args: Any, typechecker: Any) -> Any:
        def decorate(checked: Any) -> Any:
            if isinstance(checked, type):
                return jaxtyped(checked, typechecker=typechecker)
            hints = checked.__annotations__.values()
            if not hints:
                return checked
            if any(map(has_array, hints)):
                return jaxtyped(checked, typechecker=typechecker)
            return beartype(checked, conf=_CONFIG)

        return decorate(*args) if args else decorate

    return chosen


def has_array(hint: Any) -> bool:
    """Whether an annotation may hold an array's: text may be anything."""
    if isinstance(hint, str | list):  # a list has the arguments of a Callable
        return isinstance(hint, str) or any(map(has_array, hint))
    if isinstance(hint, type) and issubclass(
        hint, jaxtyping.AbstractArray | jaxtyping.PyTree
    ):
        return True
    return any(map(has_array, get_args(hint)))
