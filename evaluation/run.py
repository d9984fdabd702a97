"""Measures the demo, or one encoder: `python -m evaluation.run --demo runs/demo`, or `--encoder DIR --data FILE`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from evaluation import entities, labels, pixels, retrieval, zero_shot
from evaluation.embed import embed_pictures, load_encoder, preprocessing_of
from evaluation.errors import UserError
from evaluation.goals import judge, table_lines
from evaluation.grids import pick_queries, retrieval_grid
from evaluation.pictures import Pictures, read_pictures
from evaluation.report import Query, Report, render
from evaluation.samples import Sample, read_samples

RECIPES = ("supervised", "contrastive", "multitask")
BENCHMARKS = ("retrieval", "entities", "zero_shot")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Measures the demo (--demo), or one encoder on one file of pictures (--encoder, --data, --output)."""

    demo: Path | None = None
    """Folder that `make demo` fills; metrics.json, report.html and table.txt are written there."""
    check_goals: bool = False
    """With --demo: exit 1 when a goal is not met or could not be measured."""
    encoder: Path | None = None
    """Folder of an encoder, without --demo."""
    benchmarks: str = "retrieval,entities,zero_shot"
    """Comma-separated, of: retrieval, entities, zero_shot."""
    data: Path | None = None
    """Parquet file of evaluation pictures."""
    output: Path | None = None
    """Folder for metrics.json, protocols.json and the cache of embeddings."""
    names: Path | None = None
    """JSON lines of entity names for zero_shot; without it, kb_source.jsonl beside --data."""


@dataclasses.dataclass
class Findings:
    """What has been measured so far."""

    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    protocols: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    missing: list[str] = dataclasses.field(default_factory=list)
    grids: dict[str, list[Query]] = dataclasses.field(default_factory=dict)


