"""The model card of an encoder that is published: what it was trained on and how, and what was measured of it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

from pipeline.schema import UserError
from trainer.exporting.trained import TrainedEncoder


def read_results(folders: Sequence[str], encoder: TrainedEncoder) -> list[dict[str, Any]]:
    """Returns the results that `make eval` wrote to `folders`, in the order of the folders and of benchmarks' names.

    Raises:
        UserError: a folder holds none, or results of another encoder.
    """
    results = []
    for folder in folders:
        paths = sorted(os.path.join(folder, name) for name in _names_in(folder) if name.endswith(".json"))
        found = [(path, _result_of(path)) for path in paths]
        if not any(result for _, result in found):
            raise UserError(f"--results {folder} holds no results; give the --output of make eval")
        for path, result in found:
            if result is None:
                continue
            measured = result["model"].get("hash")
            if measured != encoder.metadata["hash"]:
                raise UserError(
                    f"{path} is of the encoder {str(measured)[:12]}, not of {encoder.path} "
                    f"({encoder.metadata['hash'][:12]}); measure that one"
                )
            results.append(result)
    return results


def _names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise UserError(
            f"--results {folder} cannot be read ({error.strerror}); give the --output of make eval"
        ) from None


def _result_of(path: str) -> dict[str, Any] | None:
    """Returns the result in a file; None: it holds something else."""
    with open(path, encoding="utf-8") as file:
        try:
            content = json.load(file)
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON ({error}); measure again") from None
    is_result = isinstance(content, dict) and {"benchmark", "protocol", "metrics", "model"} <= content.keys()
    return content if is_result else None


def model_card(
    encoder: TrainedEncoder, results: Sequence[dict[str, Any]], *, library: str, usage: str, notes: Sequence[str]
) -> str:
    """Returns the text of the card, Markdown with the header that the Hub of Hugging Face reads.

    Args:
        encoder: which is published.
        results: records of `make eval`.
        library: that opens the files, as the Hub names it.
        usage: how the files are used.
        notes: sentences on what differs from the encoder.
    """
    experiment, provenance = encoder.experiment, encoder.metadata["provenance"]
    has_text = encoder.metadata["has_text"]
    towers = "An image and a text tower" if has_text else "An image tower"
    return f"""---
library_name: {library}
pipeline_tag: {"zero-shot-image-classification" if has_text else "image-feature-extraction"}
tags: [mofi]
---

# {experiment.name}

{towers} with embeddings of {experiment.embedding_dim} dimensions, trained by MOFI.

{usage}
## What it was trained on

| | |
|---|---|
| fingerprint of the set (SHA-256) | `{provenance["data"]}` |
| steps | {provenance.get("step", experiment.steps):,} of {experiment.data.batch_size:,} pictures |
| hash of the encoder | `{encoder.metadata["hash"]}` |

## What was measured

{_metrics(results)}

## What differs from the encoder

{chr(10).join(f"- {note}" for note in notes)}

## Recipe

```json
{json.dumps(dataclasses.asdict(experiment), indent=1)}
```
"""


def _metrics(results: Sequence[dict[str, Any]]) -> str:
    if not results:
        return "Nothing yet."
    rows = [
        f"| {result['benchmark']} | {result['protocol']['version']} | {name} | {value:.4f} |"
        for result in results
        for name, value in result["metrics"].items()
    ]
    return "\n".join(["| benchmark | version of the protocol | metric | value |", "|---|---|---|---|", *rows])
