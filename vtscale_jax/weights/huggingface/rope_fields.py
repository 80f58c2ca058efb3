"""The rotary embedding's fields of a Hugging Face config.json, read and written.

Two spellings are read: `rope_parameters` (transformers 5) and `rope_theta` with
`rope_scaling` (before). Where a file has both, a filled `rope_scaling` is believed, as
transformers 5 does. What a field means, and what is derived where it is left out, is
taken from transformers' modeling_rope_utils.py (5.23).

Beside transformers' kinds there is "factors", which a GGUF file holds instead of
llama3's numbers: the divisor of each frequency.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vtscale_jax.rotary import RopeScaling

Json = Mapping[str, Any]

DEFAULT_THETA = 10000.0
# Every field of a config.json that says something of the rotary embedding.
ROPE_FIELDS = (
    *("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor"),
    "original_max_position_embeddings",
)


class Rope(NamedTuple):
    """Base, scaling, and the share of a head's channels that is rotated."""

    theta: float = DEFAULT_THETA
    scaling: RopeScaling | None = None
    share: float = 1.0


class _Fields:
    """The numbers of one rope dictionary; errors name the field."""

    def __init__(self, given: Json, where: str, kind: str):
        self.given, self.where, self.kind = given, where, kind

    def number(self, name: str, default: float | int | None = None) -> float:
        """A finite number; without a default the dictionary must hold it."""
        value = self.given.get(name)
        value = default if value is None else value
        if value is None or not _is_number(value):
            raise ValueError(
                f"{self.where}.{name}: got {value!r}, expected a number, which "
                f"{self.kind!r} needs; take it from the model's own config.json"
            )
        return float(value)

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers, all above zero."""
        value = self.given.get(name)
        fits = isinstance(value, list | tuple) and all(map(_is_number, value))
        if not fits or not value or min(value) <= 0:
            raise ValueError(
                f"{self.where}.{name}: got {value!r}, expected a list of numbers above "
                f"0, one for each pair of rotated channels, which {self.kind!r} needs"
            )
        return tuple(map(float, value))


def read_rope(config: Json, aliases: Mapping[str, str], where: str = "config") -> Rope:
    """The rotary embedding of a config.json.

    `config` has `max_position_embeddings`, and a family's defaults where the file
    leaves fields out; `aliases` are other names of kinds that the family uses.

    Raises ValueError, naming the field, for kinds that are not computed here and for
    numbers that are missing.
    """
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    given = config.get(name) or {}
    where = f"{where}.{name}"
    if any(isinstance(value, Mapping) for value in given.values()):
        raise ValueError(
            f"{where}: got one rotary embedding per type of layer ({sorted(given)}), "
            "expected one for all; this decoder has the same layer throughout"
        )
    kind = given.get("rope_type", given.get("type", "default"))
    kind = aliases.get(kind, kind)
    if kind not in _READERS:
        raise ValueError(f"{where}.rope_type: got {kind!r}, {_expected(kind)}")
    fields = _Fields(given, where, kind)
    theta, share = config.get("rope_theta"), config.get("partial_rotary_factor")
    return Rope(
        fields.number("rope_theta", DEFAULT_THETA if theta is None else theta),
        _READERS[kind](fields, config),
        fields.number("partial_rotary_factor", 1.0 if share is None else share),
    )


def _expected(kind: Any) -> str:
    if kind == "dynamic":
        return (
            "which changes all frequencies with the length of the row, so that cached "
            "keys would not fit; up to max_position_embeddings it changes nothing: for "
            "rows that short set rope_scaling to null"
        )
    return f"expected one of {sorted(_READERS)}; nothing else is computed here"


def _original_length(fields: _Fields, config: Json) -> int:
    """Positions before the scaling. transformers prefers the outer field, which for
    Phi-3 always has a value."""
    name = "original_max_position_embeddings"
    outer = config.get(name)
    if outer is None:
        outer = fields.number(name, config["max_position_embeddings"])
    return int(outer)


def _linear(fields: _Fields, config: Json) -> RopeScaling:
    return RopeScaling("linear", factor=fields.number("factor"))


def _llama3(fields: _Fields, config: Json) -> RopeScaling:
    return RopeScaling(
        "llama3",
        factor=fields.number("factor"),
        original_length=_original_length(fields, config),
        low_freq_factor=fields.number("low_freq_factor"),
        high_freq_factor=fields.number("high_freq_factor"),
    )


def _yarn(fields: _Fields, config: Json) -> RopeScaling:
    original = _original_length(fields, config)
    factor = fields.number("factor", config["max_position_embeddings"] / original)

    def length(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1

    one, all_dims = (fields.number(name, 0) for name in ("mscale", "mscale_all_dim"))
    derived = length(one) / length(all_dims) if one and all_dims else length(1.0)
    return RopeScaling(
        "yarn",
        factor=factor,
        original_length=original,
        # Zero means the default, as it does for transformers.
        beta_fast=fields.number("beta_fast", 32) or 32.0,
        beta_slow=fields.number("beta_slow", 1) or 1.0,
        truncate=bool(fields.given.get("truncate", True)),
        attention_factor=fields.number("attention_factor", derived),
    )


def _longrope(fields: _Fields, config: Json) -> RopeScaling:
    original = _original_length(fields, config)
    factor = fields.number("factor", config["max_position_embeddings"] / original)
    derived = 1.0
    if factor > 1:
        derived = math.sqrt(1 + math.log(factor) / math.log(original))
    return RopeScaling(
        "longrope",
        original_length=original,
        attention_factor=fields.number("attention_factor", derived),
        factors=fields.numbers("short_factor"),
        long_factors=fields.numbers("long_factor"),
    )


def _factors(fields: _Fields, config: Json) -> RopeScaling:
    return RopeScaling("factors", factors=fields.numbers("factors"))


_READERS: dict[Any, Callable[[_Fields, Json], RopeScaling | None]] = {
    "default": lambda fields, config: None,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "factors": _factors,
}


def transformers_kind(rope: Rope, max_length: int) -> Rope:
    """The same rotary embedding as a kind that transformers has.

    "factors" becomes longrope with one list for short and for long rows;
    `max_length` is where the one would end, which then means nothing.
    """
    scaling = rope.scaling
    if scaling is None or scaling.kind != "factors":
        return rope
    same = RopeScaling(
        "longrope",
        original_length=max_length,
        factors=scaling.factors,
        long_factors=scaling.factors,
    )
    return rope._replace(scaling=same)


def write_rope(rope: Rope) -> dict[str, Any]:
    """The fields of a config.json for transformers 5; of a kind that it has.

    `rope_theta` stands beside `rope_parameters` too, where earlier versions and other
    programs look for it.
    """
    inner: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.theta}
    outer: dict[str, Any] = {"rope_theta": rope.theta}
    if rope.share != 1:
        inner["partial_rotary_factor"] = rope.share
        outer["partial_rotary_factor"] = rope.share
    scaling = rope.scaling
    if scaling is not None:
        inner |= {"rope_type": scaling.kind} | _WRITERS[scaling.kind](scaling)
        if "original_max_position_embeddings" in inner:
            outer["original_max_position_embeddings"] = scaling.original_length
    return {**outer, "rope_parameters": inner}


_WRITERS: dict[str, Callable[[RopeScaling], dict[str, Any]]] = {
    "linear": lambda s: {"factor": s.factor},
    "llama3": lambda s: {
        "factor": s.factor,
        "original_max_position_embeddings": s.original_length,
        "low_freq_factor": s.low_freq_factor,
        "high_freq_factor": s.high_freq_factor,
    },
    "yarn": lambda s: {
        "factor": s.factor,
        "original_max_position_embeddings": s.original_length,
        "beta_fast": s.beta_fast,
        "beta_slow": s.beta_slow,
        "truncate": s.truncate,
        "attention_factor": s.attention_factor,
    },
    "longrope": lambda s: {
        "short_factor": list(s.factors),
        "long_factor": list(s.long_factors),
        "original_max_position_embeddings": s.original_length,
        "attention_factor": s.attention_factor,
    },
}


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)
