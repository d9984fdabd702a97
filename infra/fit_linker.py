"""Fits the linker's weights to pairs whose truth is known, and prints what they give on the pairs of even and odd keys.

    python infra/fit_linker.py --demo runs/demo

The weights minimise the cross-entropy of the right answer, an entity or NIL, over the mentions of even keys. Mentions
count by `SHARES`, since most are easy: shared names with context are what linking is for, and names that the base
lacks must end as NIL. Weights that few mentions inform (coherence, further scorers) stay as they are, and the fit does
without what they add.
"""

from __future__ import annotations

import argparse
import dataclasses
import glob
import math
import sys
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.demo.labels import FoundMention, PairTruth, is_untuned, linking_metrics, read_truth
from pipeline.config import DisambiguateConfig
from pipeline.kb.store import KnowledgeBase
from pipeline.schema import ImageText, Row
from pipeline.sources.read import read_shard
from pipeline.stages.disambiguate import PRIOR_MIN, disambiguate_row, gather_evidence
from pipeline.stages.find_mentions import find_rows
from pipeline.stages.propose_candidates import NUM_CANDIDATES_MAX, propose_row
from pipeline.tagger.load import load_tagger

SHARES = {"ambiguous": 4.0, "nil": 5.5, "other": 1.0}
CANDIDATE_WEIGHTS = ("prior_weight", "text_weight", "seen_weight", "kind_weight")
NIL_WEIGHTS = ("nil_bias", "nil_context_weight", "nil_word_weight")
NO_CANDIDATE = -1e4


def read_rows(demo: Path, kb: KnowledgeBase) -> dict[str, Row]:
    """Returns the rows of the demo's pairs with their candidates, by key."""
    tagger = load_tagger(str(demo / "tagger" / "best-model.pt"))
    found: dict[str, Row] = {}
    for path in sorted(glob.glob(str(demo / "corpus" / "pairs-*.tar"))):
        rows = tuple(Row(pair=pair) for pair in read_shard(path) if isinstance(pair, ImageText))
        kept = [row for row in find_rows(rows, tagger, kb) if isinstance(row, Row)]
        found |= {row.pair.image_id: propose_row(row, kb) for row in kept}
    return found


def features(
    rows: dict[str, Row], truth: dict[str, PairTruth], kb: KnowledgeBase, config: DisambiguateConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns evidence `[m, candidates + 1, weights]`, NIL last; offsets of it; right answers; weights of mentions."""
    evidence, offsets, answers, shares = [], [], [], []
    for key, row in rows.items():
        if is_untuned(key):
            continue
        for linked, one in zip(row.linked, gather_evidence(row, kb), strict=True):
            mention = linked.mention
            true = [m for m in truth[key].mentions if m.start < mention.end and mention.start < m.end]
            ids = [candidate.entity_id for candidate in one.candidates]
            if not true or not ids or (true[0].entity_id is not None and true[0].entity_id not in ids):
                continue
            table = np.zeros((NUM_CANDIDATES_MAX + 1, len(CANDIDATE_WEIGHTS) + len(NIL_WEIGHTS)))
            offset = np.full(NUM_CANDIDATES_MAX + 1, NO_CANDIDATE)
            offset[: len(ids)] = offset[-1] = 0.0
            for place, c in enumerate(one.candidates):
                table[place, :4] = math.log(max(c.prior, PRIOR_MIN)), c.text_score, c.seen_share, c.kind_evidence
            table[-1, 4:] = 1.0, one.said / (one.said + config.context_saturation), 1 / one.num_name_words
            right = true[0].entity_id
            kind = "nil" if right is None else "ambiguous" if true[0].ambiguous else "other"
            evidence.append(table)
            offsets.append(offset)
            answers.append(NUM_CANDIDATES_MAX if right is None else ids.index(right))
            shares.append(SHARES[kind])
    return np.array(evidence), np.array(offsets), np.array(answers), np.array(shares)


def measure(
    rows: dict[str, Row], truth: dict[str, PairTruth], kb: KnowledgeBase, config: DisambiguateConfig
) -> dict[str, dict[str, float]]:
    """Returns the metrics of the links on the pairs of even keys and of odd keys."""
    found = {}
    for key, row in rows.items():
        found[key] = tuple(
            FoundMention(
                start=one.mention.start,
                end=one.mention.end,
                chosen=one.chosen,
                prior_choice=one.candidates[0].entity_id if one.candidates else None,
                similarity=None,
                seen_shares={candidate.entity_id: candidate.seen_share for candidate in one.candidates},
            )
            for one in disambiguate_row(row, kb, config).linked
        )
    halves = {"even": False, "odd": True}
    return {
        name: linking_metrics({key: pair for key, pair in truth.items() if is_untuned(key) == is_odd}, found)
        for name, is_odd in halves.items()
    }


def main() -> None:
    """Prints the metrics of today's weights, then the fitted weights and theirs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="folder of a demo that has run")
    demo = parser.parse_args().demo
    kb, truth = KnowledgeBase.open(str(demo / "kb")), read_truth(demo / "corpus" / "truth.parquet")
    rows = read_rows(demo, kb)
    config = DisambiguateConfig()
    evidence, offsets, answers, shares = features(rows, truth, kb, config)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        scores = evidence @ weights + offsets
        scores -= scores.max(axis=1, keepdims=True)
        probabilities = np.exp(scores)
        sums = probabilities.sum(axis=1, keepdims=True)
        right = np.arange(len(answers)), answers
        value = shares @ (np.log(sums[:, 0]) - scores[right]) / shares.sum()
        probabilities /= sums
        probabilities[right] -= 1
        gradient = np.einsum("m,mc,mcw->w", shares, probabilities, evidence, optimize=True) / shares.sum()
        return value + 1e-4 * weights @ weights, gradient + 2e-4 * weights

    names = CANDIDATE_WEIGHTS + NIL_WEIGHTS
    start = np.array([getattr(config, name) for name in names])
    fitted = minimize(loss, start, jac=True, method="L-BFGS-B").x.round(2)
    weights = dict(zip(names, fitted.tolist(), strict=True))
    for title, one in (("as it is", config), ("fitted", dataclasses.replace(config, **weights))):
        print(title, {name: getattr(one, name) for name in names})
        for half, values in measure(rows, truth, kb, one).items():
            print(f"  {half} keys")
            for name, value in values.items():
                print(f"    {name:<40} {value:.4f}")


if __name__ == "__main__":
    main()
