import dataclasses

import numpy as np
import pytest

from evaluation import compare, run
from evaluation.benchmarks.knn import KnnOptions
from evaluation.compare import protocol_differences
from evaluation.protocol import provenance
from evaluation.results import FORMAT_VERSION, SavedResult, read_results, write_result
from tests.evaluation.builders import FakeEncoder, write_evaluation


def record(metric=0.5, version=1, ids="i", contents="c", truth="t", settings=None):
    return {
        "format_version": FORMAT_VERSION,
        "benchmark": "knn",
        "protocol": {"version": version, "settings": settings or {"k": 10}},
        "metrics": {"accuracy": metric},
        "counts": {},
        "data": {"test": {"ids": ids, "contents": contents, "truth": truth}},
        "model": {"hash": "h", "preprocessing": {}},
        "packages": {},
        "seconds": 1.0,
    }


@pytest.fixture
def folders(tmp_path):
    rng = np.random.default_rng(0)
    first = rng.random(200) < 0.5
    other = first | (rng.random(200) < 0.2)
    for name, values in (("a", first), ("b", other)):
        write_result(tmp_path / name, record(float(values.mean())), {"accuracy": values.astype(np.float32)})
    return [str(tmp_path / "a"), str(tmp_path / "b")]


def test_two_results_stand_side_by_side_with_the_difference_and_its_interval(folders, capsys):
    assert compare.main(folders) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "accuracy" in line)
    first, other, difference, low, to, high = line.split()[1:]
    assert float(other) - float(first) == pytest.approx(float(difference), abs=2e-4)
    assert 0 < float(low) < float(difference) < float(high) and to == "to"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version: 1 against 2"),
        ({"settings": {"k": 20}}, "(k: 10 against 20)"),
        ({"settings": {"n": 1}}, "(k: 10 against nothing; n: nothing against 1)"),
        ({"ids": "j"}, "other pictures or texts"),
        ({"contents": "d"}, "the contents of test differ"),
        ({"truth": "u"}, "the labels or ground truth of test differ"),
    ],
)
def test_other_protocols_are_refused_unless_forced_and_then_it_says_so(folders, tmp_path, capsys, change, words):
    write_result(tmp_path / "b", record(**change), {})
    assert compare.main(folders) == 2
    error = capsys.readouterr().err
    assert words in error and "--force" in error and error.count("\n") == 1
    assert compare.main([*folders, "--force"]) == 0
    assert "DIFFERENT PROTOCOLS" in capsys.readouterr().out


@pytest.mark.parametrize("unknown", [{"contents": None}, {"truth": None}])
def test_what_one_side_does_not_know_is_no_difference(folders, tmp_path, unknown):
    write_result(tmp_path / "b", record(**unknown), {})
    assert compare.main(folders) == 0


@pytest.mark.parametrize(("files", "words"), [("xx", []), ("xy", ["neither knows the ids of test"])])
def test_files_without_ids_are_the_same_pictures_only_when_they_are_the_same_file(files, words):
    records = [record(ids=None, contents=None) for _ in files]
    for one, file in zip(records, files, strict=True):
        one["data"]["test"]["embeddings"] = file
    assert protocol_differences(*[SavedResult(record=one, items={}) for one in records]) == words


def test_long_values_are_shown_from_where_they_differ():
    first, other = ({"data": {"scale": 1, "names": ["a"] * 50 + [last]}} for last in "bc")
    saved = [SavedResult(record=record(settings=one), items={}) for one in (first, other)]
    (line,) = protocol_differences(*saved)
    assert line == 'data: ...a", "a", "b"], "scale": 1} against ...a", "a", "c"], "scale": 1}'


