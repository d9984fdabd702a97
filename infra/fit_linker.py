"""Fits the weights of the linker to texts whose links are known, and writes them with what they were fitted on.

    python infra/fit_linker.py --demo runs/demo --output weights.json

Ranking and NIL are learned together: the weights minimise the cross-entropy of the right answers, an entity or NIL,
over the mentions of sources that weigh alike. These are composed texts (the pairs of the demo whose entity is in the
half for fitting) and Wikipedia links (the first half of the articles). The hand-labelled texts of the first halves then
set two calibration parameters: a factor for all scores, and an addend. Rates of NIL belong to a knowledge base, so the
file names it; give --demo another folder to fit to another.
"""

from __future__ import annotations

import argparse
import dataclasses
import glob
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.demo.labels import of_half, read_truth
from evaluation.linking.gold import GoldMention, GoldText, read_gold
from infra.eval_linker import clean_gold, rows_with_candidates
from pipeline.kb.names import head
from pipeline.kb.store import KnowledgeBase
from pipeline.linking.evidence import TextEvidence
from pipeline.linking.weights import FORMAT_VERSION, Weights
from pipeline.schema import EVIDENCE, ImageText, Row, UserError
from pipeline.sources.read import read_shard
from pipeline.stages.disambiguate import add_coherence, softmax_with_nil
from pipeline.storage.disk import write_whole

OFF = ("graph", "picture")  # evidence that does not pay
PENALTY = 1e-3  # of the squared weights, against the mean cross-entropy of one source (ours)
NUM_ROUNDS = 2  # the coherence depends on the weights, so they are fitted again with it
_BINS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Mentions of texts whose answers are known, with their evidence."""

    name: str
    rows: list[Row]
    evidence: list[list[np.ndarray]]  # of each row and mention, float [candidates, evidence]
    # Of each row and mention, which candidates are right, bool [candidates]; None where the answer is not known.
    right: list[list[np.ndarray | None]]
    kb: KnowledgeBase

    @property
    def num_mentions(self) -> int:
        """How many mentions have a candidate and a known answer."""
        return sum(one is not None for of_row in self.right for one in of_row)


def source_of(
    name: str, texts: Sequence[GoldText], rows: Mapping[str, Row], kb: KnowledgeBase, *, is_complete: bool
) -> Source:
    """Returns the mentions of `rows` with the answers that `texts` state.

    Args:
        name: of the source.
        texts: labelled texts.
        rows: by text id, with candidates.
        kb: the knowledge base of the candidates.
        is_complete: whether a mention that overlaps no label is known to name nothing of the base; else it is left out.
    """
    everything = frozenset(EVIDENCE)
    kept, evidence, right = [], [], []
    for text in texts:
        if (row := rows.get(text.text_id)) is None:
            continue
        gather = TextEvidence(head(text.text), kb, everything)
        kept.append(row)
        evidence.append(
            [np.array(gather.of_mention(one)).reshape(len(one.candidates), len(EVIDENCE)) for one in row.linked]
        )
        answers: list[np.ndarray | None] = []
        for one in row.linked:
            mention = one.mention
            shared = [
                (min(mention.end, gold.end) - max(mention.start, gold.start), gold.entity_ids) for gold in text.mentions
            ]
            most, ids = max(shared, key=lambda pair: pair[0], default=(0, frozenset()))
            if not one.candidates or (most <= 0 and not is_complete):
                answers.append(None)
            else:
                is_of = [most > 0 and candidate.entity_id in ids for candidate in one.candidates]
                answers.append(np.array(is_of, bool))
        right.append(answers)
    return Source(name=name, rows=kept, evidence=evidence, right=right, kb=kb)


def fit(sources: Sequence[Source], *, off: frozenset[str] = frozenset()) -> Weights:
    """Returns the weights that fit `sources` best; the evidence in `off` weighs 0."""
    used = np.array([name not in off for name in EVIDENCE])
    weights = Weights(of_evidence=(0.0,) * len(EVIDENCE), bias=0.0)
    for number in range(NUM_ROUNDS + 1):
        # The first round has no coherence yet.
        in_use = used & (np.array([name != "coherence" for name in EVIDENCE]) | (number > 0))
        tables = [_table(source) for source in sources]
        start = np.array([*weights.of_evidence, weights.bias])
        found = minimize(_loss, start, args=(tables, in_use), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
        weights = Weights(of_evidence=tuple(np.where(in_use, found[:-1], 0.0).round(4).tolist()), bias=float(found[-1]))
        if "coherence" in off:
            break
        for source in sources:
            set_coherence(source, weights)
    return weights


def set_coherence(source: Source, weights: Weights) -> None:
    """Writes the coherence under `weights` into the evidence of `source`."""
    vector = np.array(weights.of_evidence)
    for row, evidence in zip(source.rows, source.evidence, strict=True):
        if len(evidence) > 1:
            probabilities = [softmax_with_nil(one @ vector + weights.bias) for one in evidence]
            add_coherence(row.linked, evidence, probabilities, source.kb)


def _table(source: Source) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns evidence `[m, c, e]`, which candidates exist `[m, c]` and which are right `[m, c]`, padded."""
    pairs = [
        (evidence, right)
        for of_row, answers in zip(source.evidence, source.right, strict=True)
        for evidence, right in zip(of_row, answers, strict=True)
        if right is not None
    ]
    width = max((len(right) for _, right in pairs), default=1)
    table = np.zeros((len(pairs), width, len(EVIDENCE)))
    exists, is_right = np.zeros((2, len(pairs), width), bool)
    for place, (evidence, right) in enumerate(pairs):
        table[place, : len(right)], exists[place, : len(right)], is_right[place, : len(right)] = evidence, True, right
    return table, exists, is_right


