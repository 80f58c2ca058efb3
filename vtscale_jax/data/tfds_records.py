"""How TFDS describes and serialises a record and its image.

TFDS is imported in functions: it takes a second, and only packing needs it.
"""

import contextlib
import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vtscale_jax.data import tf_example

NAME, SPLIT, VERSION = "vtscale", "train", "1.0.0"


@functools.cache
def features() -> Any:
    """The fields of a record as `tfds.features`.

    `image`, `path` and `system` are None where the record has none; `family` of a
    message is "" where it has none.
    """
    import tensorflow_datasets as tfds

    kinds = tfds.features
    maybe = functools.partial(kinds.Scalar, dtype=np.object_, optional=True)
    message = {"role": kinds.Text(), "content": kinds.Text(), "family": kinds.Text()}
    return kinds.FeaturesDict(
        {
            "id": kinds.Text(),
            "image": maybe(doc="the bytes of the image file"),
            "path": maybe(doc="its path below the image root"),
            "system": maybe(doc="the system prompt"),
            "messages": kinds.Sequence(message),
        }
    )


def stored_record(raw: Mapping[str, Any], image: bytes | None) -> bytes:
    """A record of records.jsonl, and its image file, as the bytes that are stored; the
    same ones in every process."""
    example = {
        "id": raw["id"],
        "image": image,
        "path": None if image is None else raw["image"],
        "system": raw.get("system"),
        "messages": [{"family": "", **message} for message in raw["messages"]],
    }
    return tf_example.canonical(features().serialize_example(example))


def shard_name(number: int, shards: int) -> str:
    """The file name of shard `number`, from 0, as TFDS expects it."""
    return f"{NAME}-{SPLIT}.array_record-{number:05d}-of-{shards:05d}"


def describe(folder: Path, records: Sequence[int], content_bytes: int) -> None:
    """Writes dataset_info.json and features.json beside the shards of a folder, which
    hold so many `records` each and `content_bytes` bytes together."""
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir=str(folder),
        dataset_name=NAME,
        split=SPLIT,
        filetype_suffix="array_record",
    )
    split = tfds.core.SplitInfo(
        name=SPLIT,
        shard_lengths=list(records),
        num_bytes=content_bytes,
        filename_template=template,
    )
    # What TFDS prints of its progress is not for the user of this command.
    with contextlib.redirect_stdout(io.StringIO()):
        tfds.folder_dataset.write_metadata(
            data_dir=str(folder),
            features=features(),
            split_infos=[split],
            filename_template=template,
            version=VERSION,
            check_data=False,  # it would read by TensorFlow
            description="Conversations about images; see features.json.",
        )
