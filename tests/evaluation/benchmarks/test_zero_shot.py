import json

import numpy as np
import pytest
from PIL import Image

from evaluation.benchmarks.zero_shot import count_ties, read_names, zero_shot_metrics
from evaluation.models.ready import EmbeddingsModel
from evaluation.protocol import Unavailable
from evaluation.sets.class_names import aligned_names, names_by_class, read_names_by_class, read_texts
from pipeline.schema import UserError
from tests.evaluation.builders import Asked, pictures, sources
from tests.evaluation.metrics.references import Words


def test_names_of_several_classes_are_counted():
    assert count_ties(["dog", "cat", "dog"]) == {"num_tied_names": 1, "num_tied_classes": 2}


def test_the_demos_pictures_are_given_the_closest_name_and_a_shared_name_goes_to_the_smaller_id():
    set_ = pictures(
        [
            ("a", "E1", "t", True, False),
            ("b", "E2", "t", True, False),
            ("c", "E3", "t", True, False),
            ("d", "E4", "t", True, False),
        ]
    )
    embeddings = np.array([[1, 0], [0, 1], [0, 1], [0, 1]], np.float32)
    names = {"E1": "cat", "E2": "dog", "E3": "dog"}  # E4 has no name
    result = zero_shot_metrics(embeddings, set_, Words(), names, ["E3", "E2", "E1", "E4"])
    # E1 right; E2 and E3 tie on "dog", E2 wins: 2 of 3 right.
    assert result.metrics["accuracy_at_1"] == pytest.approx(2 / 3)
    assert result.counts == {"num_pictures": 3, "num_candidates": 3, "num_without_name": 1, "num_shared_names": 2}


FOLDERS = ("n00000001", "n00000002", "n00000003")


@pytest.fixture
def data(tmp_path):
    """Three classes of two pictures, their names in JSON, and embeddings of both."""
    folder = tmp_path / "data"
    ids = [f"{one}/{number}.png" for one in FOLDERS for number in range(2)]
    for one in ids:
        path = folder / "imagenet" / "val" / one
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path)
    (folder / "names").mkdir()
    write_json(folder / "names" / "en_classnames.json", {"imagenet1k": ["cat", "dog", "dog"], "pets": ["cat", "dog"]})
    write_json(
        folder / "names" / "en_zeroshot_classification_templates.json",
        {"imagenet1k": ["a {c}", "{c}!"], "pets": ["the {c}"]},
    )
    # Class by class: right and wrong; right twice; never, since "dog" goes to the class before.
    vectors = {"zero_shot": (ids, [[1, 0], [0, 1], [0, 1], [0.1, 1], [0, 1], [1, 0]])}
    vectors["zero_shot_texts"] = (["a cat", "a dog", "cat!", "dog!"], [[1, 0], [0, 1], [1, 0], [0, 1]])
    write_embeddings(tmp_path / "embeddings", vectors)
    return tmp_path


def write_json(path, value):
    path.write_text(json.dumps(value))


def write_embeddings(folder, vectors):
    folder.mkdir(exist_ok=True)
    for name, (ids, rows) in vectors.items():
        np.save(folder / f"{name}.npy", np.array(rows, np.float32))
        (folder / f"{name}.ids").write_text("\n".join(ids))


def context(data, /, **options):
    return Asked(model=EmbeddingsModel(folder=data / "embeddings"), data_dir=data / "data", options=options)


