"""Times the build of a knowledge base against parsing alone; its size, its look-ups and its memory.

    make bench NAME=knowledge_base ARGS='build --folder /tmp'
    make bench NAME=knowledge_base ARGS='build --suffix .bz2'
    make bench NAME=knowledge_base ARGS='memory'
    make bench NAME=knowledge_base ARGS='store --aliases 5000000'

build    a dump of items of some 13 kB, cut from real ones: the build against the same reader and processes that only
         parse, with orjson (all of each line) and with the build's own decoder (only the fields that it uses).
memory   the build of ten times as many entities: highest anonymous memory of the process; mapped files, which the
         system drops at will, are not in it.
store    a base of synthetic entities: bytes on disk, look-ups decoded against undecoded ones of the same store, and
         what a further process holds for itself beyond its imports.

Times are of all processes, as the clock has them and as CPU time.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

SAMPLE = ROOT / "tests" / "pipeline" / "data" / "wikidata-dump-sample.json.gz"
ITEM_BYTES = 13_000


def words() -> list[str]:
    import wordfreq

    return [word for word in wordfreq.top_n_list("en", 50_000) if word.isalpha()]


def name(rng: random.Random, vocabulary: list[str], num_words: int) -> str:
    return " ".join(rng.choice(vocabulary).capitalize() for _ in range(num_words))


def write_dump(path: Path, num_items: int) -> int:
    """Writes items with the names of synthetic entities and the rest of real ones; returns their bytes."""
    import bz2

    import zstandard

    rng, vocabulary = random.Random(0), words()
    lines = gzip.decompress(SAMPLE.read_bytes()).split(b"\n")[1:-2]
    templates = []
    for item in (json.loads(line.rstrip(b",")) for line in lines):
        share = min(1.0, ITEM_BYTES / len(json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode()))
        for _ in range(20):
            cut = {
                field: {key: value for key, value in item[field].items() if rng.random() < share}
                for field in ("labels", "descriptions", "aliases", "claims", "sitelinks")
            }
            templates.append({"type": "item", "id": "", **cut})
    open_file: dict[str, Callable[[], Any]] = {
        ".gz": lambda: gzip.open(path, "wb", compresslevel=6),
        ".bz2": lambda: bz2.open(path, "wb"),
        ".zst": lambda: zstandard.open(path, "wb"),
        ".json": lambda: open(path, "wb"),
    }
    num_bytes = 0
    with open_file[path.suffix]() as file:
        file.write(b"[\n")
        for number in range(num_items):
            item = rng.choice(templates)
            item["id"] = f"Q{3 * number + 1}"
            texts = {
                "labels": name(rng, vocabulary, rng.choice((1, 2, 2, 3))),
                "descriptions": " ".join(rng.choices(vocabulary, k=6)),
            }
            for field, text in texts.items():
                item[field]["en"] = {"language": "en", "value": text}
            aliases = [name(rng, vocabulary, 2) for _ in range(rng.choice((0, 1, 1, 2)))]
            item["aliases"]["en"] = [{"language": "en", "value": alias} for alias in aliases]
            line = json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode()
            num_bytes += len(line)
            file.write(line + (b",\n" if number < num_items - 1 else b"\n"))
        file.write(b"]\n")
    return num_bytes


def write_lines(path: Path, num_entities: int) -> None:
    """Writes lines of `kb_source.jsonl` with some 2.5 names an entity, of which a tenth are shared."""
    rng, vocabulary = random.Random(0), words()
    shared = [name(rng, vocabulary, 1) for _ in range(1000)]
    with open(path, "w") as file:
        for number in range(num_entities):
            aliases = [name(rng, vocabulary, 2) for _ in range(rng.choice((0, 1, 2, 3)))]
            if rng.random() < 0.1:
                aliases.append(rng.choice(shared))
            record = {
                "id": f"Q{2 * number + 1}",
                "label": name(rng, vocabulary, rng.choice((1, 2, 2, 3))),
                "description": " ".join(rng.choices(vocabulary, k=6)),
                "aliases": aliases,
                "types": [f"Q{2 * rng.randrange(200) + 1}"],
                "popularity": rng.randrange(30),
                "links": [f"Q{2 * rng.randrange(num_entities) + 1}" for _ in range(6)],
            }
            file.write(json.dumps(record) + "\n")


def cpu_seconds() -> float:
    """Returns the CPU time of this process and of the children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def parse_block(task: tuple[str, Any]) -> int:
    """Parses a block and keeps nothing; returns the number of lines."""
    decode = decoder(task[0])
    count = 0
    for line in task[1].content.split(b"\n"):
        text = line.strip().rstrip(b",")
        if text not in (b"", b"[", b"]"):
            decode(text)
            count += 1
    return count


