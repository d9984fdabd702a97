"""VTAB: 19 tasks over TFDS sets, natural, specialised and structured; accuracy on each test split, and means.

Protocol (version 2), after Zhai et al. 2019 and its code (google-research/task_adaptation):

- Sets, configs, splits and labels as there. Shares of a split are rounded down to whole pictures: the test part of
  dSprites starts at floor(0.8 n) + floor(0.1 n). Thresholds of distances are strict: a distance that equals a threshold
  belongs to the class below it.
- Mode "1k": settings are chosen with the first 800 pictures of the training part and the first 200 of the validation
  part, then the model is trained on those 1,000. Mode "full": the same with both parts whole. All pictures of the test
  part are scored, the last ones too, which the original drops when they do not fill a batch.
- Pictures become squares as a whole, whatever their shape, by bilinear sampling without antialias, then the encoder's
  own normalisation follows. `resize=encoder` leaves the encoder's own resizing and crop instead.
- Method "linear": multinomial logistic regression on the embeddings, see `evaluation.metrics.logistic`. Method
  "finetune": `evaluation.models.fine_tune`. The sweep over two learning rates, at 2,500 steps of 512 pictures with a
  cosine schedule, is this project's choice; of equal accuracies the earlier rate is kept, and a rate at which the loss
  is not finite is out. (Version 1 had another rule for equal accuracies of "linear".)
- The mean is over tasks. It is called "mean" only when all tasks of its group (or all 19) were scored; with some left
  out it is called "mean_of_<n>_tasks", and is not VTAB.

Sets of embeddings made elsewhere are named `vtab_<set>_<part>` with the parts train800, val200, train, val and test,
such as "vtab_clevr_train800"; their ids are `<split>:<number in the split>`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.metrics.logistic import fit_best
from evaluation.models.fine_tune import Diverged, FineTuneConfig
from evaluation.options import Options, option
from evaluation.protocol import Context, Provenance, Result, Tuner, Unavailable, register
from evaluation.report.figures import Bars
from evaluation.sets.images import LabelledImages
from evaluation.sets.tfds import PreparedSet
from evaluation.sets.vtab import TASKS, parts_of, prepared_set, read_task
from pipeline.schema import UserError

LEARNING_RATES = (0.01, 0.001)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VtabOptions(Options):
    """See `--help`."""

    tasks: tuple[str, ...] | None = option(None, none="all", choices=tuple(TASKS), help="names of tasks with commas")
    mode: str = option("1k", choices=("1k", "full"), help="pictures to train on")
    method: str = option("linear", choices=("linear", "finetune"), help="how the model is adapted")
    resize: str = option("square", choices=("square", "encoder"), help="who resizes the pictures")
    num_steps: int = option(FineTuneConfig.num_steps, at_least=1, help="of finetune")
    batch_size: int = option(FineTuneConfig.batch_size, at_least=1, help="of finetune")
    learning_rates: tuple[float, ...] = option(LEARNING_RATES, above=0, help="of finetune: the rates that are tried")

    def sweep(self) -> list[FineTuneConfig]:
        """Returns a config for each learning rate; none without fine-tuning."""
        if self.method != "finetune":
            return []
        return [
            FineTuneConfig(
                learning_rate=rate,
                num_steps=self.num_steps,
                batch_size=self.batch_size,
                warmup_steps=min(FineTuneConfig.warmup_steps, self.num_steps // 10),
            )
            for rate in self.learning_rates
        ]


@register("vtab", version=2, options=VtabOptions)
def vtab(context: Context, options: VtabOptions) -> Result:
    """VTAB's 19 tasks over TFDS: 1k or full, linear or finetune; the means of its groups and of all.

    Raises:
        Unavailable: none of the tasks has its data, or there is no encoder to fine-tune.
        UserError: no task could be run and one went wrong.
    """
    names = [name for name in TASKS if options.tasks is None or name in options.tasks]
    mode, method = options.mode, options.method
    configs = options.sweep()
    tuner = context.model.tuner if method == "finetune" else None
    # Embeddings made elsewhere are of pictures that nobody decodes here.
    size_px = context.model.preprocessing.get("image_size_px") if options.resize == "square" else None

    found, unprepared, failed = _sets(names, context.data_dir, mode)
    missing: dict[str, str] = {}
    metrics: dict[str, float] = {}
    items: dict[str, np.ndarray] = {}
    ran: dict[str, Any] = {}
    provenances: list[Provenance] = []
    for name, prepared in found.items():
        try:
            with _named(name, prepared):
                data = read_task(TASKS[name], prepared, mode, size_px=size_px)
                if tuner is not None:
                    both = {part: _read(context, one, name) for part, one in data.items()}
                    read = {part: one for part, (one, _) in both.items()}
                    known = [one for _, one in both.values()]
                    num_read = {part: len(one.labels) for part, one in read.items()}
                    labels, predicted, chosen = _fine_tuned(tuner, read, TASKS[name].num_classes, configs)
                else:
                    num_read, labels, predicted, chosen, known = _probed(context, data, name)
        except UserError as error:  # it costs this task; those before and after it are worth hours
            (missing if isinstance(error, Unavailable) else failed)[name] = str(error)
            continue
        provenances += known
        right = (predicted == labels).astype(np.float64)
        items[f"{name}.accuracy"] = right
        metrics[f"{name}.accuracy"] = float(right.mean())
        ran[name] = {"set": prepared.full_name, "num_classes": TASKS[name].num_classes, "chosen": chosen}
        ran[name] |= {f"num_{part}": num_read[part] for part in data}
        ran[name]["num_unreadable"] = sum(len(data[part].labels) - num_read[part] for part in data)
    without_data = [*_told(unprepared), *(f"{name}: {error}" for name, error in missing.items())]
    if not ran and failed:
        raise UserError("; ".join(failed.values()))
    if not ran:
        raise Unavailable(f"none of {len(names)} tasks of VTAB has its data; {without_data[0]}")
    bars = {name: metrics[f"{name}.accuracy"] for name in ran}
    return Result(
        metrics=metrics | means(bars),
        counts={
            "num_tasks": len(ran),
            "tasks": ran,
            "not_asked_for": [name for name in TASKS if name not in names],
        },
        data=provenances,
        settings=options.settings("mode", "method", "resize") | _settings(configs),
        items=items,
        chance={f"{name}.accuracy": 1 / TASKS[name].num_classes for name in ran},
        same_as=_same_as(members(ran)),
        means={name: [f"{one}.accuracy" for one in of] for name, of in members(ran).items()},
        groups=list(ran),
        figures={"tasks": Bars(title="accuracy by task", values=bars, label="accuracy")},
        not_measured=without_data,
        failed=list(failed.values()),
    )


def _sets(
    names: Sequence[str], data_dir: Path, mode: str
) -> tuple[dict[str, PreparedSet], dict[str, str], dict[str, str]]:
    """Returns the sets of the tasks, why others have none, and what is wrong with the rest, before hours of work."""
    found: dict[str, PreparedSet] = {}
    unprepared: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            prepared = prepared_set(TASKS[name], data_dir)
            with _named(name, prepared):
                parts_of(TASKS[name], prepared, mode)
            found[name] = prepared
        except Unavailable as error:
            unprepared[name] = str(error)
        except UserError as error:
            failed[name] = str(error) if str(error).startswith(f"{name} (") else f"{name}: {error}"
            print(f"warning: VTAB will lack {failed[name]}", file=sys.stderr)
    return found, unprepared, failed


def _told(unprepared: Mapping[str, str]) -> list[str]:
    """Returns one line for all tasks whose set is not prepared: the first one's says how to do it."""
    if not unprepared:
        return []
    (first, error), *others = unprepared.items()
    named = ", ".join(f"{name} ({TASKS[name].sources[-1]})" for name, _ in others)
    return [f"{first}: {error}" + (f"; likewise {named}" if named else "")]


