"""Sources of many images in one file, read from a bucket as from a disk: by ranges and seeks, without a copy."""

from __future__ import annotations

import io
from pathlib import Path

import av
import lmdb
import nibabel
import numpy as np

from mapsto.core.codecs import encode
from mapsto.core.storage import Storage
from mapsto.data.reading import fetch
from mapsto.data.sources import detect, listing


def write(root: Path) -> None:
    rng = np.random.default_rng(0)
    (root / "lmdb/x_val_lmdb").mkdir(parents=True)
    with lmdb.open(str(root / "lmdb/x_val_lmdb"), map_size=2**24) as env, env.begin(write=True) as out:
        for k in range(60):
            out.put(b"%03d" % k, encode(rng.integers(0, 256, (20, 20 + k, 3), np.uint8), "png"))
    (root / "nifti/a").mkdir(parents=True)
    nibabel.save(
        nibabel.Nifti1Image(rng.integers(0, 900, (9, 8, 7)).astype(np.int16), np.eye(4)), root / "nifti/a/v.nii.gz"
    )
    (root / "video/a").mkdir(parents=True)
    film = io.BytesIO()
    with av.open(film, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.thread_count = 64, 48, "yuv420p", 1
        for k in range(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 8 * k, np.uint8), "rgb24")))
        container.mux(stream.encode(None))
    (root / "video/a/v.mp4").write_bytes(film.getvalue())


def test_a_bucket_gives_what_a_disk_gives(tmp_path, s3):
    write(tmp_path)
    bucket = s3.uri("rare-sources")
    for path in tmp_path.rglob("*.*"):
        if path.is_file():
            s3.storage.upload(path, f"{bucket}/{path.relative_to(tmp_path)}")
    for layout, count in (("lmdb", 60), ("nifti", 7), ("video", 3)):
        seen = []
        for root, storage in ((str(tmp_path), Storage()), (bucket, s3.storage)):
            uri = f"{root}/{layout}"
            assert detect(uri, storage)[0] == layout
            references = list(listing(layout, uri, storage, ""))
            seen.append({r.name.removeprefix(root): (r.label, r.split, data) for r, data in fetch(references, storage)})
        assert seen[0] == seen[1] and len(seen[0]) == count
        assert all(isinstance(data, bytes) for _, _, data in seen[0].values())
