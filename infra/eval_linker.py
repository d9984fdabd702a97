"""Measures the linker on labelled texts, beside simpler rules and without each of its parts.

    python infra/eval_linker.py --gold mine.jsonl --kb runs/demo/kb --ner-model runs/demo/tagger/best-model.pt

`evaluation/linking/gold.py` says how a labelled text looks. A table per file goes to the terminal, and everything to
the JSON file that --output names.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.linking.gold import GoldText, read_gold
from evaluation.linking.metrics import METRICS, Link, Share, linking_scores
from pipeline.config import DisambiguateConfig
from pipeline.kb.normalise import WORD, normalise_alias
from pipeline.kb.store import KnowledgeBase
from pipeline.linking.weights import Weights, read_weights
from pipeline.schema import EVIDENCE, ImageText, LinkedMention, Row, UserError
from pipeline.sources.clean import clean_spans
from pipeline.stages.disambiguate import disambiguate_row
from pipeline.stages.find_mentions import find_rows
from pipeline.stages.propose_candidates import propose_row
from pipeline.storage.disk import write_whole
from pipeline.tagger.load import load_tagger

Linker = Callable[[Row], list[Link]]


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


def model(kb: KnowledgeBase, weights: Weights) -> Linker:
    """Returns the linker with `weights`."""
    config = DisambiguateConfig()

    def link(row: Row) -> list[Link]:
        answered = disambiguate_row(row, kb, config, weights)
        return [_link(one, one.chosen) for one in answered.linked if one.chosen is not None]

    return link


def _link(linked: LinkedMention, entity_id: str) -> Link:
    return Link(start=linked.mention.start, end=linked.mention.end, entity_id=entity_id)


def table(scores: dict[str, dict[str, Share]]) -> list[str]:
    """Returns the lines of a table: a linker per row, value and 95 % interval of each metric."""
    lines = [f"  {'linker':<28}" + "".join(f"{name:>24}" for name in METRICS)]
    for linker, of_linker in scores.items():
        cells = [
            f"{one.value:.3f} ({one.low:.2f} to {one.high:.2f})" if (one := of_linker.get(name)) else "-"
            for name in METRICS
        ]
        lines.append(f"  {linker:<28}" + "".join(f"{cell:>24}" for cell in cells))
    counts = {name: f"{one.denominator}" for linker in scores.values() for name, one in linker.items()}
    return [*lines, "  last row rests on: " + ", ".join(f"{name} {count}" for name, count in counts.items())]


def evaluate(
    gold: Sequence[Path], kb_path: str, ner_model: str, weights: Weights
) -> dict[str, dict[str, dict[str, Share]]]:
    """Returns the scores by file and half, then by linker, and prints them.

    Raises:
        UserError: a file, the base or the tagger cannot be read.
    """
    kb = KnowledgeBase.open(kb_path)
    linkers: dict[str, Linker] = {"likeliest candidate": link_by_prior, "rule": rule(kb), "linker": model(kb, weights)}
    for name in EVIDENCE:
        if name in weights.used:
            linkers[f"linker without {name}"] = model(kb, weights.without(name))
    found: dict[str, dict[str, dict[str, Share]]] = {}
    for path in gold:
        texts = [clean_gold(one) for one in read_gold(path)]
        rows = rows_with_candidates(texts, kb, ner_model)
        for half in sorted({one.half for one in texts}):
            of_half = [one for one in texts if one.half == half]
            name = f"{path.stem}, {half} half" if half else path.stem
            print(f"{name}: {len(of_half)} texts of {len({one.group for one in of_half})} groups", flush=True)
            found[name] = {
                linker: linking_scores(of_half, {key: link(row) for key, row in rows.items()})
                for linker, link in linkers.items()
            }
            print("\n".join(table(found[name])), flush=True)
    return found


def main() -> int:
    """Returns the exit status: 0, or 2 on an error that the user can fix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gold", type=Path, nargs="+", required=True, help="JSONL files of labelled texts")
    parser.add_argument("--kb", default="runs/demo/kb", help="folder of the knowledge base")
    parser.add_argument("--ner-model", default="runs/demo/tagger/best-model.pt", help="path or hub name of a tagger")
    parser.add_argument("--weights", default="", help="JSON file of the linker's weights; by default those shipped")
    parser.add_argument("--output", type=Path, help="JSON file for all numbers")
    args = parser.parse_args()
    try:
        found = evaluate(args.gold, args.kb, args.ner_model, read_weights(args.weights))
        if args.output:
            args.output.parent.mkdir(parents=True, exist_ok=True)
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
