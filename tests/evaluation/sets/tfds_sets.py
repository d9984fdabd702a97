"""Small TFDS sets on disk, prepared by TFDS itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds


def prepare(
    data_dir: Path,
    name: str,
    version: str,
    features: Mapping[str, Any],
    splits: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    config: str | None = None,
    supervised_keys: tuple[str, str] | None = None,
    num_shards: int = 1,
) -> None:
    """Writes `<data_dir>/<name>[/<config>]/<version>`, with the records of each split in the order given."""
    set_name, given = name, version
    with tfds.core.registered.skip_registration():

        class Made(tfds.core.GeneratorBasedBuilder):
            name = set_name
            code_path = None  # there are no checksums beside this file to look for
            VERSION = tfds.core.Version(given)
            BUILDER_CONFIGS = [] if config is None else [tfds.core.BuilderConfig(name=config)]

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(dict(features)),
                    supervised_keys=supervised_keys,
                    disable_shuffling=True,
                )

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(records) for split, records in splits.items()}

            def _generate_examples(self, records):
                yield from enumerate(records)

    download = tfds.download.DownloadConfig(compute_stats="skip", num_shards=num_shards)
    Made(data_dir=data_dir).download_and_prepare(download_config=download)


def plain(value: int, *, size_px: int = 4, channels: int = 3) -> np.ndarray:
    """A picture of one grey level."""
    return np.full((size_px, size_px, channels), value, np.uint8)


def labelled(count: int, num_classes: int, *, first: int = 0) -> list[dict[str, Any]]:
    """Records with pictures of grey levels `first`, `first` + 1, ... (modulo 256) and classes that repeat."""
    return [{"image": plain(n % 256), "label": n % num_classes} for n in range(first, first + count)]