def test_there_is_no_interval_where_the_items_are_others(folders, tmp_path, capsys):
    items = read_results(tmp_path / "b")["knn"].items
    write_result(tmp_path / "b", record(ids="j"), items)
    assert compare.main([*folders, "--force"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "accuracy" in line)
    assert len(line.split()) == 4 and " to " not in line


def test_what_one_side_lacks_is_named(folders, tmp_path, capsys):
    write_result(tmp_path / "a", {**record(), "benchmark": "gpr1200"}, {})
    write_result(tmp_path / "b", {**record(), "metrics": {"accuracy": 0.5, "tail.accuracy": 0.1}}, {})
    assert compare.main(folders) == 0
    out = capsys.readouterr().out
    assert f"{folders[1]} has no gpr1200; not compared\n" in out
    assert f"{folders[0]} has no tail.accuracy; not compared\n" in out


def test_nothing_to_compare_is_an_error(folders, tmp_path, capsys):
    assert compare.main([folders[0]]) == 2
    assert capsys.readouterr().err == "error: give A= and B=, two folders that make eval wrote\n"
    assert compare.main([*folders, "--seed", "-1"]) == 2 and "--seed is -1" in capsys.readouterr().err
    (tmp_path / "c").mkdir()
    assert compare.main([folders[0], str(tmp_path / "c")]) == 2
    assert "holds no results" in capsys.readouterr().err


def test_a_folder_of_two_models_is_refused(folders, tmp_path, capsys):
    other = {**record(), "benchmark": "gpr1200", "model": {"hash": "another", "preprocessing": {}}}
    write_result(tmp_path / "b", other, {})
    assert compare.main(folders) == 2
    assert "holds results of 2 models, the limit is 1" in capsys.readouterr().err


def test_ready_embeddings_are_one_model_as_long_as_no_set_has_changed(folders, tmp_path, capsys):
    def write(benchmark, sets):
        model = {"hash": benchmark, "sets": sets, "preprocessing": {}}
        write_result(tmp_path / "b", {**record(), "benchmark": benchmark, "model": model}, {})

    write("knn", {"train": "1", "test": "2"})
    write("gpr1200", {"gpr1200": "3"})
    write("linear_probe", {"train": "1"})
    assert compare.main(folders) == 0
    write("linear_probe", {"train": "4"})
    assert compare.main(folders) == 2
    assert "holds results of 2 models, the limit is 1" in capsys.readouterr().err
    write_result(tmp_path / "b", {**record(), "benchmark": "linear_probe"}, {})  # an encoder's
    assert compare.main(folders) == 2


def test_a_mean_of_metrics_has_an_interval_from_the_items_of_each(folders, tmp_path, capsys):
    rng = np.random.default_rng(0)
    gains = {"one.accuracy": 0.0, "two.accuracy": 0.3}
    values = {name: rng.random(400) for name in gains}
    for folder in "ab":
        items = {name: one + (gains[name] if folder == "b" else 0) for name, one in values.items()}
        metrics = {name: float(one.mean()) for name, one in items.items()}
        means = {"mean": list(gains)}
        whole = {**record(), "metrics": metrics | {"mean": float(np.mean(list(metrics.values())))}, "means": means}
        write_result(tmp_path / folder, whole, items)
    assert compare.main(folders) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["mean"])
    assert line.split()[3:] == ["+0.1500", "+0.1500", "to", "+0.1500"]  # paired: the same gain for every item


def test_a_mean_of_other_metrics_has_no_interval(folders, tmp_path, capsys):
    for folder, of in (("a", ["accuracy"]), ("b", ["other"])):
        items = {"accuracy": np.ones(3), "other": np.zeros(3)}
        whole = {**record(), "metrics": {"mean": 1.0}, "means": {"mean": of}}
        write_result(tmp_path / folder, whole, items)
    assert compare.main(folders) == 0 and " to " not in capsys.readouterr().out


def write_parts(folder, benchmark, accuracies, provenances, *, means=None, model=None, settings=None, num_items=40):
    """Writes a result with one item array per metric; all folders have the same items but for their mean."""
    rng = np.random.default_rng(0)
    items = {name: rng.permutation(num_items) < accuracy * num_items for name, accuracy in accuracies.items()}
    whole = {
        **record(settings=settings or {"mode": "1k"}),
        "benchmark": benchmark,
        "metrics": {name: float(one.mean()) for name, one in items.items()},
        "means": means or {},
        "data": {
            f"{one.part}/{one.name}" if one.part else one.name: {**dataclasses.asdict(one)} for one in provenances
        },
        "model": {"hash": str(folder), "preprocessing": {}, **(model or {})},
    }
    for name, of in (means or {}).items():
        whole["metrics"][name] = float(np.mean([whole["metrics"][one] for one in of]))
    write_result(folder, whole, {name: one.astype(np.float64) for name, one in items.items()})