def main(args: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 when --check-goals finds a goal not met, 2 on an error the user can mend."""
    config = tyro.cli(RunConfig, args=args, description=__doc__)
    try:
        if (config.demo is None) == (config.encoder is None):
            raise UserError("give either --demo, or --encoder with --data and --output")
        return run_demo(config.demo, check_goals=config.check_goals) if config.demo else run_encoder(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run_encoder(config: RunConfig) -> int:
    """Measures one encoder, writes metrics.json and protocols.json, and returns 0.

    Raises:
        UserError: an option is missing or wrong, or the encoder cannot do what was asked.
    """
    if config.check_goals:
        raise UserError("--check-goals checks the demo's goals; use it with --demo")
    if config.encoder is None or config.data is None or config.output is None:
        raise UserError("--encoder needs --data and --output beside it")
    benchmarks = parse_benchmarks(config.benchmarks)
    pictures = read_pictures(config.data)
    encoder = load_encoder(config.encoder)
    if "entities" in benchmarks and encoder.classifier is None:
        raise UserError(f"{config.encoder} has no classifier; leave entities out of --benchmarks")
    if "zero_shot" in benchmarks and not encoder.has_text:
        raise UserError(f"{config.encoder} has no text function; leave zero_shot out of --benchmarks")
    names: dict[str, str] = {}
    if "zero_shot" in benchmarks:
        names = zero_shot.read_names(config.names or config.data.parent / "kb_source.jsonl")
    embeddings = embed_pictures(encoder, pictures, cache_dir=str(config.output / "cache"))
    findings = Findings()
    _measure_encoder(findings, "encoder", encoder, embeddings, pictures, names, None, {}, benchmarks)
    # One encoder needs no name of its own in its keys.
    metrics = {key.replace(".encoder.", ".", 1): value for key, value in findings.metrics.items()}
    check_finite(metrics)
    config.output.mkdir(parents=True, exist_ok=True)
    _write_json(config.output / "metrics.json", metrics)
    protocols = {key.replace(".encoder", "", 1): value for key, value in findings.protocols.items()}
    _write_json(config.output / "protocols.json", protocols)
    for key, value in metrics.items():
        print(f"  {key:<40} {value:.3f}")
    print(f"metrics: {config.output / 'metrics.json'}")
    return 0


def run_demo(demo: Path, *, check_goals: bool = False) -> int:
    """Measures all that is there of a demo, writes its files, prints the table, and returns the exit status.

    Raises:
        UserError: the corpus is missing, or a file is broken.
    """
    start = time.monotonic()
    corpus, i2e = demo / "corpus", demo / "i2e"
    pictures = read_pictures(corpus / "evaluation.parquet")
    names = zero_shot.read_names(corpus / "kb_source.jsonl")
    findings = Findings()
    reasons: list[tuple[str, str, str, int]] = []
    samples: list[Sample] = []
    if (i2e / "ledger").is_dir():
        truth = str(corpus / "truth.parquet")
        findings.metrics |= labels.all_metrics(truth, str(i2e / "annotations"), str(i2e / "ledger"))
        reasons = labels.read_reasons(str(i2e / "ledger"))
        samples = read_samples(str(i2e), str(corpus), num_kept=24, num_per_reason=6)
    else:
        findings.missing.append(f"labels: {i2e / 'ledger'} is not there; make it with python -m pipeline.build_i2e")

    queries = pick_queries(pictures)
    _measure_pixels(findings, pictures, queries, names)
    vocabulary, image_counts = _read_vocabulary(i2e / "vocabulary.jsonl")
    for recipe in RECIPES:
        directory = demo / "models" / recipe / "encoder"
        if not (directory / "encoder.json").exists():
            findings.missing.append(f"{recipe}: {directory} holds no finished encoder; train it")
            continue
        encoder = load_encoder(directory)
        embeddings = embed_pictures(encoder, pictures, cache_dir=str(demo / "evaluation" / "cache"), title=recipe)
        _measure_encoder(findings, recipe, encoder, embeddings, pictures, names, vocabulary, image_counts, BENCHMARKS)
        findings.grids[recipe] = retrieval_grid(embeddings, pictures, queries, names)
    # The multi-task encoder is the one that the demo is about; without it the supervised one stands in.
    main_recipe = next(
        (name for name in ("multitask", "supervised") if f"entities.{name}.accuracy_at_1" in findings.metrics), None
    )
    if main_recipe:
        for k in (1, 5):
            findings.metrics[f"entities.accuracy_at_{k}"] = findings.metrics[f"entities.{main_recipe}.accuracy_at_{k}"]
        findings.protocols["entities"] = {"recipe": main_recipe}
    findings.metrics |= read_seconds(demo / "steps", evaluate_sec=time.monotonic() - start)

    check_finite(findings.metrics)
    verdicts = judge(findings.metrics)
    report = Report(
        title="MOFI demo",
        verdicts=verdicts,
        missing=findings.missing,
        metrics=findings.metrics,
        reasons=reasons,
        starved=_read_starved(i2e / "funnel.json"),
        samples=samples,
        names=names,
        curves=read_curves(demo / "models"),
        grids=findings.grids,
        protocols=findings.protocols,
    )
    (demo / "evaluation").mkdir(parents=True, exist_ok=True)
    _write_json(demo / "metrics.json", findings.metrics)
    _write_json(demo / "evaluation" / "protocols.json", findings.protocols)
    (demo / "report.html").write_text(render(report), encoding="utf-8")
    lines = [*(f"  not measured: {line}" for line in findings.missing), *table_lines(verdicts)]
    lines.append(f"report: {demo / 'report.html'}    metrics: {demo / 'metrics.json'}")
    table = "\n".join(lines) + "\n"
    (demo / "table.txt").write_text(table, encoding="utf-8")
    print(table, end="", flush=True)
    return 1 if check_goals and not all(verdict.met for verdict in verdicts) else 0


def parse_benchmarks(text: str) -> tuple[str, ...]:
    """Returns the names in a comma-separated list.

    Raises:
        UserError: the list is empty or holds an unknown name.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown or not names:
        raise UserError(f"--benchmarks is {text!r}; name one or more of {', '.join(BENCHMARKS)}, with commas")
    return names


def read_seconds(steps: Path, *, evaluate_sec: float) -> dict[str, float]:
    """Returns `seconds.<step>` of every recorded step and their sum, `seconds.total`.

    Args:
        steps: folder of one JSON file a step.
        evaluate_sec: what this run has taken, for when the evaluation itself has no record yet.

    Raises:
        UserError: a record is broken.
    """
    values: dict[str, float] = {}
    for path in sorted(steps.glob("*.json"), key=lambda path: (path.stat().st_mtime, path.name)):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            values[f"seconds.{record['step']}"] = float(record["seconds"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no record of a step ({error}); remove it, then make demo") from error
    values.setdefault("seconds.evaluate", round(evaluate_sec, 1))
    return values | {"seconds.total": sum(values.values())}


def read_curves(models: Path) -> dict[str, list[dict[str, float]]]:
    """Returns the rows of every `<model>/metrics.jsonl`; a last line that a kill cut short is left out.

    Raises:
        UserError: another line is no JSON object.
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
                raise UserError(f"{path}, line {number} is no JSON object ({error}); train again") from error
            rows.append(row)
        curves[path.parent.name] = rows
    return curves


def check_finite(metrics: Mapping[str, float]) -> None:
    """Returns nothing when every metric is a finite number.

    Raises:
        UserError: one is not.
    """
    for key, value in metrics.items():
        if not math.isfinite(value):
            raise UserError(f"metric {key} is {value}, it must be finite; look at what it was measured on")


def _measure_pixels(findings: Findings, pictures: Pictures, queries: list[int], names: Mapping[str, str]) -> None:
    vectors = pixels.pixel_vectors(pictures)
    shown = np.zeros_like(vectors)
    for split in retrieval.SPLITS:
        mask = retrieval.split_mask(pictures, split)
        if not mask.any():
            continue
        embeddings = pixels.centred(vectors, mask)
        shown[mask] = embeddings[mask]
        _measure_split(findings, "pixels", embeddings, pictures, split, {"preprocessing": pixels.PREPROCESSING})
    findings.grids["pixels"] = retrieval_grid(shown, pictures, queries, names)


def _measure_split(
    findings: Findings, name: str, embeddings: np.ndarray, pictures: Pictures, split: str, facts: dict[str, Any]
) -> None:
    result = retrieval.evaluate_split(embeddings, pictures, split)
    prefix = f"retrieval.{name}.{split}"
    findings.metrics |= retrieval.metrics(result, pictures, prefix)
    findings.protocols[prefix] = {
        "version": retrieval.PROTOCOL_VERSION,
        "data_hash": pictures.data_hash,
        **facts,
        **retrieval.counts(result),
    }
    if len(result.queries) == 0:
        findings.missing.append(f"{prefix}: no query has a match among {result.num_gallery} pictures")


def _measure_encoder(
    findings: Findings,
    name: str,
    encoder: Any,
    embeddings: np.ndarray,
    pictures: Pictures,
    names: Mapping[str, str],
    vocabulary: Sequence[str] | None,
    image_counts: Mapping[str, int],
    benchmarks: Sequence[str],
) -> None:
    facts = {"encoder_hash": encoder.hash, "preprocessing": preprocessing_of(encoder)}
    if "retrieval" in benchmarks:
        for split in retrieval.SPLITS:
            _measure_split(findings, name, embeddings, pictures, split, facts)
    stated = {"data_hash": pictures.data_hash, **facts}
    if "entities" in benchmarks and encoder.classifier is not None:
        classes = encoder.classifier
        values, counts = entities.classifier_metrics(
            embeddings, pictures, classes.weights, classes.entity_ids, image_counts
        )
        findings.metrics |= {f"entities.{name}.{key}": value for key, value in values.items()}
        findings.protocols[f"entities.{name}"] = {"version": entities.PROTOCOL_VERSION, **stated, **counts}
    if "zero_shot" in benchmarks and encoder.has_text:
        # Without a vocabulary, the evaluation's own entities compete.
        of_split = {
            heldout: sorted(set(pictures.entity_ids[pictures.heldout_entity == heldout].tolist()))
            for heldout in (False, True)
        }
        for heldout, key in ((False, f"zero_shot.{name}"), (True, f"zero_shot.{name}.unseen")):
            candidates = list(vocabulary) if vocabulary and not heldout else of_split[heldout]
            values, counts = zero_shot.zero_shot_metrics(
                embeddings, pictures, encoder, names, candidates, heldout_entity=heldout
            )
            findings.metrics |= {f"{key}.{metric}": value for metric, value in values.items()}
            findings.protocols[key] = {
                "version": zero_shot.PROTOCOL_VERSION,
                "templates": zero_shot.TEMPLATES,
                "candidates_hash": hashlib.sha256("\0".join(candidates).encode()).hexdigest()[:16],
                **stated,
                **counts,
            }


def _read_vocabulary(path: Path) -> tuple[list[str] | None, dict[str, int]]:
    if not path.exists():
        return None, {}
    counts = zero_shot.read_image_counts(path)
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
        raise UserError(f"{path} is no funnel ({type(error).__name__}: {error}); build the set again") from error


def _write_json(path: Path, value: Any) -> None:
    # A NaN is no JSON, and an error here rather than a null in the file.
    text = json.dumps(value, indent=2, allow_nan=False, default=str) + "\n"
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())
