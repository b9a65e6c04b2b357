"""A folder of drawn photographs: split/class/name, with masks and a manifest if wanted, and some spoiled files."""

import io
import json
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt
from PIL import Image

from mapsto.data.scenes.scene import SMALLEST, Scene, draw, known
from mapsto.data.scenes.spoiled import WAYS

SPLITS: Mapping[str, float] = {"train": 0.8, "val": 0.1, "test": 0.1}
GREY, ALPHA, TURNED = (1, 2, 3)  # the images written as a grey PNG, an RGBA PNG, a JPEG to be turned by its EXIF tag
ORIENTATION = 0x0112  # the EXIF tag
PART = 64  # images that one process draws at a time


class Counts(TypedDict):
    """What `write` wrote: sound images, spoiled files, and the classes in order."""

    images: int
    spoiled: int
    classes: list[str]


def numbered(seed: int, index: int, size: tuple[int, int], classes: Sequence[str] | None = None) -> Scene:
    """Scene `index` of data set `seed`: each side within 25 % of `size` (height, width), classes taking turns."""
    names = known(classes)
    rng = np.random.default_rng([seed, index])
    height, width = (max(SMALLEST, round(side * rng.uniform(0.75, 1.25))) for side in size)
    return draw(rng, (height, width), names, label=names[index % len(names)])


def split_of(index: int, splits: Mapping[str, float]) -> str:
    """The split image `index` falls into: spread evenly by the golden ratio, whatever the count."""
    place = (index * 0.6180339887498949) % 1 * sum(splits.values())
    for name, share in splits.items():
        place -= share
        if place < 0:
            return name
    return [name for name, share in splits.items() if share > 0][-1]


def name_of(index: int) -> str:
    """The file name of image `index`."""
    return f"{index:06d}.{'png' if index in (GREY, ALPHA) or index % 40 == 4 else 'jpg'}"


def encode(image: npt.NDArray[np.uint8], index: int, quality: int) -> bytes:
    """Image `index` as file bytes: mostly JPEG of this quality, as `name_of` says."""
    out = io.BytesIO()
    picture = Image.fromarray(image)
    if index == GREY:
        picture.convert("L").save(out, "PNG")
    elif index == ALPHA:
        picture.putalpha(255)
        picture.save(out, "PNG")
    elif index == TURNED:
        exif = Image.Exif()
        exif[ORIENTATION] = 6  # to be turned a quarter clockwise for display
        picture.transpose(Image.Transpose.ROTATE_90).save(out, "JPEG", quality=quality, exif=exif)
    elif name_of(index).endswith("png"):
        picture.save(out, "PNG")
    else:
        picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


def _check(count: int, splits: Mapping[str, float], spoiled: int) -> None:
    if count < 0 or spoiled < 0:
        raise ValueError(f"count and spoiled are numbers of files, not {count} and {spoiled}")
    if not splits or min(splits.values()) < 0 or sum(splits.values()) <= 0:
        raise ValueError(f"splits are names with shares of the images, such as {dict(SPLITS)}, not {dict(splits)}")


def write(
    folder: Path | str,
    count: int,
    seed: int,
    size: tuple[int, int] = (96, 96),
    classes: Sequence[str] | None = None,
    splits: Mapping[str, float] = SPLITS,
    spoiled: int = 4,
    *,
    masks: bool = False,
    processes: int = 1,
) -> Counts:
    """Write `count` images to `folder/split/class/name`, and `spoiled` more that fail to decode in the first split.

    Image i depends on (seed, i), `size` and `classes` alone, so any part can be redrawn with `numbered`.
    masks: also write `folder/masks/name.png` (uint8 class ids, see `Scene.mask`) and `folder/manifest.jsonl`, a line
    per sound image: image, label, split, mask, boxes (xyxy pixels), box_labels and caption, paths relative to `folder`.
    Masks and boxes are of the picture as shown, after its EXIF orientation is applied.
    processes: more than one draws in that many processes; what is written is the same.
    Raises ValueError on unknown classes, negative counts and empty splits.
    """
    names = known(classes)
    _check(count, splits, spoiled)
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    part = partial(_write, root, seed, size, names, splits, masks)
    parts = [range(start, min(start + PART, count)) for start in range(0, count, PART)]
    if processes > 1:
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            lines = [line for written in pool.map(part, parts) for line in written]
    else:
        lines = [line for indices in parts for line in part(indices)]
    if masks:
        (root / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")
    for k in range(spoiled):
        name, spoil = WAYS[k % len(WAYS)]
        scene = numbered(seed, count + k, size, names)
        path = root / next(iter(splits)) / scene.label / f"spoiled-{k:03d}-{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(spoil(scene.image))
    return Counts(images=count, spoiled=spoiled, classes=list(names))


def _write(
    root: Path,
    seed: int,
    size: tuple[int, int],
    names: Sequence[str],
    splits: Mapping[str, float],
    masks: bool,
    indices: range,
) -> list[str]:
    """Draw and write these images; their lines of the manifest, if there are masks."""
    lines: list[str] = []
    for index in indices:
        scene, split, name = (numbered(seed, index, size, names), split_of(index, splits), name_of(index))
        quality = int(np.random.default_rng([seed, index, 1]).integers(60, 97))
        path = root / split / scene.label / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(scene.image, index, quality))
        if masks:
            mask = root / "masks" / f"{index:06d}.png"
            mask.parent.mkdir(exist_ok=True)
            Image.fromarray(scene.mask).save(mask)
            lines.append(_line(scene, split, path.relative_to(root), mask.relative_to(root)))
    return lines


def _line(scene: Scene, split: str, image: Path, mask: Path) -> str:
    """One line of the manifest."""
    row = {
        "image": image.as_posix(),
        "label": scene.label,
        "split": split,
        "mask": mask.as_posix(),
        "boxes": scene.boxes.tolist(),
        "box_labels": scene.box_labels,
        "caption": scene.caption,
        "value": round(float((scene.mask > 0).mean()), 6),  # the share of the picture that the solids cover
    }
    return json.dumps(row) + "\n"
