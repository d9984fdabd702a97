"""The weights of the evidence: a JSON file that `infra/fit_linker.py` writes, and the one that this package ships."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from pipeline.config import DisambiguateConfig
from pipeline.schema import EVIDENCE, UserError

SHIPPED = Path(__file__).with_name("weights.json")
SHIPPED_WITH_MEANING = Path(__file__).with_name("weights_with_meaning.json")  # for a sentence encoder
FORMAT_VERSION = 1
PROBABILITY_MIN = 0.69  # of a file that states none
_LARGEST = sys.float_info.max  # JSON has larger integers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """The model: the score of a candidate is `bias` and the weighted sum of its evidence; the score of NIL is 0."""

    of_evidence: tuple[float, ...]
    """In nats per unit, in the order of `pipeline.schema.EVIDENCE`. Of weight 0, what takes time is not gathered."""
    bias: float
    probability_min: float = PROBABILITY_MIN
    """Least probability that a mention means one of its candidates, in [0, 1]; below it the answer is NIL."""

    @functools.cached_property
    def used(self) -> frozenset[str]:
        """The names of the evidence whose weight is not 0."""
        return frozenset(name for name, weight in zip(EVIDENCE, self.of_evidence, strict=True) if weight)

    @property
    def sees_pictures(self) -> bool:
        """Whether the picture may decide what the text leaves open."""
        return "picture" in self.used

    @property
    def reads_meaning(self) -> bool:
        """Whether a sentence encoder is needed."""
        return "meaning" in self.used

    @property
    def hash(self) -> str:
        """A hash of the numbers."""
        return hashlib.sha256(repr((self.of_evidence, self.bias, self.probability_min)).encode()).hexdigest()

    def without(self, name: str) -> Weights:
        """Returns these weights with that of the evidence `name` at 0."""
        values = zip(EVIDENCE, self.of_evidence, strict=True)
        return dataclasses.replace(self, of_evidence=tuple(0.0 if one == name else weight for one, weight in values))


def weights_of(config: DisambiguateConfig) -> Weights:
    """Returns the weights that `config` names, by default those that are shipped for its encoder or for none.

    Where `config` states a `probability_min`, they have that one.

    Raises:
        UserError: see `read_weights`; or the weights need a sentence encoder and there is none, or the reverse.
    """
    weights = read_weights(config.weights or (str(SHIPPED_WITH_MEANING) if config.sentence_encoder else ""))
    if config.probability_min is not None:
        weights = dataclasses.replace(weights, probability_min=config.probability_min)
    if weights.reads_meaning and not config.sentence_encoder:
        raise UserError(f"--weights {config.weights}: they weigh 'meaning'; give the --sentence-encoder that tells it")
    if config.sentence_encoder and not weights.reads_meaning:
        raise UserError(
            f"--weights {config.weights}: they do not weigh 'meaning', so --sentence-encoder would change nothing; "
            "leave it out, or fit weights with it: make fit-linker SENTENCE_ENCODER="
        )
    return weights


@functools.lru_cache(maxsize=4)
def read_weights(path: str = "") -> Weights:
    """Returns the weights in the JSON file at `path`, by default those that are shipped.

    The file holds `format_version`, `bias`, `weights` (name -> number; evidence that is not named weighs 0), and
    may hold `probability_min`.

    Raises:
        UserError: the file cannot be read, has another version, or names evidence that is unknown.
    """
    file = Path(path) if path else SHIPPED
    remedy = "write one with: make fit-linker"
    try:
        stated: Any = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"--weights {file}: cannot be read ({error}); {remedy}") from None
    version = stated.get("format_version") if isinstance(stated, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(f"--weights {file}: format_version is {version}, this program reads {FORMAT_VERSION}; {remedy}")
    weights = stated.get("weights")
    if not isinstance(weights, dict):
        raise UserError(f"--weights {file}: the field 'weights' is {weights!r}; it must be an object; {remedy}")
    if unknown := sorted(weights.keys() - set(EVIDENCE)):
        raise UserError(f"--weights {file}: unknown evidence {', '.join(unknown)}; known: {', '.join(EVIDENCE)}")
    limit = stated.get("probability_min", PROBABILITY_MIN)
    for name, value in (*weights.items(), ("bias", stated.get("bias")), ("probability_min", limit)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST <= value <= _LARGEST:
            raise UserError(f"--weights {file}: {name} is {value!r}; give a finite number")
    if not 0 <= limit <= 1:
        raise UserError(f"--weights {file}: probability_min is {limit}; give a number from 0 to 1")
    return Weights(
        of_evidence=tuple(float(weights.get(name, 0.0)) for name in EVIDENCE),
        bias=float(stated["bias"]),
        probability_min=float(limit),
    )