def compared(tmp_path, capsys, *, status=0):
    """Returns the metrics with an interval, and what was printed, of a comparison of a and b."""
    assert compare.main([str(tmp_path / "a"), str(tmp_path / "b")]) == status
    out, error = capsys.readouterr()
    return [line.split()[0] for line in out.splitlines() if " to " in line], out, error


def test_two_trained_encoders_compare_whatever_the_scale_of_their_classifiers(tmp_path, monkeypatch, capsys):
    write_evaluation(tmp_path / "evaluation.parquet", 20)
    for name, scale in (("a", 10.0), ("b", 30.0)):
        encoder = FakeEncoder(hash=name)
        encoder.classifier.scale = scale
        monkeypatch.setattr(run, "load_encoder", lambda path, encoder=encoder: encoder)
        args = ["--encoder", "x", "--data-dir", str(tmp_path), "--output", str(tmp_path / name), "--no-figures"]
        assert (
            run.main([*args, "--benchmarks", "retrieval,entities", "--option", "entities.data=evaluation.parquet"]) == 0
        )
    capsys.readouterr()
    paired, out, _ = compared(tmp_path, capsys)
    assert "entities\n" in out and "accuracy_at_1" in paired and "seen.map" in paired
    assert "calibration_error" in out


def test_classifiers_of_other_classes_compare_without_intervals(tmp_path, capsys):
    for name in "ab":
        classes = {"classifier": {"scale": 1.0, "classes_hash": name}}
        write_parts(tmp_path / name, "entities", {"accuracy_at_1": 0.5}, [provenance("i2e", ["x"])], model=classes)
    paired, out, _ = compared(tmp_path, capsys)
    assert not paired and "accuracy_at_1" in out and "the classifiers have other classes" in out


def test_vtab_of_two_tasks_compares_with_one_by_the_shared_task(tmp_path, capsys):
    count = provenance("vtab_clevr_test", ["1", "2"], part="clevr_count", truth=b"count")
    distance = provenance("vtab_clevr_test", ["1", "2"], part="clevr_distance", truth=b"distance")
    both = {"clevr_count.accuracy": 0.5, "clevr_distance.accuracy": 0.25}
    write_parts(tmp_path / "a", "vtab", both, [count, distance], means={"mean_of_2_tasks": list(both)})
    one = {"clevr_count.accuracy": 0.75}
    write_parts(tmp_path / "b", "vtab", one, [count], means={"mean_of_1_tasks": list(one)})
    paired, out, _ = compared(tmp_path, capsys)
    assert paired == ["clevr_count.accuracy"]
    assert "b has no clevr_distance.accuracy, mean_of_2_tasks; not compared" in out


def test_coco_and_flickr_compare_with_flickr(tmp_path, capsys):
    coco, flickr = (provenance(name, ["1.jpg"], part=name) for name in ("coco", "flickr30k"))
    recalls = {"coco.image_to_text.recall_at_1": 0.5, "flickr30k.image_to_text.recall_at_1": 0.5}
    write_parts(tmp_path / "a", "image_text", recalls, [coco, flickr])
    write_parts(tmp_path / "b", "image_text", {"flickr30k.image_to_text.recall_at_1": 0.75}, [flickr])
    assert compared(tmp_path, capsys)[0] == ["flickr30k.image_to_text.recall_at_1"]


@pytest.mark.parametrize("ks", [(1, 5, 10), (5, 1)])
def test_knn_compares_by_the_numbers_of_neighbours_that_both_have(tmp_path, capsys, ks):
    known = [provenance("knn_train", ["a/1"], truth=b"0"), provenance("knn_test", ["a/2"], truth=b"0")]
    settings = KnnOptions(k=ks).settings("temperature")
    for name, of_folder in (("a", (1, 5)), ("b", ks)):
        accuracies = {f"{k}.accuracy_at_1": 0.5 for k in of_folder}
        write_parts(tmp_path / name, "knn", accuracies, known, settings=settings)
    assert compared(tmp_path, capsys)[0] == ["1.accuracy_at_1", "5.accuracy_at_1"]


