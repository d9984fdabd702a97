"""Measures the linker on labelled texts, beside simpler rules and without each of its parts.

    python infra/eval_linker.py --gold mine.jsonl --kb runs/demo/kb --ner-model runs/demo/tagger/best-model.pt
    python infra/eval_linker.py --gold mine.jsonl --demo runs/demo

`evaluation/linking/gold.py` says how a labelled text looks. A table per file goes to the terminal, and everything to
the JSON file that --output names. With --demo, links of Wikipedia articles and composed texts are measured too.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.linking.gold import GoldText, read_gold
from evaluation.linking.metrics import (
    KIND_METRICS,
    METRICS,
    WIKIPEDIA_METRICS,
    Link,
    Share,
    linking_scores,
    wikipedia_scores,
)
from infra.composed_sets import CONCEPT_PREFIXES, composed_texts
from infra.wikipedia_sets import candidates_of, second_half_set
from pipeline.config import DisambiguateConfig
from pipeline.kb.normalise import WORD, normalise_alias
from pipeline.kb.store import KnowledgeBase
from pipeline.linking.meaning import TextComparer
from pipeline.linking.picture import PICTURE
from pipeline.linking.sentences import SentenceEncoder, load_sentence_encoder
from pipeline.linking.weights import Weights, weights_of
from pipeline.schema import EVIDENCE, ImageText, LinkedMention, Row, UserError
from pipeline.sources.clean import clean_spans
from pipeline.stages.disambiguate import answer_row, gather_rows
from pipeline.stages.find_mentions import find_rows
from pipeline.stages.propose_candidates import propose_row
from pipeline.storage.disk import write_whole
from pipeline.tagger.load import load_tagger

Linker = Callable[[Row], list[Link]]
Tables = dict[str, dict[str, dict[str, Share]]]  # set of texts to linker to metric
ALL_METRICS = (*METRICS, *KIND_METRICS, *WIKIPEDIA_METRICS)
NUM_COMPOSED = 2000
PLACE_TYPES = frozenset(("place", "country"))
_METRICS_PER_LINE = 6
# "city in Texas", "capital city of the U.S. state of Ohio", but not "city council in Norway".
_PLACE = re.compile(
    r"^(?:(?!(?:in|of|for|that|to|by)\b)[\w'.-]+,? ){0,5}(?:country|city|town|village|municipality|county|province"
    r"|islands?|continent|capital|comune|commune|archipelago|territory|state|prefecture|autonomous community|region"
    r"|borough)"
    r"(?: (?:in|of|and|on|off|located|situated|comprising)\b|[,;]|$)"
)


class RememberingEncoder(SentenceEncoder):
    """A sentence encoder that embeds no text twice: descriptions come again with each set of texts, and in each base.

    Args:
        encoder: embeds the texts.
    """

    def __init__(self, encoder: SentenceEncoder):
        self._encoder = encoder
        self._vectors: dict[str, np.ndarray] = {}
        self.device = encoder.device

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the embeddings of `texts`, float32 `[n, D]`, as the encoder does."""
        missing = sorted(set(texts).difference(self._vectors))
        self._vectors.update(zip(missing, self._encoder.embed(missing), strict=True))
        return np.stack([self._vectors[text] for text in texts]) if texts else self._encoder.embed(texts)


def clean_gold(gold: GoldText) -> GoldText:
    """Returns a labelled text as the linker reads it: cleaned, its spans moved."""
    text, spans = clean_spans(gold.text, [(one.start, one.end) for one in gold.mentions])
    mentions = tuple(
        dataclasses.replace(one, start=start, end=end) for one, (start, end) in zip(gold.mentions, spans, strict=True)
    )
    return dataclasses.replace(gold, text=text, mentions=mentions)


