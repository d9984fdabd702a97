"""A small mined set in which rows end in every way, made by the real jobs with a stand-in for the models."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from pipeline import build_i2e as command
from pipeline.build_i2e import BuildI2EConfig, build_i2e
from pipeline.config import (
    AnnotateConfig,
    AssembleConfig,
    SelectLabelsConfig,
    UnitConfig,
    VerifyConfig,
    VocabularyConfig,
)
from pipeline.images.decode import decode_image
from pipeline.jobs.annotate import Models, model_stages
from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.kb.store import Entity
from pipeline.row_stage import RowStage
from pipeline.runners import RunnerConfig
from pipeline.schema import Candidate, LinkedMention, Mention, Rejection, Row
from tests.fakes import pair, write_encoder_stub, write_tar

# Cleaning a text removes the tags that HTML pages are made of, and leaves this one.
SCRIPT = "<audio src=x onerror=alert(1)>"
SCRIPT_NAME = "Entity <script>alert(3)</script>"  # of E3
SELECT = SelectLabelsConfig(min_similarity=0.2)
NO_VERIFIER = VerifyConfig()
ONE_UNIT_PER_FILE = UnitConfig(unit_rows=0)
# The number of a row is a hundred times its similarity to whatever it is linked to.
SHARDS = {
    "pairs-0": [
        *pair("a", "E1 here", 90),
        *pair("b", f"E1 {SCRIPT}", 80),
        *pair("c", "E1|E2 and E2", 70),
        *pair("d", "nothing", 4),
        pair("e", "", 5)[0],
        *pair("f", "E1|E2?", 6),
        *pair("g", "E2|E3 E2", 60),
        *pair("h", "E3 once", 65),
        *pair("i", "E1 unlike it", 10),
        *pair("j", "E2 unlike it", 15),
    ],
    "pairs-1": [
        *pair("k", "E1", 90),  # the picture of a
        *pair("a", "E2", 61),  # an id seen before
        *pair("l", "E77", 62),
        *pair("m", "E1!", 63),
        *pair("n", "FAIL", 64),
    ],
}


class ScriptedLinker(RowStage):
    """Reads the links from the text: "E1|E2" may mean E1 or E2 and means E1 with 0.7; "E1|E2?" means neither.

    "E2" alone means it with 0.9, "E1!" with 0.4 (too unsure for the assembly), and "E77" is not in the base. The
    similarity of all candidates is the red of the picture in hundredths.
    """

    name = "find_mentions"

    def run(self, rows):
        return [self._link(row) for row in rows]

    def _link(self, row: Row) -> Row | Rejection:
        if row.pair.text == "FAIL":
            return row.rejected(stage="find_mentions", reason="timeout", retryable=True)
        picture = decode_image(row.pair.image)
        row = dataclasses.replace(row, width_px=picture.width, height_px=picture.height)
        similarity = picture.convert("RGB").getpixel((0, 0))[0] / 100
        linked = []
        for match in re.finditer(r"(E\d+)(?:\|(E\d+))?([?!]?)", row.pair.text):
            first, second, mark = match.groups()
            mention = Mention(start=match.start(), end=match.end(), surface=match[0], score=0.8, finder="tagger")
            if second is None:
                shares = {first: 0.4 if mark else 0.9}
            else:
                shares = {first: 0.4, second: 0.2} if mark else {second: 0.2, first: 0.7}
            chosen = None if mark == "?" else first
            candidates = tuple(
                Candidate(entity_id=one, prior=0.5, score=share, similarity=None if chosen is None else similarity)
                for one, share in shares.items()
            )
            probability = 0.4 if chosen is None else shares[first]
            if first == "E77":
                candidates, chosen, probability = (), None, 0.0
            linked.append(LinkedMention(mention=mention, candidates=candidates, chosen=chosen, probability=probability))
        row = dataclasses.replace(row, linked=tuple(linked))
        if not linked:
            return row.rejected(stage="find_mentions", reason="no_mention")
        if not any(one.candidates for one in linked):
            return row.rejected(stage="propose_candidates", reason="no_candidate")
        if all(one.chosen is None for one in linked):
            return row.rejected(stage="disambiguate", reason="all_nil")
        return row


def _stages(models: Models, config: AnnotateConfig) -> list:
    """Returns the stand-in for the linker and, if the config asks for it, the real stage that verifies links."""
    if config.verify.verifier is None:
        return [ScriptedLinker()]
    return [ScriptedLinker(), model_stages(models, config)[-1]]


def mine(
    folder: Path,
    *,
    select: SelectLabelsConfig = SELECT,
    verify: VerifyConfig = NO_VERIFIER,
    max_failed_share: float = 0.5,
    output: str = "i2e",
    units: UnitConfig = ONE_UNIT_PER_FILE,
    from_set: str | None = None,
) -> Path:
    """Returns the folder of the set that it mines in `folder`; entities need two images.

    Knowledge base and inputs are written unless the folder has them.
    """
    if not (folder / "kb").exists():
        with KnowledgeBaseWriter(str(folder / "kb")) as writer:
            for number in range(5):
                label = SCRIPT_NAME if number == 3 else f"Entity {number}"
                writer.add(Entity(entity_id=f"E{number}", label=label, description=f"the {number}"))
            writer.commit(source="fake", source_sha256="0")
        write_encoder_stub(folder / "encoder")
        (folder / "tagger.pt").write_bytes(b"tagger")
        for name, members in SHARDS.items():
            write_tar(folder / f"{name}.tar", members)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "model_stages", _stages)
        build_i2e(
            BuildI2EConfig(
                input=str(folder / "pairs-*.tar"),
                kb=str(folder / "kb"),
                ner_model=str(folder / "tagger.pt"),
                encoder=str(folder / "encoder"),
                output=str(folder / output),
                units=units,
                from_set=from_set,
                annotate=AnnotateConfig(verify=verify),
                assemble=AssembleConfig(
                    select=select,
                    vocabulary=VocabularyConfig(min_images_per_entity=2),
                    max_failed_share=max_failed_share,
                ),
                runner=RunnerConfig(workers=1),
            )
        )
    return folder / output