def test_folders_meet_names_by_position_and_two_classes_of_one_name_are_counted(data):
    result = context(data).run("zero_shot")
    assert result.metrics == pytest.approx({"accuracy_at_1": 0.5, "mean_per_class_accuracy": 0.5})
    np.testing.assert_array_equal(result.items["accuracy_at_1"], [1, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(result.items["mean_per_class_accuracy"], [0.5, 1, 0])
    assert result.counts == {
        "num_pictures": 6,
        "num_unreadable": 0,
        "num_unread_files": 0,
        "num_classes": 3,
        "num_classes_with_pictures": 3,
        "num_templates": 2,
        "templates_key": "imagenet1k",
        "names": {FOLDERS[0]: "cat", FOLDERS[1]: "dog", FOLDERS[2]: "dog"},
        "num_tied_names": 1,
        "num_tied_classes": 2,
    }


def test_the_hashes_change_with_names_and_templates_and_not_with_their_file(data):
    first = context(data).run("zero_shot").settings
    write_json(data / "data" / "mine.json", ["cat", "dog", "dog"])
    assert context(data, names="mine.json").run("zero_shot").settings == first
    write_json(data / "data" / "mine.json", ["{}!", "a {}"])
    changed = context(data, templates="mine.json").run("zero_shot").settings
    assert changed["names_hash"] == first["names_hash"] and changed["templates_hash"] != first["templates_hash"]


def test_a_folder_may_bring_its_own_names(data):
    for number, name in enumerate(("cat", "big_dog", "fish")):
        (data / "data" / "imagenet" / "val" / FOLDERS[number]).rename(data / "data" / "imagenet" / "val" / name)
    ids = [f"{name}/{number}.png" for name in ("big_dog", "cat", "fish") for number in range(2)]
    texts = [text for name in ("big dog", "cat", "fish") for text in (f"a {name}", f"{name}!")]
    eye = np.repeat(np.eye(3), 2, axis=0)
    write_embeddings(data / "embeddings", {"zero_shot": (ids, eye), "zero_shot_texts": (texts, eye)})
    assert context(data, names_key="own").run("zero_shot").metrics["accuracy_at_1"] == 1
    with pytest.raises(UserError, match="leave one of them out"):
        context(data, names_key="own", names="names/en_classnames.json").run("zero_shot")


def test_a_tfds_set_brings_its_own_names(data):
    import tensorflow_datasets as tfds

    from tests.evaluation.sets.tfds_sets import labelled, prepare

    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["big_dog", "cat"])}
    prepare(data / "data", "animals", "1.0.0", features, {"test": labelled(4, 2)}, supervised_keys=("image", "label"))
    texts = ["a big dog", "big dog!", "a cat", "cat!"]
    rows = [[1, 0], [1, 0], [0, 1], [0, 1]]
    ids = [f"test:{number}" for number in range(4)]
    vectors = {"zero_shot": (ids, [[1, 0], [0, 1], [0, 1], [0, 1]]), "zero_shot_texts": (texts, rows)}
    write_embeddings(data / "embeddings", vectors)
    result = context(data, data="tfds:animals/test").run("zero_shot")
    # big_dog: 1 of 2, cat: 2 of 2.
    assert result.metrics == pytest.approx({"accuracy_at_1": 0.75, "mean_per_class_accuracy": 0.75})
    write_json(data / "data" / "mine.json", ["big dog", "cat"])
    assert context(data, data="tfds:animals/test", names="mine.json").run("zero_shot").settings == result.settings
    write_json(data / "data" / "names" / "en_classnames.json", {"imagenet1k": ["cat", "dog"]})
    with pytest.raises(UserError, match="'big_dog' of tfds:animals/test is not a WordNet id, .* zero_shot.names="):
        context(data, data="tfds:animals/test", names_key="imagenet1k").run("zero_shot")


def test_wordnet_ids_of_a_tfds_set_are_no_names_and_meet_imagenets_in_any_order(data):
    import tensorflow_datasets as tfds

    from tests.evaluation.sets.tfds_sets import labelled, prepare

    # As in TFDS's imagenet_resized, the ids are not sorted: the last is the cat.
    classes = tfds.features.ClassLabel(names=[FOLDERS[2], FOLDERS[1], FOLDERS[0]])
    features = {"image": tfds.features.Image(), "label": classes}
    prepare(data / "data", "small", "1.0.0", features, {"test": labelled(3, 3)}, supervised_keys=("image", "label"))
    names = {"imagenet1k": ["cat", "dog", "fish"]}
    write_json(data / "data" / "names" / "en_classnames.json", names)
    texts = [text for name in ("fish", "dog", "cat") for text in (f"a {name}", f"{name}!")]
    eye = np.eye(3)
    ids = [f"test:{number}" for number in range(3)]
    write_embeddings(data / "embeddings", {"zero_shot": (ids, eye), "zero_shot_texts": (texts, np.repeat(eye, 2, 0))})
    assert context(data, data="tfds:small/test", names_key="imagenet1k").run("zero_shot").metrics["accuracy_at_1"] == 1
    with pytest.raises(
        UserError, match="calls a class 'n00000003', which is a WordNet id, not a name; .*names_key=imagenet1k"
    ):
        context(data, data="tfds:small/test").run("zero_shot")
    # A list of the user's is in the order of the set.
    write_json(data / "data" / "mine.json", ["fish", "dog", "cat"])
    assert context(data, data="tfds:small/test", names="mine.json").run("zero_shot").metrics["accuracy_at_1"] == 1


def test_embeddings_of_another_width_than_the_names_are_an_error(data):
    np.save(data / "embeddings" / "zero_shot.npy", np.ones((6, 3), np.float32))
    with pytest.raises(UserError, match="of the pictures have 3 dimensions, those of the names 2; embed both with one"):
        context(data).run("zero_shot")


