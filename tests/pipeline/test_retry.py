"""Failed rows are run again, and the set is the one that it would have been."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline import build_i2e as command
from pipeline import retry
from pipeline.build_i2e import BuildI2EConfig, build_i2e
from pipeline.config import AssembleConfig, SelectLabelsConfig, UnitConfig, VocabularyConfig
from pipeline.runners import RunnerConfig
from pipeline.schema import Rejection, Row
from tests.fakes import FakeLinker, pair, write_encoder_stub, write_knowledge_base, write_tar


class HealedLinker(FakeLinker):
    """Links the texts that the other fails at, and notes in a file which rows it saw."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def run(self, rows: Sequence[Row]) -> list[Row | Rejection]:
        with open(self.path, "a") as file:
            file.writelines(row.pair.image_id + "\n" for row in rows)
        return super().run(
            [
                dataclasses.replace(row, pair=dataclasses.replace(row.pair, text=row.pair.text.replace("FAIL", "E1")))
                for row in rows
            ]
        )


@pytest.fixture
def config(tmp_path: Path) -> BuildI2EConfig:
    write_knowledge_base(tmp_path / "kb")
    write_encoder_stub(tmp_path / "encoder")
    (tmp_path / "tagger.pt").touch()
    texts = {"pairs-0": ["E1", "FAIL", "nothing", "E2 E1"], "pairs-1": ["E2", "E1"]}
    for shade, (name, of_shard) in enumerate(texts.items()):
        rows = (pair(f"{name}/{row}", text, 10 * shade + row) for row, text in enumerate(of_shard))
        write_tar(tmp_path / f"{name}.tar", [member for row in rows for member in row])
    select = SelectLabelsConfig(min_similarity=-1.0)
    return BuildI2EConfig(
        input=str(tmp_path / "pairs-*.tar"),
        kb=str(tmp_path / "kb"),
        ner_model=str(tmp_path / "tagger.pt"),
        encoder=str(tmp_path / "encoder"),
        output=str(tmp_path / "i2e"),
        units=UnitConfig(unit_rows=0),
        assemble=AssembleConfig(
            select=select, vocabulary=VocabularyConfig(min_images_per_entity=2), max_failed_share=0.5
        ),
        runner=RunnerConfig(workers=1),
    )


def digests(folder: str) -> dict[str, str]:
    paths = [path for path in Path(folder).rglob("*") if path.is_file() and path.name not in ("command.json",)]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.parametrize("is_torn", [False, True])
def test_only_the_failed_rows_are_run_and_the_set_is_as_if_they_had_not_failed(
    is_torn: bool, config: BuildI2EConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "model_stages", lambda models, config: [FakeLinker()])
    manifest = build_i2e(config)
    assert manifest is not None and [shard["num_records"] for shard in manifest["shards"]] == [2, 2]
    if is_torn:  # a kill left a part of the record, whose name makes the annotations count
        for path in Path(config.output).glob("units/commits/*.json"):
            path.write_text('{"annot')
    seen = Path(config.kb).parent / "seen.txt"
    monkeypatch.setattr(command, "model_stages", lambda models, config: [HealedLinker(seen)])
    retry.main(["--data", config.output])
    assert seen.read_text() == "pairs-0/1\n"
    assert f"annotate: 2 units, {0 if is_torn else 1} finished before" in capsys.readouterr().out
    whole = dataclasses.replace(config, output=config.output + "-whole")
    manifest = build_i2e(whole)
    assert manifest is not None and [shard["num_records"] for shard in manifest["shards"]] == [3, 2]
    assert digests(config.output) == digests(whole.output)
    # Nothing has failed now, so nothing is run.
    seen.unlink()
    retry.main(["--data", config.output])
    assert not seen.exists()


def test_a_folder_without_a_set_ends_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "damaged" / "units").mkdir(parents=True)
    (tmp_path / "damaged" / "units" / "command.json").write_text('{"input": 3}')
    for folder, message in (
        ("none", f"error: --data {tmp_path}/none holds no set that can be retried (units/command.json is missing); "),
        ("damaged", f"error: {tmp_path}/damaged/units/command.json cannot be read (Expected `str`, got `int`"),
    ):
        with pytest.raises(SystemExit) as stop:
            retry.main(["--data", str(tmp_path / folder)])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.startswith(message) and error.count("\n") == 1