def test_ids_below_a_folder_are_those_without_it_and_other_ids_are_refused_with_the_name_of_the_set(tmp_path, capsys):
    names = ["0_a.jpg", "1_b.jpg"]
    for name, folder in (("a", "GPR1200/images/"), ("b", "")):
        known = provenance("gpr1200", [folder + one for one in names])
        write_parts(tmp_path / name, "gpr1200", {"map": 0.5}, [known])
    assert compared(tmp_path, capsys)[0] == ["map"]
    # Two folders that differ may hold other pictures of the same names, and other names are other pictures.
    for ids in (["val/" + one for one in names], ["GPR1200/images/0_a.jpg", "GPR1200/images/1_c.jpg"]):
        write_parts(tmp_path / "b", "gpr1200", {"map": 0.5}, [provenance("gpr1200", ids)])
        _, out, error = compared(tmp_path, capsys, status=2)
        assert "gpr1200 was measured by different protocols (other pictures or texts in gpr1200)" in error and not out


def test_what_compares_is_printed_and_each_refusal_under_it(tmp_path, capsys):
    tasks = {"dtd.accuracy": 0.5, "svhn.accuracy": 0.5}
    for name, truth in (("a", b"1"), ("b", b"2")):
        known = [provenance("vtab_dtd_test", ["1"], part="dtd"), provenance("s", ["1"], part="svhn", truth=truth)]
        write_parts(tmp_path / name, "vtab", tasks, known, means={"mean_of_2_tasks": list(tasks)})
        write_parts(tmp_path / name, "gpr1200", {"map": 0.5}, [provenance("gpr1200", ["1"])])
        write_parts(tmp_path / name, "knn", {"1.accuracy_at_1": 0.5}, [], settings={"temperature": 0.07})
    write_parts(tmp_path / "b", "knn", {"1.accuracy_at_1": 0.5}, [], settings={"temperature": 0.5})
    paired, _, error = compared(tmp_path, capsys, status=2)
    assert paired == ["map", "dtd.accuracy"]
    first, second = error.splitlines()
    assert first.startswith("error: knn was measured by different protocols (temperature: ")
    assert second.startswith(
        "error: vtab: svhn.accuracy, mean_of_2_tasks not compared (the labels or ground truth of svhn/s differ); "
    )


def test_parts_without_a_shared_metric_are_refused(tmp_path, capsys):
    for name, task in (("a", "dtd"), ("b", "svhn")):
        write_parts(tmp_path / name, "vtab", {f"{task}.accuracy": 0.5}, [provenance(task, ["1"], part=task)])
    assert "vtab: no metric is in all folders" in compared(tmp_path, capsys, status=2)[2]


def test_results_of_the_format_before_are_read_and_compare(tmp_path, capsys):
    for name, scale in (("a", 10.0), ("b", 30.0)):
        settings = {"classes": "classifier", "classes_hash": "c", "scale": scale, "image_counts_hash": "i"}
        old = record(settings=settings | {"tail_below": 10, "head_from": 100 if name == "a" else 90})
        metrics = {"accuracy_at_1": 0.5, "head.accuracy_at_1": 0.5}
        old |= {"benchmark": "entities", "format_version": 1, "metrics": metrics}
        write_result(tmp_path / name, old, {"accuracy_at_1": np.ones(4), "head.accuracy_at_1": np.ones(2)})
        old = record(settings={"temperature": 0.07, "k": [1] if name == "a" else [1, 5]})
        write_result(tmp_path / name, {**old, "format_version": 1}, {"accuracy": np.ones(4)})
    paired, _, error = compared(tmp_path, capsys, status=2)
    assert paired == ["accuracy_at_1", "accuracy"]
    assert (
        "entities: head.accuracy_at_1 not compared (the labels or ground truth of head/training counts differ)" in error
    )


def test_vtab_results_of_the_format_before_are_refused_against_new_ones_in_plain_words(tmp_path, capsys):
    old = record() | {"benchmark": "vtab", "format_version": 1, "metrics": {"dtd.accuracy": 0.5}}
    write_result(tmp_path / "a", old, {"dtd.accuracy": np.ones(4)})
    settings = {"k": 10}
    known = [provenance("test", ["1"], part="dtd")]
    write_parts(tmp_path / "b", "vtab", {"dtd.accuracy": 0.5}, known, settings=settings)
    _, _, error = compared(tmp_path, capsys, status=2)
    assert "(one is of an earlier format, which did not state the data of each task); measure again" in error
