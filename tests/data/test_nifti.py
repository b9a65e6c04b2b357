"""NIfTI to PNG slices: values and orientation against voxels placed by hand and nibabel's own reading."""

from __future__ import annotations

import gzip
from contextlib import suppress
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mapsto.core.codecs import decode
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.data.nifti import slices, volume
from mapsto.data.reading import fetch
from mapsto.data.sources import detect, listing

STORE = Storage(retries=0)


def file(values: np.ndarray, affine: np.ndarray | None = None, kind=nibabel.Nifti1Image, **scaling: float) -> bytes:
    image = kind(values, np.eye(4) if affine is None else affine)
    if scaling:
        image.header.set_slope_inter(scaling["slope"], scaling["inter"])
    return image.to_bytes()


def ramp(shape=(5, 4, 3)) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("squeeze", [bytes, gzip.compress])
def test_values_are_rescaled_and_windowed_by_the_whole_volume(kind, squeeze):
    values = np.random.default_rng(0).normal(100, 30, (9, 8, 7)).astype(np.int16)
    data = squeeze(file(values, kind=kind, slope=2.0, inter=-1000.0))
    units = nibabel.Nifti1Image(values, np.eye(4)).get_fdata() * 2 - 1000
    low, high = np.percentile(units, [0.5, 99.5])
    wanted = ((units - low) / (high - low) * 255).clip(0, 255)
    assert slices(data) == (7, 9 * 8 * 2)
    got = volume(data)
    assert got.shape == (7, 8, 9) and got.dtype == np.uint8
    for k in range(7):
        np.testing.assert_allclose(got[k], wanted[:, ::-1, k].T, atol=0.51)


def test_a_bright_voxel_lies_where_the_person_has_it():
    # RAS: x to the right, y to the front, z to the head. One voxel at the right, in front, in the lowest slice.
    values = np.zeros((6, 5, 4), np.uint8)
    values[5, 4, 0] = 255
    values[0, 0, 1] = 200
    got = volume(file(values))
    assert got[0][0, 5] > 0 and np.count_nonzero(got[0]) == 1  # right column, top row
    assert got[1][4, 0] > 0 and np.count_nonzero(got[1]) == 1  # left column, bottom row


@pytest.mark.parametrize("axes", ["LPS", "LAS", "PIR", "SRA", "IPL"])
def test_any_orientation_gives_the_same_slices(axes):
    from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

    values = ramp((5, 4, 3))
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    turned = np.ascontiguousarray(apply_orientation(values, turn))
    data = file(turned, np.eye(4) @ inv_ornt_aff(turn, values.shape))
    assert slices(data)[0] == 3
    np.testing.assert_array_equal(volume(data), volume(file(values)))


def test_what_is_not_a_number_is_the_window_s_end():
    values = np.zeros((10, 10, 1), np.float32)
    values[:, 5:] = 1
    values[0, 0], values[1, 0], values[2, 0] = np.nan, np.inf, -np.inf
    got = volume(file(values))[0]
    assert got[9].tolist()[:4] == [0, 255, 0, 0] and got[0, 9] == 255
    assert not volume(file(np.full((3, 3, 2), 7, np.int16))).any()
    assert not volume(file(np.full((3, 3, 2), np.nan, np.float32))).any()


def test_a_folder_of_volumes(tmp_path: Path):
    for name in ("train/tumour/a.nii.gz", "train/healthy/b.nii", "val/tumour/c.nii.gz"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = file(ramp())
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    (tmp_path / "val/tumour/notes.txt").write_text("x")
    (tmp_path / "val/tumour/series.nii").write_bytes(file(ramp((3, 3, 3, 2))))
    (tmp_path / "val/tumour/short.nii").write_bytes(file(ramp())[:-10])
    assert detect(str(tmp_path), STORE)[0] == "nifti"
    references = list(listing("nifti", str(tmp_path), STORE, ""))
    got = {r.name.removeprefix(f"{tmp_path}/"): (r, data) for r, data in fetch(references, STORE)}
    reference, data = got["train/tumour/a.nii.gz#2"]
    assert (reference.label, reference.split) == ("tumour", "train")
    assert reference.columns == {"identity": "train/tumour/a.nii.gz"}
    np.testing.assert_array_equal(decode(data)[..., 0], volume(file(ramp()))[2])
    reasons = {name: data for name, (_, data) in got.items() if isinstance(data, str)}
    assert reasons["val/tumour/notes.txt"] == "not a volume (.nii, .nii.gz)"
    assert "three dimensions, this one is 3x3x3x2" in reasons["val/tumour/series.nii"]
    assert all("cut short" in reasons[f"val/tumour/short.nii#{k}"] for k in range(3))
    assert len(got) == 3 * 3 + 2 + 3 and len(reasons) == 5


def test_a_series_of_one_volume_is_a_volume():
    np.testing.assert_array_equal(volume(file(ramp((5, 4, 3, 1)))), volume(file(ramp())))


def flat(**fields) -> bytes:
    header = nibabel.Nifti1Header()
    header.set_data_shape((4, 4, 4))
    header.set_data_dtype(np.int16)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + bytes(4) + bytes(128)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a NIfTI file"),
        (b"\x1f\x8bnonsense", "not a gzip file"),
        (gzip.compress(b"x" * 1000, mtime=0), "not a NIfTI file"),
        (flat(datatype=128, bitpix=24), "grey values"),
        (flat(datatype=32, bitpix=64), "grey values"),
        (flat(datatype=999), "NIfTI"),
        (flat(dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]), "over the limit"),
        (flat(dim=[3, 4, -4, 4, 1, 1, 1, 1]), "three dimensions"),
        (flat(dim=[2, 4, 4, 1, 1, 1, 1, 1]), "three dimensions"),
        (flat(sform_code=1), "orientation"),
        (flat(vox_offset=float("nan")), "vox_offset"),
        (flat(vox_offset=float("inf")), "vox_offset"),
    ],
)
def test_what_cannot_be_used_says_why(data, says):
    for read in (slices, volume):
        with pytest.raises(UserError, match=says) as told:
            read(data)
        assert "\n" not in str(told.value)


def test_a_bomb_is_expanded_no_further_than_its_volume():
    assert volume(gzip.compress(file(ramp()) + bytes(50 * 2**20))).shape == (3, 4, 5)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_headers_are_read_or_refused(seed):
    rng = np.random.default_rng(seed)
    data = bytearray(file(ramp()))
    for place in rng.integers(0, 352, 8):
        data[place] = rng.integers(0, 256)
    with suppress(UserError):
        count, _ = slices(bytes(data))
        assert len(volume(bytes(data))) == count


def test_a_folder_that_encloses_all_volumes_is_no_class(tmp_path):
    for name in ("set/train/a/1.nii", "set/val/b/2.nii"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(file(ramp()))
    found = {(r.label, r.split, r.columns["identity"]) for r in listing("nifti", str(tmp_path), STORE, "")}
    assert found == {("a", "train", "set/train/a/1.nii"), ("b", "val", "set/val/b/2.nii")}
