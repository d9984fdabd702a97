"""Measures a model by any of the benchmarks: `make eval ENCODER=… BENCHMARKS=gpr1200,knn DATA_DIR=… OUTPUT=…`.

Each benchmark writes <output>/<benchmark>.json (metrics unrounded, protocol, data, model, packages), .npz (values query
by query) and figures as PNG; all together they make <output>/report.html. What cannot run is named, and the others run.

Exit status: 0 when something was measured, whatever had no data; 2 when nothing was, or when data or options are wrong.
"""

from __future__ import annotations

import dataclasses
import sys
import textwrap
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from evaluation.models.embed import load_encoder
from evaluation.models.encoder import EncoderModel
from evaluation.models.ready import EmbeddingsModel
from evaluation.options import Options, closest_name, options_help
from evaluation.protocol import Benchmark, Context, Model, Unavailable, all_benchmarks
from evaluation.report.page import interval_text
from evaluation.report.results_page import facts_of, few_queries_line, metric_rows, render_results
from evaluation.results import record_of, write_result
from evaluation.sets.images import UnreadableImage
from pipeline.schema import UserError
from pipeline.storage.disk import reporting_disk_errors, write_whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Measures one model."""

    benchmarks: str
    """Names with commas between them, or "all"."""
    encoder: Path | None = None
    """Folder of an encoder."""
    embeddings: Path | None = None
    """Instead of an encoder: folder of embeddings that someone else made, <set>.npy [n, dim] and <set>.ids, one id per
    line. The message about a set that is not there states name and ids."""
    data_dir: Path = Path("data")
    """Where the benchmarks look for their data."""
    output: Path = Path("runs/eval")
    """Folder for results, figures, the report and the cache of embeddings."""
    option: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """An option of a benchmark, as <benchmark>.<name>=<value>, such as knn.train=my/train; may be repeated."""
    max_unreadable: int = 0
    """Pictures of a set that may be missing or broken; they are left out and counted."""
    num_threads: int | None = None
    """Threads that decode pictures; by default one per core."""
    figures: bool = True
    """Draw figures and the report."""


def main(args: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 when something could not be measured for a reason the user can repair."""
    benchmarks = all_benchmarks()
    listed = "\n".join(
        textwrap.fill(line, 118, initial_indent=indent, subsequent_indent=" " * 22)
        for name, one in benchmarks.items()
        for indent, line in (
            (f"  {name:<14}  ", one.summary),
            *((" " * 18, f"{name}.{stated}") for stated in options_help(one.options)),
        )
    )
    config = tyro.cli(
        RunConfig,
        args=args,
        prog="python -m evaluation.run",
        description=f"{__doc__}\nBenchmarks, and options for --option <benchmark>.<name>=<value>:\n{listed}",
    )
    try:
        chosen = choose(config.benchmarks, benchmarks)
        return measure(config, chosen, read_options(config.option, benchmarks, chosen))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def choose(text: str, benchmarks: Mapping[str, Benchmark]) -> list[Benchmark]:
    """Returns the benchmarks that `text` names.

    Raises:
        UserError: a name is unknown, or there is none.
    """
    names = list(benchmarks) if text == "all" else [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in benchmarks:
            raise UserError(f"no benchmark {name!r}{closest_name(name, benchmarks)}; there are {', '.join(benchmarks)}")
    if not names:
        raise UserError(f"--benchmarks is {text!r}; name one or more of {', '.join(benchmarks)}, with commas")
    return [benchmarks[name] for name in dict.fromkeys(names)]


def read_options(
    texts: Sequence[str], benchmarks: Mapping[str, Benchmark], chosen: Sequence[Benchmark]
) -> dict[str, Options]:
    """Returns the options of each chosen benchmark, and prints a warning for those of others.

    Raises:
        UserError: one is not `<benchmark>.<name>=<value>`, is unknown, or has a value that is not allowed.
    """
    given: dict[str, dict[str, str]] = {}
    for text in texts:
        left, equals, value = text.partition("=")
        benchmark, dot, name = left.partition(".")
        if not equals or not dot or not name:
            raise UserError(f"--option {text!r} must be <benchmark>.<name>=<value>, such as knn.train=my/train")
        if benchmark not in benchmarks:
            raise UserError(f"--option {text!r}: no benchmark {benchmark!r}{closest_name(benchmark, benchmarks)}")
        given.setdefault(benchmark, {})[name] = value
    for benchmark in set(given) - {one.name for one in chosen}:
        benchmarks[benchmark].parse(given[benchmark])
        for name, value in given[benchmark].items():
            print(f"warning: {benchmark} is not measured, so its option {name}={value} is not used", file=sys.stderr)
    return {one.name: one.parse(given.get(one.name, {})) for one in chosen}


def measure(config: RunConfig, chosen: Sequence[Benchmark], options: Mapping[str, Options]) -> int:
    """Runs benchmarks one after another, writes what they find, and returns the exit status.

    Raises:
        UserError: there is no model, or a number is out of range.
    """
    if config.num_threads is not None and config.num_threads < 1:
        raise UserError(f"--num-threads is {config.num_threads}, it must be at least 1; leave it out for one per core")
    if config.max_unreadable < 0:
        raise UserError(f"--max-unreadable is {config.max_unreadable}, it must be at least 0")
    model = load_model(config)
    with reporting_disk_errors(config.output):
        config.output.mkdir(parents=True, exist_ok=True)
    left_out: list[str] = []
    measured: list[str] = []
    failed: list[str] = []
    for benchmark in chosen:
        try:
            record = run_one(benchmark, model, config, options[benchmark.name])
            measured.append(benchmark.name)
            left_out += [f"{benchmark.name}: {line}" for line in record["not_measured"]]
            for line in record["failed"]:
                failed.append(f"{benchmark.name}: {line}")
                print(f"error: {failed[-1]}", file=sys.stderr)
        except Unavailable as error:
            left_out.append(f"{benchmark.name}: {error}")
        except UserError as error:
            failed.append(f"{benchmark.name}: {error}")
            print(f"error: {failed[-1]}", file=sys.stderr)
        except Exception:
            # A fault of ours costs this benchmark and not those that follow.
            failed.append(f"{benchmark.name} failed; please report what was printed")
            print(f"error: {benchmark.name} failed; please report what follows", file=sys.stderr)
            traceback.print_exc()
        if benchmark.name not in measured and (config.output / f"{benchmark.name}.json").is_file():
            print(f"warning: {benchmark.name}.json in {config.output} is of an earlier run", file=sys.stderr)
    for line in left_out:
        print(f"not measured: {line}")
    if measured:
        page = config.output / "report.html"
        content = render_results(config.output, measured, [*failed, *left_out]).encode() if config.figures else None
        with reporting_disk_errors(config.output):
            if content is not None:
                write_whole(page, content)
                print(f"report: {page}")
            else:
                page.unlink(missing_ok=True)  # it has the numbers of an earlier run
    if not measured and not failed:
        print("error: none of the benchmarks could run; see above what each needs", file=sys.stderr)
    return 0 if measured and not failed else 2


def load_model(config: RunConfig) -> Model:
    """Returns the model that the options name.

    Raises:
        UserError: none or two are named, or it is not there.
    """
    if (config.encoder is None) == (config.embeddings is None):
        raise UserError("give either --encoder or --embeddings")
    if config.encoder is not None:
        return EncoderModel(
            encoder=load_encoder(config.encoder),
            cache_dir=config.output / "cache",
            max_unreadable=config.max_unreadable,
            num_threads=config.num_threads,
        )
    assert config.embeddings is not None
    if not config.embeddings.is_dir():
        raise UserError(f"{config.embeddings} is not a folder; put <set>.npy and <set>.ids in it")
    return EmbeddingsModel(folder=config.embeddings, cache_dir=config.output / "cache")


def run_one(benchmark: Benchmark, model: Model, config: RunConfig, options: Options) -> dict[str, Any]:
    """Returns the record of one benchmark's result, written below `config.output` and printed.

    Raises:
        Unavailable: its data is not there, or the model cannot do it.
        UserError: data or options are wrong, or `config.output` cannot be written.
    """
    context = Context(model=model, data_dir=config.data_dir)
    start_sec = time.monotonic()
    result = benchmark.run(context, options)
    record = record_of(benchmark, context, options, result, seconds=time.monotonic() - start_sec)
    record["model"]["name"] = str(config.encoder or config.embeddings or "")
    with reporting_disk_errors(config.output):
        path = write_result(config.output, record, result.items)
    print(f"{benchmark.name} ({record['seconds']:.0f} s, {path})")
    for line in _printed(record):
        print(line)
    drawn = set()
    if config.figures:
        for name, figure in result.figures.items():
            path = config.output / f"{benchmark.name}-{name}.png"
            try:
                write_whole(path, figure.png())
                drawn.add(path)
            except Exception as error:  # its numbers are written, and worth more than a figure
                if config.embeddings is not None and isinstance(error, UnreadableImage):
                    print(f"  | {path.name} is not drawn, since its pictures are not here")
                    continue
                print(f"warning: {path} cannot be drawn ({type(error).__name__}: {error})", file=sys.stderr)
    # Those of an earlier run show other numbers. Last, since a process beside this one may be reading the same ones.
    with reporting_disk_errors(config.output):
        for path in set(config.output.glob(f"{benchmark.name}-*.png")) - drawn:
            path.unlink(missing_ok=True)
    return record


def _printed(record: Mapping[str, Any]) -> list[str]:
    """Returns the lines of the terminal: each metric with its interval, the number of its items and chance."""
    rows = metric_rows(record)
    width = max([len(row[0]) for row in rows] + [40])
    lines = [f"  {'metric':<{width}}   value   95 % interval     items  chance"] if rows else []
    for name, value, interval, count, chance in rows:
        known = "" if count is None else count
        guess = "" if chance is None else f"{chance:.4f}"
        lines.append(f"  {name:<{width}}  {value:.4f}  {interval_text(interval):<14}  {known:>7}  {guess:>6}".rstrip())
    few = few_queries_line(record["too_few_queries"])
    facts = ", ".join(f"{key} {value}" for key, value in facts_of(record))
    notes = [line for text in (few, facts) for line in textwrap.wrap(text, 100)]
    return lines + [f"  | {line}" for line in notes]


if __name__ == "__main__":
    sys.exit(main())
