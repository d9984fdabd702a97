import dataclasses
import datetime
import hashlib
import json
import re

import numpy as np
import pytest

from evaluation import run
from evaluation.options import Options
from evaluation.protocol import Benchmark, Context, Result, Unavailable, provenance
from evaluation.report.figures import Bars, Grid, GridRow
from evaluation.results import read_results
from evaluation.sets.images import ImageSet, absent_images
from pipeline.schema import UserError
from tests.evaluation.browser import shown_by_a_browser
from tests.evaluation.builders import FakeEncoder, png, write_evaluation


@pytest.fixture
def fake_encoder(monkeypatch):
    monkeypatch.setattr(run, "load_encoder", lambda path: FakeEncoder())


def test_a_benchmark_writes_its_metrics_and_all_that_they_stand_on(tmp_path, fake_encoder, capsys):
    write_evaluation(tmp_path / "evaluation.parquet", 24, num_unseen=6)
    args = ["--encoder", "x", "--data-dir", str(tmp_path), "--output", str(tmp_path / "out")]
    assert run.main([*args, "--benchmarks", "retrieval"]) == 0
    record = json.loads((tmp_path / "out" / "retrieval.json").read_text())
    assert {"seen.map", "unseen.map", "seen.flags.map"} <= set(record["metrics"])
    assert record["protocol"]["version"] == 2 and record["model"]["hash"] == "abc"
    assert len(record["data"]["evaluation"]["contents"]) == 64
    assert "numpy" in record["packages"] and record["seconds"] >= 0 and record["model"]["name"] == "x"
    assert datetime.datetime.fromisoformat(record["date"]).utcoffset() == datetime.timedelta()
    items = read_results(tmp_path / "out")["retrieval"].items
    assert items["seen.map"].mean() == pytest.approx(record["metrics"]["seen.map"], abs=1e-12)
    assert (tmp_path / "out" / "retrieval-grid.png").read_bytes().startswith(b"\x89PNG")
    assert "<h2>retrieval</h2>" in (tmp_path / "out" / "report.html").read_text()
    out = capsys.readouterr().out
    assert "  seen.map  " in out and "  | seen.num_queries 36, " in out


def test_every_number_has_its_count_and_interval_and_groups_of_few_queries_have_none(tmp_path, fake_encoder, capsys):
    # Of 6 unseen entities, 2 are logos: 4 queries in the two held-out renderings.
    write_evaluation(tmp_path / "evaluation.parquet", 24, num_unseen=6)
    args = ["--encoder", "x", "--data-dir", str(tmp_path), "--output", str(tmp_path / "out"), "--option"]
    assert run.main([*args, "entities.data=evaluation.parquet", "--benchmarks", "retrieval,entities"]) == 0
    record = json.loads((tmp_path / "out" / "retrieval.json").read_text())
    assert not any(name.startswith("unseen.logos") for name in record["metrics"])
    assert record["too_few_queries"]["unseen.logos.map"] == 4
    assert set(record["num_items"]) == set(record["intervals"]) == set(record["chance"]) == set(record["metrics"])
    assert record["num_items"]["seen.flags.map"] == 12 and record["num_items"]["unseen.map"] == 12
    low, high = record["intervals"]["seen.map"]
    assert low < record["metrics"]["seen.map"] < high
    # Of 72 pictures of seen entities 18 are of the query's family, and 3 of the other 54 match.
    assert record["chance"]["seen.recall_at_1"] == pytest.approx(1 / 18)
    entities = json.loads((tmp_path / "out" / "entities.json").read_text())
    assert set(entities["num_items"]) == set(entities["metrics"])
    out, page = capsys.readouterr().out, (tmp_path / "out" / "report.html").read_text()
    for shown in (out, page):
        words = " ".join(shown.replace("|", "").split())
        assert "fewer than 5: unseen.emoji (4), unseen.flags (4), unseen.logos (4)" in words
        assert "mean_reciprocal_rank = map" in shown and f"{low:.3f} to {high:.3f}" in shown
    assert re.search(r"seen.flags.map +0\.\d{4}  0\.\d{3} to 0\.\d{3} +12 +0\.\d{4}\n", out)


