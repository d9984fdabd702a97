"""Measures the demo: labels against the truth, every recipe's encoder, goals, report. `make demo` calls it.

`python -m evaluation.demo.run --demo runs/demo`; one encoder by itself is measured by `python -m evaluation.run`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from evaluation.benchmarks import entities, retrieval, zero_shot
from evaluation.demo import asked_pictures, labels, linking, pixels
from evaluation.demo.goals import judge, table_lines
from evaluation.demo.report import Behind, Hit, Query, Report, render
from evaluation.demo.samples import Sample, read_samples
from evaluation.metrics.classes import TEMPLATES
from evaluation.models.embed import load_encoder
from evaluation.models.encoder import EncoderModel
from evaluation.protocol import Context, Result
from evaluation.report.figures import Grid, GridRow
from evaluation.report.results_page import few_queries_line
from evaluation.results import check_finite, intervals_of, num_items_of, without_small_groups, write_json
from evaluation.sets.i2e import read_vocabulary
from evaluation.sets.renderings import Renderings, read_renderings
from pipeline.schema import UserError
from pipeline.storage.disk import reporting_disk_errors, write_whole

TAIL_BELOW, HEAD_FROM = 10, 20  # training pictures: the demo's entities have 5 to some 50
RECIPES = ("supervised", "contrastive", "multitask")
LINKING = "linking/linking.json"  # what infra/eval_linker.py wrote
PAIRS = "pairs/manifest.json"  # of the pairs that the filter's encoder was trained on


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Measures all that is there of a demo."""

    demo: Path = Path("runs/demo")
    """Folder that `make demo` fills; metrics.json, report.html and table.txt are written there."""
    check_goals: bool = False
    """Exit 1 when a goal is not met or could not be measured; the time it took is reported, but fails nothing."""


@dataclasses.dataclass
class Findings:
    """What has been measured so far."""

    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    protocols: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    behind: dict[str, Behind] = dataclasses.field(default_factory=dict)  # of metrics that are means over items
    missing: list[str] = dataclasses.field(default_factory=list)
    grids: dict[str, list[Query]] = dataclasses.field(default_factory=dict)

    def add(self, prefix: str, result: Result, facts: Mapping[str, Any], *, is_group: bool = False) -> None:
        """Notes what a benchmark measured under `prefix`, and `facts` and counts as its protocol."""
        shown, too_few = without_small_groups(result, is_group=is_group)
        num_items, intervals = num_items_of(shown), intervals_of(shown)
        self.metrics |= {f"{prefix}.{name}": value for name, value in shown.metrics.items()}
        self.behind |= {
            f"{prefix}.{name}": Behind(
                num_items=num_items[name], interval=intervals.get(name), chance=shown.chance.get(name)
            )
            for name in shown.metrics
            if name not in shown.same_as
        }
        self.missing += [f"{prefix}.{line}" for line in result.not_measured]
        if too_few:
            self.missing.append(f"{prefix}: {few_queries_line(too_few)}")
        self.protocols[prefix] = {
            **facts,
            **result.counts,
            "num_items": num_items,
            "intervals": intervals,
            "too_few_queries": too_few,
        }


