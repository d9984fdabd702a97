"""Fits the weights of what pictures say, for names that the text leaves open, and measures what they gain.

    python infra/fit_picture.py --demo runs/demo --weights weights.json [--sentence-encoder FOLDER]

The weights of the text stay as they are: two numbers are added to the file, a weight of `picture` and one of
`compared`. They are fitted to the composed pairs of the half for fitting, and measured on the other half; of both, only
the pairs of shards that the demo's encoder was not trained on. `make fit-linker` runs it after the text is fitted.
"""

from __future__ import annotations

import argparse
import dataclasses
import glob
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.demo.labels import FoundMention, PairTruth, TrueMention, linking_cases, of_half, read_truth, shares
from infra.fit_linker import Source, cross_entropy, table_of
from pipeline.config import DisambiguateConfig, ScoreConfig
from pipeline.kb.store import KnowledgeBase
from pipeline.linking.evidence import PLACE
from pipeline.linking.meaning import TextComparer
from pipeline.linking.picture import PICTURE, in_doubt
from pipeline.linking.sentences import load_sentence_encoder
from pipeline.linking.weights import Weights, weights_of
from pipeline.schema import EVIDENCE, ImageText, LinkedMention, Rejection, Row, UserError
from pipeline.sources.read import read_shard
from pipeline.stages.disambiguate import answer_row, gather_rows
from pipeline.stages.find_mentions import find_rows
from pipeline.stages.propose_candidates import propose_row
from pipeline.stages.score_images import ImageScorer
from pipeline.storage.disk import write_whole
from pipeline.tagger.load import load_tagger
from pipeline.tagger.train import MODEL_NAME
from trainer.encoder import Encoder

METRICS = (
    "ambiguous_accuracy",
    "ambiguous_accuracy_no_context",
    "nil_accuracy",
    "refused",
    "strays_linked",
    "linking.precision",
    "linking.recall",
)
_BATCH_SIZE = 64


class Cost(NamedTuple):
    """What pictures cost, over the pairs of one half."""

    num_mentions: int
    num_in_doubt: int
    num_linked_rows: int  # whose pictures the filter opens anyway
    num_further_rows: int  # whose pictures are opened because of doubt alone
    seconds: float  # of all pictures that are in doubt


def held_out_pairs(demo: Path) -> list[ImageText]:
    """Returns the pairs of the demo's corpus in the shards that its filter's encoder was not trained on.

    Raises:
        UserError: the record of the training pairs is missing, or the encoder was trained on all shards.
    """
    record = demo / "pairs" / "manifest.json"
    try:
        inputs = json.loads(record.read_text(encoding="utf-8"))["inputs"]
        trained_on = {Path(one["path"]).name for one in inputs}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{record}: cannot be read ({error}); run make demo") from None
    paths = [
        path for path in sorted(glob.glob(str(demo / "corpus" / "pairs-*.tar"))) if Path(path).name not in trained_on
    ]
    if not paths:
        raise UserError(
            f"{demo / 'corpus'}: the encoder was trained on all shards (see {record}); train one on a part of them"
        )
    return [pair for path in paths for pair in read_shard(path) if isinstance(pair, ImageText)]


def text_only(weights: Weights) -> Weights:
    """Returns `weights` without those of the picture."""
    for name in PICTURE:
        weights = weights.without(name)
    return weights


def with_picture(weights: Weights, *, picture: float, compared: float) -> Weights:
    """Returns `weights` with these two of the picture."""
    values = list(weights.of_evidence)
    values[PLACE["picture"]], values[PLACE["compared"]] = picture, compared
    return dataclasses.replace(weights, of_evidence=tuple(values))


def fit_picture(source: Source, weights: Weights) -> Weights:
    """Returns `weights` with those of the picture that fit `source` best; the others stay.

    Args:
        source: mentions that were compared, with the evidence of the picture.
        weights: of the text.
    """
    vector, place = np.array(text_only(weights).of_evidence), PLACE["picture"]
    table = table_of(source)
    # Two columns: the score by the text, whose weight stays 1, and the picture. Every candidate was compared, so the
    # weight of that is an addend.
    columns = np.stack([table.evidence @ vector + weights.bias, table.evidence[..., place]], axis=-1)
    scored = [table._replace(evidence=columns)]

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = cross_entropy(np.array([1.0, *parameters]), scored, np.array([True, True]))
        return value, gradient[1:]

    picture, compared = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B").x.tolist()
    return with_picture(weights, picture=round(picture, 4), compared=round(compared, 4))


