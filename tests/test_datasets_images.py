"""Letters, image folders and ADNIMERGE.csv."""

import re
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import pyro_armed as pa
from pyro_armed.datasets import CONVERSION_COLUMNS
from pyro_armed.errors import ArgumentError, DataError, MissingDependencyError

# --- letters -----------------------------------------------------------------------------------------------


def test_letters_are_the_same_for_a_seed_and_half_of_them_capitals(unmoved_rng):
    one, two = (pa.datasets.letters(6, seed=4) for _ in range(2))
    np.testing.assert_array_equal(one.images, two.images)
    assert one.labels.mean() == 0.5
    assert [c.isupper() for c in one.letters] == one.labels.astype(bool).tolist()
    assert len(set(one.groups[one.seen])) == 13
    assert not set(one.groups[one.seen]) & set(one.groups[~one.seen])


def test_capitals_are_larger_within_a_font():
    data = pa.datasets.letters(20, zoom=0.0, noise=0.0, seed=0)
    rows = (data.images.max(2) > 0.3).sum(1)
    for font in set(data.groups):
        of_font = data.groups == font
        assert rows[of_font & (data.labels == 1)].mean() > 1.2 * rows[of_font & (data.labels == 0)].mean()


def test_letters_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match="needs the package matplotlib"):
        pa.datasets.letters(2)


def test_all_fonts_cannot_be_unseen():
    with pytest.raises(ArgumentError, match="unseen has to be an integer from 0 to 18"):
        pa.datasets.letters(2, unseen=19)


# --- folders -----------------------------------------------------------------------------------------------


def test_images_come_in_the_order_of_the_table_and_in_grey(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("L", (20, 30), 51).save(tmp_path / "pictures" / "a.png")
    Image.new("RGB", (20, 20), (255, 255, 255)).save(tmp_path / "pictures" / "b.png")
    Image.fromarray(np.full((20, 20), 32768, dtype=np.uint16)).save(tmp_path / "pictures" / "c.png")
    pd.DataFrame(
        {"image": ["b.png", "a.png", "c.png"], "label": ["ill", "well", "ill"], "site": [7, 8, 7]}
    ).to_csv(tmp_path / "list.csv", index=False)
    data = pa.datasets.image_folder(tmp_path / "list.csv", tmp_path / "pictures", size=16)
    assert data.images.shape == (3, 16, 16)
    np.testing.assert_allclose(data.images.mean((1, 2)), [1.0, 0.2, 0.5], atol=1e-3)
    assert data.labels.tolist() == ["ill", "well", "ill"]
    assert data.groups.tolist() == ["7", "8", "7"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,label\na.png,1\n", "lacks the column.s. site"),
        ("image,label,site\na.png,,x\n", "has 1 row.s. without label"),
        ("image,label,site\n", "lists no images"),
        ("image,label,site\na.png,1,x\n", "a.png' of .* cannot be read"),
    ],
)
def test_errors_name_the_column_and_the_image(tmp_path, text, words):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        pa.datasets.image_folder(tmp_path / "list.csv")


# --- conversion --------------------------------------------------------------------------------------------


def visits(*rows):
    """Rows of RID, VISCODE, DX_bl and DX, with predictors of one."""
    frame = pd.DataFrame(rows, columns=["RID", "VISCODE", "DX_bl", "DX"])
    return frame.assign(SITE=3, **dict.fromkeys(CONVERSION_COLUMNS, 1.0)).assign(PTGENDER="Male")


def test_who_converts():
    table = pa.datasets.conversion(
        visits(
            (1, "bl", "LMCI", "MCI"), (1, "m12", "LMCI", "Dementia"),  # converts
            (2, "bl", "EMCI", "MCI"), (2, "m24", "EMCI", "MCI"),  # does not
            (3, "bl", "LMCI", "MCI"), (3, "m36", "LMCI", "Dementia"),  # later: not within 24 months
            (4, "bl", "LMCI", "MCI"), (4, "m12", "LMCI", "MCI"),  # lost to follow-up
            (5, "bl", "CN", "CN"), (5, "m24", "CN", "Dementia"),  # was not mildly impaired
            (6, "bl", "MCI", "MCI"), (6, "m06", "MCI", "MCI to Dementia"),  # an older coding
            (7, "m24", "LMCI", "MCI"),  # no baseline
        )
    )  # fmt: skip
    assert dict(zip(table["RID"], table["converted"], strict=True)) == {1: 1, 2: 0, 3: 0, 6: 1}
    assert table["SITE"].tolist() == ["3"] * 4
    assert (table["PTGENDER"] == 1.0).all()


def test_columns_that_are_missing_are_named(tmp_path):
    visits((1, "bl", "LMCI", "MCI")).drop(columns=["FDG", "SITE"]).to_csv(tmp_path / "table.csv")
    with pytest.raises(DataError, match=r"lacks the column\(s\) SITE, FDG of ADNIMERGE.csv"):
        pa.datasets.read_adnimerge(tmp_path / "table.csv")
    with pytest.raises(DataError, match=r"There is no file .*; check the path"):
        pa.datasets.read_adnimerge(tmp_path / "none.csv")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(DataError, match="cannot be read as a CSV file"):
        pa.datasets.read_adnimerge(tmp_path / "empty.csv")


def test_nobody_with_a_known_outcome():
    with pytest.raises(DataError, match="Nobody with a DX_bl"):
        pa.datasets.conversion(visits((1, "bl", "LMCI", "MCI")))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"PTGENDER": "M"}, "PTGENDER has the value 'M'; ADNIMERGE.csv has 'Male' and 'Female' there"),
        ({"MMSE": "good"}, "MMSE has no number, but for example 'good'"),
        ({"SITE": np.nan}, "2 of 2 participants have no SITE"),
    ],
)
def test_columns_with_something_else_in_them_are_named(change, words):
    frame = visits(
        (1, "bl", "LMCI", "MCI"), (1, "m24", "LMCI", "Dementia"),
        (2, "bl", "LMCI", "MCI"), (2, "m24", "LMCI", "MCI"),
    ).assign(**change)  # fmt: skip
    with pytest.raises(DataError, match=re.escape(words)):
        pa.datasets.conversion(frame)


def test_single_odd_values_and_genders_that_nobody_wrote_down_are_missing():
    frame = visits((1, "bl", "LMCI", "MCI"), (1, "m24", "LMCI", "MCI"), (2, "bl", "LMCI", "MCI"),
                   (2, "m24", "LMCI", "MCI"))  # fmt: skip
    frame["FDG"] = ["<0.5", "<0.5", "1.2", "1.2"]
    frame["PTGENDER"] = ["Female", "Female", np.nan, np.nan]
    table = pa.datasets.conversion(frame)
    np.testing.assert_array_equal(table["FDG"], [np.nan, 1.2])
    np.testing.assert_array_equal(table["PTGENDER"], [0.0, np.nan])