def test_the_report_shows_all_results_of_the_folder(tmp_path, fake_encoder, monkeypatch, capsys):
    one = bench(lambda *_: Result(metrics={"map": 0.5}, counts={}))
    two = dataclasses.replace(one, name="two")
    monkeypatch.setattr(run, "all_benchmarks", lambda: {"one": one, "two": two})
    arguments = ["--encoder", "<x>", "--output", str(tmp_path), "--benchmarks"]
    assert run.main([*arguments, "one,two"]) == 0 and run.main([*arguments, "two"]) == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("<h2>") == 2 and page.count("&lt;x&gt; (abc), measured 20") == 2
    assert page.count("It is of an earlier run.") == 1
    # What cannot be read costs the page nothing else.
    (tmp_path / "one.json").write_text('{"benchmark": "one", "format_version": 0}')
    assert run.main([*arguments, "two"]) == 0
    assert "the report lacks one.json: " in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text().count("<h2>") == 1


def test_a_browser_renders_the_report_and_asks_the_network_for_nothing(tmp_path, fake_encoder):
    write_evaluation(tmp_path / "evaluation.parquet")
    output = tmp_path / "<b>out</b>"
    args = ["--encoder", "x", "--data-dir", str(tmp_path), "--output", str(output), "--option"]
    assert run.main([*args, "entities.data=evaluation.parquet", "--benchmarks", "retrieval,entities,gpr1200"]) == 0
    shown = shown_by_a_browser(output / "report.html", tmp_path)
    assert "<h2>retrieval</h2>" in shown and shown.count("data:image/png") == 3
    assert "&lt;b&gt;out&lt;/b&gt;" in shown and "GPR1200 is not there" in shown


def test_what_has_no_data_is_named_and_the_others_still_run(tmp_path, fake_encoder, capsys):
    write_evaluation(tmp_path / "evaluation.parquet")
    args = ["--encoder", "x", "--data-dir", str(tmp_path), "--output", str(tmp_path / "out"), "--no-figures"]
    assert run.main([*args, "--benchmarks", "gpr1200,retrieval"]) == 0
    out = capsys.readouterr().out
    assert "not measured: gpr1200: " in out and "GPR1200 is not there; get it from" in out
    assert (tmp_path / "out" / "retrieval.json").exists()


def test_parts_of_a_benchmark_that_had_no_data_are_named_and_stand_in_its_record_and_the_report(
    tmp_path, fake_encoder, monkeypatch, capsys
):
    half = bench(lambda *_: Result(metrics={"map": 0.5}, counts={}, not_measured=["<tail>: no pictures"]))
    monkeypatch.setattr(run, "all_benchmarks", lambda: {"one": half})
    assert run.main(["--encoder", "x", "--output", str(tmp_path / "out"), "--benchmarks", "one"]) == 0
    assert "not measured: one: <tail>: no pictures\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "one.json").read_text())["not_measured"] == ["<tail>: no pictures"]
    assert "one: &lt;tail&gt;: no pictures" in (tmp_path / "out" / "report.html").read_text()


def test_when_none_has_its_data_the_exit_status_is_2(tmp_path, fake_encoder, capsys):
    args = ["--encoder", "x", "--data-dir", str(tmp_path), "--output", str(tmp_path / "out")]
    assert run.main([*args, "--benchmarks", "gpr1200"]) == 2
    assert "none of the benchmarks could run" in capsys.readouterr().err


