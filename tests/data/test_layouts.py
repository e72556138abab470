"""Miniatures of what published sets unpack to, read by the path alone."""

import pytest

from taet.data import load
from taet.errors import UserError

COLOUR = {"mode": "RGB", "size": (12, 10)}


def apart(dataset):
    """How many groups there are; those of the two splits differ."""
    train, test = {*dataset.train.groups}, {*dataset.test.groups}
    assert not train & test
    return len(train | test)


@pytest.fixture
def gtsrb(tmp_path, fill):
    """Three classes of four tracks of five frames, in the official folders."""
    for label in range(3):
        for track in range(4):
            name = f"{track:05}_{{:05d}}.ppm"
            fill(tmp_path / f"GTSRB/Final_Training/Images/{label:05}", 9 * label + track, 5, name=name, **COLOUR)
    fill(tmp_path / "GTSRB/Final_Test/Images", 100, 6, name="{:05d}.ppm", **COLOUR)
    rows = [f"{i:05}.ppm;12;10;1;1;5;5;{i % 3}" for i in range(6)]
    (tmp_path / "GT-final_test.csv").write_text("\n".join(["Filename;Width;Height;A;B;C;D;ClassId", *rows]))
    (tmp_path / "GTSRB/Final_Test/Images/GT-final_test.test.csv").write_text("Filename;Width;Height;A;B;C;D\n")
    return tmp_path


def test_gtsrb_in_its_official_folders(gtsrb):
    for path in (gtsrb, gtsrb / "GTSRB"):
        dataset = load(str(path), size=8, validation=0.25)
        assert dataset.class_names == ("00000", "00001", "00002")
        assert dataset.test.labels.tolist() == [0, 1, 2] * 2
        assert (dataset.class_counts.tolist(), dataset.validation.class_counts.tolist()) == ([15] * 3, [5] * 3)
        assert not {*dataset.train.groups} & {*dataset.validation.groups}
        assert not dataset.mirror
    alone = load(str(gtsrb / "GTSRB/Final_Training/Images"), size=8)
    assert alone.test.class_counts.tolist() == [5] * 3
    apart(alone)


def test_gtsrb_as_kaggle_has_it(tmp_path, fill):
    for label in range(2):
        for track in range(5):
            fill(tmp_path / f"Train/{label}", track, 3, name=f"{label:05}_{track:05}_{{:05d}}.png", **COLOUR)
            fill(tmp_path / f"train/{label}", track, 3, name=f"{label:05}_{track:05}_{{:05d}}.png", **COLOUR)
    fill(tmp_path / "Test", 50, 4, name="{:05d}.png", **COLOUR)
    lines = [f"12,10,{i % 2},Test/{i:05}.png" for i in range(4)]
    (tmp_path / "Test.csv").write_text("\n".join(["Width,Height,ClassId,Path", *lines]))
    files = sorted((tmp_path / "Train").rglob("*.png"))
    lines = [f"12,10,{file.parent.name},Train/{file.parent.name}/{file.name}" for file in files]
    (tmp_path / "Train.csv").write_text("\n".join(["Width,Height,ClassId,Path", *lines]))
    dataset = load(str(tmp_path), size=8)
    assert (dataset.class_counts.tolist(), dataset.test.labels.tolist()) == ([15, 15], [0, 1, 0, 1])
    by_table = load(str(tmp_path / "Train.csv"), size=8)
    assert not by_table.mirror
    apart(by_table)


def test_ham10000_with_lesions(tmp_path, fill):
    fill(tmp_path / "HAM10000_images_part_1", 0, 30, name="ISIC_{:07d}.jpg", **COLOUR)
    fill(tmp_path / "HAM10000_images_part_2", 100, 10, name="ISIC_1{:06d}.jpg", **COLOUR)
    fill(tmp_path / "ham10000_images_part_1", 0, 30, name="ISIC_{:07d}.jpg", **COLOUR)  # Kaggle has it twice
    names = [*(f"ISIC_{i:07d}" for i in range(30)), *(f"ISIC_1{i:06d}" for i in range(10))]
    rows = [f"HAM_{i // 2},{name},{'nv' if i < 30 else 'mel'},histo,80.0" for i, name in enumerate(names)]
    (tmp_path / "HAM10000_metadata.csv").write_text("\n".join(["lesion_id,image_id,dx,dx_type,age", *rows]))
    (tmp_path / "hmnist_8_8_L.csv").write_text("pixel0000,label\n1,2\n")
    dataset = load(str(tmp_path))
    assert dataset.class_names == ("mel", "nv")
    assert dataset.class_counts.tolist() == [8, 24]
    assert apart(dataset) == 20
    by_table = load(str(tmp_path / "HAM10000_metadata.csv"))
    assert by_table.manifest() == dataset.manifest()


def test_isic_2019_with_lesions(tmp_path, fill):
    fill(tmp_path / "ISIC_2019_Training_Input", 0, 40, name="ISIC_{:07d}.jpg", **COLOUR)
    classes = ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK"]
    ones = [[float(column == (0 if i < 10 else 1)) for column in range(9)] for i in range(40)]
    rows = [f"ISIC_{i:07d},{','.join(map(str, one))}" for i, one in enumerate(ones)]
    truth = tmp_path / "ISIC_2019_Training_GroundTruth.csv"
    truth.write_text("\n".join(["image," + ",".join(classes), *rows]))
    meta = [f"ISIC_{i:07d},55.0,torso,{f'BCN_{i // 4}' if i % 8 < 4 else ''},male" for i in range(40)]
    header = "image,age_approx,anatom_site_general,lesion_id,sex"
    (tmp_path / "ISIC_2019_Training_Metadata.csv").write_text("\n".join([header, *meta]))
    dataset = load(str(tmp_path), size=8)
    assert dataset.class_names == ("MEL", "NV")
    assert apart(dataset) == 5 + 20  # twenty images are of no known lesion
    assert load(str(tmp_path), size=8, group="none").train.groups is None
    truth.write_text(truth.read_text().replace("1.0", "0.0", 1))
    with pytest.raises(UserError, match="line 2: got 0 classes of 'ISIC_0000000'; allowed: one"):
        load(str(tmp_path), size=8)


def test_hyperkvasir_has_the_inner_folders_as_classes(tmp_path, fill):
    inner = {
        "lower-gi-tract/anatomical-landmarks/cecum": 10,
        "lower-gi-tract/pathological-findings/polyps": 12,
        "upper-gi-tract/anatomical-landmarks/z-line": 6,
    }
    for name, count in inner.items():
        fill(tmp_path / "labeled-images" / name, 10, count, name="{:04d}.jpg", **COLOUR)
    (tmp_path / "labeled-images/image-labels.csv").write_text("Video file,Organ,Finding,Classification\na,b,c,d\n")
    for path in (tmp_path / "labeled-images", tmp_path):
        dataset = load(str(path), size=8)
        assert dataset.class_names == ("cecum", "polyps", "z-line")
        assert (dataset.class_counts + dataset.test.class_counts).tolist() == [10, 12, 6]
