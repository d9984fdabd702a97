"""Time of annotating with real models, one worker, by part: the share of the tagger and the encoder, and what is left.

    make bench NAME=annotate_share ARGS='--demo runs/demo --rows 4000'

It annotates the demo's pairs with the demo's knowledge base, tagger and encoder, in this process, one thread a model. A
first job on other rows loads the models and compiles the encoder's functions; the times are those of a second job, from
the start of its first unit to the end of its last. They are CPU times, so that other processes do not count. Each part
is the time spent in it alone, without the parts that it calls. Equal hashes of the annotations show that a change of
the code changed no byte.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import hashlib
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["OMP_NUM_THREADS"] = "1"  # as on a cluster
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import apache_beam.metrics.metric  # noqa: E402

import pipeline.engine.annotate_unit as annotate_unit  # noqa: E402
import pipeline.stages.disambiguate as disambiguate  # noqa: E402
import pipeline.stages.find_mentions as find_mentions  # noqa: E402
import pipeline.stages.propose_candidates as propose_candidates  # noqa: E402
import pipeline.stages.score_images as score_images  # noqa: E402
import pipeline.stages.validate as validate  # noqa: E402
from pipeline.config import AnnotateConfig, ReadConfig, UnitConfig  # noqa: E402
from pipeline.jobs.annotate import Models, annotate, annotation_fingerprint, model_stages  # noqa: E402
from pipeline.jobs.plan import plan  # noqa: E402
from pipeline.runners import RunnerConfig  # noqa: E402
from pipeline.sources.inputs import list_inputs  # noqa: E402
from trainer.encoder import Encoder  # noqa: E402

MODELS = ("tagger", "encoder")
_REST = "engine"
# Part -> the functions, as (object, name), whose time counts for it.
PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "tagger": ((find_mentions, "tag_texts"),),
    "encoder": ((Encoder, "embed_images"), (Encoder, "embed_texts")),
    "linker: mentions": ((find_mentions.FindMentions, "run"),),
    "linker: candidates": ((propose_candidates.ProposeCandidates, "run"),),
    "linker: choice": ((disambiguate.Disambiguate, "run"),),
    "pictures: headers": ((validate.Validate, "run"),),
    "pictures: decoding": ((score_images, "decode_image"), (Encoder, "preprocess")),
    "pictures: hash": ((score_images, "perceptual_hash"),),
    "scores": ((score_images.ScoreImages, "run"),),
    "writing": (
        (annotate_unit, "_record"),
        (annotate_unit.AnnotationWriter, "write"),
        (annotate_unit.AnnotationWriter, "__exit__"),
        (annotate_unit, "write_commit"),
    ),
    "counters": ((apache_beam.metrics.metric.Metrics, "counter"),),
}


class Stopwatch:
    """Adds up the seconds of CPU time of each part, without those of the parts that it calls."""

    def __init__(self) -> None:
        self.seconds: collections.Counter[str] = collections.Counter()
        self._running: list[str] = []
        self._since = 0.0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._switch()
        self._running.append(name)
        try:
            yield
        finally:
            self._switch()
            self._running.pop()

    def _switch(self) -> None:
        now = time.process_time()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            if not self._running:  # outside units
                return function(*arguments, **options)
            with self.part(name):
                return function(*arguments, **options)

        return timed

    def timed_rows(self, function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """Returns `function`, whose rows come as before; what each of them takes counts for the tar."""

        def rows(*arguments: Any) -> Iterator[Any]:
            iterator = function(*arguments)
            while True:
                with self.part("tar"):
                    row = next(iterator, None)
                if row is None:
                    return
                yield row

        return rows


def instrument(watch: Stopwatch) -> None:
    """Makes all functions of `PARTS` count their time."""
    for part, functions in PARTS.items():
        for owner, name in functions:
            is_static = isinstance(vars(owner).get(name), staticmethod)
            timed = watch.timed(part, getattr(owner, name))
            setattr(owner, name, staticmethod(timed) if is_static else timed)
    annotate_unit.read_unit = watch.timed_rows(annotate_unit.read_unit)  # type: ignore[assignment]
    annotator = annotate_unit.UnitAnnotator
    untimed = annotator.annotate

    def annotate_timed(self: Any, unit: Any) -> Any:
        with watch.part(_REST):
            return untimed(self, unit)

    annotator.annotate = annotate_timed  # type: ignore[method-assign]


def write_pairs(corpus: Path, path: Path, *, first: int, num_rows: int) -> None:
    """Writes rows of the demo's pairs, each once: caches must not help more than they do in a long run."""
    number = -1
    key = ""
    with tarfile.open(path, "w") as tar:
        for source in sorted(corpus.glob("pairs-*.tar")):
            with tarfile.open(source) as pairs:
                for member in pairs:
                    stem = member.name.partition(".")[0]
                    number += stem != key
                    key = stem
                    if number >= first + num_rows:
                        return
                    if number >= first:
                        content = pairs.extractfile(member)
                        assert content is not None
                        tar.addfile(member, io.BytesIO(content.read()))
    raise SystemExit(f"{corpus} has {number + 1} rows, {first + num_rows} are needed; take fewer by --rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="the folder that `make demo` wrote")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--warm-up-rows", type=int, default=500)
    parser.add_argument("--rows-per-batch", type=int, default=ReadConfig().rows_per_batch)
    parser.add_argument("--rounds", type=int, default=1, help="how often other rows are measured")
    args = parser.parse_args()
    demo = args.demo
    models = Models(
        kb=str(demo / "kb"),
        ner_model=str(demo / "tagger" / "best-model.pt"),
        encoder=str(demo / "models" / "bootstrap" / "encoder"),
    )
    config = AnnotateConfig(read=ReadConfig(rows_per_batch=args.rows_per_batch))
    fingerprint = annotation_fingerprint(models, config)
    watch = Stopwatch()

    def run(name: str, first: int, num_rows: int) -> str:
        """Annotates rows and returns the SHA-256 of the annotations."""
        tar = folder / f"{name}.tar"
        write_pairs(demo / "corpus", tar, first=first, num_rows=num_rows)
        units = plan(list_inputs(str(tar)), str(folder / name), config=UnitConfig(), runner=RunnerConfig())
        watch.seconds.clear()
        stages = functools.partial(model_stages, models, config)
        runner = RunnerConfig()
        done = annotate(units, str(folder / name), stages=stages, fingerprint=fingerprint, config=config, runner=runner)
        return hashlib.sha256(b"".join(Path(unit.path).read_bytes() for unit in done)).hexdigest()[:16]

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        instrument(watch)
        run("warm-up", 0, args.warm_up_rows)
        for number in range(args.rounds):
            sha256 = run(f"round-{number}", args.warm_up_rows + number * args.rows, args.rows)
            report(watch.seconds, args.rows, sha256)


def report(seconds: collections.Counter[str], num_rows: int, sha256: str) -> None:
    total_sec = sum(seconds.values())
    share = sum(seconds[part] for part in MODELS) / total_sec
    print(f"{num_rows} rows, {num_rows / total_sec:.0f} rows a second of CPU time, annotations {sha256}")
    for part, part_sec in seconds.most_common():
        print(f"  {part:<20} {part_sec / total_sec:6.1%} {1e6 * part_sec / num_rows:8.1f} microseconds a row")
    print(f"share of tagger and encoder: {share:.2f}", flush=True)


if __name__ == "__main__":
    main()