def rows_with_candidates(texts: Sequence[GoldText], kb: KnowledgeBase, ner_model: str) -> dict[str, Row]:
    """Returns each text's mentions with their candidates, by text id; texts without a mention are left out."""
    rows = [Row(pair=ImageText(image_id=one.text_id, image=b"", text=one.text, shard="", row=0)) for one in texts]
    outcomes = find_rows(rows, load_tagger(ner_model), kb)
    return {row.pair.image_id: propose_row(row, kb) for row in outcomes if isinstance(row, Row)}


def link_by_prior(row: Row) -> list[Link]:
    """Returns every mention that has a candidate, linked to the likeliest one."""
    return [_link(one, one.candidates[0].entity_id) for one in row.linked if one.candidates]


def rule(kb: KnowledgeBase) -> Linker:
    """Returns the rule that a linker has to beat.

    A mention is linked to its likeliest candidate where it is written with a capital, the base knows the name as a
    proper one, and the words beside it have no capital.
    """

    def link(row: Row) -> list[Link]:
        text, links = row.pair.text, []
        for one in row.linked:
            mention = one.mention
            before = WORD.findall(text[: mention.start])[-1:]
            after = WORD.findall(text[mention.end :])[:1]
            names = {entry.entity_id for entry in kb.entries(normalise_alias(mention.surface)) if entry.is_name}
            likeliest = next((candidate for candidate in one.candidates if candidate.entity_id in names), None)
            if likeliest and mention.surface[0].isupper() and not any(word[0].isupper() for word in before + after):
                links.append(_link(one, likeliest.entity_id))
        return links

    return link


def models(
    rows: Mapping[str, Row], kb: KnowledgeBase, weights: Weights, encoder: SentenceEncoder | None
) -> dict[str, Linker]:
    """Returns the linker with `weights`, it without the answer NIL, and it without each evidence that it uses.

    Without NIL every mention gets its likeliest candidate: so much of the errors is choosing the wrong one. Evidence is
    gathered once for all of them.

    Args:
        rows: what they are asked about, by text id.
        kb: the knowledge base of the candidates.
        weights: of the evidence.
        encoder: tells the meaning, if the weights need it.
    """
    default = DisambiguateConfig()
    comparer = None if encoder is None else TextComparer(encoder, kb)
    gathered = dict(zip(rows, gather_rows(list(rows.values()), kb, weights.used, comparer), strict=True))

    def linker(with_weights: Weights) -> Linker:
        def link(row: Row) -> list[Link]:
            evidence = [one.copy() for one in gathered[row.pair.image_id]]
            answered = answer_row(row, evidence, kb, default, with_weights)
            return [_link(one, one.chosen) for one in answered.linked if one.chosen is not None]

        return link

    used = weights.used.difference(PICTURE)  # texts without pictures
    parts = {f"linker without {name}": linker(weights.without(name)) for name in EVIDENCE if name in used}
    always = dataclasses.replace(weights, probability_min=0.0)
    return {"linker": linker(weights), "linker, never NIL": linker(always), **parts}


def _link(linked: LinkedMention, entity_id: str) -> Link:
    return Link(start=linked.mention.start, end=linked.mention.end, entity_id=entity_id)


def entity_kind(kb: KnowledgeBase) -> Callable[[str], str]:
    """Returns the function from an entity's id to one of `ENTITY_KINDS`.

    Concepts are what emoji and WordNet name, places what types or description say are one; the rest, companies and
    authorities, are brands.
    """

    def kind_of(entity_id: str) -> str:
        if entity_id.startswith(CONCEPT_PREFIXES):
            return "concept"
        try:
            entity = kb.entity(entity_id)
        except KeyError:  # of a label that is for another base
            return "brand"
        is_place = bool(PLACE_TYPES.intersection(entity.types)) or bool(_PLACE.search(entity.description))
        return "place" if is_place else "brand"

    return kind_of


def linkers(
    rows: Mapping[str, Row], kb: KnowledgeBase, weights: Weights, encoder: SentenceEncoder | None
) -> dict[str, Linker]:
    """Returns the rows of every table: what a linker has to beat, the linker, and it without each evidence it uses."""
    return {"likeliest candidate": link_by_prior, "rule": rule(kb), **models(rows, kb, weights, encoder)}


