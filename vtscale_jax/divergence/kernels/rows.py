"""What a kernel is asked for: of every position, its sum over the earlier ones.

For all n at once the cross sums need each cosine once (spec math.md §2):

    S(n) = S(n−1) + Σ_{j<n} (g(n,j) + g(j,n))

so a kernel gives the row sums, and their running sum over n is S. The reduction `max`
is the same with maxima. With C = [A; B], row n of the lower triangle of C·Cᵀ holds all
that row n needs: a_n·a_j, b_n·b_j, a_n·b_j and b_n·a_j, each for j < n.
"""

from typing import Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float

RowReduction = Literal["sum", "max"]


class Branches(NamedTuple):
    """Hidden states of the two branches of B pairs, and 1/‖·‖ of each in float32.

    `inv_a[b, i]` is 0 where there is no state (beyond the pair's length) or where the
    state is the zero vector: its cosine with anything is 0. States are float32 or
    bfloat16, scaled so that no product can overflow, and zero beyond the length.
    """

    a: Float[Array, "B n d"]
    b: Float[Array, "B n d"]
    inv_a: Float[Array, "B n"]
    inv_b: Float[Array, "B n"]


class CrossRows(NamedTuple):
    """For every position i the sum (or maximum) over j < i of positive cosines.

    aa: (cos(a_i, a_j))_+          bb: (cos(b_i, b_j))_+
    ab: (cos(a_i, b_j))_+ and (cos(b_i, a_j))_+, both

    float32; position 0 has no earlier one and holds 0.
    """

    aa: Float[Array, "B n"]
    bb: Float[Array, "B n"]
    ab: Float[Array, "B n"]


@runtime_checkable
class CrossKernel(Protocol):
    """Computes `CrossRows`; called under jit, with shapes known."""

    def __call__(self, branches: Branches, *, reduction: RowReduction) -> CrossRows:
        """The rows of all pairs."""
        ...
