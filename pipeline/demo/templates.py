"""The templates of captions.

A `{name}` is the entity's, `{tags}` two to four words that describe it, `{number}` any number, `{stray}` a phrase that
has names of the base and means none of their entities. The templates differ from those that the tagger is trained on,
so that the tagger is not tested on its own lessons.
"""

from __future__ import annotations

WITH_TAGS: dict[str, tuple[str, ...]] = {
    "emoji": (
        "{name} emoji, {tags}",
        "{name} icon | {tags}",
        "{name} clipart ({tags})",
        "Cute {name} sticker - {tags}",
        "{tags}: {name}, free vector",
        "{name} - {tags} - PNG download",
        "{name} cartoon illustration, {tags}, white background",
        "{name}. Keywords: {tags}",
    ),
    "flag": (
        "Flag of {name}, {tags}",
        "{name} flag icon | {tags}",
        "{name} - its flag, {tags}",
        "Waving flag: {name} ({tags})",
        "{tags}: flag of {name}",
        "{name} flag sticker. Keywords: {tags}",
    ),
    "logo": (
        "{name} logo, {tags}",
        "{name} logo vector | {tags}",
        "{name} brand mark ({tags})",
        "{tags}: {name} logo",
        "Official {name} logo. Keywords: {tags}",
    ),
}
WITHOUT_TAGS: dict[str, tuple[str, ...]] = {
    "emoji": (
        "{name} emoji",
        "{name} icon",
        "Cute {name} clipart",
        "{name} sticker pack",
        "Illustration of {name}, isolated on white",
        "{name} vector, SVG and PNG",
        "drawing: {name}",
    ),
    "flag": (
        "Flag of {name}",
        "{name} flag icon",
        "The flag of {name}, vector",
        "{name} flag PNG, transparent background",
        "buy {name} flag online",
    ),
    "logo": (
        "{name} logo",
        "{name} logo vector download",
        "The {name} logo, transparent PNG",
        "{name} brand icon SVG",
    ),
}
# The name alone: nothing in the text says which of its meanings applies, or even what kind of picture it is.
BARE = ("{name}", "{name} image", "{name} PNG", "Picture: {name}", "{name} (free download)", "{name}, high resolution")
FILE_NAMES = (
    "IMG_{number}.JPG",
    "DSC{number}.jpg",
    "image-{number}.png",
    "untitled-{number}.svg",
    "{number}x{number}_thumb.webp",
    "screenshot {number}-{number}.png",
    "pic{number}_final_v2.png",
    "{number}_o.gif",
)
SHOP_BOILERPLATE = (
    "Free shipping on orders over ${number}",
    "Add to basket | only {number} in stock",
    "Save up to {number}% today - shop now",
    "Product image {number} of {number}",
    "Buy 2, get 1 free! Item no. {number}",
    "In stock, ships within {number} days. 30-day returns",
    "Best price guaranteed, from ${number}.99",
    "Customers also viewed ({number})",
)
NO_ENTITY = (
    "Click to enlarge ({number})",
    "Our favourite picture of the week no. {number}",
    "See more of these below, part {number}",
    "Image may be subject to copyright {number}",
    "thumbnail {number}",
    "as described in step {number}",
    "header graphic, version {number}",
    "Read more: {number} comments",
)
# A caption and a phrase beside it, which says nothing about the picture.
WITH_STRAY = (
    "{caption} - {stray}",
    "{caption} | {stray}",
    "{caption}. {stray}",
    "{caption} ({stray})",
    '{caption} "{stray}"',
    "{stray}: {caption}",
    "{stray} / {caption}",
    "{stray} & {caption}",
)
# Common words that brands bear, used as such. `{stray}` is one of them.
STRAY_NOUNS = (
    "{stray} for every occasion",
    "all about the {stray}",
    "gift for a {stray} lover",
    "my new {stray}",
    "not just any {stray}",
    "{stray} inspired",
    "{stray} theme, printable",
    "the perfect {stray}, every time",
)
STRAY_ADJECTIVES = (
    "a {stray} present for kids",
    "simple and {stray} artwork",
    "so {stray}!",
    "{stray} look, easy to print",
    "very {stray} and fun",
    "with a {stray} finish",
)
# Longer names of people, of places, and of anything else, that have a name of the base in them.
STRAY_LONGER_NAMES: dict[str, tuple[str, ...]] = {
    "person": ("{stray}'s book", "{stray} fan art", "as told by {stray}", "quote by {stray}", "{stray}, biography"),
    "place": ("near {stray}", "trip to {stray}", "made in {stray}", "{stray} travel guide", "seen at {stray}"),
    "other": ("as seen on {stray}", "works with {stray}", "{stray} edition", "also for {stray}", "from {stray}"),
}
