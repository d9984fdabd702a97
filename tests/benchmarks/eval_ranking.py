"""Times the metrics that compare with a whole gallery, and their memory, against the bare matrix product.

    make bench NAME=eval_ranking ARGS='gpr1200'
    make bench NAME=eval_ranking ARGS='roxford --folder /tmp'
    make bench NAME=eval_ranking ARGS='knn --folder /tmp --rows 200000 --queries 2000'

Each line of the table is run in turn with the first, which it is compared with, `--repeats` times. It has the median
time, the least (which other work on the machine disturbs less) and the CPU time of all threads. Memory is the highest
that the process held beyond what it had before, after imports and inputs; what the system keeps of files is not in it.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

DIM = 768


def memory_mb(field: str) -> float:
    """Returns `VmRSS` (now) or `VmHWM` (peak) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def compare(runs: dict[str, Callable[[], object]], repeats: int) -> None:
    """Prints time and memory of each run, and the ratios of its times to the first's."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    memory: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            gc.collect()
            before_mb = memory_mb("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
            start, cpu_start = time.perf_counter(), time.process_time()
            run()
            seconds[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - cpu_start)
            memory[name].append(memory_mb("VmHWM") - before_mb)
    first = next(iter(seconds))
    print(f"{'':36} {'seconds':>8} {'ratio':>6} {'least':>8} {'ratio':>6} {'CPU':>8} {'ratio':>6} {'MB':>6}")
    for name, own in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(own, seconds[first], strict=True))
        print(
            f"{name:36} {statistics.median(own):8.2f} {ratio:6.2f} "
            f"{min(own):8.2f} {min(own) / min(seconds[first]):6.2f} "
            f"{min(cpu[name]):8.2f} {min(cpu[name]) / min(cpu[first]):6.2f} {max(memory[name]):6.0f}"
        )


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def gpr1200(arguments: argparse.Namespace) -> None:
    from evaluation.metrics.landmarks import gpr1200_average_precisions

    random = np.random.default_rng(0)
    categories = np.repeat(np.arange(1200), 10)
    centres = random.standard_normal((1200, DIM), dtype=np.float32)
    noise = random.standard_normal((12_000, DIM), dtype=np.float32)
    embeddings = arguments.signal * centres[categories] + noise
    embeddings[random.choice(12_000, 240, replace=False)] = embeddings[random.choice(12_000, 240, replace=False)]
    embeddings = unit(embeddings).astype(np.float32)
    print(f"mAP {gpr1200_average_precisions(embeddings, categories).mean():.4f}")

    block = np.empty((666, 12_000), np.float32)

    def product() -> None:
        for start in range(0, 12_000, len(block)):
            queries = embeddings[start : start + len(block)]
            np.matmul(queries, embeddings.T, out=block[: len(queries)])

    def argsort() -> None:
        for start in range(0, 12_000, len(block)):
            queries = embeddings[start : start + len(block)]
            np.argsort(np.matmul(queries, embeddings.T, out=block[: len(queries)]), axis=1)

    runs = {"product": product, "metric": lambda: gpr1200_average_precisions(embeddings, categories)}
    if not arguments.no_argsort:
        runs["product and numpy.argsort"] = argsort
    compare(runs, arguments.repeats)


def write_rows(path: Path, num_rows: int, dtype: type, first: np.ndarray) -> np.ndarray:
    """Writes random unit rows, those of `first` before the others; returns a map of the file."""
    random = np.random.default_rng(1)
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(num_rows, DIM))
    rows[: len(first)] = first
    for start in range(len(first), num_rows, 20_000):
        part = rows[start : start + 20_000]
        part[:] = unit(random.standard_normal(part.shape, dtype=np.float32))
    rows.flush()
    del rows
    return np.load(path, mmap_mode="r")


def read_and_convert(path: Path, dtype: type) -> None:
    block = np.empty((16_384, DIM), dtype)
    converted = np.empty(block.shape, np.float32)
    with open(path, "rb", buffering=0) as file:
        file.seek(128)
        while num_bytes := file.readinto(block):
            num_rows = num_bytes // (DIM * block.itemsize)
            np.copyto(converted[:num_rows], block[:num_rows])


def roxford(arguments: argparse.Namespace) -> None:
    from evaluation.metrics.blocks import NormalisedRows, Stacked
    from evaluation.metrics.landmarks import revisited_metrics
    from evaluation.sets.revisited import QueryTruth

    random = np.random.default_rng(0)
    num_pictures = 4_993
    queries = unit(random.standard_normal((70, DIM), dtype=np.float32)).astype(np.float32)
    gallery = random.standard_normal((num_pictures, DIM), dtype=np.float32)
    truths = []
    for query in queries:
        stated = random.choice(num_pictures, 300, replace=False)
        gallery[stated[:100]] += 30 * arguments.signal * query
        easy, hard, junk = (tuple(part.tolist()) for part in np.split(stated, [50, 200]))
        truths.append(QueryTruth(easy=easy, hard=hard, junk=junk, box=(0, 0, 1, 1)))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "rows.npy"
        rows = write_rows(path, arguments.rows or 1_005_000, np.float16, unit(gallery))

        def metric() -> object:
            return revisited_metrics(queries, rows, truths)

        def normalised() -> object:
            parts = [rows[:num_pictures], NormalisedRows(rows[num_pictures:], "distractors")]
            return revisited_metrics(queries, Stacked(parts), truths)

        print(f"medium mAP {metric()[0]['medium.map']:.4f}")  # type: ignore[index]
        runs = {
            "read, and convert to float32": lambda: read_and_convert(path, np.float16),
            "metric": metric,
            "metric, rows normalised on the way": normalised,
        }
        compare(runs, arguments.repeats)


def knn(arguments: argparse.Namespace) -> None:
    import faiss

    from evaluation.metrics.nearest import nearest
    from evaluation.models.ready import EmbeddingsModel
    from evaluation.sets.images import ImageSet

    queries = unit(np.random.default_rng(2).standard_normal((arguments.queries, DIM), dtype=np.float32))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = write_rows(Path(folder) / "rows.npy", arguments.rows or 1_280_000, np.float32, queries[:0])
        index = faiss.IndexFlatIP(DIM)
        for start in range(0, len(rows), 50_000):
            index.add(np.array(rows[start : start + 50_000]))
        ids = [str(number) for number in range(len(rows))]
        images = ImageSet(name="rows", ids=np.array(ids), read=lambda position: b"", fingerprint="")
        # Not in the order of the pictures, so that the rows are written again.
        (Path(folder) / "rows.ids").write_text("\n".join([*ids[1:], ids[0]]))

        def ready() -> object:
            with tempfile.TemporaryDirectory(dir=folder) as cache:
                model = EmbeddingsModel(folder=Path(folder), cache_dir=Path(cache))
                return nearest(model.embed(images).vectors, queries, 200)

        runs = {
            "faiss, all in memory": lambda: index.search(queries, 200),
            "nearest, streamed from disk": lambda: nearest(rows, queries, 200),
            "nearest, ready embeddings put in order": ready,
        }
        compare(runs, arguments.repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metric", choices=("gpr1200", "roxford", "knn"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, help="of the gallery on disk; 1,005,000 or 1,280,000")
    parser.add_argument("--queries", type=int, default=10_000, help="of knn")
    parser.add_argument("--signal", type=float, default=0.3, help="how far matches stand out; at 0 not at all")
    parser.add_argument("--no-argsort", action="store_true")
    parser.add_argument("--folder", help="for the file; some 1.5 to 4 GB, of knn twice that")
    arguments = parser.parse_args()
    {"gpr1200": gpr1200, "roxford": roxford, "knn": knn}[arguments.metric](arguments)


if __name__ == "__main__":
    main()
