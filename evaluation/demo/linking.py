"""The linker on real text, as `infra/eval_linker.py` measured it: what of it goes into metrics and report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from evaluation.linking.metrics import KIND_METRICS, METRICS, WIKIPEDIA_METRICS, Share
from evaluation.sets.text import read_json
from pipeline.schema import UserError

# What linkers are fitted to is left out.
SETS = {
    "captions, second half": "captions",
    "alt_texts, second half": "alt_texts",
    "composed texts, half for measuring": "composed",
    "wikipedia, second half": "wikipedia",
}
METRIC_NAMES = (*METRICS, *KIND_METRICS, *WIKIPEDIA_METRICS)
_LINKERS = {"linker": "", "linker, never NIL": "never_nil.", "likeliest candidate": "prior.", "rule": "rule."}
_WITHOUT = "linker without "
_REMEDY = "measure again with: make eval-linker"
Tables = Mapping[str, Mapping[str, Mapping[str, Share]]]  # set of texts to linker to metric


def read_linking(path: Path) -> Tables:
    """Returns the scores on texts that the linker was not fitted to.

    Kinds of entities are left out where a kind of evidence is switched off: the tables are long without them.

    Raises:
        UserError: the file cannot be read or is not of `infra/eval_linker.py`.
    """
    try:
        return {
            name: {
                linker: {
                    metric: Share(**one)
                    for metric, one in of_linker.items()
                    if not (linker.startswith(_WITHOUT) and metric in KIND_METRICS)
                }
                for linker, of_linker in linkers.items()
            }
            for name, linkers in read_json(path, remedy=_REMEDY).items()
            if name in SETS
        }
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path} does not hold the scores of a linker ({error}); {_REMEDY}") from error


def metrics_of(tables: Tables) -> Iterator[tuple[str, Share]]:
    """Yields name and value of each number.

    The name is `linking.<set>.<metric>` for the linker, and `linking.<set>.prior.<metric>`, `….rule.<metric>`,
    `….never_nil.<metric>` and `….without_<evidence>.<metric>` for what it is compared with.
    """
    for name, linkers in tables.items():
        for linker, of_linker in linkers.items():
            infix = _LINKERS.get(linker, f"without_{linker.removeprefix(_WITHOUT)}.")
            for metric, one in of_linker.items():
                yield f"linking.{SETS[name]}.{infix}{metric}", one
