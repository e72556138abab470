"""The gallery of the report: images that survive an attack, and images that it breaks."""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from taet.card.card import Card
from taet.card.images import AMPLIFIED, CardImage, CardImages, ImagePixels, drawn_change, png
from taet.data.published import image_terms
from taet.evaluation.gallery import GROUPS, groups_of
from taet.formatting import join_words, percent
from taet.report.entries import TableEntry
from taet.report.results import Results
from taet.report.tables import order

NONE = (
    "No images are kept with these cards: they were evaluated by an earlier version, in memory, or "
    "with --no-images. To keep some, remove the card and evaluate again."
)


@dataclass(frozen=True)
class ImageTile:
    """An image of a picture: its content as an address of a page, and the words below it."""

    address: str
    what: str
    answer: str = ""


@dataclass(frozen=True)
class Picture:
    """An image as it is, what the attack added to it, and the result."""

    title: str
    tiles: Sequence[ImageTile]


@dataclass(frozen=True)
class Gallery:
    """The pictures of a test set, and the text above them."""

    text: str
    pictures: Sequence[Picture] = ()


def gallery(results: Results) -> Gallery:
    """Return the pictures of the best row that has some, or a text on why there are none."""
    for row in order(results):
        for entry in results.entries:
            if entry.row != row or entry.card.images is None:
                continue
            pixels = entry.pixels()
            if pixels is not None:
                text = _text(entry, entry.card.images)
                return Gallery(text, [*_pictures(entry.card, entry.card.images, pixels)])
    return Gallery(NONE)


def _text(entry: TableEntry, images: CardImages) -> str:
    seed = "" if entry.card.seed is None else f", seed {entry.card.seed}"
    sentences = [
        f"{entry.row}{seed}, under {images.attack}: of each group of classes the first test image "
        "that survives and the first that breaks, of those that are recognised without the attack.",
        f"The change is drawn {AMPLIFIED} times as strong, around grey.",
    ]
    others = dict.fromkeys(image.made_by for image in images.images if image.made_by)
    if others:
        sentences.append(
            f"{images.attack} leaves an image that it cannot break as it is; there the picture "
            f"shows the attempt of {join_words(others)}."
        )
    if images.every > 1:
        sentences.append(f"One pixel in {images.every} of each line and column is drawn.")
    terms = image_terms(entry.card.data["name"])
    return " ".join([*sentences, terms] if terms else sentences)


def _pictures(card: Card, images: CardImages, pixels: ImagePixels) -> Iterator[Picture]:
    groups = groups_of(card.labels, card.data.get("train_class_counts"))
    is_ranked = len({*groups}) > 1
    for image, (original, attacked) in zip(images.images, pixels, strict=True):
        survives = card.column(images.attack).correct[image.row]
        group = f"{GROUPS[groups[image.row]]} class " if is_ranked else "class "
        name = card.class_names[card.labels[image.row]]
        title = f"{group}{name}: {'survives' if survives else 'breaks'}"
        yield Picture(title, _tiles(card, images, image, original, attacked))


def _tiles(
    card: Card, images: CardImages, image: CardImage, original: ImagePixels, attacked: ImagePixels
) -> list[ImageTile]:
    assert card.clean is not None  # a card with images has it
    drawn = drawn_change(original, attacked)
    before = card.clean.predictions[image.row]
    after = card.column(images.attack).predictions[image.row]
    what = f"attempt of {image.made_by}" if image.made_by else "attacked"
    return [
        ImageTile(_address(original), "original", _answer(card, before, image.clean_probability)),
        ImageTile(_address(drawn), f"change × {AMPLIFIED}"),
        ImageTile(_address(attacked), what, _answer(card, after, image.probability)),
    ]


def _answer(card: Card, label: int, probability: float) -> str:
    return f"{card.class_names[label]}, {percent(probability)} % sure"


def _address(pixels: ImagePixels) -> str:
    """Return an image (H, W, C) as an address that holds its content."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"