def decoder(parser: str) -> Callable[[bytes], Any]:
    import functools

    import orjson

    from pipeline.kb.build.wikidata_items import item_decoder

    if parser == "orjson":
        return orjson.loads
    return functools.lru_cache(1)(item_decoder)(("en",)).decode


def parse_only(path: Path, parser: str, num_processes: int) -> None:
    """Reads the dump as the build does, and parses it in as many processes."""
    import collections
    import concurrent.futures

    from pipeline.kb.build.read_dump import DumpFile

    blocks = DumpFile(str(path), num_threads=num_processes).blocks()
    if parser == "nothing":
        for _ in blocks:
            pass
        return
    with concurrent.futures.ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting: collections.deque[concurrent.futures.Future[int]] = collections.deque()
        for block in blocks:
            waiting.append(pool.submit(parse_block, (parser, block)))
            if len(waiting) > 2 * num_processes:
                waiting.popleft().result()
        for future in waiting:
            future.result()


def quietly_build(source: Path, output: Path, num_processes: int) -> dict[str, Any]:
    from pipeline.build_kb import BuildKbConfig, build_kb

    with contextlib.redirect_stderr(io.StringIO()):
        return build_kb(BuildKbConfig(source=str(source), output=str(output), processes=num_processes))


def build(arguments: argparse.Namespace) -> None:
    num_processes = arguments.processes or os.cpu_count() or 1
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source = Path(folder) / f"dump{'' if arguments.suffix == '.json' else '.json'}{arguments.suffix}"
        num_bytes = write_dump(source, arguments.entities)
        print(
            f"{arguments.entities:,} items of {num_bytes / arguments.entities:,.0f} bytes, {source.name} of "
            f"{source.stat().st_size / 1e6:,.0f} MB, {num_processes} processes"
        )
        runs: dict[str, Callable[[], object]] = {
            "read, parse all with orjson": lambda: parse_only(source, "orjson", num_processes),
            "read, parse used fields (msgspec)": lambda: parse_only(source, "typed", num_processes),
            "read and decompress": lambda: parse_only(source, "nothing", num_processes),
            "build": lambda: quietly_build(source, Path(folder) / "kb", num_processes),
        }
        times: dict[str, list[tuple[float, float]]] = {label: [] for label in runs}
        for _ in range(arguments.repeats):
            for label, run in runs.items():
                start, cpu_start = time.perf_counter(), cpu_seconds()
                run()
                times[label].append((time.perf_counter() - start, cpu_seconds() - cpu_start))
        least = {label: [min(column) for column in zip(*rows, strict=True)] for label, rows in times.items()}
        first = next(iter(least.values()))
        print(f"{'':36} {'seconds':>8} {'ratio':>6} {'CPU':>8} {'ratio':>6} {'us/item':>8}   (least of each)")
        for label, (seconds, cpu) in least.items():
            print(
                f"{label:36} {seconds:8.1f} {seconds / first[0]:6.2f} {cpu:8.1f} {cpu / first[1]:6.2f} "
                f"{1e6 * cpu / arguments.entities:8.1f}"
            )


def status_mb(field: str, file: str = "/proc/self/status") -> float:
    for line in Path(file).read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