def test_ready_embeddings_are_matched_by_id_whatever_their_order(tmp_path, fake_encoder):
    write_evaluation(tmp_path / "evaluation.parquet")
    args = ["--data-dir", str(tmp_path), "--benchmarks", "retrieval", "--no-figures"]
    assert run.main([*args, "--encoder", "x", "--output", str(tmp_path / "a")]) == 0
    ready = tmp_path / "ready"
    ready.mkdir()
    (cache,) = (tmp_path / "a" / "cache").iterdir()
    vectors = np.load(cache / "vectors.npy")
    ids = sorted(f"i{entity:03d}{number}" for entity in range(6) for number in range(4))
    order = np.random.default_rng(0).permutation(len(ids))
    np.save(ready / "evaluation.npy", (5 * vectors[order]).astype(np.float64))
    (ready / "evaluation.ids").write_text("".join(f"{ids[n]}\n" for n in order))
    assert run.main([*args, "--embeddings", str(ready), "--output", str(tmp_path / "b")]) == 0
    a, b = (read_results(tmp_path / name)["retrieval"].record["metrics"] for name in "ab")
    assert a == pytest.approx(b, abs=1e-12)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--benchmarks", "retrieval"], "give either --encoder or --embeddings"),
        (["--benchmarks", "gpr120", "--encoder", "b"], "no benchmark 'gpr120', the nearest is 'gpr1200'; there are"),
        (["--benchmarks", ",", "--encoder", "b"], "name one or more of"),
        (["--benchmarks", "knn", "--encoder", "b", "--option", "knn.k"], "must be <benchmark>.<name>=<value>"),
        (["--benchmarks", "knn", "--encoder", "b", "--option", "kn.k=1"], "no benchmark 'kn', the nearest is 'knn'"),
        (["--benchmarks", "knn", "--embeddings", "nowhere"], "nowhere is not a folder"),
        (
            ["--benchmarks", "knn", "--embeddings", "tests", "--output", "setup.cfg/out"],
            "setup.cfg/out lies below a file",
        ),
        (["--benchmarks", "knn", "--encoder", "nowhere"], "no finished encoder"),
        (["--benchmarks", "knn", "--encoder", "b", "--num-threads", "0"], "--num-threads is 0, it must be at least 1"),
        (["--benchmarks", "knn", "--encoder", "b", "--max-unreadable", "-1"], "--max-unreadable is -1"),
    ],
)
def test_a_users_error_is_one_line_and_exit_status_2(args, words, capsys):
    assert run.main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1


def bench(function):
    return Benchmark(name="one", version=1, run=function, summary="", options=Options)


def image_set(count, broken=None):
    return ImageSet(
        name="set",
        ids=np.array([f"i{n}" for n in range(count)]),
        read=lambda position: b"" if position == broken else png(position),
        fingerprint=f"{count}, {broken}",
    )


def config(tmp_path):
    return run.RunConfig(benchmarks="one", data_dir=tmp_path, output=tmp_path / "out", figures=False)


def test_options_are_read_before_anything_is_measured(tmp_path, fake_encoder, monkeypatch, capsys):
    monkeypatch.setattr(run, "load_model", lambda config: pytest.fail("the model was loaded"))
    args = ["--encoder", "x", "--output", str(tmp_path), "--benchmarks", "gpr1200,knn", "--option"]
    assert run.main([*args, "knn.kk=5"]) == 2
    assert "knn has no option 'kk', the nearest is 'k'; it has: train (default imagenet" in capsys.readouterr().err
    # Also one that is used after the pictures are embedded, and one of a benchmark that is not measured.
    assert run.main([*args, "knn.temperature=0"]) == 2
    assert "knn.temperature is '0.0'; it must be a number above 0; the default is 0.07" in capsys.readouterr().err
    assert run.main([*args, "vtab.mode=2k"]) == 2
    assert "vtab.mode is '2k'; it must be one of 1k, full; the default is 1k" in capsys.readouterr().err


def test_what_was_embedded_is_known_by_its_ids_its_contents_and_its_truth(tmp_path):
    model = run.EncoderModel(encoder=FakeEncoder(), cache_dir=tmp_path, max_unreadable=1)
    context = Context(model=model, data_dir=tmp_path)
    known = context.embed(image_set(3, broken=1), truth=b"0 1 0").provenance
    # Of the pictures that could be read.
    assert known.ids == hashlib.sha256(b"i0\0i2\0").hexdigest()
    assert known.truth == hashlib.sha256(b"0 1 0").hexdigest()
    known = context.embed(image_set(3)).provenance
    assert known.ids == hashlib.sha256(b"i0\0i1\0i2\0").hexdigest()
    assert known.truth is None


