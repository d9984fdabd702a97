"""Fits the weights of the linker to texts whose links are known, and writes them with what they were fitted on.

    python infra/fit_linker.py --demo runs/demo --output weights.json [--sentence-encoder FOLDER]

Ranking and NIL are learned together: the weights minimise the cross-entropy of the right answers, an entity or NIL,
over the mentions of two sources: Wikipedia links (the first half of the articles) and composed texts (the pairs of the
demo whose entity is in the half for fitting). The labelled texts of the first halves then set three calibration
parameters: an addend, how much more popularity weighs, and, together with Wikipedia's links to entities that the base
lacks, the least probability of a link.
Rates of NIL belong to a knowledge base, so the file names it; give --demo another folder to fit to another.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.optimize import minimize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.linking.gold import GoldText, read_gold
from evaluation.linking.metrics import Link, linking_scores, wikipedia_scores
from infra.composed_sets import composed_texts
from infra.eval_linker import RememberingEncoder, clean_gold, for_base, rows_with_candidates
from infra.wikipedia_sets import candidates_of, first_half_sets
from pipeline.kb.store import KnowledgeBase
from pipeline.linking.choice import softmax_with_nil
from pipeline.linking.evidence import PLACE
from pipeline.linking.meaning import MEANING, TextComparer
from pipeline.linking.sentences import SentenceEncoder, load_sentence_encoder, sentence_encoder_fingerprint
from pipeline.linking.weights import FORMAT_VERSION, PROBABILITY_MIN, Weights
from pipeline.schema import EVIDENCE, Row, UserError
from pipeline.stages.disambiguate import TIES, add_ties, gather_rows
from pipeline.storage.disk import write_whole
from pipeline.storage.fingerprints import code_fingerprint, package_files
from pipeline.tagger.train import MODEL_NAME, TrainTaggerConfig, train_tagger
from pipeline.wiki.excerpt import fold_of

OFF = ("coherence", "graph")  # evidence that does not pay
PENALTY = 1e-3  # of the squared weights, against the mean cross-entropy (ours)
# Of proper names, and the share of Wikipedia's names outside the base that end as NIL: the least lead over all three
# decides `probability_min`.
PRECISION, RECALL, NIL_SHARE = 0.85, 0.65, 0.70
LIMITS = tuple(round(0.4 + 0.01 * step, 2) for step in range(50))  # that are tried
WEIGHT_MIN = 0.05  # in nats per unit: evidence of less weight changes nothing and takes time, so it is left out (ours)
COMPOSED_WEIGHT = 0.5  # of the composed texts, against 1 for Wikipedia's links, which are real text (ours)
FIT_FOLDER = "linking-fit"  # of a demo: bases and taggers for the fit
NUM_ROUNDS = 2  # ties between mentions depend on the weights, so these are fitted again with them
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
    weight: float = 1.0  # of the whole source in the loss
    texts: Sequence[GoldText] = ()  # what the rows are measured on

    @property
    def num_mentions(self) -> int:
        """How many mentions have a candidate and a known answer."""
        return sum(one is not None for of_row in self.right for one in of_row)


def source_of(
    name: str,
    texts: Sequence[GoldText],
    rows: Mapping[str, Row],
    kb: KnowledgeBase,
    *,
    encoder: SentenceEncoder | None = None,
    is_complete: bool,
    weight: float = 1.0,
) -> Source:
    """Returns the mentions of `rows` with the answers that `texts` state.

    Args:
        name: of the source.
        texts: labelled texts.
        rows: by text id, with candidates.
        kb: the knowledge base of the candidates.
        encoder: tells the meaning, if there is one.
        is_complete: whether a mention that overlaps no label is known to name nothing of the base; else it is left out.
        weight: of the whole source.
    """
    kept, right = [], []
    for text in texts:
        if (row := rows.get(text.text_id)) is None:
            continue
        kept.append(row)
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
    comparer = None if encoder is None else TextComparer(encoder, kb)
    evidence = gather_rows(kept, kb, frozenset(EVIDENCE), comparer)
    return Source(name=name, rows=kept, evidence=evidence, right=right, kb=kb, weight=weight, texts=list(texts))


def fit(sources: Sequence[Source], *, off: frozenset[str] = frozenset()) -> Weights:
    """Returns the weights that fit `sources` best; the evidence in `off` weighs 0."""
    used = np.array([name not in off for name in EVIDENCE])
    weights = Weights(of_evidence=(0.0,) * len(EVIDENCE), bias=0.0)
    for number in range(NUM_ROUNDS + 1):
        # The first round knows no ties yet.
        in_use = used & (np.array([name not in TIES for name in EVIDENCE]) | (number > 0))
        tables = [table_of(source) for source in sources]
        start = np.array([*weights.of_evidence, weights.bias])
        found = minimize(
            cross_entropy, start, args=(tables, in_use), jac=True, method="L-BFGS-B", options={"maxiter": 500}
        ).x
        weights = Weights(of_evidence=tuple(np.where(in_use, found[:-1], 0.0).round(4).tolist()), bias=float(found[-1]))
        if off >= TIES:
            break
        for source in sources:
            set_ties(source, weights)
    return weights


def pruned(weights: Weights) -> Weights:
    """Returns `weights` without those below `WEIGHT_MIN`."""
    kept = tuple(weight if abs(weight) >= WEIGHT_MIN else 0.0 for weight in weights.of_evidence)
    return dataclasses.replace(weights, of_evidence=kept)


def set_ties(source: Source, weights: Weights) -> None:
    """Writes the ties between mentions under `weights` into the evidence of `source`."""
    vector = np.array(weights.of_evidence)
    for row, evidence in zip(source.rows, source.evidence, strict=True):
        if len(evidence) > 1:
            probabilities = [softmax_with_nil(one @ vector + weights.bias) for one in evidence]
            add_ties(row.linked, evidence, probabilities, source.kb)


class Table(NamedTuple):
    """The mentions of a source, padded to the most candidates: m mentions, c candidates, e kinds of evidence."""

    evidence: np.ndarray  # float [m, c, e]
    exists: np.ndarray  # bool [m, c]
    is_right: np.ndarray  # bool [m, c]
    weight: float


def table_of(source: Source) -> Table:
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
    return Table(table, exists, is_right, source.weight)


def cross_entropy(parameters: np.ndarray, tables: Sequence[Table], in_use: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the mean cross-entropy over the sources, with a penalty on the weights, and its gradient."""
    weights, bias = np.where(in_use, parameters[:-1], 0.0), parameters[-1]
    value, gradient = 0.0, np.zeros_like(parameters)
    for table in tables:
        share = table.weight / sum(one.weight for one in tables)
        scores = np.where(table.exists, table.evidence @ weights + bias, -np.inf)
        scores = np.concatenate([scores, np.zeros((len(scores), 1))], axis=1)  # NIL
        right = np.concatenate([table.is_right, ~table.is_right.any(axis=1, keepdims=True)], axis=1)
        scores -= scores.max(axis=1, keepdims=True)
        probabilities = np.exp(scores)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        of_right = np.where(right, probabilities, 0.0)
        total = of_right.sum(axis=1, keepdims=True).clip(1e-12)
        value -= share * float(np.log(total).mean())
        slope = share * (probabilities - of_right / total)[:, :-1] / len(scores)
        gradient[:-1] += np.einsum("mc,mce->e", slope, table.evidence, optimize=True)
        gradient[-1] += slope.sum()
    value += PENALTY * float(weights @ weights)
    gradient[:-1] = np.where(in_use, gradient[:-1] + 2 * PENALTY * weights, 0.0)
    return value, gradient


