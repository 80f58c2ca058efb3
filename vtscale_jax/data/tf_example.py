"""TensorFlow's `tf.train.Example`, without TensorFlow.

TFDS stores each record as such a protocol buffer. Its own copy of the message lies in
a package that takes seconds to import, which a data worker has not; the message is so
small that it is declared here, in a pool of its own, so that it cannot clash with
TensorFlow's where both are imported. Only lists of bytes are declared: everything that
is stored here is text or a file. Other fields of a message are kept as they are.
"""

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

_FIELD = descriptor_pb2.FieldDescriptorProto
_PACKAGE = "vtscale_jax"


def _example_class() -> Any:
    """message Example   { Features features = 1; }
    message Features  { map<string, Feature> feature = 1; }
    message Feature   { BytesList bytes_list = 1; }
    message BytesList { repeated bytes value = 1; }"""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{_PACKAGE}/example.proto", package=_PACKAGE, syntax="proto3"
    )
    one, many = _FIELD.LABEL_OPTIONAL, _FIELD.LABEL_REPEATED
    for name, field, label, kind in (
        ("Example", "features", one, "Features"),
        ("Features", "feature", many, "Features.FeatureEntry"),
        ("Feature", "bytes_list", one, "BytesList"),
    ):
        file.message_type.add(name=name).field.add(
            name=field,
            number=1,
            label=label,
            type=_FIELD.TYPE_MESSAGE,
            type_name=f".{_PACKAGE}.{kind}",
        )
    file.message_type.add(name="BytesList").field.add(
        name="value", number=1, label=many, type=_FIELD.TYPE_BYTES
    )
    entry = file.message_type[1].nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=one, type=_FIELD.TYPE_STRING)
    entry.field.add(
        name="value",
        number=2,
        label=one,
        type=_FIELD.TYPE_MESSAGE,
        type_name=f".{_PACKAGE}.Feature",
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindMessageTypeByName(f"{_PACKAGE}.Example")
    return message_factory.GetMessageClass(found)


_Example = _example_class()


def parse(message: bytes) -> dict[str, list[bytes]]:
    """The lists of bytes in a serialised Example by name; a single value is a list of
    one, an absent one is not there. ValueError for bytes that are no Example."""
    try:
        features = _Example.FromString(message).features.feature
    except DecodeError as error:
        raise ValueError(f"no tf.train.Example: {error}") from error
    return {name: list(one.bytes_list.value) for name, one in features.items()}


def serialise(values: Mapping[str, list[bytes]]) -> bytes:
    """A serialised Example of lists of bytes."""
    example = _Example()
    for name, value in values.items():
        example.features.feature[name].bytes_list.value.extend(value)
    return example.SerializeToString(deterministic=True)


def canonical(message: bytes) -> bytes:
    """The same Example with its features in the order of their names. Protocol buffers
    leave the order of a map open, and it differs from process to process."""
    return _Example.FromString(message).SerializeToString(deterministic=True)