def evaluate(
    gold: Sequence[Path],
    kb_path: str,
    ner_model: str,
    weights: Weights,
    encoder: SentenceEncoder | None = None,
    *,
    half: str = "",
) -> Tables:
    """Returns the scores of files of labelled texts by file and half, then by linker, and prints them.

    Args:
        gold: the files.
        kb_path: folder of the knowledge base.
        ner_model: path or name of the tagger.
        weights: of the linker.
        encoder: tells the meaning, if the weights need it.
        half: the one to measure; "": all.

    Raises:
        UserError: a file, the base or the tagger cannot be read, or a file has no text of `half`.
    """
    kb = KnowledgeBase.open(kb_path)
    found: Tables = {}
    for path in gold:
        texts = [for_base(clean_gold(one), kb) for one in read_gold(path) if half in ("", one.half)]
        if not texts:
            raise UserError(f"--half {half}: {path} has no text of this half; leave --half out to measure all")
        rows = rows_with_candidates(texts, kb, ner_model)
        stem = path.stem if [one.stem for one in gold].count(path.stem) == 1 else str(path)
        for some in sorted({one.half for one in texts}):
            name = f"{stem}, {some} half" if some else stem
            found[name] = _scores(name, [one for one in texts if one.half == some], rows, kb, weights, encoder)
    return found


def for_base(gold: GoldText, kb: KnowledgeBase) -> GoldText:
    """Returns a labelled text without the entities that `kb` lacks.

    A name without any other is then one that the base lacks, and a common noun is no mention.
    """

    def is_in_base(entity_id: str) -> bool:
        try:
            return bool(kb.entity(entity_id))
        except KeyError:
            return False

    mentions = [dataclasses.replace(m, entity_ids=frozenset(filter(is_in_base, m.entity_ids))) for m in gold.mentions]
    kept = tuple(one for one in mentions if one.entity_ids or one.kind == "name")
    return dataclasses.replace(gold, mentions=kept)


def evaluate_composed(
    demo: Path, kb_path: str, ner_model: str, weights: Weights, encoder: SentenceEncoder | None = None
) -> Tables:
    """Returns the scores on texts that the demo composed and that the linker was not fitted to, and prints them.

    Args:
        demo: its folder.
        kb_path: its knowledge base.
        ner_model: path or name of the tagger.
        weights: of the linker.
        encoder: see `evaluate`.

    Raises:
        UserError: the demo's corpus is missing, or another file cannot be read.
    """
    kb = KnowledgeBase.open(kb_path)
    texts = [clean_gold(one) for one in composed_texts(demo, half="measure", most=NUM_COMPOSED)]
    name = "composed texts, half for measuring"
    return {name: _scores(name, texts, rows_with_candidates(texts, kb, ner_model), kb, weights, encoder)}


def _scores(
    name: str,
    texts: Sequence[GoldText],
    rows: Mapping[str, Row],
    kb: KnowledgeBase,
    weights: Weights,
    encoder: SentenceEncoder | None,
) -> dict[str, dict[str, Share]]:
    scores = {}
    rows = {one.text_id: rows[one.text_id] for one in texts if one.text_id in rows}
    for linker, link in linkers(rows, kb, weights, encoder).items():
        made = {text_id: link(row) for text_id, row in rows.items()}
        scores[linker] = linking_scores(texts, made, kind_of=entity_kind(kb))
    _print(name, texts, scores)
    return scores