def calibrate(
    weights: Weights, sources: Sequence[Source], *, off: frozenset[str] = frozenset()
) -> tuple[Weights, dict[str, float]]:
    """Returns `weights` with an addend and a further weight of popularity that fit `sources` best, and these two.

    Popularity has another scale in every knowledge base, and how many names a base lacks differs as much. It stays
    out if it is among the evidence in `off`.
    """
    for source in sources:
        set_ties(source, weights)
    vector, place = np.array(weights.of_evidence), PLACE["popularity"]
    # Two columns: the score of the fitted weights, which stays as it is, and the popularity.
    scored = [
        table._replace(evidence=np.stack([table.evidence @ vector + weights.bias, table.evidence[..., place]], axis=-1))
        for table in map(table_of, sources)
    ]

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        in_use = np.array([True, "popularity" not in off])
        value, gradient = cross_entropy(np.array([1.0, *parameters]), scored, in_use)
        return value, gradient[1:]

    popularity, addend = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B").x.tolist()
    values = list(weights.of_evidence)
    values[place] = round(values[place] + popularity, 4)
    calibrated = Weights(of_evidence=tuple(values), bias=round(weights.bias + addend, 4))
    return calibrated, {"popularity": round(popularity, 4), "addend": round(addend, 4)}


class Answer(NamedTuple):
    """What weights say of a mention."""

    row: Row
    place: int  # of the mention in the row
    shares: np.ndarray  # float [candidates], probabilities
    right: np.ndarray | None  # see `Source`