def means(accuracies: Mapping[str, float]) -> dict[str, float]:
    """Returns the means of each group and of all tasks.

    Args:
        accuracies: task to accuracy, at least one.

    Returns:
        `<group>.mean` and `mean` where every task of the group (of all 19) is there, else `mean_of_<n>_tasks`; a group
        without any task has none.
    """
    return {name: float(np.mean([accuracies[one] for one in of])) for name, of in members(accuracies).items()}


def members(tasks: Iterable[str]) -> dict[str, list[str]]:
    """Returns the names of the means of `tasks`, each with the tasks that it is of; see `means`."""
    found = {}
    asked = set(tasks)
    for group in ("natural", "specialised", "structured", None):
        of_group = [name for name, task in TASKS.items() if group in (None, task.group)]
        there = [name for name in of_group if name in asked]
        if there:
            mean = "mean" if len(there) == len(of_group) else f"mean_of_{len(there)}_tasks"
            found[mean if group is None else f"{group}.{mean}"] = there
    return found


def _same_as(means_of: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Returns the means that are the accuracy of their only task, or the mean of the same tasks under another name."""
    found: dict[str, str] = {}
    first: dict[tuple[str, ...], str] = {}
    for name, of in means_of.items():
        other = f"{of[0]}.accuracy" if len(of) == 1 else first.setdefault(tuple(of), name)
        if other != name:
            found[name] = other
    return found


def _probed(
    context: Context, data: Mapping[str, LabelledImages], task: str
) -> tuple[dict[str, int], np.ndarray, np.ndarray, Any, list[Provenance]]:
    """Returns how a linear probe does on a task.

    Returns:
        How many pictures of each part could be read; labels and predictions of those of the test part; the settings
        that were chosen; and what was embedded.
    """
    vectors, labels, provenances = {}, {}, []
    for part, one in data.items():
        embedded = context.embed(one.images, truth=one.truth, part=task)
        provenances.append(embedded.provenance)
        vectors[part], labels[part] = embedded.vectors, one.labels[embedded.positions]
    probe = fit_best(vectors["train"], labels["train"], vectors["val"], labels["val"], TASKS[task].num_classes)
    chosen = {
        "c": probe.chosen,
        "val_accuracies": probe.validation_accuracies,
        "val_losses": probe.validation_losses,
        "converged": probe.converged,
    }
    num_read = {part: len(of_part) for part, of_part in labels.items()}
    return num_read, labels["test"], probe.predict(vectors["test"]), chosen, provenances


def _read(context: Context, data: LabelledImages, task: str) -> tuple[LabelledImages, Provenance]:
    """Returns what of `data` can be read, and what it is."""
    found = context.read(data.images, truth=data.truth, part=task)
    readable = dataclasses.replace(data, images=found.images, labels=data.labels[found.positions])
    return readable, found.provenance


def _fine_tuned(
    tuner: Tuner, data: Mapping[str, LabelledImages], num_classes: int, configs: list[FineTuneConfig]
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Returns labels and predictions of the test pictures, and the settings that were chosen.

    Raises:
        UserError: no learning rate gives a finite loss.
    """
    train, val, test = data["train"], data["val"], data["test"]
    rates = [config.learning_rate for config in configs]
    accuracies: dict[float, float] = {}
    for config in configs:
        with contextlib.suppress(Diverged):
            accuracies[config.learning_rate] = float(
                np.mean(tuner.fine_tuned(train, val.images, num_classes, config) == val.labels)
            )
    both = _joined(train, val)
    finite = [config for config in configs if config.learning_rate in accuracies]
    for best in sorted(finite, key=lambda config: -accuracies[config.learning_rate]):
        try:
            found = tuner.fine_tuned(both, test.images, num_classes, best)
        except Diverged:
            continue
        chosen = {"learning_rate": best.learning_rate, "val_accuracies": {rate: accuracies.get(rate) for rate in rates}}
        return test.labels, found, chosen
    raise UserError(f"the loss is not finite at any of the learning rates {rates}; give a lower one")


def _settings(configs: list[FineTuneConfig]) -> dict[str, Any]:
    """Returns what of the sweep makes results comparable."""
    if not configs:
        return {}
    one = configs[0].settings()
    del one["learning_rate"]
    return {"fine_tune": one | {"learning_rates": [config.learning_rate for config in configs]}}


def _joined(first: LabelledImages, second: LabelledImages) -> LabelledImages:
    one, two = first.images, second.images

    def read(position: int) -> bytes:
        return one.read(position) if position < len(one) else two.read(position - len(one))

    images = dataclasses.replace(
        one,
        name=f"{one.name}_and_val",
        ids=np.concatenate([one.ids, two.ids]),
        read=read,
        fingerprint=hashlib.sha256(f"{one.fingerprint} {two.fingerprint}".encode()).hexdigest(),
    )
    return dataclasses.replace(first, images=images, labels=np.concatenate([first.labels, second.labels]))


@contextlib.contextmanager
def _named(name: str, prepared: PreparedSet) -> Iterator[None]:
    """Names the task in an error that something inside raises."""
    try:
        yield
    except Unavailable:
        raise
    except UserError as error:
        raise UserError(f"{name} ({prepared.full_name}): {error}") from error
