"""`tf.train.Example`, read and written without TensorFlow."""

import functools
from collections.abc import Mapping
from typing import Any

from synthclip_jax.data.records import RecordError


@functools.cache
def _example_class():
    """The protobuf class of `tf.train.Example`, from a descriptor made here (the schema is TensorFlow's, public)."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kind = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="synthclip_jax/example.proto", package="synthclip_jax.tf", syntax="proto3"
    )

    def message(name: str, *fields: tuple) -> descriptor_pb2.DescriptorProto:
        proto = file.message_type.add(name=name)
        for number, (field, label, type_, type_name) in enumerate(fields, 1):
            proto.field.add(name=field, number=number, label=label, type=type_, type_name=type_name)
        return proto

    scope = ".synthclip_jax.tf."
    one, many = kind.LABEL_OPTIONAL, kind.LABEL_REPEATED
    message("BytesList", ("value", many, kind.TYPE_BYTES, None))
    message("FloatList", ("value", many, kind.TYPE_FLOAT, None))
    message("Int64List", ("value", many, kind.TYPE_INT64, None))
    feature = message(
        "Feature",
        ("bytes_list", one, kind.TYPE_MESSAGE, scope + "BytesList"),
        ("float_list", one, kind.TYPE_MESSAGE, scope + "FloatList"),
        ("int64_list", one, kind.TYPE_MESSAGE, scope + "Int64List"),
    )
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    features = message("Features", ("feature", many, kind.TYPE_MESSAGE, scope + "Features.FeatureEntry"))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.field.add(name="key", number=1, label=one, type=kind.TYPE_STRING)
    entry.field.add(name="value", number=2, label=one, type=kind.TYPE_MESSAGE, type_name=scope + "Feature")
    entry.options.map_entry = True
    message("Example", ("features", one, kind.TYPE_MESSAGE, scope + "Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("synthclip_jax.tf.Example"))


def parse_example(payload: bytes) -> dict[str, list[Any]]:
    """Reads a serialised `tf.train.Example` into plain lists of bytes, ints or floats.

    Raises:
      RecordError: the bytes are not an Example.
    """
    return {name: feature_values(feature) for name, feature in parse_features(payload).items()}


def parse_features(payload: bytes) -> Mapping[str, Any]:
    """The features of a serialised `tf.train.Example` as protobuf has them, for `feature_values`.

    Raises:
      RecordError: the bytes are not an Example.
    """
    from google.protobuf.message import DecodeError

    try:
        return _example_class().FromString(payload).features.feature
    except DecodeError as error:
        raise RecordError(f"not a tf.train.Example ({error})") from error


def feature_values(feature: Any) -> list[Any]:
    """The values of a feature; none if it holds nothing."""
    kind = feature.WhichOneof("kind")
    return list(getattr(feature, kind).value) if kind else []


def serialize_example(values: Mapping[str, list[Any]]) -> bytes:
    """Serialises plain lists as a `tf.train.Example`; the same values give the same bytes.

    Datasets are written through TFDS's own serialiser (`gen.images`); this one serves tests and small tools.
    """
    example = _example_class()()
    for name, items in values.items():
        feature = example.features.feature[name]
        if items and isinstance(items[0], bytes):
            feature.bytes_list.value.extend(items)
        elif items and isinstance(items[0], float):
            feature.float_list.value.extend(items)
        else:
            feature.int64_list.value.extend(items)
    return example.SerializeToString(deterministic=True)