def answers_of(weights: Weights, source: Source) -> Iterator[Answer]:
    """Sets the ties of `source`, and yields what `weights` say of each of its mentions that has a candidate."""
    set_ties(source, weights)
    vector = np.array(weights.of_evidence)
    for row, of_row, rights in zip(source.rows, source.evidence, source.right, strict=True):
        for place, (evidence, right) in enumerate(zip(of_row, rights, strict=True)):
            if len(evidence):
                yield Answer(row, place, softmax_with_nil(evidence @ vector + weights.bias), right)


class Links:
    """The likeliest candidate of each mention of a source, to be linked where all candidates are likely enough.

    Args:
        weights: of the evidence.
        source: its mentions.
    """

    def __init__(self, weights: Weights, source: Source) -> None:
        self._found: dict[str, list[tuple[float, Link]]] = {}
        for answer in answers_of(weights, source):
            one = answer.row.linked[answer.place]
            chosen = one.candidates[int(answer.shares.argmax())].entity_id
            link = Link(start=one.mention.start, end=one.mention.end, entity_id=chosen)
            self._found.setdefault(answer.row.pair.image_id, []).append((float(answer.shares.sum()), link))

    def made(self, limit: float) -> dict[str, list[Link]]:
        """Returns the links by text id if `limit` is the least probability of all candidates together."""
        return {text_id: [link for share, link in links if share >= limit] for text_id, links in self._found.items()}


def limit_of(weights: Weights, labelled: Sequence[Source], linked: Sequence[Source]) -> float:
    """Returns the `probability_min` that leaves most room above `PRECISION`, `RECALL` and `NIL_SHARE`.

    It is the one whose least lead over them is largest; of equal ones the smallest.

    Args:
        weights: of the evidence.
        labelled: labelled texts, each of which must have the precision and the recall.
        linked: texts labelled by Wikipedia's links, which together must have the share of NIL; those without a name
            that is outside the base are left out.
    """
    of_labelled = [([for_base(text, one.kb) for text in one.texts], Links(weights, one)) for one in labelled]
    of_linked = [
        (one.texts, Links(weights, one), functools.cache(functools.partial(_num_candidates, kb=one.kb)))
        for one in linked
        if one.texts
    ]

    def least_lead(limit: float) -> float:
        leads = []
        for texts, links in of_labelled:
            scores = linking_scores(texts, links.made(limit))
            for name, goal in (("name.precision", PRECISION), ("name.recall", RECALL)):
                leads.append((scores[name].value if name in scores else 0.0) - goal)
        of_outside = [
            wikipedia_scores(texts, links.made(limit), num_candidates).get("outside_names.nil")
            for texts, links, num_candidates in of_linked
        ]
        if shares := [one for one in of_outside if one is not None]:
            num_nil, num_names = sum(one.numerator for one in shares), sum(one.denominator for one in shares)
            leads.append(num_nil / num_names - NIL_SHARE)
        return min(leads)

    return max(LIMITS, key=least_lead)


def _num_candidates(surface: str, *, kb: KnowledgeBase) -> int:
    return len(candidates_of(surface, kb))


def reliability(weights: Weights, source: Source) -> list[tuple[float, float, int]]:
    """Returns, by tenth of the probability of the likeliest candidate: mean probability, share right, mentions."""
    sums = np.zeros((_BINS, 3))
    for answer in answers_of(weights, source):
        if answer.right is not None:
            best = int(answer.shares.argmax())
            place = min(int(answer.shares[best] * _BINS), _BINS - 1)
            sums[place] += answer.shares[best], answer.right[best], 1
    return [(a / n, b / n, int(n)) for a, b, n in sums.tolist() if n]


class Taggers:
    """The demo's tagger, and for each fold of the articles that it learned from one that learned from the other alone.

    A tagger finds nearly every name of the texts that it learned from, so on these its scores would be trusted too far.

    Args:
        ner_model: the demo's tagger.
        folder: for the taggers of the folds, which are trained where they are missing or out of date.
    """

    def __init__(self, ner_model: str, folder: Path) -> None:
        self.ner_model = ner_model
        self._folder = folder

    def for_fold(self, fold: str) -> str:
        """Returns the path of the tagger for texts of `fold`; the demo's for texts of none ("")."""
        if not fold:
            return self.ner_model
        other: Literal["a", "b"] = "b" if fold == "a" else "a"
        folder = self._folder / f"tagger-of-{other}"
        config = TrainTaggerConfig(output=str(folder), fold=other)
        trained_by = folder / "trained-by.txt"
        code = code_fingerprint(package_files(("tagger/*.py", "wiki/*.py")))
        if not trained_by.is_file() or trained_by.read_text() != code:
            train_tagger(config)
            trained_by.write_text(code)
        return str(folder / MODEL_NAME)