def _loss(
    parameters: np.ndarray, tables: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], in_use: np.ndarray
) -> tuple[float, np.ndarray]:
    """Returns the mean cross-entropy per source, with a penalty on the weights, and its gradient."""
    weights, bias = np.where(in_use, parameters[:-1], 0.0), parameters[-1]
    value, gradient = 0.0, np.zeros_like(parameters)
    for table, exists, is_right in tables:
        scores = np.where(exists, table @ weights + bias, -np.inf)
        scores = np.concatenate([scores, np.zeros((len(scores), 1))], axis=1)  # NIL
        right = np.concatenate([is_right, ~is_right.any(axis=1, keepdims=True)], axis=1)
        scores -= scores.max(axis=1, keepdims=True)
        probabilities = np.exp(scores)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        of_right = np.where(right, probabilities, 0.0)
        total = of_right.sum(axis=1, keepdims=True).clip(1e-12)
        value -= float(np.log(total).mean())
        slope = (probabilities - of_right / total)[:, :-1] / len(table)
        gradient[:-1] += np.einsum("mc,mce->e", slope, table, optimize=True)
        gradient[-1] += slope.sum()
    value += PENALTY * float(weights @ weights)
    gradient[:-1] = np.where(in_use, gradient[:-1] + 2 * PENALTY * weights, 0.0)
    return value, gradient


def calibrate(weights: Weights, sources: Sequence[Source]) -> tuple[Weights, dict[str, float]]:
    """Returns `weights` with a factor and an addend that fit `sources` best, and these two parameters."""
    tables = [_table(source) for source in sources]
    vector = np.array(weights.of_evidence)
    # One column, the score of the fitted weights: the factor is its weight, the addend the bias.
    scored = [((table @ vector + weights.bias)[..., None], exists, right) for table, exists, right in tables]
    factor, addend = minimize(
        _loss, np.array([1.0, 0.0]), args=(scored, np.array([True])), jac=True, method="L-BFGS-B"
    ).x.tolist()
    values = tuple(round(factor * one, 4) for one in weights.of_evidence)
    calibrated = Weights(of_evidence=values, bias=round(factor * weights.bias + addend, 4))
    return calibrated, {"factor": round(factor, 4), "addend": round(addend, 4)}


def reliability(weights: Weights, source: Source) -> list[tuple[float, float, int]]:
    """Returns, by tenth of the probability of the likeliest candidate: mean probability, share right, mentions."""
    vector = np.array(weights.of_evidence)
    sums = np.zeros((_BINS, 3))
    for of_row, answers in zip(source.evidence, source.right, strict=True):
        for evidence, right in zip(of_row, answers, strict=True):
            if right is not None:
                shares = softmax_with_nil(evidence @ vector + weights.bias)
                best = int(shares.argmax())
                place = min(int(shares[best] * _BINS), _BINS - 1)
                sums[place] += shares[best], right[best], 1
    return [(a / n, b / n, int(n)) for a, b, n in sums.tolist() if n]


