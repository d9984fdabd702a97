"""Prints what a training run needs of each device: `python -m trainer.plan --config NAME --mesh AxB`."""

from __future__ import annotations

import dataclasses
import re

import tyro

from pipeline.commands import ending_on_user_errors
from pipeline.schema import UserError
from trainer.configs.base import Experiment, check, override
from trainer.configs.experiments import get_experiment
from trainer.flops import step_flops
from trainer.memory_plan import planned_collectives, planned_memory, planned_state
from trainer.mesh import abstract_mesh, check_mesh
from trainer.placement import placement, readable

_UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Prints memory, collectives and operations of a step, and the largest batch that fits. Nothing is allocated."""

    config: str
    """Name of the experiment."""
    mesh: str = "1x1"
    """Devices, data x model; they need not be there."""
    device_memory: str = "80GB"
    """Memory of a device, in MB, GB, MiB or GiB."""
    classes: int = 1_000_000
    """Classes of the set, if the experiment has a classifier."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A field of the experiment to change, e.g. remat=dots; can be repeated."""


def plan(experiment: Experiment, *, mesh: str, device_memory: str, num_classes: int) -> str:
    """Returns the plan as text.

    Raises:
        UserError: experiment, mesh and memory do not fit each other, or are not valid.
    """
    check(experiment)
    num_data, num_model = check_mesh(experiment, mesh)
    if num_classes < 2:
        raise UserError(f"--classes is {num_classes}, but a classifier needs at least 2")
    room = parse_bytes(device_memory)
    devices = abstract_mesh(num_data, num_model)
    images = experiment.data.batch_size // devices.size
    state = planned_state(experiment, devices, num_classes)
    lines = [
        f"{experiment.name} on {devices.size} device(s) of {device_memory}, mesh {mesh}: {images:,} of "
        f"{experiment.data.batch_size:,} images each" + (f", {num_classes:,} classes" if experiment.classifies else ""),
        "computed from shapes and shardings; no backend was read",
        "",
        placement(state),
        "",
        "memory of each device",
    ]
    memory = planned_memory(experiment, state, devices)
    rows = {**memory.fixed, **{name: round(images * count) for name, count in memory.per_image.items()}}
    lines += [f"  {name:50} {readable(count):>8}" for name, count in rows.items()]
    lines += [f"  {'in all':50} {readable(memory.total(images)):>8}", "", "by remat"]
    for remat in ("none", "light", "dots", "full"):
        memory = planned_memory(dataclasses.replace(experiment, remat=remat), state, devices)
        parts = experiment.micro_batches
        most = memory.most_images(room) // parts * parts
        lines.append(f"  {remat:5} {_fits(memory.total(images), most, room, devices.size)}")
    lines += ["", "collectives of a step, bytes that each device receives"]
    collectives = planned_collectives(experiment, state, devices)
    lines += [f"  {name:50} {readable(count):>8}" for name, count in collectives.items()] or ["  none"]
    flops = step_flops(experiment, num_classes)
    lines += ["", f"{flops:.3g} floating-point operations a step, {flops / devices.size:.3g} of each device"]
    return "\n".join(lines)


def _fits(needed: int, most_images: int, room: int, num_devices: int) -> str:
    if not most_images:
        return f"{readable(needed):>8}: too much for any batch"
    verdict = "fits" if needed <= room else "does not fit"
    return f"{readable(needed):>8}: {verdict}; the largest batch that fits is {most_images * num_devices:,}"


def parse_bytes(text: str) -> int:
    """Returns the bytes that `text`, for example "80GB", states.

    Raises:
        UserError: it is not a number with a unit.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MG]i?B)", text)
    if not match or not float(match[1]):
        raise UserError(f"--device-memory {text} is not a size in {', '.join(_UNITS)}, e.g. --device-memory 80GB")
    return int(float(match[1]) * _UNITS[match[2]])


def main() -> None:
    options = tyro.cli(Options, prog="python -m trainer.plan")
    with ending_on_user_errors():
        experiment = override(get_experiment(options.config), options.set)
        print(plan(experiment, mesh=options.mesh, device_memory=options.device_memory, num_classes=options.classes))


if __name__ == "__main__":
    main()