def fitting_sources(
    demo: Path, kb: KnowledgeBase, taggers: Taggers, encoder: SentenceEncoder | None = None
) -> list[Source]:
    """Returns the composed texts of the half for fitting, and Wikipedia's links of the first half.

    Raises:
        UserError: the demo's corpus is missing or damaged.
    """
    texts = composed_texts(demo, half="fit")
    rows = rows_with_candidates(texts, kb, taggers.ner_model)
    sources = [source_of("composed texts", texts, rows, kb, encoder=encoder, is_complete=True, weight=COMPOSED_WEIGHT)]
    corpus = demo / "corpus"
    sets = first_half_sets(corpus / "kb_source.jsonl", str(corpus / "pairs-*.tar"), demo / FIT_FOLDER)
    for one in sets:
        of_set = KnowledgeBase.open(one.kb_path)
        rows = rows_with_candidates(one.texts, of_set, taggers.for_fold(one.fold))
        weight = 1 / len(sets)
        source = source_of(one.name, one.texts, rows, of_set, encoder=encoder, is_complete=False, weight=weight)
        sources.append(dataclasses.replace(source, texts=one.links))
    return sources


def labelled_sources(
    paths: Sequence[Path], kb: KnowledgeBase, taggers: Taggers, encoder: SentenceEncoder | None = None
) -> list[Source]:
    """Returns the labelled texts of the first halves, one source per file.

    Texts of the articles that a tagger learned from are those whose group is the title of one.

    Raises:
        UserError: a file cannot be read, or has no text of the first half.
    """
    found = []
    for path in paths:
        texts = [clean_gold(one) for one in read_gold(path) if one.half == "first"]
        if not texts:
            raise UserError(f"--labelled {path}: no text has the half 'first'; mark those that may calibrate with it")
        rows: dict[str, Row] = {}
        for fold in ("", "a", "b"):
            of_fold = [one for one in texts if fold_of(one.group) == fold]
            if of_fold:
                rows |= rows_with_candidates(of_fold, kb, taggers.for_fold(fold))
        found.append(source_of(path.stem, texts, rows, kb, encoder=encoder, is_complete=True))
    return found


def write_weights(path: Path, weights: Weights, **stated: Any) -> None:
    """Writes `weights` at `path`, with what else is `stated` about them."""
    values = {name: value for name, value in zip(EVIDENCE, weights.of_evidence, strict=True) if value}
    content = {
        "format_version": FORMAT_VERSION,
        "bias": weights.bias,
        "probability_min": weights.probability_min,
        "weights": values,
        **stated,
    }
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
    parser.add_argument(
        "--sentence-encoder", default="", help="folder or hub name of a sentence encoder; by default there is none"
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the weights")
    args = parser.parse_args()
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)  # before the minutes that the fit takes
        taggers = Taggers(str(args.demo / "tagger" / MODEL_NAME), args.demo / FIT_FOLDER)
        kb = KnowledgeBase.open(str(args.demo / "kb"))
        encoder = RememberingEncoder(load_sentence_encoder(args.sentence_encoder)) if args.sentence_encoder else None
        sources = fitting_sources(args.demo, kb, taggers, encoder)
        off = frozenset(args.off) | (frozenset() if encoder else {MEANING})
        fitted = pruned(fit(sources, off=off))
        calibrating = labelled_sources(args.labelled, kb, taggers, encoder)
        weights, parameters = calibrate(fitted, calibrating, off=off) if calibrating else (fitted, {})
        limit = limit_of(weights, calibrating, sources[1:]) if calibrating else PROBABILITY_MIN
        weights = dataclasses.replace(weights, probability_min=limit)
        write_weights(
            args.output,
            weights,
            knowledge_base=kb.hash,
            fitted_on={source.name: content_hash(source) for source in sources},
            calibrated_on={source.name: content_hash(source) for source in calibrating},
            calibration=parameters,
            **({"sentence_encoder": sentence_encoder_fingerprint(args.sentence_encoder)} if encoder else {}),
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
