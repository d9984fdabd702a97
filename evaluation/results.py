"""Results on disk: one JSON file per benchmark, with all that its numbers rest on, and the values item by item."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.metrics.intervals import bootstrap_interval
from evaluation.options import Options
from evaluation.protocol import MIN_QUERIES, Benchmark, Context, Provenance, Result, hash_of
from pipeline.schema import UserError
from pipeline.storage.disk import new_file, write_whole

FORMAT_VERSION = 2
_PACKAGES = ("mofi", "numpy", "jax", "faiss-cpu", "pillow", "scikit-learn", "tensorflow-datasets")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedResult:
    """A result as it was read: the JSON's fields, and each metric's value for every query or picture."""

    record: Mapping[str, Any]
    items: Mapping[str, np.ndarray]

    @property
    def states_parts(self) -> bool:
        """Whether some data is stated for a part of the metrics only."""
        return any(one.get("part") for one in self.record["data"].values())

    def data_of(self, metric: str | None = None) -> dict[str, Mapping[str, Any]]:
        """Returns what the result, or one of its metrics, rests on, by the name of the set (and its part)."""
        members = [] if metric is None else self.record.get("means", {}).get(metric, [metric])
        return {
            key: one
            for key, one in self.record["data"].items()
            if metric is None or not one.get("part") or any(member.startswith(f"{one['part']}.") for member in members)
        }


def record_of(
    benchmark: Benchmark, context: Context, options: Options, result: Result, *, seconds: float
) -> dict[str, Any]:
    """Returns the JSON record of a result.

    Raises:
        UserError: a metric is not finite.
    """
    result, too_few = without_small_groups(result)
    embeddings = {one.name: one.embeddings for one in result.data if one.embeddings is not None}
    model = context.model.identity(embeddings)
    check_finite(result.metrics, benchmark.name)
    return {
        "format_version": FORMAT_VERSION,
        "benchmark": benchmark.name,
        "protocol": {"version": benchmark.version, "settings": dict(result.settings)},
        "options": options.settings(),
        "metrics": {name: float(value) for name, value in result.metrics.items()},
        "num_items": num_items_of(result),
        "intervals": {name: list(interval) for name, interval in intervals_of(result).items()},
        "chance": {name: float(value) for name, value in result.chance.items() if name in result.metrics},
        "same_as": dict(result.same_as),
        "too_few_queries": too_few,
        "counts": dict(result.counts),
        "means": {name: list(of) for name, of in result.means.items()},
        "not_measured": list(result.not_measured),
        "failed": list(result.failed),
        "data": {f"{one.part}/{one.name}" if one.part else one.name: _data_record(one) for one in result.data},
        "model": {**model, **result.model, "preprocessing": dict(context.model.preprocessing)},
        "packages": _versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
    }


def without_small_groups(result: Result, *, is_group: bool = False) -> tuple[Result, dict[str, int]]:
    """Returns the result without the metrics of groups of too few queries, and how many queries each of those has.

    A metric is of a group when it starts with one of `Result.groups` and a dot; the limit is `MIN_QUERIES`. A mean
    over groups of which one is left out is left out too.

    Args:
        result: of a benchmark.
        is_group: all of the result is of one group, whatever the names of its metrics.
    """
    prefixes = tuple(f"{group}." for group in result.groups)
    too_few = {
        name: len(values)
        for name, values in result.items.items()
        if (is_group or name.startswith(prefixes)) and len(values) < MIN_QUERIES
    }
    for mean, members in result.means.items():
        if small := [too_few[one] for one in members if one in too_few]:
            too_few[mean] = min(small)

    def left(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name not in too_few}

    return dataclasses.replace(
        result, metrics=left(result.metrics), items=left(result.items), means=left(result.means)
    ), {name: count for name, count in too_few.items() if name in result.metrics}


def num_items_of(result: Result) -> dict[str, int]:
    """Returns how many items each metric is a mean of: queries, pictures or classes; of a mean of metrics, those."""
    found = {name: len(result.items[name]) for name in result.metrics if name in result.items}
    found |= {name: len(members) for name, members in result.means.items()}
    return found | {name: count for name, count in result.num_items.items() if name in result.metrics}


def intervals_of(result: Result) -> dict[str, tuple[float, float]]:
    """Returns the 95 % interval of each metric that has items, or is a mean of metrics that have them."""
    values = {name: [name] for name in result.metrics if name in result.items} | dict(result.means)
    return {
        name: bootstrap_interval([result.items[one] for one in of])
        for name, of in values.items()
        if all(one in result.items for one in of)
    }


def _data_record(one: Provenance) -> dict[str, Any]:
    return {("set" if name == "name" else name): value for name, value in dataclasses.asdict(one).items()}


def check_finite(metrics: Mapping[str, float], name: str) -> None:
    """Checks that every metric is a finite number: a NaN never reaches a file.

    Raises:
        UserError: one is not.
    """
    for key, value in metrics.items():
        if not math.isfinite(value):
            raise UserError(f"{name}: metric {key} is {value}, it must be finite; look at what it was measured on")


def write_result(folder: Path, record: Mapping[str, Any], items: Mapping[str, np.ndarray]) -> Path:
    """Returns the path of the JSON file that it writes; the items lie beside it as `.npz`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record['benchmark']}.json"
    arrays = folder / f"{record['benchmark']}.npz"
    with new_file(arrays) as file:
        np.savez_compressed(file, **items)  # type: ignore[arg-type]
    write_json(path, record)
    return path


