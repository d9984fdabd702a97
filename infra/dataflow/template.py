"""What Dataflow's flex template runs: the first job of `pipeline.build_i2e`, with Dataflow's own options as Beam's.

A template is one job, so the set is not assembled: `make build-i2e` with the same paths does that.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.build_i2e import main

_METADATA = Path(__file__).with_name("template.json")
_OURS = ("project", "region", "temp_location", "sdk_container_image")  # options of Beam that the command names too


def command_of(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments of `pipeline.build_i2e` for those of a template, each `--name=value` or `--name value`."""
    parameters = {parameter["name"] for parameter in json.loads(_METADATA.read_text())["parameters"]}
    own, of_beam = ["--runner", "dataflow", "--only-annotate"], list[str]()
    words = list(arguments)
    while words:
        name, equals, value = words.pop(0).removeprefix("--").partition("=")
        if not equals and words and not words[0].startswith("--"):
            equals, value = "=", words.pop(0)
        if name in parameters:
            own += [f"--{name.replace('_', '-')}", value]
        elif name in _OURS:
            own += [f"--{name.replace('_', '-')}".replace("sdk-container-image", "worker-image"), value]
        elif name != "runner":
            of_beam.append(f"--{name}{equals}{value}")
    return [*own, "--", *of_beam]


if __name__ == "__main__":
    main(command_of(sys.argv[1:]))
