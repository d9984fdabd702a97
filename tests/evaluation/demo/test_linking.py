import dataclasses
import json

import pytest

from evaluation.demo import run
from evaluation.demo.linking import metrics_of, read_linking
from evaluation.demo.report import Report, render
from evaluation.linking.metrics import Share
from pipeline.schema import UserError
from tests.evaluation.builders import write_demo

SHARE = Share(value=0.75, numerator=3, denominator=4, low=0.5, high=1.0)
CONTENT = {
    "captions, first half": {"linker": {"name.recall": dataclasses.asdict(SHARE)}},
    "captions, second half": {
        linker: {"name.recall": dataclasses.asdict(SHARE), "place.recall": dataclasses.asdict(SHARE)}
        for linker in ("likeliest candidate", "rule", "linker", "linker, never NIL", "linker without text")
    },
    "wikipedia, second half": {"linker": {"ambiguous.accuracy": dataclasses.asdict(SHARE)}},
}


def test_the_second_halves_are_metrics_by_linker(tmp_path):
    path = tmp_path / "linking.json"
    path.write_text(json.dumps(CONTENT))
    assert dict(metrics_of(read_linking(path))) == {
        "linking.captions.prior.name.recall": SHARE,
        "linking.captions.prior.place.recall": SHARE,
        "linking.captions.rule.name.recall": SHARE,
        "linking.captions.rule.place.recall": SHARE,
        "linking.captions.name.recall": SHARE,
        "linking.captions.place.recall": SHARE,
        "linking.captions.never_nil.name.recall": SHARE,
        "linking.captions.never_nil.place.recall": SHARE,
        "linking.captions.without_text.name.recall": SHARE,
        "linking.wikipedia.ambiguous.accuracy": SHARE,
    }


@pytest.mark.parametrize("content", ['["a"]', '{"captions, second half": {"linker": {"name.recall": {"value": 1}}}}'])
def test_another_file_is_named(tmp_path, content):
    path = tmp_path / "linking.json"
    path.write_text(content)
    with pytest.raises(UserError, match="linking.json does not hold the scores of a linker .*; measure again with"):
        read_linking(path)


def test_the_demo_takes_them_over_with_their_intervals(tmp_path):
    write_demo(tmp_path)
    (tmp_path / "linking").mkdir()
    (tmp_path / "linking" / "linking.json").write_text(json.dumps(CONTENT))
    assert run.main(["--demo", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["linking.captions.name.recall"] == 0.75
    protocol = json.loads((tmp_path / "evaluation" / "protocols.json").read_text())["linking"]
    assert protocol["num_items"]["linking.captions.name.recall"] == 4
    assert protocol["intervals"]["linking.captions.name.recall"] == [0.5, 1.0]
    assert "linking: " not in (tmp_path / "table.txt").read_text()


def test_a_demo_without_them_says_so(tmp_path):
    write_demo(tmp_path)
    assert run.main(["--demo", str(tmp_path)]) == 0
    assert "linking/linking.json is not there" in (tmp_path / "table.txt").read_text()


def test_the_report_has_a_row_for_each_linker_and_leaves_out_what_has_no_case():
    tables = {"captions, second half": {"<rule>": {"name.recall": SHARE}, "linker": {"noun.recall": SHARE}}}
    section = render(Report(title="t", linking=tables)).split('id="linking"')[1].split("</section>")[0]
    assert "<th>name recall</th>" in section.replace(" class=number", "") and "&lt;rule&gt;" in section
    assert section.count("0.750<small>0.500 to 1.000<br>4 cases</small>") == 2
    assert 'id="linking"' not in render(Report(title="t"))