def write_json(path: Path, value: Any) -> None:
    """Writes `value`; a NaN is an error, and a kill leaves the file of before."""
    write_whole(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_record(path: Path) -> dict[str, Any] | None:
    """Returns the record of a result; None for JSON that is something else.

    Raises:
        UserError: it cannot be read.
    """
    try:
        record: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); measure again") from error
    if not isinstance(record, dict) or "benchmark" not in record:
        return None
    if "format_version" not in record:
        raise UserError(f"{path} lacks the field format_version; measure again")
    if record.get("format_version") in (1, FORMAT_VERSION):
        _check_fields(path, record)
    if record.get("format_version") == 1:
        record = _from_version_1(record)
    if record.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path} has result format {record.get('format_version')}, this code reads {FORMAT_VERSION}; measure again"
        )
    found: dict[str, Any] = record
    return found


def _check_fields(path: Path, record: Mapping[str, Any]) -> None:
    """Checks that a record has the fields that a comparison and the report need.

    Raises:
        UserError: one is missing or of another kind.
    """
    needed: list[tuple[tuple[str, ...], tuple[type, ...], str]] = [
        (("benchmark",), (str,), "a text"),
        (("protocol",), (dict,), "an object"),
        (("protocol", "version"), (int,), "a whole number"),
        (("protocol", "settings"), (dict,), "an object"),
        (("metrics",), (dict,), "an object"),
        (("counts",), (dict,), "an object"),
        (("data",), (dict,), "an object"),
        (("model",), (dict,), "an object"),
        (("model", "hash"), (str,), "a text"),
    ]
    metrics, data = record.get("metrics"), record.get("data")
    needed += [(("metrics", name), (int, float), "a number") for name in (metrics if isinstance(metrics, dict) else {})]
    for name in data if isinstance(data, dict) else {}:
        needed += [(("data", name), (dict,), "an object"), (("data", name, "ids"), (str, type(None)), "a text or null")]
    for keys, kinds, what in needed:
        value: Any = record
        for depth, key in enumerate(keys):
            if key not in value:
                raise UserError(f"{path} lacks the field {'.'.join(keys[: depth + 1])}; measure again")
            value = value[key]
        if not isinstance(value, kinds):
            shown = json.dumps(value)[:60]
            raise UserError(f"{path}: the field {'.'.join(keys)} is {shown}, it must be {what}; measure again")


def read_results(folder: Path) -> dict[str, SavedResult]:
    """Returns the results in `folder` by benchmark.

    Raises:
        UserError: there are none, or one cannot be read.
    """
    results = {}
    for path in sorted(folder.glob("*.json")):
        record = read_record(path)
        if record is None:
            continue
        items: dict[str, np.ndarray] = {}
        arrays = path.with_suffix(".npz")
        if arrays.exists():
            try:
                with np.load(arrays, allow_pickle=False) as loaded:
                    items = {name: loaded[name] for name in loaded.files}
            except (ValueError, OSError, zipfile.BadZipFile) as error:
                raise UserError(f"{arrays} cannot be read ({error}); measure again") from error
        results[record["benchmark"]] = SavedResult(record=record, items=items)
    if not results:
        raise UserError(f"{folder} holds no results; write some with make eval OUTPUT={folder}")
    return results


def _from_version_1(record: dict[str, Any]) -> dict[str, Any]:
    """Returns a record of the format before: what belongs to the model stood among the settings of the protocol."""
    settings, model, data = dict(record["protocol"]["settings"]), dict(record["model"]), dict(record["data"])
    if record["benchmark"] == "knn":
        settings.pop("k", None)
    if record["benchmark"] == "image_text":
        data = {name: {**one, "part": name.removesuffix("_captions")} for name, one in data.items()}
    if record["benchmark"] == "entities":
        if settings.get("classes") == "classifier":
            model["classifier"] = {name: settings.pop(name) for name in ("scale", "classes_hash")}
        limits = [f"tail below {settings.pop('tail_below', '')}", f"head from {settings.pop('head_from', '')}"]
        counts_hash = settings.pop("image_counts_hash", None)
        if counts_hash is not None:
            for group in ("head", "middle", "tail"):
                data[f"{group}/training counts"] = {"part": group, "ids": counts_hash, "truth": hash_of(limits)}
    protocol = {**record["protocol"], "settings": settings}
    return {**record, "format_version": FORMAT_VERSION, "protocol": protocol, "model": model, "data": data}


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
