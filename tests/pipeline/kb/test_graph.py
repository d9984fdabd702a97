"""Vectors of entities: from the base's own graph, or from a file of trained ones."""

import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.kb.graph import closeness, text_vector
from pipeline.kb.store import Entity, KnowledgeBase
from pipeline.schema import UserError

# Two countries; cities that link to them; a thing of a type of its own.
ENTITIES = [
    Entity(entity_id="Q1", label="France", types=("country",)),
    Entity(entity_id="Q2", label="Japan", types=("country",)),
    *(Entity(entity_id=f"Q1{n}", label=f"French {n}", types=("Q515",), links=("Q1",)) for n in range(3)),
    *(Entity(entity_id=f"Q2{n}", label=f"Japanese {n}", types=("Q515",), links=("Q2", "own:sea")) for n in range(3)),
    Entity(entity_id="own:sea", label="Sea of Japan", links=("Q2",)),
    Entity(entity_id="Q99", label="Lonely", types=("singular",)),
]


def write(path, *, graph, entities=ENTITIES, dim=8):
    with KnowledgeBaseWriter(str(path), graph=graph, graph_dim=dim) as writer:
        for entity in entities:
            writer.add(entity)
        writer.add_redirect("Q1000", "Q10")
        return writer.commit(source="s", source_sha256="0")


def write_vectors(path, *lines):
    with gzip.open(path, "wt") as file:
        file.write("".join(line + "\n" for line in lines))
    return str(path)


def line(key, *numbers):
    return "\t".join([key, *map(str, numbers)])


def test_entities_that_share_types_and_links_are_close(tmp_path):
    manifest = write(tmp_path, graph="svd")
    # Columns that two entities have: Q1, Q2, country, Q515, own:sea. So 4 numbers, one less than columns.
    assert manifest["vectors"] == {"source": "svd", "dim": 4, "num_entities": 9}
    kb = KnowledgeBase.open(str(tmp_path))
    assert kb.vector("Q10").dtype == np.float32 and np.linalg.norm(kb.vector("Q10")) == pytest.approx(1.0)
    assert closeness(kb, "Q10", "Q11") == pytest.approx(1.0, abs=1e-3)  # the same type and link
    # A city is closer to its own country, whose column it has, than to the other.
    assert closeness(kb, "Q10", "Q1") > closeness(kb, "Q10", "Q2") + 0.3
    assert closeness(kb, "own:sea", "Q20") > closeness(kb, "own:sea", "Q10") + 0.3
    assert closeness(kb, "Q1000", "Q10") == pytest.approx(1.0, abs=1e-3)  # a redirect
    assert kb.vector("Q99") is None and kb.vector("Q404") is None and closeness(kb, "Q99", "Q1") == 0.0


def test_a_text_is_where_its_surest_entities_are(tmp_path):
    write(tmp_path, graph="svd")
    kb = KnowledgeBase.open(str(tmp_path))
    mean = text_vector(kb, [("Q20", 0.9), ("Q10", 0.1), ("Q99", 1.0)])
    expected = 0.9 * kb.vector("Q20") + 0.1 * kb.vector("Q10")
    assert mean == pytest.approx(expected / np.linalg.norm(expected), abs=1e-6)
    assert text_vector(kb, [("Q20", 0.9), ("Q10", 0.1)], num_surest=1) == pytest.approx(kb.vector("Q20"), abs=1e-6)
    assert text_vector(kb, [("Q99", 1.0)]) is None and text_vector(kb, []) is None


def test_of_equally_likely_entities_the_first_by_id_counts_and_opposite_ones_leave_no_direction():
    vectors = {"a": np.array([3.0, 4.0]), "b": np.array([0.0, 1.0]), "c": np.array([-3.0, -4.0])}
    kb = SimpleNamespace(vector=vectors.get)
    mean = text_vector(kb, [("b", 0.5), ("a", 0.5)], num_surest=1)
    assert mean.dtype == np.float32 and mean.tolist() == pytest.approx([0.6, 0.8])
    assert text_vector(kb, [("a", 0.5), ("c", 0.5)]) is None


def test_a_base_without_vectors_has_none(tmp_path):
    write(tmp_path, graph="svd")
    with_vectors = json.loads((tmp_path / "manifest.json").read_text())
    assert "vectors" not in write(tmp_path, graph=None)
    assert not (tmp_path / "vectors").exists()
    kb = KnowledgeBase.open(str(tmp_path))
    assert kb.vector("Q1") is None and kb.hash != with_vectors["hash"]


def test_entities_that_share_nothing_have_no_graph(tmp_path):
    with pytest.raises(UserError, match="--graph svd: the entities share no types or links; build without --graph"):
        write(tmp_path, graph="svd", entities=[Entity(entity_id="Q1", label="a"), Entity(entity_id="Q2", label="b")])


def test_trained_vectors_are_imported_for_the_ids_of_the_base(tmp_path):
    path = write_vectors(
        tmp_path / "vectors.tsv.gz",
        "78404883\t200",
        line("<http://www.wikidata.org/entity/Q20>", 3, 4),
        line("<http://www.wikidata.org/prop/direct/P31>", 1, 1),
        line("<http://www.wikidata.org/entity/Q404>", 1, 1),
        line("own:sea", "-1e-3", "0.0"),
        line('"a text"@en', 1, 1),
        line("<http://www.wikidata.org/entity/Q1>", 0, 0),
        line("<http://www.wikidata.org/entity/Q20>", 1, 0),
    )
    manifest = write(tmp_path / "kb", graph=path)
    assert manifest["vectors"] == {"source": "vectors.tsv.gz", "dim": 2, "num_entities": 3}
    kb = KnowledgeBase.open(str(tmp_path / "kb"))
    assert kb.vector("Q20") == pytest.approx([0.6, 0.8], abs=1e-3)
    assert kb.vector("own:sea").tolist() == [-1.0, 0.0]
    assert kb.vector("Q1") is None and kb.vector("Q10") is None and kb.vector("Q99") is None
    assert closeness(kb, "Q20", "own:sea") == pytest.approx(-0.6, abs=1e-3)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([line("Q1", 1, 2), line("Q404", 1, 2, 3)], "vectors.tsv.gz, line 2: 3 numbers; the lines before it have 2"),
        (["x\t2", line("Q1", 1, 2), line("Q2", 1)], "line 3: 1 numbers; the lines before it have 2"),
        ([line("Q1", 1, 2), "Q2 1 2"], "line 2: 0 numbers; give 1 to 4096, between tabs"),
        ([line("Q1", 1, "x")], "line 1: a field is no number"),
        ([line("Q1", 1, "nan")], "line 1: a number is not finite"),
        (
            [line("Q404", 1, 2)],
            "holds no vector of an entity of the base; give lines of: <http://www.wikidata.org/entity",
        ),
    ],
)
def test_vectors_of_the_wrong_form_are_named_with_their_line(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        write(tmp_path / "kb", graph=write_vectors(tmp_path / "vectors.tsv.gz", *lines))


def test_a_file_of_vectors_that_is_cut_off_is_named_when_the_base_is_opened(tmp_path):
    write(tmp_path, graph="svd")
    content = (tmp_path / "vectors").read_bytes()
    (tmp_path / "vectors").write_bytes(content[:-2])
    with pytest.raises(UserError, match=r"is damaged \(vectors has 78 bytes, 80 are needed\); write it with"):
        KnowledgeBase.open(str(tmp_path))