def test_a_folder_that_all_ids_share_is_known_apart_from_them():
    below = hashlib.sha256(b"a/1.jpg\0b/2.jpg\0").hexdigest()
    assert provenance("set", ["a/1.jpg", "b/2.jpg"]).ids_below_prefix == below
    deeper = provenance("set", ["x/images/a/1.jpg", "x/images/b/2.jpg"])
    assert (deeper.prefix, deeper.ids_below_prefix) == ("x/images", below) and deeper.ids != below


def test_a_metric_that_is_not_finite_never_reaches_a_file(tmp_path):
    model = run.EncoderModel(encoder=FakeEncoder(), cache_dir=tmp_path)
    nan = bench(lambda *_: Result(metrics={"map": float("nan")}, counts={}))
    with pytest.raises(UserError, match="metric map is nan"):
        run.run_one(nan, model, config(tmp_path), Options())
    assert not (tmp_path / "out").exists()


def test_a_part_whose_data_is_wrong_is_an_error_and_the_rest_is_written(tmp_path, fake_encoder, monkeypatch, capsys):
    half = bench(lambda *_: Result(metrics={"map": 0.5}, counts={}, failed=["pets: picture <1> is broken"]))
    monkeypatch.setattr(run, "all_benchmarks", lambda: {"one": half})
    assert run.main(["--encoder", "x", "--output", str(tmp_path), "--benchmarks", "one"]) == 2
    assert "error: one: pets: picture <1> is broken" in capsys.readouterr().err
    assert read_results(tmp_path)["one"].record["failed"] == ["pets: picture <1> is broken"]
    assert "pets: picture &lt;1&gt; is broken" in (tmp_path / "report.html").read_text()


def test_a_fault_of_one_benchmark_costs_no_other(tmp_path, fake_encoder, monkeypatch, capsys):
    write_evaluation(tmp_path / "evaluation.parquet")
    benchmarks = run.all_benchmarks()
    faulty = dataclasses.replace(benchmarks["knn"], run=lambda *_: 1 / 0)
    monkeypatch.setattr(run, "all_benchmarks", lambda: {**benchmarks, "knn": faulty})
    args = ["--encoder", "x", "--data-dir", str(tmp_path), "--output", str(tmp_path / "out"), "--no-figures"]
    assert run.main([*args, "--benchmarks", "knn,retrieval"]) == 2
    assert "error: knn failed; please report what follows" in capsys.readouterr().err
    assert (tmp_path / "out" / "retrieval.json").exists()