def main(args: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 when --check-goals finds a goal not met, 2 on an error that the user can repair."""
    config = tyro.cli(DemoConfig, args=args, prog="python -m evaluation.demo.run", description=__doc__)
    try:
        return run_demo(config.demo, check_goals=config.check_goals)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run_demo(demo: Path, *, check_goals: bool = False) -> int:
    """Measures all that is there of a demo, writes its files, prints the table, and returns the exit status.

    Raises:
        UserError: the corpus is missing, or a file is broken.
    """
    start = time.monotonic()
    corpus, i2e = demo / "corpus", demo / "i2e"
    pictures = read_renderings(corpus / "evaluation.parquet")
    names = zero_shot.read_names(corpus / "kb_source.jsonl")
    findings = Findings()
    findings.metrics |= read_corpus_counts(corpus / "manifest.json")
    reasons: list[tuple[str, str, str, int]] = []
    samples: list[Sample] = []
    if (i2e / "ledger").is_dir():
        truth = str(corpus / "truth.parquet")
        values, num_cases = labels.all_metrics(truth, str(i2e / "annotations"), str(i2e / "ledger"))
        findings.metrics |= values
        findings.behind |= {name: Behind(num_items=count) for name, count in num_cases.items()}
        findings.protocols["labels"] = {"num_items": num_cases}
        _add_asked_pictures(findings, demo)
        reasons = labels.read_reasons(str(i2e / "ledger"))
        samples = read_samples(str(i2e), str(corpus), num_kept=24, num_per_reason=6)
    else:
        findings.missing.append(f"labels: {i2e / 'ledger'} is not there; make it with python -m pipeline.build_i2e")

    tables: linking.Tables = {}
    if (demo / LINKING).exists():
        tables = linking.read_linking(demo / LINKING)
        _add_linking(findings, tables)
    else:
        findings.missing.append(f"linking: {demo / LINKING} is not there; make it with infra/eval_linker.py")

    queries = retrieval.pick_queries(pictures)
    _measure_pixels(findings, pictures, queries, names)
    vocabulary, image_counts = _read_vocabulary(i2e / "vocabulary.jsonl")
    for recipe in RECIPES:
        directory = demo / "models" / recipe / "encoder"
        if not (directory / "encoder.json").exists():
            findings.missing.append(f"{recipe}: {directory} holds no finished encoder; train it")
            continue
        model = EncoderModel(encoder=load_encoder(directory), cache_dir=demo / "evaluation" / "cache")
        print(f"measuring {recipe}", flush=True)
        _measure_encoder(findings, recipe, model, corpus, pictures, names, vocabulary, image_counts)
    # The multi-task encoder is the one that the demo is about; without it, the supervised one takes its place.
    main_recipe = next(
        (name for name in ("multitask", "supervised") if f"entities.{name}.accuracy_at_1" in findings.metrics), None
    )
    if main_recipe:
        for k in (1, 5):
            findings.metrics[f"entities.accuracy_at_{k}"] = findings.metrics[f"entities.{main_recipe}.accuracy_at_{k}"]
        findings.protocols["entities"] = {"recipe": main_recipe}
    findings.metrics |= read_seconds(demo / "steps", evaluate_sec=time.monotonic() - start)

    check_finite(findings.metrics, "demo")
    verdicts = judge(findings.metrics)
    report = Report(
        title="MOFI demo",
        verdicts=verdicts,
        missing=findings.missing,
        metrics=findings.metrics,
        behind=findings.behind,
        linking=tables,
        reasons=reasons,
        starved=_read_starved(i2e / "funnel.json"),
        samples=samples,
        names=names,
        curves=read_curves(demo / "models"),
        grids=findings.grids,
        protocols=findings.protocols,
    )
    lines = [*(f"  not measured: {line}" for line in findings.missing), *table_lines(verdicts)]
    lines.append(f"report: {demo / 'report.html'}    metrics: {demo / 'metrics.json'}")
    table = "\n".join(lines) + "\n"
    with reporting_disk_errors(demo, option="--demo"):
        (demo / "evaluation").mkdir(parents=True, exist_ok=True)
        write_json(demo / "metrics.json", findings.metrics)
        write_json(demo / "evaluation" / "protocols.json", findings.protocols)
        write_whole(demo / "report.html", render(report).encode())
        write_whole(demo / "table.txt", table.encode())
    print(table, end="", flush=True)
    return 1 if check_goals and any(verdict.fails for verdict in verdicts) else 0


def read_corpus_counts(manifest: Path) -> dict[str, float]:
    """Returns `corpus.<count>`: how many texts, names and pictures the corpus has of each kind; {} without a manifest.

    Raises:
        UserError: it is not the manifest of a corpus.
    """
    if not manifest.exists():
        return {}
    try:
        counts = json.loads(manifest.read_text(encoding="utf-8"))["counts"]
        values = {f"corpus.{name}": value for name, value in counts.items() if not isinstance(value, dict)}
        return values | {f"corpus.{name}_texts": value for name, value in counts["pairs_by_noise"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{manifest} is not the manifest of a corpus ({type(error).__name__}: {error}); make it again"
        ) from error


def read_seconds(steps: Path, *, evaluate_sec: float) -> dict[str, float]:
    """Returns `seconds.<step>` of every recorded step, and `seconds.total`, in which a second of two steps counts once.

    Args:
        steps: folder of one JSON file per step.
        evaluate_sec: what this run has taken, for when the evaluation itself has no record yet.

    Raises:
        UserError: a record is broken.
    """
    values: dict[str, float] = {}
    spans: list[tuple[float, float]] = []  # beginning and end
    alone = 0.0  # seconds of steps whose records say no beginning
    for path in sorted(steps.glob("*.json"), key=lambda path: (path.stat().st_mtime, path.name)):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            values[f"seconds.{record['step']}"] = float(record["seconds"])
            spans += [(float(start), float(end)) for start, end in record.get("spans", ())]
            alone += 0.0 if "spans" in record else float(record["seconds"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not the record of a step ({error}); remove it, then make demo") from error
    if "seconds.evaluate" not in values:
        values["seconds.evaluate"] = round(evaluate_sec, 1)
        alone += values["seconds.evaluate"]
    return values | {"seconds.total": round(alone + _covered(spans), 1)}


def _covered(spans: list[tuple[float, float]]) -> float:
    """Returns the seconds that lie in at least one span."""
    seconds, until = 0.0, -math.inf
    for start, end in sorted(spans):
        seconds += max(0.0, end - max(start, until))
        until = max(until, end)
    return seconds


def read_curves(models: Path) -> dict[str, list[dict[str, float]]]:
    """Returns the rows of every `<model>/metrics.jsonl`; a last line that a kill cut short is left out.

    Raises:
        UserError: another line is not a JSON object.
    """
    curves = {}
    for path in sorted(models.glob("*/metrics.jsonl")):
        rows = []
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("no object")
            except ValueError as error:
                if number == len(lines):
                    continue
                raise UserError(f"{path}, line {number} is not a JSON object ({error}); train again") from error
            rows.append(row)
        curves[path.parent.name] = rows
    return curves


def _add_asked_pictures(findings: Findings, demo: Path) -> None:
    """Adds what pictures tell the linker on pairs that the filter's encoder was not trained on."""
    manifest = demo / PAIRS
    if not manifest.exists():
        findings.missing.append(f"labels.picture: {manifest} is not there; make it with python -m pipeline.pack_pairs")
        return
    truth = labels.read_truth(demo / "corpus" / "truth.parquet")
    trained_on = asked_pictures.trained_shards(manifest)
    cases = asked_pictures.picture_cases(truth, demo / "i2e" / "annotations", trained_on)
    if not cases:
        findings.missing.append(f"labels.picture: the encoder was trained on all shards, see {manifest}")
    values = labels.shares(cases)
    findings.metrics |= values
    findings.behind |= {name: Behind(num_items=cases[name].num_cases) for name in values}
    findings.protocols["labels.picture"] = {"num_items": {name: cases[name].num_cases for name in values}}


def _add_linking(findings: Findings, tables: linking.Tables) -> None:
    num_items, intervals = {}, {}
    for name, one in linking.metrics_of(tables):
        findings.metrics[name] = one.value
        findings.behind[name] = Behind(num_items=one.denominator, interval=(one.low, one.high))
        num_items[name], intervals[name] = one.denominator, (one.low, one.high)
    findings.protocols["linking"] = {"num_items": num_items, "intervals": intervals}


def _measure_pixels(findings: Findings, pictures: Renderings, queries: list[int], names: Mapping[str, str]) -> None:
    vectors = pixels.pixel_vectors(pictures)
    shown = np.zeros_like(vectors)
    found = []
    for split in retrieval.SPLITS:
        mask = retrieval.split_mask(pictures, split)
        if not mask.any():
            continue
        embeddings = pixels.centred(vectors, mask)
        shown[mask] = embeddings[mask]
        result = retrieval.evaluate_split(embeddings, pictures, split)
        found.append(retrieval.split_result(result, pictures, split))
    facts = {"version": retrieval.PROTOCOL_VERSION, "preprocessing": pixels.PREPROCESSING}
    findings.add("retrieval.pixels", retrieval.joined(found), facts)
    findings.grids["pixels"] = _grid(retrieval.first_results(shown, pictures, queries), pictures, names)


def _measure_encoder(
    findings: Findings,
    name: str,
    model: EncoderModel,
    corpus: Path,
    pictures: Renderings,
    names: Mapping[str, str],
    vocabulary: Sequence[str] | None,
    image_counts: Mapping[str, int] | None,
) -> None:
    encoder = model.encoder
    context = Context(model=model, data_dir=corpus)
    result = retrieval.run(context, retrieval.RetrievalOptions())
    stated = {
        "encoder_hash": model.hash,
        "preprocessing": model.preprocessing,
        "data": dataclasses.asdict(result.data[0]),
    }
    findings.add(f"retrieval.{name}", result, {"version": retrieval.PROTOCOL_VERSION, **stated})
    grid = result.figures["grid"]
    assert isinstance(grid, Grid)
    findings.grids[name] = _grid(grid.rows, pictures, names)
    embeddings = np.asarray(model.embed(pictures.image_set("evaluation")).vectors)
    if encoder.classifier is not None:
        classes = encoder.classifier
        named = entities.classifier_metrics(
            embeddings,
            pictures,
            classes.weights,
            classes.entity_ids,
            image_counts,
            scale=classes.scale,
            tail_below=TAIL_BELOW,
            head_from=HEAD_FROM,
        )
        findings.add(f"entities.{name}", named, {"version": entities.PROTOCOL_VERSION, **stated})
    if encoder.has_text:
        # Without a vocabulary, the evaluation's own entities compete.
        of_split = {
            heldout: sorted(set(pictures.entity_ids[pictures.heldout_entity == heldout].tolist()))
            for heldout in (False, True)
        }
        for heldout, key in ((False, f"zero_shot.{name}"), (True, f"zero_shot.{name}.unseen")):
            candidates = list(vocabulary) if vocabulary and not heldout else of_split[heldout]
            named = zero_shot.zero_shot_metrics(
                embeddings, pictures, encoder, names, candidates, heldout_entity=heldout
            )
            facts = {
                "version": zero_shot.PROTOCOL_VERSION,
                "templates": TEMPLATES,
                "candidates_hash": hashlib.sha256("\0".join(candidates).encode()).hexdigest()[:16],
                **stated,
            }
            findings.add(key, named, facts, is_group=heldout)


def _read_vocabulary(path: Path) -> tuple[list[str] | None, dict[str, int] | None]:
    if not path.exists():
        return None, None
    counts = {one.entity_id: one.image_count for one in read_vocabulary(path)}
    return list(counts), counts


def _read_starved(path: Path, most: int = 15) -> list[tuple[str, int, int]]:
    """Returns (entity id, labels the filter rejected, all its labels) of the entities it rejected most."""
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["entities_most_rejected_by_similarity"][:most]
        return [
            (row["entity_id"], row["low_similarity"], sum(value for value in row.values() if isinstance(value, int)))
            for row in rows
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a funnel ({type(error).__name__}: {error}); build the set again") from error


def _grid(rows: Sequence[GridRow], pictures: Renderings, names: Mapping[str, str]) -> list[Query]:
    def title(position: int) -> str:
        entity_id = str(pictures.entity_ids[position])
        return f"{names.get(entity_id, entity_id)} ({pictures.renderings[position]})"

    return [
        Query(
            image=pictures.images[row.query],
            title=f"{title(row.query)}, {'unseen' if pictures.heldout_entity[row.query] else 'seen'}",
            hits=tuple(Hit(image=pictures.images[hit], title=title(hit), right=bool(right)) for hit, right in row.hits),
        )
        for row in rows
    ]


if __name__ == "__main__":
    sys.exit(main())