def test_the_truth_is_that_of_the_labels(data):
    asked = context(data)
    assert sources(asked.run("zero_shot"))["zero_shot"].truth is not None


def test_another_number_of_classes_than_names_is_an_error_that_names_both(data):
    with pytest.raises(UserError, match=r"has 3 classes and names/en_classnames.json has 2 names for 'pets'"):
        context(data, names_key="pets").run("zero_shot")


def test_imagenet_folders_that_are_no_wordnet_ids_are_refused(data):
    (data / "data" / "imagenet" / "val" / FOLDERS[1]).rename(data / "data" / "imagenet" / "val" / "dog")
    with pytest.raises(UserError, match="class 'dog' of imagenet/val is not a WordNet id"):
        context(data).run("zero_shot")


def test_numbered_folders_whose_order_as_text_differs_are_refused(data):
    for folder, number in zip(FOLDERS, ("1", "2", "10"), strict=True):
        (data / "data" / "imagenet" / "val" / folder).rename(data / "data" / "imagenet" / "val" / number)
    write_json(data / "data" / "mine.json", {"numbers": ["one", "two", "ten"]})
    with pytest.raises(UserError, match="are numbers, and as text '10' comes second"):
        context(data, names="mine.json", names_key="numbers").run("zero_shot")


@pytest.fixture
def named(data):
    """The data with words for its folders: "cat", "fox", "off_centre-dog"."""
    for folder, name in zip(FOLDERS, ("cat", "fox", "off_centre-dog"), strict=True):
        (data / "data" / "imagenet" / "val" / folder).rename(data / "data" / "imagenet" / "val" / name)
    ids = (data / "embeddings" / "zero_shot.ids").read_text()
    for folder, name in zip(FOLDERS, ("cat", "fox", "off_centre-dog"), strict=True):
        ids = ids.replace(folder, name)
    (data / "embeddings" / "zero_shot.ids").write_text(ids)
    return data


def test_names_of_words_in_another_order_than_the_classes_are_refused(named):
    write_json(named / "data" / "mine.json", ["cat", "Off-centre dog", "fox"])
    with pytest.raises(
        UserError,
        match="^class 1 of imagenet/val is 'fox', but name 1 of mine.json is 'Off-centre dog', which is the name of "
        "class 2; 2 of 3 classes have the name of another. Bring ",
    ):
        context(named, names="mine.json").run("zero_shot")


@pytest.mark.parametrize("names", [["cat", "fox", "Off-centre dog"], ["puss", "reynard", "cat dog"], ["a", "b", "c"]])
def test_names_that_say_nothing_against_their_order_meet_the_classes_by_position(named, names):
    write_json(named / "data" / "mine.json", names)
    texts = [filled for name in names for filled in (f"a {name}", f"{name}!")]
    write_embeddings(named / "embeddings", {"zero_shot_texts": (texts, np.ones((6, 2)))})
    counts = context(named, names="mine.json").run("zero_shot").counts
    assert counts["names"] == dict(zip(("cat", "fox", "off_centre-dog"), names, strict=True))


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (["C", "C#", "C++"], ["C", "C#", "C++"]),
        (["\U0001f600", "\U0001f601", "\U0001f602"], ["\U0001f600", "\U0001f601", "\U0001f602"]),
        (["Cat", "cat", "saw"], ["cat", "Cat", "saw"]),  # equal without case: neither tells the order
        (["Caf\u00e9-bar", "off_centre"], ["cafe bar", "Off centre"]),
    ],
)
def test_names_in_the_order_of_the_classes_pass(classes, names):
    assert aligned_names("data", classes, "names.json", None, tuple(names)) == tuple(names)


FOODS = [f"food_{number:03}" for number in range(101)]


def swapped(names, one, other):
    names = list(names)
    names[one], names[other] = names[other], names[one]
    return tuple(names)


