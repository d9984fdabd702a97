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

from evaluation.results import SavedResult, read_results
from pipeline.schema import UserError

NUM_RESAMPLES = 2000
_VALUES_AT_A_TIME = 4_000_000
_SHOWN = 60  # characters of a value that differs


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
    """Returns the exit status: 0, or 2 on an error the user can mend."""
    config = tyro.cli(CompareConfig, args=args, prog="python -m evaluation.compare", description=__doc__)
    try:
        if len(config.folders) < 2:
            raise UserError(
                f"{len(config.folders)} folder to compare, at least 2 are needed; make compare takes A= and B="
            )
        if config.seed < 0:
            raise UserError(f"--seed is {config.seed}, it must be at least 0")
        print(compare(config.folders, force=config.force, seed=config.seed), end="")
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def compare(folders: Sequence[Path], *, force: bool = False, seed: int = 0) -> str:
    """Returns a table of the benchmarks that all folders share, one line a metric.

    Raises:
        UserError: there is no shared benchmark, a folder is of several models, or protocols differ without `force`.
    """
    all_results = [read_results(folder) for folder in folders]
    for folder, of_folder in zip(folders, all_results, strict=True):
        num_models = _num_models([result.record["model"] for result in of_folder.values()])
        if num_models > 1:
            raise UserError(f"{folder} holds results of {num_models} models, 1 may; give each model its own OUTPUT")
    shared = sorted(set.intersection(*(set(results) for results in all_results)))
    if not shared:
        found = "; ".join(f"{f}: {', '.join(sorted(r))}" for f, r in zip(folders, all_results, strict=True))
        raise UserError(f"no benchmark is in all folders ({found}); measure the same ones")
    lines = [
        f"{folder} has no {', '.join(sorted(lacking))}; not compared"
        for folder, results in zip(folders, all_results, strict=True)
        if (lacking := set.union(*(set(one) for one in all_results)) - set(results))
    ]
    for name in shared:
        results = [results[name] for results in all_results]
        differences = [line for other in results[1:] for line in protocol_differences(results[0], other)]
        if differences and not force:
            raise UserError(
                f"{name} was measured by different protocols ({'; '.join(differences)}); measure again, or compare all "
                "the same with --force"
            )
        lines += [f"{name}: DIFFERENT PROTOCOLS, {'; '.join(differences)}" if differences else name]
        lines += _table(results, [str(folder) for folder in folders], seed=seed) + [""]
    return "\n".join(lines)


def protocol_differences(first: SavedResult, other: SavedResult) -> list[str]:
    """Returns what keeps two results from being comparable, a phrase each.

    Contents and truth are compared where both know them: embeddings that someone else made know ids only.
    """
    a, b = first.protocol, other.protocol
    found = _differing(*({"version": one["version"], **one["settings"]} for one in (a, b)))
    if a["ids"] != b["ids"]:
        found.append("other pictures or texts, by their ids")
        return found
    for name, ids in a["ids"].items():
        files = [result.record["data"][name].get("embeddings") for result in (first, other)]
        if ids is None and (None in files or files[0] != files[1]):
            found.append(f"neither knows the ids of {name}")
        for key, what in (("contents", "contents"), ("truth", "labels or ground truth")):
            known = [result.record["data"][name].get(key) for result in (first, other)]
            if None not in known and known[0] != known[1]:
                found.append(f"the {what} of {name} differ")
    return found


def paired_bootstrap(
    first: Sequence[np.ndarray], other: Sequence[np.ndarray], *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> tuple[float, float]:
    """Returns the 95 % interval of the mean of other's means, less that of first's, by resampling the shared items.

    Arrays of one length are drawn from together, so that items they share, such as the pictures of two tasks, are drawn
    alike; where they share none, that changes nothing.

    Args:
        first: floats `[n_i]` each, one value an item; one array for a metric, several for a mean of metrics.
        other: of the same items.
        seed: equal seeds give equal intervals.
        num_resamples: draws.

    Raises:
        ValueError: the shapes differ, or there are no items.
    """
    by_length: dict[int, np.ndarray] = {}
    for a, b in zip(first, other, strict=True):
        if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
            raise ValueError(f"values have shapes {a.shape} and {b.shape}; both must be [n > 0]")
        difference = np.asarray(b, np.float64) - np.asarray(a, np.float64)
        by_length[len(a)] = by_length.get(len(a), np.zeros(len(a))) + difference
    rng = np.random.default_rng(seed)
    total = np.zeros(num_resamples)
    for length, summed in by_length.items():
        step = max(_VALUES_AT_A_TIME // length, 1)
        for start in range(0, num_resamples, step):
            draws = rng.integers(0, length, (min(step, num_resamples - start), length))
            total[start : start + step] += summed[draws].mean(axis=1)
    low, high = np.quantile(total / len(first), [0.025, 0.975])
    return float(low), float(high)


def _num_models(stated: Sequence[Mapping[str, Any]]) -> int:
    """Returns how many models are stated, at least: ready embeddings are known set by set."""
    hashes: dict[str, set[str]] = {}
    for model in stated:
        for name, one in model.get("sets", {"": model["hash"]}).items():
            hashes.setdefault(name, set()).add(one)
    both = "" in hashes and len(hashes) > 1
    return max((len(one) for one in hashes.values()), default=0) + both


def _table(results: Sequence[SavedResult], names: Sequence[str], *, seed: int) -> list[str]:
    metrics = [name for name in results[0].record["metrics"] if all(name in r.record["metrics"] for r in results)]
    # Item by item, only of the same items.
    is_paired = len(results) == 2 and results[0].protocol["ids"] == results[1].protocol["ids"]
    width = max([len(name) for name in metrics] + [10])
    columns = [max(len(name), 9) for name in names]
    head = f"  {'metric':<{width}}" + "".join(f"  {n:>{w}}" for n, w in zip(names, columns, strict=True))
    lines = [head + ("  difference  95 % interval" if len(results) == 2 else "")]
    for metric in metrics:
        values = [result.record["metrics"][metric] for result in results]
        line = f"  {metric:<{width}}" + "".join(f"  {v:>{w}.4f}" for v, w in zip(values, columns, strict=True))
        if len(results) == 2:
            line += f"  {values[1] - values[0]:>+10.4f}"
            items = _items(metric, results) if is_paired else None
            if items is not None:
                low, high = paired_bootstrap(*items, seed=seed)
                line += f"  {low:+.4f} to {high:+.4f}"
        lines.append(line)
    for folder, result in zip(names, results, strict=True):
        lacking = sorted({name for one in results for name in one.record["metrics"]} - set(result.record["metrics"]))
        if lacking:
            lines.append(f"  {folder} has no {', '.join(lacking)}; not compared")
    return lines


def _items(metric: str, results: Sequence[SavedResult]) -> list[list[np.ndarray]] | None:
    """Returns each result's items of the metric, or of those it is the mean of; None: not known, or not the same."""
    names = [result.record.get("means", {}).get(metric, [metric]) for result in results]
    if any(one != names[0] for one in names):
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
