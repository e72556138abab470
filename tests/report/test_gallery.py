"""The gallery of the report: what is drawn, what stands below it, and whose images they are."""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import taet
from taet import report
from taet.card.images import CardImage, CardImages, keep_images, sheet_of
from taet.errors import UserError
from taet.evaluation.gallery import strongest
from taet.report.gallery import NONE
from tests.report.made import MakeCard, Page, right


@pytest.fixture
def with_images(make_card: MakeCard, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves a card with two images, of which one breaks."""

    def save(**changes: object) -> Path:
        card = make_card("at", **changes)
        attacked = card.column("autoattack")
        recognised = card.column("clean").correct
        rows = [int(np.flatnonzero(recognised & right)[0]) for right in (attacked.correct,)]
        rows += [int(np.flatnonzero(recognised & ~attacked.correct)[0])]
        original = np.full((2, 4, 4, 3), 100, np.uint8)
        sheet = sheet_of(original, original + np.array([5, 0, 0], np.uint8))
        images = CardImages(
            attack="autoattack",
            sha256=sheet.sha256,
            every=1,
            images=(
                CardImage(row=rows[0], clean_probability=0.9, probability=0.8, made_by="pgd-20"),
                CardImage(row=rows[1], clean_probability=0.7, probability=0.6),
            ),
        )
        keep_images(tmp_path, images, sheet)
        card.changed(images=images).save(tmp_path / "card.json")
        return tmp_path / "card.json"

    return save


def drawn(page: Page) -> list[np.ndarray]:
    contents = re.findall(r'<img src="data:image/png;base64,([^"]+)"', page.source)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in contents]


def test_each_picture_has_the_original_the_change_around_grey_and_the_result(
    with_images: Callable[..., Path], tmp_path: Path
) -> None:
    page = Page(report.write(with_images(), tmp_path / "page.html"))
    tiles = drawn(page)
    assert [tile[0, 0].tolist() for tile in tiles[:3]] == [
        [100, 100, 100],
        [128 + 50, 128, 128],
        [105, 100, 100],
    ]
    assert len(tiles) == 6


def test_below_each_picture_stands_what_the_network_said_and_how_sure_it_was(
    with_images: Callable[..., Path], tmp_path: Path
) -> None:
    file = with_images()
    page = Page(report.write(file, tmp_path / "page.html"))
    card = taet.Card.load(file)
    assert card.images is not None
    survivor, broken = card.images.images
    name = card.class_names[card.labels[survivor.row]]
    assert f"{name}: survives" in page.text
    assert "attempt of pgd-20" in page.text
    before = card.class_names[card.labels[broken.row]]
    after = card.class_names[card.column("autoattack").predictions[broken.row]]
    assert f"{before}: breaks" in page.text
    assert f"{before}, 70.0 % sure" in page.text
    assert f"{after}, 60.0 % sure" in page.text


def test_images_of_patients_are_said_to_be_so_with_their_licence(
    with_images: Callable[..., Path], tmp_path: Path, make_card: MakeCard
) -> None:
    data = {**make_card("at").data, "name": "dermamnist"}
    page = Page(report.write(with_images(data=data), tmp_path / "page.html"))
    assert "The images are of patients, under CC BY-NC 4.0 (HAM10000" in page.text


def test_cards_without_images_say_so_in_a_line(page: Page) -> None:
    assert NONE in page.text
    assert not drawn(page)


def test_a_changed_file_of_images_is_refused(
    with_images: Callable[..., Path], tmp_path: Path
) -> None:
    with_images()
    (file,) = tmp_path.glob("images-*.png")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="was changed or damaged"):
        report.write(tmp_path / "card.json", tmp_path / "page.html")


def test_of_attacks_that_leave_the_same_the_pictures_show_the_one_of_most_passes(
    make_card: MakeCard,
) -> None:
    card = right(make_card("at"), 0.3, "fgsm", "pgd-20")
    clean, fgsm, pgd = card.columns[:3]
    columns = clean, fgsm.changed(forwards=3), pgd.changed(forwards=41)
    shown = strongest(card.changed(columns=columns))
    assert shown is not None
    assert shown.name == "pgd-20"