def evaluate_wikipedia(
    demo: Path, ner_model: str, weights: Weights, folder: Path, encoder: SentenceEncoder | None = None
) -> Tables:
    """Returns the scores on Wikipedia's links, second half, by linker, and prints them.

    Args:
        demo: folder of a demo, whose base is merged with what the first half of the articles links.
        ner_model: path or name of the tagger.
        weights: of the linker.
        folder: for the merged base.
        encoder: see `evaluate`.

    Raises:
        UserError: the demo's corpus is missing, or another file cannot be read.
    """
    one = second_half_set(demo / "corpus" / "kb_source.jsonl", folder)
    kb = KnowledgeBase.open(one.kb_path)
    rows = rows_with_candidates(one.texts, kb, ner_model)
    num_candidates = functools.cache(lambda surface: len(candidates_of(surface, kb)))
    scores = {
        linker: wikipedia_scores(one.texts, {key: link(row) for key, row in rows.items()}, num_candidates)
        for linker, link in linkers(rows, kb, weights, encoder).items()
    }
    _print(one.name, one.texts, scores)
    return {one.name: scores}


def _print(name: str, texts: Sequence[GoldText], scores: Mapping[str, Mapping[str, Share]]) -> None:
    print(f"{name}: {len(texts)} texts of {len({one.group for one in texts})} groups", flush=True)
    print("\n".join(table(scores)), flush=True)


def table(scores: Mapping[str, Mapping[str, Share]]) -> list[str]:
    """Returns the lines of a table: a linker per row, value and 95 % interval of each metric."""
    metrics = [name for name in ALL_METRICS if any(name in of_linker for of_linker in scores.values())]
    lines = []
    for start in range(0, len(metrics), _METRICS_PER_LINE):
        some = metrics[start : start + _METRICS_PER_LINE]
        lines.append(f"  {'linker':<28}" + "".join(f"{name:>24}" for name in some))
        for linker, of_linker in scores.items():
            cells = [
                f"{one.value:.3f} ({one.low:.2f} to {one.high:.2f})" if (one := of_linker.get(name)) else "-"
                for name in some
            ]
            lines.append(f"  {linker:<28}" + "".join(f"{cell:>24}" for cell in cells))
    counts = {name: f"{one.denominator}" for linker in scores.values() for name, one in linker.items()}
    return [*lines, "  last row rests on: " + ", ".join(f"{name} {count}" for name, count in counts.items())]


def main() -> int:
    """Returns the exit status: 0, or 2 on an error that the user can fix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gold", type=Path, nargs="+", required=True, help="JSONL files of labelled texts")
    parser.add_argument("--kb", default="runs/demo/kb", help="folder of the knowledge base")
    parser.add_argument("--demo", type=Path, help="folder of a demo: measure Wikipedia's links and its composed texts")
    parser.add_argument(
        "--half", default="", choices=("", "first", "second"), help="half of the labelled files; by default both"
    )
    parser.add_argument(
        "--work", type=Path, help="folder for the base with Wikipedia's links; by default in the demo's"
    )
    parser.add_argument("--ner-model", default="runs/demo/tagger/best-model.pt", help="path or hub name of a tagger")
    parser.add_argument("--weights", default="", help="JSON file of the linker's weights; by default those shipped")
    parser.add_argument(
        "--sentence-encoder", default="", help="folder or hub name of a sentence encoder; by default there is none"
    )
    parser.add_argument("--output", type=Path, help="JSON file for all numbers")
    args = parser.parse_args()
    try:
        if args.output:
            args.output.parent.mkdir(parents=True, exist_ok=True)
        weights = weights_of(DisambiguateConfig(weights=args.weights, sentence_encoder=args.sentence_encoder))
        encoder = RememberingEncoder(load_sentence_encoder(args.sentence_encoder)) if args.sentence_encoder else None
        found = evaluate(args.gold, args.kb, args.ner_model, weights, encoder, half=args.half)
        if args.demo:
            folder = args.work or args.demo / "linking"
            found |= evaluate_composed(args.demo, args.kb, args.ner_model, weights, encoder)
            found |= evaluate_wikipedia(args.demo, args.ner_model, weights, folder, encoder)
        if args.output:
            plain = {
                name: {linker: {key: dataclasses.asdict(one) for key, one in of.items()} for linker, of in rows.items()}
                for name, rows in found.items()
            }
            write_whole(args.output, (json.dumps(plain, indent=1) + "\n").encode())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