def compared_source(rows: Sequence[Row | Rejection], truth: Mapping[str, PairTruth], kb: KnowledgeBase) -> Source:
    """Returns the mentions of `rows` that were compared with the picture, with the answers that `truth` states."""
    kept, evidence = [], []
    right: list[list[np.ndarray | None]] = []
    for row in rows:
        image_id = row.pair.image_id if isinstance(row, Row) else row.image_id
        for linked in row.linked:
            table = np.array([candidate.evidence for candidate in linked.candidates])
            if table.size == 0 or not table[0, PLACE["compared"]]:
                continue
            entity_id = true_entity(linked, truth[image_id].mentions)
            kept.append(Row(pair=_pair(image_id), linked=(linked,)))
            evidence.append([table])
            right.append([np.array([one.entity_id == entity_id for one in linked.candidates])])
    return Source(name="composed pairs", rows=kept, evidence=evidence, right=right, kb=kb)


def true_entity(linked: LinkedMention, mentions: Sequence[TrueMention]) -> str | None:
    """Returns the entity of the true mention that shares most characters with `linked`; None if there is none."""
    start, end = linked.mention.start, linked.mention.end
    overlaps = [(min(end, one.end) - max(start, one.start), one.entity_id) for one in mentions]
    most, entity_id = max(overlaps, key=lambda pair: pair[0], default=(0, None))
    return entity_id if most > 0 else None


def link_by_text(
    pairs: Sequence[ImageText], kb: KnowledgeBase, ner_model: str, config: DisambiguateConfig, weights: Weights
) -> list[Row]:
    """Returns the pairs that have a mention, each answered by its text."""
    outcomes = find_rows([Row(pair=pair) for pair in pairs], load_tagger(ner_model), kb)
    rows = [propose_row(one, kb) for one in outcomes if isinstance(one, Row)]
    comparer = TextComparer(load_sentence_encoder(config.sentence_encoder), kb) if config.sentence_encoder else None
    gathered = gather_rows(rows, kb, text_only(weights).used, comparer)
    return [
        answer_row(row, evidence, kb, config, text_only(weights)) for row, evidence in zip(rows, gathered, strict=True)
    ]


def ask_pictures(
    rows: Sequence[Row], encoder: Encoder, kb: KnowledgeBase, config: DisambiguateConfig, weights: Weights
) -> tuple[list[Row | Rejection], Cost]:
    """Returns `rows`, those in doubt answered again with their pictures, and what it cost.

    Args:
        rows: answered by their texts.
        encoder: compares pictures with entities.
        kb: the knowledge base.
        config: of the choice.
        weights: with a weight of the picture.
    """
    scorer = ImageScorer(encoder, kb, ScoreConfig(batch_size=_BATCH_SIZE), config, weights)
    mentions = [linked for row in rows for linked in row.linked]
    places = [i for i, row in enumerate(rows) if any(in_doubt(one, config, weights) for one in row.linked)]
    answered: list[Row | Rejection] = list(rows)
    started = time.monotonic()
    for first in range(0, len(places), _BATCH_SIZE):
        batch = places[first : first + _BATCH_SIZE]
        for place, outcome in zip(batch, scorer.score_rows([rows[place] for place in batch]), strict=True):
            answered[place] = outcome
    is_linked = [any(one.chosen is not None for one in row.linked) for row in rows]
    cost = Cost(
        num_mentions=len(mentions),
        num_in_doubt=sum(in_doubt(one, config, weights) for one in mentions),
        num_linked_rows=sum(is_linked),
        num_further_rows=sum(not is_linked[place] for place in places),
        seconds=time.monotonic() - started,
    )
    return answered, cost


def measure(rows: Sequence[Row | Rejection], truth: Mapping[str, PairTruth]) -> dict[str, float]:
    """Returns the metrics of links over the pairs of `truth`; a pair without a row has no found mention."""
    found: dict[str, tuple[FoundMention, ...]] = {}
    for row in rows:
        image_id = row.pair.image_id if isinstance(row, Row) else row.image_id
        found[image_id] = tuple(
            FoundMention(
                start=one.mention.start, end=one.mention.end, chosen=one.chosen, prior_choice=None, similarity=None
            )
            for one in row.linked
        )
    values = shares(linking_cases(dict(truth), found))
    return {name: values[key] for name in METRICS if (key := f"labels.{name}") in values}