@pytest.mark.parametrize(
    ("classes", "names", "message"),
    [
        (
            FOODS,
            swapped(FOODS, 3, 70),  # 99 of 101 are right
            "class 3 of data is 'food_003', but name 3 of names.json is 'food_070', which is the name of class 70; "
            "2 of 101 classes have ",
        ),
        (
            ["cat", "crane", "crane_machine"],
            ("cat", "crane bird", "crane"),
            "class 2 of data is 'crane_machine', but name 2 of names.json is 'crane', which is the name of class 1; "
            "1 of 3 classes have ",
        ),
        (
            ["Caf\u00e9_noir", "te", "lait"],
            ("The", "cafe-noir", "milk"),
            "class 1 of data is 'te', but name 1 of names.json is 'cafe-noir', which is the name of class 0; "
            "1 of 3 classes have ",
        ),
        (
            ["apple", "banana"],
            ("apple", "apple"),
            "class 1 of data is 'banana', but name 1 of names.json is 'apple', which is the name of class 0; "
            "1 of 2 classes have ",
        ),
        (
            ["crane", "machine", "saw"],
            ("crane", "crane", "saw"),
            "class 1 of data is 'machine', but name 1 of names.json is 'crane', which is the name of class 0; "
            "1 of 3 classes have ",
        ),
    ],
)
def test_any_class_that_has_the_name_of_another_is_refused(classes, names, message):
    with pytest.raises(UserError, match=f"^{message}the name of another. Bring the list into the order of the "):
        aligned_names("data", classes, "names.json", None, names)


def test_marks_that_make_another_word_are_no_accents():
    # Two Thai words that differ in a tone mark, one the class and the other the name of another class.
    classes, names = ["\u0e02\u0e32\u0e27", "b"], ("rice", "\u0e02\u0e49\u0e32\u0e27")
    assert aligned_names("data", classes, "names.json", None, names) == names


def test_where_nothing_tells_the_order_the_first_classes_are_printed_beside_their_names(capsys):
    aligned_names("data", ["cat", "dog"], "names.json", None, ("cat", "hound"))
    assert capsys.readouterr().err == (
        "note: names of names.json meet the 2 classes of data by position, and nothing tells whether the order of 1 of "
        "them is right; see for yourself: dog = hound\n"
    )
    aligned_names("data", ["cat", "dog"], "names.json", None, ("Cat", "dog"))
    assert capsys.readouterr().err == ""
    aligned_names("data", list("123456"), "names.json", None, tuple("abcdef"))
    assert capsys.readouterr().err == (
        "note: names of names.json meet the 6 classes of data by position, and nothing tells whether their order is "
        "right; see for yourself: 1 = a, 2 = b, 3 = c, 4 = d, 5 = e, ...\n"
    )


def test_some_of_imagenets_classes_find_their_names_by_wordnet_id(data):
    names = {"imagenet1k": ["ant", "cat", "bee", "dog", "cow"]}
    write_json(data / "data" / "names" / "en_classnames.json", names)
    with pytest.raises(UserError, match="has 3 classes and .* has 5 names .*_ids.json, which is not there: fetch it"):
        context(data).run("zero_shot")
    ids = ["n00000000", FOLDERS[0], "n00000001x", FOLDERS[1], FOLDERS[2]]
    write_json(data / "data" / "names" / "imagenet_wordnet_ids.json", ids)
    texts = [text for name in ("cat", "dog", "cow") for text in (f"a {name}", f"{name}!")]
    write_embeddings(data / "embeddings", {"zero_shot_texts": (texts, [[1, 0]] * 2 + [[0, 1]] * 2 + [[1, -1]] * 2)})
    result = context(data).run("zero_shot")
    assert result.counts["names"] == dict(zip(FOLDERS, ("cat", "dog", "cow"), strict=True))
    assert result.counts["num_classes"] == 3
    write_json(data / "data" / "names" / "imagenet_wordnet_ids.json", [*ids[:4], "n00000009"])
    with pytest.raises(
        UserError, match="1 of the 3 classes of imagenet/val are not among ImageNet's 5, 'n00000003' first"
    ):
        context(data).run("zero_shot")
    write_json(data / "data" / "names" / "imagenet_wordnet_ids.json", ids[:4])
    with pytest.raises(UserError, match="ids.json has 4 WordNet ids and names/en_classnames.json has 5 names"):
        context(data).run("zero_shot")


def test_an_object_states_the_name_of_each_class_itself(data):
    write_json(data / "data" / "mine.json", dict(zip(FOLDERS[::-1], ("dog", "dog", "cat"), strict=True)))
    result = context(data, names="mine.json").run("zero_shot")
    assert result.counts["names"] == dict(zip(FOLDERS, ("cat", "dog", "dog"), strict=True))
    write_json(data / "data" / "mine.json", {FOLDERS[0]: "cat"})
    with pytest.raises(UserError, match="mine.json has no name for 2 of the 3 classes of .*, 'n00000002' first"):
        context(data, names="mine.json").run("zero_shot")