@pytest.mark.parametrize("blocked", ["retrieval.json", "retrieval.npz", "report.html"])
def test_an_output_that_cannot_be_written_is_one_line_and_exit_status_2(tmp_path, fake_encoder, capsys, blocked):
    write_evaluation(tmp_path / "evaluation.parquet")
    (tmp_path / "out" / blocked).mkdir(parents=True)
    args = ["--encoder", "x", "--data-dir", str(tmp_path), "--output", str(tmp_path / "out")]
    assert run.main([*args, "--benchmarks", "retrieval"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "out cannot be written (" in error and error.count("\n") == 1
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_a_figure_that_cannot_be_drawn_is_named_and_costs_nothing_else(tmp_path, fake_encoder, monkeypatch, capsys):
    class Broken:
        title = "t"

        def png(self):
            raise UserError("picture i0 cannot be read")

    bars = Bars(title="t", values={"a": 0.5}, label="l")
    drawn = bench(lambda *_: Result(metrics={"map": 0.5}, counts={}, figures={"broken": Broken(), "whole": bars}))
    monkeypatch.setattr(run, "all_benchmarks", lambda: {"one": drawn})
    (tmp_path / "one-broken.png").write_bytes(b"of another run")
    assert run.main(["--encoder", "x", "--output", str(tmp_path), "--benchmarks", "one"]) == 0
    assert "one-broken.png cannot be drawn (UserError: picture i0 cannot be read)" in capsys.readouterr().err
    assert (tmp_path / "one.json").exists() and (tmp_path / "one-whole.png").exists()
    assert (tmp_path / "report.html").exists() and not (tmp_path / "one-broken.png").exists()


def test_what_failed_stands_in_the_report_and_an_earlier_result_of_it_is_told(
    tmp_path, fake_encoder, monkeypatch, capsys
):
    def wrong(context: Context, options: Options) -> Result:
        raise UserError("k is 200 <1>")

    good = bench(lambda *_: Result(metrics={"map": 0.5}, counts={}))
    benchmarks = {"one": good, "two": dataclasses.replace(good, name="two")}
    monkeypatch.setattr(run, "all_benchmarks", lambda: benchmarks)
    arguments = ["--encoder", "x", "--output", str(tmp_path), "--benchmarks", "one,two"]
    assert run.main(arguments) == 0 and "earlier" not in capsys.readouterr().err
    benchmarks["two"] = dataclasses.replace(benchmarks["two"], run=wrong)
    assert run.main(arguments) == 2
    assert f"warning: two.json in {tmp_path} is of an earlier run" in capsys.readouterr().err
    assert "<li>two: k is 200 &lt;1&gt;</li>" in (tmp_path / "report.html").read_text()
    assert run.main([*arguments, "--no-figures"]) == 2 and not (tmp_path / "report.html").exists()


def test_figures_of_pictures_that_are_not_here_are_no_warning(tmp_path, monkeypatch, capsys):
    grid = Grid(title="t", images=absent_images("set", ["a"]), rows=[GridRow(query=0, hits=[])])
    drawn = bench(lambda *_: Result(metrics={"map": 0.5}, counts={}, figures={"grid": grid}))
    monkeypatch.setattr(run, "all_benchmarks", lambda: {"one": drawn})
    assert run.main(["--embeddings", str(tmp_path), "--output", str(tmp_path), "--benchmarks", "one"]) == 0
    seen = capsys.readouterr()
    assert "one-grid.png is not drawn, since its pictures are not here" in seen.out and "warning" not in seen.err


def test_help_lists_the_benchmarks_with_their_options(capsys):
    with pytest.raises(SystemExit):
        run.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Exit status: 0" in shown
    for benchmark, option in (
        ("knn", "temperature (0.07)"),
        ("entities", "tail_below (10)"),
        ("rparis", "distractors"),
    ):
        assert option in shown[shown.index(f" {benchmark} ") :]


def test_a_report_has_no_figure_of_an_earlier_run(tmp_path, fake_encoder, monkeypatch):
    figures = {"bars": Bars(title="t", values={"a": 0.5}, label="l")}
    drawn = bench(lambda *_: Result(metrics={"map": 0.5}, counts={}, figures=figures))
    monkeypatch.setattr(run, "all_benchmarks", lambda: {"one": drawn})
    arguments = ["--encoder", "x", "--output", str(tmp_path), "--benchmarks", "one"]
    assert run.main(arguments) == 0 and "one-bars" in (tmp_path / "report.html").read_text()
    figures.clear()
    assert run.main(arguments) == 0 and "one-bars" not in (tmp_path / "report.html").read_text()


def test_an_option_of_a_benchmark_that_is_not_measured_is_told(tmp_path, fake_encoder, capsys):
    args = ["--encoder", "x", "--data-dir", str(tmp_path), "--output", str(tmp_path / "out"), "--benchmarks", "gpr1200"]
    assert run.main([*args, "--option", "knn.k=5"]) == 2
    error = capsys.readouterr().err
    assert "warning: knn is not measured, so its option k=5 is not used\n" in error and error.count("warning") == 1


def test_an_encoder_without_text_makes_text_benchmarks_unavailable(tmp_path):
    model = run.EncoderModel(encoder=FakeEncoder(has_text=False), cache_dir=tmp_path)
    with pytest.raises(Unavailable, match="no text function"):
        model.embed_texts("names", ["a"])
