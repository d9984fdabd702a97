import numpy as np
import pytest

from evaluation import compare
from evaluation.compare import paired_bootstrap, protocol_differences
from evaluation.results import FORMAT_VERSION, SavedResult, read_results, write_result


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
    assert compare.main([folders[0]]) == 2 and "make compare takes A= and B=" in capsys.readouterr().err
    assert compare.main([*folders, "--seed", "-1"]) == 2 and "--seed is -1" in capsys.readouterr().err
    (tmp_path / "c").mkdir()
    assert compare.main([folders[0], str(tmp_path / "c")]) == 2
    assert "holds no results" in capsys.readouterr().err


def test_a_folder_of_two_models_is_refused(folders, tmp_path, capsys):
    other = {**record(), "benchmark": "gpr1200", "model": {"hash": "another", "preprocessing": {}}}
    write_result(tmp_path / "b", other, {})
    assert compare.main(folders) == 2
    assert "holds results of 2 models, 1 may" in capsys.readouterr().err


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
    assert "holds results of 2 models, 1 may" in capsys.readouterr().err
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


def test_a_bootstrap_is_that_of_the_differences_item_by_item():
    rng = np.random.default_rng(1)
    first, other = rng.random(50), rng.random(50)
    low, high = paired_bootstrap([first], [other], seed=3, num_resamples=500)
    draws = np.random.default_rng(3).integers(0, 50, (500, 50))
    means = [np.mean([other[n] - first[n] for n in draw]) for draw in draws]
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=1e-12)
    same = paired_bootstrap([first], [first])
    assert same == (0.0, 0.0)
    with pytest.raises(ValueError, match="both must be"):
        paired_bootstrap([first], [other[:10]])


def test_a_bootstrap_of_a_mean_draws_shared_pictures_alike():
    rng = np.random.default_rng(1)
    first, other = rng.random(50), rng.random(50)
    once = paired_bootstrap([first], [other])
    assert paired_bootstrap([first, first], [other, other]) == pytest.approx(once)  # of two tasks that agree
    opposite = paired_bootstrap([first, other], [other, first])
    assert opposite == pytest.approx((0, 0), abs=1e-12)
    # Of a task on other pictures, less is left.
    apart = paired_bootstrap([first, np.tile(first, 2)], [other, np.tile(other, 2)])
    assert apart[1] - apart[0] < 0.9 * (once[1] - once[0])


def test_a_mean_of_other_metrics_has_no_interval(folders, tmp_path, capsys):
    for folder, of in (("a", ["accuracy"]), ("b", ["other"])):
        items = {"accuracy": np.ones(3), "other": np.zeros(3)}
        whole = {**record(), "metrics": {"mean": 1.0}, "means": {"mean": of}}
        write_result(tmp_path / folder, whole, items)
    assert compare.main(folders) == 0 and " to " not in capsys.readouterr().out