def composed_texts(demo: Path) -> list[GoldText]:
    """Returns the texts of the demo's pairs in the half for fitting, with their true mentions.

    Raises:
        UserError: the demo's corpus is missing or damaged.
    """
    truth = of_half(read_truth(demo / "corpus" / "truth.parquet"), "fit")
    texts = []
    for path in sorted(glob.glob(str(demo / "corpus" / "pairs-*.tar"))):
        for pair in read_shard(path):
            if not isinstance(pair, ImageText) or pair.image_id not in truth:
                continue
            mentions = tuple(
                GoldMention(
                    start=one.start,
                    end=one.end,
                    entity_ids=frozenset(() if one.entity_id is None else (one.entity_id,)),
                    kind="name",
                )
                for one in truth[pair.image_id].mentions
            )
            text_id = pair.image_id
            texts.append(
                GoldText(text_id=text_id, text=pair.text, group=text_id, half="first", kind="", mentions=mentions)
            )
    return texts


def labelled_sources(paths: Sequence[Path], kb: KnowledgeBase, ner_model: str) -> list[Source]:
    """Returns the hand-labelled texts of the first halves, one source per file.

    Raises:
        UserError: a file cannot be read.
    """
    found = []
    for path in paths:
        texts = [clean_gold(one) for one in read_gold(path) if one.half == "first"]
        found.append(source_of(path.stem, texts, rows_with_candidates(texts, kb, ner_model), kb, is_complete=True))
    return found


def write_weights(path: Path, weights: Weights, **stated: Any) -> None:
    """Writes `weights` at `path`, with what else is `stated` about them."""
    values = {name: value for name, value in zip(EVIDENCE, weights.of_evidence, strict=True) if value}
    content = {"format_version": FORMAT_VERSION, "bias": weights.bias, "weights": values, **stated}
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def content_hash(source: Source) -> str:
    """Returns a hash of the texts of `source`, their mentions and answers."""
    digest = hashlib.sha256()
    for row, answers in zip(source.rows, source.right, strict=True):
        digest.update(repr((row.pair.image_id, row.pair.text)).encode())
        for linked, right in zip(row.linked, answers, strict=True):
            ids = (
                None
                if right is None
                else [one.entity_id for one, is_of in zip(linked.candidates, right, strict=True) if is_of]
            )
            digest.update(repr((linked.mention.start, linked.mention.end, ids)).encode())
    return digest.hexdigest()


def main() -> int:
    """Returns the exit status: 0, or 2 on an error that the user can fix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="folder of a demo that has run")
    parser.add_argument("--labelled", type=Path, nargs="*", default=[], help="labelled texts that calibrate (JSONL)")
    parser.add_argument("--off", nargs="*", default=list(OFF), choices=EVIDENCE, help="evidence to leave out")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the weights")
    args = parser.parse_args()
    try:
        ner_model = str(args.demo / "tagger" / "best-model.pt")
        kb = KnowledgeBase.open(str(args.demo / "kb"))
        texts = composed_texts(args.demo)
        rows = rows_with_candidates(texts, kb, ner_model)
        sources = [source_of("composed texts", texts, rows, kb, is_complete=True)]
        fitted = fit(sources, off=frozenset(args.off))
        calibrating = labelled_sources(args.labelled, kb, ner_model)
        weights, parameters = calibrate(fitted, calibrating) if calibrating else (fitted, {})
        write_weights(
            args.output,
            weights,
            knowledge_base=kb.hash,
            fitted_on={source.name: content_hash(source) for source in sources},
            calibrated_on={source.name: content_hash(source) for source in calibrating},
            calibration=parameters,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for source in (*sources, *calibrating):
        print(f"{source.name}: {source.num_mentions} mentions; probability, share right, mentions:")
        for probability, share, count in reliability(weights, source):
            print(f"  {probability:.2f}  {share:.2f}  {count}")
    print(f"{args.output}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
