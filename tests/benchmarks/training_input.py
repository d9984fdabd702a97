"""Pictures per second of the training input, against tf.data on the same shards; both resizes, in turns."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from pipeline.schema import LabelledImage
from pipeline.shard_format import FORMAT_VERSION, ShardWriter
from trainer.configs.experiments import get_experiment
from trainer.data import ReadExample, batches, make_example, make_tokenizer, open_corpus
from trainer.encoder import Preprocessing

SIZE_PX = 224
NUM_SHARDS = 4
NUM_CLASSES = 10


def jpegs(count: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields JPEGs of parts of two photographs, with their widths and heights of 400 to 640 pixels."""
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]  # 640 x 427
    random = np.random.default_rng(0)
    for number in range(count):
        width, height = (int(side) for side in random.integers(400, 641, 2))
        photograph = photographs[number % 2]
        scale = max(width / photograph.width, height / photograph.height) * random.uniform(1, 1.5)
        scaled = photograph.resize([round(scale * side) + 1 for side in photograph.size], Image.Resampling.BICUBIC)
        left, top = (int(random.integers(0, room + 1)) for room in (scaled.width - width, scaled.height - height))
        file = io.BytesIO()
        scaled.crop((left, top, left + width, top + height)).save(file, "JPEG", quality=int(random.integers(75, 96)))
        yield file.getvalue(), width, height


