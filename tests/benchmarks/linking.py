"""Times linking without the tagger on one core: the demo's texts, texts of many ambiguous names, and one of 1 MB.

    make bench NAME=linking

The baseline reads the same texts and splits them into words (`str.split` and the pipeline's own pattern), so that
ratios hold on any machine. The steps are those of the job: find mentions (by the dictionary alone), propose
candidates, disambiguate. Each is timed on its own, after one pass that fills the caches, as in a worker that has run
for a while; the first pass is printed too. What the demo's sentence encoder takes comes on top of that.
"""

from __future__ import annotations

import argparse
import glob
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.config import DisambiguateConfig, ReadConfig
from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.kb.normalise import WORD
from pipeline.kb.store import Entity, KnowledgeBase
from pipeline.linking.meaning import TextComparer
from pipeline.linking.sentences import SentenceEncoder, load_sentence_encoder
from pipeline.linking.weights import read_weights
from pipeline.schema import ImageText, Row
from pipeline.sources.read import read_shard
from pipeline.stages.disambiguate import disambiguate_row, gather_evidence
from pipeline.stages.find_mentions import find_mentions
from pipeline.stages.propose_candidates import propose_row

NAMES, SENSES = 8, 20  # in a text, and of each name


def row_of(text: str) -> Row:
    return Row(pair=ImageText(image_id="", image=b"", text=text, shard="", row=0))


def seconds(function: Callable[[], object]) -> float:
    begin = time.process_time()
    function()
    return time.process_time() - begin


def split(texts: Sequence[str]) -> None:
    for text in texts:
        text.split()
        WORD.findall(text)


def link(texts: Sequence[str], kb: KnowledgeBase, num_candidates: int = 16) -> dict[str, float]:
    """Returns the CPU seconds of each step."""
    config, weights = DisambiguateConfig(), read_weights()
    spent = dict.fromkeys(("find mentions", "propose candidates", "disambiguate"), 0.0)
    begin = time.process_time()
    found = []
    for text in texts:
        row = row_of(text)
        found.append(Row(pair=row.pair, mentions=find_mentions(text, [], kb)))
    spent["find mentions"], begin = time.process_time() - begin, time.process_time()
    proposed = [propose_row(row, kb, num_candidates=num_candidates) for row in found]
    spent["propose candidates"], begin = time.process_time() - begin, time.process_time()
    for row in proposed:
        disambiguate_row(row, kb, config, weights)
    spent["disambiguate"] = time.process_time() - begin
    return spent


def show(title: str, texts: Sequence[str], kb: KnowledgeBase, num_candidates: int = 16) -> None:
    baseline = seconds(lambda: split(texts))
    first = sum(link(texts, kb, num_candidates).values())
    spent = link(texts, kb, num_candidates)
    total = sum(spent.values())
    print(f"{title}: {len(texts)} texts")
    print(f"  all steps            {len(texts) / total:10.0f} texts/s   {total / baseline:7.1f} x splitting into words")
    print(f"  the first pass       {len(texts) / first:10.0f} texts/s")
    for step, value in spent.items():
        print(f"  {step:<20} {len(texts) / value:10.0f} texts/s   {value / total:7.0%} of the time")


def show_meaning(texts: Sequence[str], kb: KnowledgeBase, encoder: SentenceEncoder) -> None:
    """Prints what the sentence encoder takes, once without and once with the entities in the cache."""
    comparer = TextComparer(encoder, kb)
    rows = [propose_row(Row(pair=row_of(text).pair, mentions=find_mentions(text, [], kb)), kb) for text in texts]
    evidence = [gather_evidence(row, kb, frozenset()) for row in rows]
    for title in ("first pass", "entities in the cache"):
        spent = 0.0
        for start in range(0, len(rows), ReadConfig().rows_per_batch):
            part = slice(start, start + ReadConfig().rows_per_batch)
            spent += seconds(lambda part=part: comparer.add_meaning(rows[part], evidence[part]))  # type: ignore[misc]
        print(f"  sentence encoder, {title}: {len(texts) / spent:.0f} texts/s")


def ambiguous_base(folder: Path) -> KnowledgeBase:
    """Returns a base of `NAMES` names with `SENSES` meanings each, which are tied to each other and described."""
    with KnowledgeBaseWriter(str(folder)) as writer:
        for name in range(NAMES):
            for sense in range(SENSES):
                writer.add(
                    Entity(
                        entity_id=f"Q{name}-{sense}",
                        label=f"Name{chr(65 + name)}",
                        description=f"thing of kind{sense} in the place{name} that word{name * SENSES + sense} tells",
                        types=(f"kind{sense}",),
                        popularity=float(sense),
                        links=tuple(f"Q{other}-{sense}" for other in range(NAMES) if other != name),
                    )
                )
        writer.commit(source="synthetic", source_sha256="")
    return KnowledgeBase.open(str(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="folder of a demo that has run")
    parser.add_argument("--texts", type=int, default=5000, help="of the demo")
    args = parser.parse_args()
    pairs = [pair for path in sorted(glob.glob(str(args.demo / "corpus" / "pairs-*.tar"))) for pair in read_shard(path)]
    texts = [pair.text for pair in pairs if isinstance(pair, ImageText)][: args.texts]
    kb = KnowledgeBase.open(str(args.demo / "kb"))
    show("the demo's texts", texts, kb)
    show_meaning(texts, kb, load_sentence_encoder(str(args.demo / "sentence-encoder")))
    with tempfile.TemporaryDirectory() as folder:
        names = " and ".join(f"Name{chr(65 + name)} word{name}" for name in range(NAMES))
        many = [f"{names} in the place{number} of kind{number % SENSES}" for number in range(500)]
        show(f"{NAMES} names of {SENSES} meanings each", many, ambiguous_base(Path(folder)), SENSES)
    long = " ".join(texts).lower()
    long = (long * (1 + 1_000_000 // len(long)))[:1_000_000]
    spent = link([long], kb)
    print(f"a text of 1 MB in small letters: {sum(spent.values()):.2f} s")


if __name__ == "__main__":
    main()
