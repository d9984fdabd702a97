"""The files by which TensorFlow Datasets opens a set: features.json and dataset_info.json."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.shard_format import SHARD_TEMPLATE, shard_file
from pipeline.storage.beam_files import written_locally
from pipeline.storage.disk import write_whole

METADATA_NAMES = ("dataset_info.json", "features.json")


def write_tfds_metadata(
    output: str, dataset: str, records: Sequence[Mapping[str, Any]], *, has_fields: bool = False
) -> None:
    """Writes features.json and dataset_info.json, so that `tfds.builder_from_directory` opens the set.

    Args:
        output: folder of the set.
        dataset: its name, as in the names of its shards.
        records: the commit records of its shards, in order.
        has_fields: whether fields of the input pass through to its records.
    """
    with written_locally(posixpath.join(output, METADATA_NAMES[0])) as path:
        # TensorFlow Datasets refuses a folder without a shard, and that of a set in a store has none here.
        stand_in = os.path.join(os.path.dirname(path), shard_file(dataset, 0))
        if "://" in output:
            write_whole(stand_in, b"")
        _write(os.path.dirname(path), dataset, records, has_fields)
        if "://" in output:
            os.remove(stand_in)


def _write(output: str, dataset: str, records: Sequence[Mapping[str, Any]], has_fields: bool) -> None:
    import tensorflow_datasets as tfds  # slow to import, and workers need none of it

    template = tfds.core.ShardedFileTemplate(
        template=SHARD_TEMPLATE, data_dir=output, dataset_name=dataset, split="train", filetype_suffix="tfrecord"
    )
    tfds.folder_dataset.write_metadata(
        data_dir=output,
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "image_id": tfds.features.Text(),
                "text": tfds.features.Text(),
                "entity_ids": tfds.features.Sequence(tfds.features.Text()),
                "class_ids": tfds.features.Sequence(tfds.features.Scalar(np.int64)),
                "similarities": tfds.features.Sequence(tfds.features.Scalar(np.float32)),
                "width": tfds.features.Scalar(np.int64),
                "height": tfds.features.Scalar(np.int64),
                **({"fields": tfds.features.Text()} if has_fields else {}),
            }
        ),
        split_infos=[
            tfds.core.SplitInfo(
                name="train",
                shard_lengths=[record["num_records"] for record in records],
                num_bytes=sum(record["size_bytes"] for record in records),
                filename_template=template,
            )
        ],
        filename_template=SHARD_TEMPLATE,
        check_data=False,
        description="Images with entities, mined from image-text pairs.",
    )