def test_an_object_that_gives_a_class_the_name_of_another_or_has_it_twice_is_refused(tmp_path):
    classes = ["apple", "banana", "cow"]
    message = (
        "mine.json gives class 'apple' of data the name 'Banana', which is that of class 'banana'; 2 of 3 classes have "
        "the name of another. Correct the file"
    )
    with pytest.raises(UserError, match=f"^{message}$"):
        names_by_class("data", classes, "mine.json", {"apple": "Banana", "banana": "apple", "cow": "cattle"})
    assert names_by_class("data", classes, "mine.json", dict.fromkeys(classes, "food")) == ("food",) * 3
    for second in ("apple", " apple"):
        (tmp_path / "mine.json").write_text(f'{{"apple": "a", "{second}": "b"}}')
        with pytest.raises(UserError, match="mine.json has the duplicate (key|id) 'apple'"):
            read_names_by_class(tmp_path / "mine.json")


def test_numbers_are_no_names(data):
    for number, folder in enumerate(FOLDERS):
        (data / "data" / "imagenet" / "val" / folder).rename(data / "data" / "imagenet" / "val" / str(number))
    with pytest.raises(UserError, match="calls its classes '0' and so on, which are numbers, not names"):
        context(data, names_key="own").run("zero_shot")


def test_names_for_vtab_take_the_templates_of_their_set(named):
    write_json(named / "data" / "names.json", {"pets_vtab": ["cat", "fox", "dog"]})
    write_embeddings(named / "embeddings", {"zero_shot_texts": (["the cat", "the fox", "the dog"], np.ones((3, 2)))})
    assert context(named, names="names.json", names_key="pets_vtab").run("zero_shot").counts["templates_key"] == "pets"


def test_what_is_not_there_is_unavailable_with_where_to_get_it(data):
    (data / "embeddings" / "zero_shot_texts.npy").unlink()
    with pytest.raises(Unavailable, match="zero_shot_texts.npy is not there"):
        context(data).run("zero_shot")
    (data / "data" / "names" / "en_classnames.json").unlink()
    with pytest.raises(Unavailable, match=r"en_classnames.json is not there; fetch it with python -m evaluation"):
        context(data).run("zero_shot")
    with pytest.raises(Unavailable, match="put one folder per class in it.*--option zero_shot.data="):
        context(data, data="none").run("zero_shot")


def test_a_file_of_the_users_that_is_not_there_is_an_error(data):
    with pytest.raises(UserError, match="mine.json is not there") as caught:
        context(data, names="mine.json").run("zero_shot")
    assert not isinstance(caught.value, Unavailable)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{cut", "is not valid JSON"),
        ('{"imagnet1k": ["a"]}', "has no 'imagenet1k', the nearest is 'imagnet1k'; it has 'imagnet1k'"),
        ('{"imagenet1k": []}', "at least 1 text"),
        ('["a", 3]', "a list of at least 1 text"),
        ('["a", " "]', "none of them empty"),
        ('"a"', "a list of at least 1 text"),
    ],
)
def test_a_file_of_texts_that_is_none_is_named(tmp_path, content, words):
    (tmp_path / "names.json").write_text(content)
    with pytest.raises(UserError, match=words):
        read_texts(tmp_path / "names.json", "imagenet1k")


def test_a_data_set_without_templates_of_its_own_takes_the_others(tmp_path):
    write_json(tmp_path / "templates.json", {"imagenet1k": ["a {c}"], "pets": ["the {c}"]})
    assert read_texts(tmp_path / "templates.json", "pets", otherwise=["imagenet1k"]) == ("pets", ("the {c}",))
    found = read_texts(tmp_path / "templates.json", "cars", otherwise=["trucks", "imagenet1k"])
    assert found == ("imagenet1k", ("a {c}",))
    write_json(tmp_path / "list.json", ["a {c}"])
    assert read_texts(tmp_path / "list.json", "cars") == (None, ("a {c}",))


def test_names_come_from_a_vocabulary_or_a_source_and_a_bad_line_is_named(tmp_path):
    path = tmp_path / "names.jsonl"
    path.write_text('{"entity_id": "Q1", "name": "one"}\n{"id": "Q2", "label": "two"}\n')
    assert read_names(path) == {"Q1": "one", "Q2": "two"}
    path.write_text('{"id": "Q1", "label": "one"}\n{"id": "Q2"}\n')
    with pytest.raises(UserError, match="line 2: needs"):
        read_names(path)
    path.write_text("{cut")
    with pytest.raises(UserError, match="line 1 is not valid JSON"):
        read_names(path)
    with pytest.raises(UserError, match="is missing; make it again with make demo"):
        read_names(tmp_path / "none.jsonl")