def write_weights(path: Path, stated: Path, weights: Weights, *, fitted_on: str, encoder: str) -> None:
    """Writes the file `stated` with the picture's weights among its own, and what these were fitted on, at `path`."""
    content = json.loads(stated.read_text(encoding="utf-8"))
    content["weights"] = {name: value for name, value in zip(EVIDENCE, weights.of_evidence, strict=True) if value}
    content["picture_fitted_on"] = {"composed pairs": fitted_on, "encoder": encoder}
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def content_hash(source: Source) -> str:
    """Returns a hash of the mentions of `source` and their answers."""
    digest = hashlib.sha256()
    for row, [right] in zip(source.rows, source.right, strict=True):
        [linked] = row.linked
        ids = (
            []
            if right is None
            else [one.entity_id for one, is_of in zip(linked.candidates, right, strict=True) if is_of]
        )
        digest.update(repr((row.pair.image_id, linked.mention.start, linked.mention.end, ids)).encode())
    return digest.hexdigest()


def _pair(image_id: str) -> ImageText:
    return ImageText(image_id=image_id, image=b"", text="", shard="", row=0)


def run(demo: Path, weights_path: Path, output: Path, sentence_encoder: str = "") -> None:
    """Fits the picture's weights, writes them beside those of the text, and prints what they gain and cost.

    Raises:
        UserError: a file of the demo or the weights cannot be read.
    """
    config = DisambiguateConfig(weights=str(weights_path), sentence_encoder=sentence_encoder)
    weights = text_only(weights_of(config))
    truth = read_truth(demo / "corpus" / "truth.parquet")
    kb = KnowledgeBase.open(str(demo / "kb"))
    try:
        encoder = Encoder.load(str(demo / "models" / "bootstrap" / "encoder"), batch_size=_BATCH_SIZE)
    except ValueError as error:
        raise UserError(str(error)) from error
    pairs = held_out_pairs(demo)
    rows = link_by_text(pairs, kb, str(demo / "tagger" / MODEL_NAME), config, weights)
    halves = {half: [row for row in rows if truth[row.pair.image_id].half == half] for half in ("fit", "measure")}
    asking = with_picture(weights, picture=1.0, compared=0.0)  # any weight: what is compared does not depend on it
    source = compared_source(ask_pictures(halves["fit"], encoder, kb, config, asking)[0], truth, kb)
    if not source.rows:
        raise UserError(f"{demo}: no name is in doubt, so there is nothing to fit")
    fitted = fit_picture(source, weights)
    write_weights(output, weights_path, fitted, fitted_on=content_hash(source), encoder=encoder.hash)
    print(f"{output}: picture {fitted.of_evidence[PLACE['picture']]}, compared {fitted.of_evidence[PLACE['compared']]}")
    answered, cost = ask_pictures(halves["measure"], encoder, kb, config, fitted)
    measured = of_half({pair.image_id: truth[pair.image_id] for pair in pairs}, "measure")
    before, after = measure(halves["measure"], measured), measure(answered, measured)
    print(f"{len(measured)} pairs that neither the linker was fitted to nor the encoder was trained on:")
    print(f"  {'':32}{'text':>8}{'picture':>9}")
    for name in METRICS:
        if name in before:
            print(f"  {name:32}{before[name]:8.3f}{after[name]:9.3f}")
    print(
        f"  in doubt: {cost.num_in_doubt} of {cost.num_mentions} mentions; pictures opened for that alone: "
        f"{cost.num_further_rows}, beside {cost.num_linked_rows} that the filter opens; {cost.seconds:.1f} s"
    )


def main() -> int:
    """Returns the exit status: 0, or 2 on an error that the user can fix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="folder of a demo that has run")
    parser.add_argument("--weights", type=Path, required=True, help="JSON file with the weights of the text")
    parser.add_argument("--output", type=Path, help="JSON file for all weights; default: the file of --weights")
    parser.add_argument("--sentence-encoder", default="", help="the one that the weights of the text were fitted with")
    args = parser.parse_args()
    try:
        run(args.demo, args.weights, args.output or args.weights, args.sentence_encoder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