def write_set(directory: Path, count: int) -> None:
    """Writes a set of `count` pictures of random classes."""
    shards, pictures = [], jpegs(count)
    random = np.random.default_rng(1)
    for shard in range(NUM_SHARDS):
        name = f"shard-{shard:05}.tfrecord"
        with ShardWriter(directory / name) as writer:
            for row in range(count // NUM_SHARDS):
                image, width, height = next(pictures)
                class_id = int(random.integers(NUM_CLASSES))
                writer.write(
                    LabelledImage(
                        image=image,
                        image_id=f"{shard}-{row}",
                        text=f"photograph {row} of a thing",
                        width_px=width,
                        height_px=height,
                        entity_ids=(f"Q{class_id}",),
                        class_ids=(class_id,),
                        similarities=(0.5,),
                    )
                )
        shards.append({"file": name, "num_records": count // NUM_SHARDS})
    classes = (
        {"class_id": number, "entity_id": f"Q{number}", "name": f"thing {number}", "description": "something"}
        for number in range(NUM_CLASSES)
    )
    lines = [json.dumps({**one, "image_count": count // NUM_CLASSES}) + "\n" for one in classes]
    (directory / "vocabulary.jsonl").write_text("".join(lines))
    manifest = {"format_version": FORMAT_VERSION, "kind": "i2e", "shards": shards, "num_classes": NUM_CLASSES}
    (directory / "manifest.json").write_text(json.dumps(manifest))


def ours(directory: Path, options: argparse.Namespace, antialias: bool) -> Iterator[object]:
    """Returns the batches that a training run of the config reads; a run can start at any of them."""
    base = get_experiment(options.config)
    data = dataclasses.replace(
        base.data, batch_size=options.batch, workers=options.workers, threads=options.threads, prefetch=2
    )
    experiment = dataclasses.replace(base, data=data)
    corpus = open_corpus(str(directory), experiment)
    tokenizer = make_tokenizer(corpus, experiment) if experiment.contrasts else None
    example = make_example(corpus, experiment, Preprocessing(image_size_px=SIZE_PX, antialias=antialias), tokenizer)
    return batches(experiment, ReadExample(corpus.records, example, 0), 0, 1)


def tf_data(directory: Path, options: argparse.Namespace, antialias: bool, crops_first: bool) -> Iterator[object]:
    """Returns batches of pixels and class ids, shuffled by a buffer: a run that resumes reads other ones.

    Args:
        directory: of the set.
        options: of the command.
        antialias: of the resize.
        crops_first: decode the centre square alone, and resize that.
    """
    import tensorflow as tf

    features = {"image": tf.io.FixedLenFeature([], tf.string), "class_ids": tf.io.VarLenFeature(tf.int64)}

    def decoded(payload: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        row = tf.io.parse_single_example(payload, features)
        if crops_first:
            height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(row["image"]))
            short = tf.minimum(height, width)
            window = tf.stack([(height - short) // 2, (width - short) // 2, short, short])
            square = tf.io.decode_and_crop_jpeg(row["image"], window, channels=3, dct_method="INTEGER_FAST")
            pixels = tf.image.resize(square, [SIZE_PX, SIZE_PX], antialias=antialias)
        else:
            whole = tf.io.decode_jpeg(row["image"], channels=3, dct_method="INTEGER_FAST")
            sides = tf.shape(whole)[:2]
            sides = sides * SIZE_PX // tf.reduce_min(sides)
            resized = tf.image.resize(whole, sides, antialias=antialias)
            top, left = (sides[0] - SIZE_PX) // 2, (sides[1] - SIZE_PX) // 2
            pixels = resized[top : top + SIZE_PX, left : left + SIZE_PX]
            pixels = tf.ensure_shape(pixels, [SIZE_PX, SIZE_PX, 3])
        return tf.cast(tf.round(pixels), tf.uint8), row["class_ids"].values[0]

    files = tf.data.Dataset.from_tensor_slices(sorted(str(path) for path in directory.glob("*.tfrecord")))
    records = files.shuffle(NUM_SHARDS).interleave(
        tf.data.TFRecordDataset, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False
    )
    shuffled = records.shuffle(1024).repeat()
    examples = shuffled.map(decoded, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
    return examples.batch(options.batch, drop_remainder=True).prefetch(2).as_numpy_iterator()


def cpu_seconds() -> float:
    """Returns the seconds of CPU that this process and those that it started have taken."""
    this = psutil.Process()
    total = 0.0
    for process in [this, *this.children(recursive=True)]:
        times = process.cpu_times()
        total += times.user + times.system
    return total


def wait_until_idle() -> None:
    """Returns once nothing is decoded any more: the batches that wait are then as many as are kept."""
    before = cpu_seconds()
    while True:
        time.sleep(0.3)
        now = cpu_seconds()
        if now - before < 0.05:
            return
        before = now


def turn(iterator: Iterator[object], num_batches: int) -> tuple[float, float]:
    """Returns seconds and seconds of CPU of `num_batches`, after those that were ready."""
    wait_until_idle()
    for _ in range(4):
        next(iterator)
    start, start_cpu = time.monotonic(), cpu_seconds()
    for _ in range(num_batches):
        next(iterator)
    return time.monotonic() - start, cpu_seconds() - start_cpu


def compare(sources: dict[str, Callable[[], Iterator[object]]], options: argparse.Namespace) -> None:
    """Prints speed and cost of each source, and the ratios of the first to the others."""
    iterators = {name: source() for name, source in sources.items()}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in iterators}
    for iterator in iterators.values():
        turn(iterator, options.batches)  # starts processes; tf.data finds its number of threads
    for _ in range(options.rounds):
        for name, iterator in iterators.items():
            taken[name].append(turn(iterator, options.batches))
    count = options.batches * options.batch
    for name, turns in taken.items():
        wall, cpu = (statistics.median(one) for one in zip(*turns, strict=True))
        print(f"  {name:34}{count / wall:8.0f} pictures/s {1e3 * cpu / count:8.2f} ms of CPU per picture")
    first, *others = taken
    for other in others:
        ratios = [
            statistics.median(theirs[i] / mine[i] for mine, theirs in zip(taken[first], taken[other], strict=True))
            for i in range(2)
        ]
        print(f"  {first}: {ratios[0]:.2f} x the pictures/s of {other}, {ratios[1]:.2f} x per CPU second")
    for iterator in iterators.values():
        if hasattr(iterator, "close"):
            iterator.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="multitask_b16", help="of the training run")
    parser.add_argument("--count", type=int, default=768, help="pictures of the set")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=10, help="per turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        write_set(directory, options.count)
        for antialias in (True, False):
            print(f"{SIZE_PX} px, {'with' if antialias else 'without'} antialias:", flush=True)
            sources = {
                "ours": lambda antialias=antialias: ours(directory, options, antialias),
                "tf.data": lambda antialias=antialias: tf_data(directory, options, antialias, False),
                "tf.data, cropped as it decodes": lambda antialias=antialias: tf_data(
                    directory, options, antialias, True
                ),
            }
            compare(sources, options)


if __name__ == "__main__":
    main()
