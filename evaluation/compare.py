"""Results side by side: `python -m evaluation.compare runs/a runs/b`. What was measured otherwise is not compared."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from evaluation.metrics.intervals import paired_bootstrap
from evaluation.results import SavedResult, read_results
from pipeline.schema import UserError

_SHOWN = 60  # characters of a value that differs
_LISTED = 4  # metrics that a refusal names
_HASHES = {"contents": "contents", "truth": "labels or ground truth"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Prints two or more folders of results side by side; of two, with differences and their 95 % intervals."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders that `make eval` wrote, the baseline first."""
    force: bool = False
    """Compare results of different protocols too, and say so."""
    seed: int = 0
    """Of the bootstrap."""


def main(args: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 when something was not compared for a reason the user can change."""
    config = tyro.cli(CompareConfig, args=args, prog="python -m evaluation.compare", description=__doc__)
    try:
        if len(config.folders) < 2:
            raise UserError("give A= and B=, two folders that make eval wrote")
        if config.seed < 0:
            raise UserError(f"--seed is {config.seed}, it must be at least 0")
        tables, refusals = compare(config.folders, force=config.force, seed=config.seed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(tables, end="", flush=True)
    for line in refusals:
        print(f"error: {line}", file=sys.stderr)
    return 2 if refusals else 0


def compare(folders: Sequence[Path], *, force: bool = False, seed: int = 0) -> tuple[str, list[str]]:
    """Returns a table for each benchmark that all folders share, one line per metric, and what was refused and why.

    A metric is refused when it was measured by another protocol or on other data, unless `force` is set.

    Raises:
        UserError: there is no shared benchmark, or a folder is of several models.
    """
    all_results = [read_results(folder) for folder in folders]
    for folder, of_folder in zip(folders, all_results, strict=True):
        num_models = _num_models([result.record["model"] for result in of_folder.values()])
        if num_models > 1:
            raise UserError(
                f"{folder} holds results of {num_models} models, the limit is 1; give each model its own OUTPUT"
            )
    shared = sorted(set.intersection(*(set(results) for results in all_results)))
    if not shared:
        found = "; ".join(f"{f}: {', '.join(sorted(r))}" for f, r in zip(folders, all_results, strict=True))
        raise UserError(f"no benchmark is in all folders ({found}); measure the same ones")
    lines = [
        f"{folder} has no {', '.join(sorted(lacking))}; not compared"
        for folder, results in zip(folders, all_results, strict=True)
        if (lacking := set.union(*(set(one) for one in all_results)) - set(results))
    ]
    refusals: list[str] = []
    names = [str(folder) for folder in folders]
    for benchmark in shared:
        results = [results[benchmark] for results in all_results]
        if not _shared_metrics(results):
            refusals.append(f"{benchmark}: no metric is in all folders; measure the same parts of it")
            continue
        comparable, refused = _by_reason(results)
        everything = sorted({reason for reasons in refused for reason in reasons})
        if force and refused:
            lines.append(f"{benchmark}: DIFFERENT PROTOCOLS, {'; '.join(everything)}")
            lines += [*_table(results, names, _shared_metrics(results), comparable, seed=seed), ""]
            continue
        if comparable:
            lines += [benchmark, *_table(results, names, comparable, comparable, seed=seed), ""]
        advice = "measure again, or compare all the same with --force"
        for reasons, metrics in refused.items():
            if comparable:
                refusals.append(f"{benchmark}: {_listed(metrics)} not compared ({'; '.join(reasons)}); {advice}")
            else:
                refusals.append(f"{benchmark} was measured by different protocols ({'; '.join(reasons)}); {advice}")
    return "\n".join(lines) + ("\n" if lines and lines[-1] else ""), list(dict.fromkeys(refusals))


def _by_reason(results: Sequence[SavedResult]) -> tuple[list[str], dict[tuple[str, ...], list[str]]]:
    """Returns the metrics that can be compared, and the others by the reasons why they cannot."""
    comparable: list[str] = []
    refused: dict[tuple[str, ...], list[str]] = {}
    for metric in _shared_metrics(results):
        reasons = tuple(
            dict.fromkeys(line for one in results[1:] for line in protocol_differences(results[0], one, metric))
        )
        if reasons:
            refused.setdefault(reasons, []).append(metric)
        else:
            comparable.append(metric)
    return comparable, refused


def _shared_metrics(results: Sequence[SavedResult]) -> list[str]:
    return [name for name in results[0].record["metrics"] if all(name in one.record["metrics"] for one in results)]


def protocol_differences(first: SavedResult, other: SavedResult, metric: str | None = None) -> list[str]:
    """Returns what keeps two results, or one metric of both, from being comparable, a phrase each.

    Contents and truth are compared where both know them: embeddings that someone else made know ids only.
    """
    a, b = first.record["protocol"], other.record["protocol"]
    found = _differing(*({"version": one["version"], **one["settings"]} for one in (a, b)))
    if first.record["benchmark"] == "vtab" and first.states_parts != other.states_parts:
        return [*found, "one is of an earlier format, which did not state the data of each task"]
    data = [result.data_of(metric) for result in (first, other)]
    for key in dict.fromkeys([*data[0], *data[1]]):
        if key not in data[0] or key not in data[1]:
            found.append(f"only one was measured on {key}")
        else:
            found += _set_differences(key, data[0][key], data[1][key])
    return list(dict.fromkeys(found))


def _set_differences(name: str, first: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    if first["ids"] != other["ids"] and not _same_below_a_folder(first, other):
        return [f"other pictures or texts in {name}"]
    found = []
    files = [one.get("embeddings") for one in (first, other)]
    if first["ids"] is None and (None in files or files[0] != files[1]):
        found.append(f"neither knows the ids of {name}")
    # The hash of the contents is over ids too.
    keys = {"truth": "labels or ground truth"} if first["ids"] != other["ids"] else _HASHES
    for key, what in keys.items():
        known = [one.get(key) for one in (first, other)]
        if None not in known and known[0] != known[1]:
            found.append(f"the {what} of {name} differ")
    return found


def _same_below_a_folder(first: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Returns whether ids are the same but for folders that all ids of one side start with."""
    below = [one.get("ids_below_prefix") for one in (first, other)]
    if None in below or below[0] != below[1]:
        return False
    short, long = sorted((one["prefix"] for one in (first, other)), key=len)
    return not short or long == short or long.endswith(f"/{short}")


def _listed(metrics: Sequence[str]) -> str:
    more = f" and {len(metrics) - _LISTED} more" if len(metrics) > _LISTED else ""
    return ", ".join(metrics[:_LISTED]) + more


def _num_models(stated: Sequence[Mapping[str, Any]]) -> int:
    """Returns how many models are stated, at least: ready embeddings are known set by set."""
    hashes: dict[str, set[str]] = {}
    for model in stated:
        for name, one in model.get("sets", {"": model["hash"]}).items():
            hashes.setdefault(name, set()).add(one)
    both = "" in hashes and len(hashes) > 1
    return max((len(one) for one in hashes.values()), default=0) + both


def _table(
    results: Sequence[SavedResult], names: Sequence[str], metrics: Sequence[str], paired: Sequence[str], *, seed: int
) -> list[str]:
    """Returns the lines of a table of `metrics`; those in `paired` are of the same items and get an interval."""
    width = max([len(name) for name in metrics] + [10])
    columns = [max(len(name), 9) for name in names]
    head = f"  {'metric':<{width}}" + "".join(f"  {n:>{w}}" for n, w in zip(names, columns, strict=True))
    lines = [head + ("  difference  95 % interval" if len(results) == 2 else "")]
    classes = [result.record["model"].get("classifier", {}).get("classes_hash") for result in results]
    same_classes = len(set(classes)) == 1
    for metric in metrics:
        values = [result.record["metrics"][metric] for result in results]
        line = f"  {metric:<{width}}" + "".join(f"  {v:>{w}.4f}" for v, w in zip(values, columns, strict=True))
        if len(results) == 2:
            line += f"  {values[1] - values[0]:>+10.4f}"
            items = _items(metric, results) if metric in paired and same_classes else None
            if items is not None:
                low, high = paired_bootstrap(*items, seed=seed)
                line += f"  {low:+.4f} to {high:+.4f}"
        lines.append(line)
    if not same_classes:
        lines.append("  the classifiers have other classes, and each is scored on those it has: no intervals")
    for folder, result in zip(names, results, strict=True):
        lacking = sorted({name for one in results for name in one.record["metrics"]} - set(result.record["metrics"]))
        if lacking:
            lines.append(f"  {folder} has no {', '.join(lacking)}; not compared")
    return lines


def _items(metric: str, results: Sequence[SavedResult]) -> list[list[np.ndarray]] | None:
    """Returns each result's items of the metric, or of those it is the mean of; None: not known, or not the same."""
    names = [result.record.get("means", {}).get(metric, [metric]) for result in results]
    if any(sorted(one) != sorted(names[0]) for one in names):
        return None
    items = [[result.items.get(name, np.zeros(0)) for name in names[0]] for result in results]
    shapes = [[one.shape for one in of_result] for of_result in items]
    return items if shapes[0] == shapes[1] and (0,) not in shapes[0] else None


def _differing(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Returns a phrase for each key whose values differ, or that one side lacks."""
    found = []
    for key in dict.fromkeys([*first, *other]):
        texts = [json.dumps(one[key], sort_keys=True) if key in one else "nothing" for one in (first, other)]
        if texts[0] != texts[1]:
            # From a little before the first difference, so that long values do not look alike.
            start = max(0, len(os.path.commonprefix(texts)) - 10)
            shown = [_cut(text, start if len(max(texts, key=len)) > _SHOWN else 0) for text in texts]
            found.append(f"{key}: {shown[0]} against {shown[1]}")
    return found


def _cut(text: str, start: int) -> str:
    return ("..." if start else "") + text[start : start + _SHOWN] + ("..." if len(text) > start + _SHOWN else "")


if __name__ == "__main__":
    sys.exit(main())