@contextlib.contextmanager
def highest(field: str, found: list[float]) -> Iterator[None]:
    """Puts the highest value of a field of this process into `found`, looking fifty times a second."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            found[0] = max(found[0], status_mb(field))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def memory(arguments: argparse.Namespace) -> None:
    """Runs each build in a process of its own."""
    for factor in (1, 10):
        command = [sys.executable, __file__, "memory-of-one", "--entities", str(factor * arguments.entities)]
        subprocess.run([*command, "--folder", arguments.folder or tempfile.gettempdir()], check=True)


def memory_of_one(arguments: argparse.Namespace) -> None:
    import pipeline.build_kb  # noqa: F401

    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source = Path(folder) / "kb_source.jsonl"
        subprocess.run(
            [sys.executable, __file__, "lines", "--entities", str(arguments.entities), "--folder", str(source)]
        )
        found = [0.0]
        with highest("RssAnon", found):
            manifest = quietly_build(source, Path(folder) / "kb", 1)
    print(f"{manifest['num_entities']:>10,} entities: {found[0]:6.0f} MB of anonymous memory at most")


def store(arguments: argparse.Namespace) -> None:
    import lmdb

    from pipeline.kb.flat_files import FLAT_FILES
    from pipeline.kb.store import KnowledgeBase

    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source, output = Path(folder) / "kb_source.jsonl", Path(folder) / "kb"
        write_lines(source, int(arguments.aliases / 2.42))
        start = time.perf_counter()
        manifest = quietly_build(source, output, arguments.processes)
        num_aliases, num_entities = manifest["num_aliases"], manifest["num_entities"]
        print(f"{num_entities:,} entities, {num_aliases:,} aliases, built in {time.perf_counter() - start:.0f} s")
        kb = KnowledgeBase.open(str(output))
        env: lmdb.Environment = kb._env
        database = kb._dbs["aliases"]
        with env.begin() as txn:
            stat = txn.stat(database)
            keys = [bytes(key) for place, (key, _) in enumerate(txn.cursor(database)) if place % 25 == 0]
        pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        size = pages * stat["psize"]
        mean = sum(map(len, keys)) / len(keys)
        print(f"bytes an alias, on disk           {size / num_aliases:8.1f}   (its key: {mean:.1f})")
        sizes = {one: (output / one).stat().st_size for one in FLAT_FILES}
        print(f"bytes an entity, on disk          {sum(sizes.values()) / num_entities:8.1f}   ", end="")
        print(", ".join(f"{one} {size / num_entities:.0f}" for one, size in sizes.items() if size > num_entities))
        rng = random.Random(0)
        rng.shuffle(keys)
        texts = [key.decode() for key in keys]
        with env.begin(db=database) as txn:
            for label, decoded, undecoded in (
                ("hits", texts, keys),
                ("misses", [text + "x" for text in texts], [key + b"x" for key in keys]),
            ):
                rates: dict[str, float] = {}
                for _ in range(arguments.repeats):
                    for what, rows, look_up in (("undecoded", undecoded, txn.get), ("decoded", decoded, kb.alias)):
                        start = time.process_time()
                        for row in rows:
                            look_up(row)
                        rate = len(rows) / (time.process_time() - start)
                        rates[what] = max(rates.get(what, 0.0), rate)
                print(
                    f"look-ups a second, {label:6}         undecoded {rates['undecoded']:>10,.0f}, decoded "
                    f"{rates['decoded']:>10,.0f}: {rates['decoded'] / rates['undecoded']:.2f} x"
                )
        ids = [kb.entries(text)[0].entity_id for text in texts[:20_000]]
        (Path(folder) / "texts.json").write_text(json.dumps([texts[:200_000], ids]))
        kb.close()
        subprocess.run([sys.executable, __file__, "private", "--folder", folder], check=True)


def private(arguments: argparse.Namespace) -> None:
    """Prints what this process holds for itself, after look-ups of names and of entities."""
    from pipeline.kb.store import KnowledgeBase

    def held_mb() -> float:
        return sum(status_mb(f"Private_{kind}", "/proc/self/smaps_rollup") for kind in ("Clean", "Dirty"))

    def anonymous_mb() -> float:
        return status_mb("Anonymous", "/proc/self/smaps_rollup")

    texts, ids = json.loads((Path(arguments.folder) / "texts.json").read_text())
    # The pages of a file that only this process maps count as its own: a second one shares them.
    other = subprocess.Popen(
        [sys.executable, "-c", "import sys, mmap, pathlib\nfor path in pathlib.Path(sys.argv[1]).iterdir():\n"
         " if path.stat().st_size: f = open(path, 'rb'); m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ); "
         "globals().setdefault('kept', []).append(m); sum(m[i] for i in range(0, len(m), 4096))\n"
         "print('mapped', flush=True); sys.stdin.read()", f"{arguments.folder}/kb"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert other.stdout is not None
    other.stdout.readline()
    before, before_anonymous = held_mb(), anonymous_mb()
    kb = KnowledgeBase.open(f"{arguments.folder}/kb")
    for text in texts:
        kb.alias(text)
    names = held_mb() - before
    for entity_id in ids:
        kb.document(entity_id)
        kb.entity(entity_id)
        kb.related(entity_id)
    print(f"private memory of a process, MB   {names:8.1f} after {len(texts):,} names, ", end="")
    print(f"{held_mb() - before:.1f} after {len(ids):,} entities too (caches full), of it anonymous ", end="")
    print(f"{anonymous_mb() - before_anonymous:.1f}")
    other.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {
        "build": build,
        "memory": memory,
        "store": store,
        "memory-of-one": memory_of_one,
        "private": private,
        "lines": lambda arguments: write_lines(Path(arguments.folder), arguments.entities),
    }
    parser.add_argument("what", choices=commands, metavar="build | memory | store")
    parser.add_argument("--entities", type=int, default=100_000, help="of build, and the fewer of memory")
    parser.add_argument("--aliases", type=int, default=5_000_000, help="of store")
    parser.add_argument("--suffix", default=".gz", choices=(".json", ".gz", ".bz2", ".zst"), help="of the dump")
    parser.add_argument("--processes", type=int, default=0, help="that parse; 0 for one per core")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--folder", help="for the files")
    arguments = parser.parse_args()
    commands[arguments.what](arguments)


if __name__ == "__main__":
    main()
