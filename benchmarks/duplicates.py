"""Duplicates: what fingerprints cost beside the bare decode and beside imagededup's, what is found of planted copies beside
imagededup and cleanvision, and how the search grows. `make bench NAME=duplicates`

Environment: IMAGES, a folder of photographs (default: drawn ones); COUNT (200), photographs at most; LARGEST (1,000,000), the most
pictures searched through; PEERS, the Python of an environment of their own with imagededup and cleanvision (they pin other
versions than mapsto's): `python3.11 -m venv peers && peers/bin/pip install imagededup cleanvision`, PEERS=peers/bin/python. Without
it, the peers' figures are left out, and what is held against them has no target.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from mapsto.core.codecs import decode, encode
from mapsto.curate.duplicates import near_pairs
from mapsto.curate.facts import of_image
from mapsto.curate.fingerprints import COLOURS, SIDE, THUMB_BYTES, thumbnail
from mapsto.data.scenes import numbered

from ._common import Figure, interleaved, publish, ratio

KINDS = ("resized", "recompressed", "cropped", "mirrored", "brightened", "captioned")
REPETITIONS = 5
COUNT = int(os.environ.get("COUNT", "200"))
LARGEST = int(os.environ.get("LARGEST", "1000000"))
FINEST = 2 * SIDE
"""Pixels that a JPEG's shorter side keeps, at least, where it is decoded for its fingerprint alone."""
HASHED = """
import glob, sys, time
from imagededup.methods import DHash
hasher, files = DHash(), sorted(glob.glob(sys.argv[1] + "/*"))
hasher.encode_image(image_file=files[0])
for line in sys.stdin:
    start = time.perf_counter()
    for file in files:
        hasher.encode_image(image_file=file)
    print("SPEED", len(files) / (time.perf_counter() - start), flush=True)
"""
"""imagededup's hash of each file, one process: a line on its input, images/s on its output."""
FOUND = """
import json, os, sys
folder, name = sys.argv[1:]
found = {}
if name == "cleanvision":
    from cleanvision import Imagelab
    lab = Imagelab(data_path=folder)
    lab.find_issues({"near_duplicates": {}, "exact_duplicates": {}}, n_jobs=1, verbose=False)
    for issue in ("near_duplicates", "exact_duplicates"):
        for group in lab.info[issue]["sets"]:
            for a in group:
                found.setdefault(os.path.basename(a), []).extend(os.path.basename(b) for b in group)
else:
    import imagededup.methods
    method = getattr(imagededup.methods, name)()
    found = method.find_duplicates(image_dir=folder, max_distance_threshold=10, num_enc_workers=0, num_dist_workers=0)
print("FOUND", json.dumps({name: list(map(str, others)) for name, others in found.items()}))
"""
"""File name → names of the files that pass for its copies."""
CONTESTANTS = {"imagededup, PHash": "PHash", "imagededup, DHash": "DHash", "cleanvision": "cleanvision"}


def main() -> None:
    cv2.setNumThreads(1)
    encoded = photographs()
    figures = [*_speed(encoded), *_found(encoded), *_growth()]
    publish("duplicates", figures)


def photographs() -> list[bytes]:
    if folder := os.environ.get("IMAGES"):
        files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        return [path.read_bytes() for path in files[:: max(1, len(files) // COUNT)][:COUNT]]
    return [encode(numbered(1, k, (375, 500)).image) for k in range(COUNT)]


def _speed(encoded: Sequence[bytes]) -> Iterator[Figure]:
    def rate(work: Callable[[bytes], object]) -> Callable[[], float]:
        def measure() -> float:
            start = time.perf_counter()
            for data in encoded:
                work(data)
            return len(encoded) / (time.perf_counter() - start)

        return measure

    contestants = {
        "decode": rate(decode),
        "decode, fingerprint": rate(lambda data: thumbnail(decode(data))),
        "decode, all facts": rate(lambda data: of_image(decode(data))),
        "fingerprint alone": rate(lambda data: thumbnail(decode(data, at_least=FINEST))),
    }
    python = os.environ.get("PEERS")
    with tempfile.TemporaryDirectory(prefix="mb-", dir="/tmp") as folder:
        for k, data in enumerate(encoded):
            (Path(folder) / f"{k:04d}.jpg").write_bytes(data)
        if python:
            command = [python, "-c", HASHED, folder]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
                assert peer.stdin is not None and peer.stdout is not None
                asked, answers = peer.stdin, peer.stdout

                def imagededup() -> float:
                    asked.write("again\n")
                    asked.flush()
                    return float(next(line for line in answers if line.startswith("SPEED")).split()[1])

                imagededup()
                contestants["decode"]()
                seen = interleaved(contestants | {"imagededup": imagededup}, REPETITIONS)
                asked.close()
        else:
            contestants["decode"]()
            seen = interleaved(contestants, REPETITIONS)
    limit = "decoding alone at full size, one core"
    yield Figure("images/s, fingerprint with decoding, over the decode limit", ratio(seen["decode, fingerprint"], seen["decode"]), "x", 0.7, "higher", limit)  # fmt: skip
    yield Figure("images/s, all facts of a row with decoding, over the decode limit", ratio(seen["decode, all facts"], seen["decode"]), "x", None, "higher", f"{limit}; measures, hash of the pixels and fingerprint")  # fmt: skip
    if python:
        peer_is = "imagededup's DHash.encode_image, one core, the same files"
        yield Figure("images/s, fingerprint alone, over imagededup", ratio(seen["fingerprint alone"], seen["imagededup"]), "x", 5.0, "higher", f"{peer_is}; ours decodes JPEGs at a reduced size")  # fmt: skip
        yield Figure("images/s, fingerprint with whole decoding, over imagededup", ratio(seen["decode, fingerprint"], seen["imagededup"]), "x", None, "higher", peer_is)  # fmt: skip
    for name, rates in seen.items():
        yield Figure(f"images/s, {name}", float(np.median(rates)), "1/s", None, "higher", "for information, one core")


def copies(image: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What becomes of an image on its way through the world, by KINDS."""
    height, width = image.shape[:2]
    scale = rng.uniform(0.4, 0.8)
    y, x = int(rng.integers(0, height // 20 + 1)), int(rng.integers(0, width // 20 + 1))
    captioned = image.copy()
    captioned[int(height * 0.88) :] = 0
    place = (10, int(height * 0.97))
    cv2.putText(captioned, "a caption on it", place, cv2.FONT_HERSHEY_SIMPLEX, height / 500, (255, 255, 255), 1)
    small = (max(8, int(width * scale)), max(8, int(height * scale)))
    return {
        "resized": cv2.resize(image, small, interpolation=cv2.INTER_AREA),
        "recompressed": decode(encode(image, "jpeg", 30)),
        "cropped": image[y : y + int(height * 0.95), x : x + int(width * 0.95)],
        "mirrored": image[:, ::-1],
        "brightened": np.clip(image * 1.3 + 15.0, 0, 255).astype(np.uint8),
        "captioned": captioned,
    }


def _found(encoded: Sequence[bytes]) -> Iterator[Figure]:
    """Each photograph and one copy of it, of each kind in turn: six sets; recall and precision over all of their pairs."""
    rng = np.random.default_rng(0)
    score: dict[str, np.ndarray] = {}
    of_kind: dict[str, float] = {}
    made = [copies(decode(data), rng) for data in encoded]
    for kind in KINDS:
        with tempfile.TemporaryDirectory(prefix="mb-", dir="/tmp") as folder:
            for k, data in enumerate(encoded):
                (Path(folder) / f"{k:04d}.jpg").write_bytes(data)
                (Path(folder) / f"{k:04d}c.jpg").write_bytes(encode(np.ascontiguousarray(made[k][kind]), "jpeg", 92))
            for name, pairs in _contestants(folder):
                right = sum(a[:4] == b[:4] for a, b in pairs)
                score[name] = score.get(name, np.zeros(3)) + np.array([right, len(pairs), len(encoded)])
                if name == "mapsto":
                    of_kind[kind] = right / len(encoded)
                print(f"  {kind}: {name}: {right} of {len(encoded)} found, {len(pairs) - right} others")
    recall = {name: right / truth for name, (right, _, truth) in score.items()}
    precision = {name: right / max(pairs, 1) for name, (right, pairs, _) in score.items()}
    others = [name for name in score if name != "mapsto"]
    same = "target: the best of imagededup and cleanvision on the same files"
    yield Figure("recall of planted copies, six kinds", recall["mapsto"], "", max((recall[n] for n in others), default=None), "higher", same)  # fmt: skip
    yield Figure("precision of the pairs found", precision["mapsto"], "", max((precision[n] for n in others), default=None), "higher", same)  # fmt: skip
    for kind, share in of_kind.items():
        yield Figure(f"recall, {kind}", share, "", None, "higher", "for information")
    for name in others:
        yield Figure(f"recall, {name}", recall[name], "", None, "higher", "as it comes; hashes up to 10 bits apart")
        yield Figure(
            f"precision, {name}", precision[name], "", None, "higher", "as it comes; hashes up to 10 bits apart"
        )


def _contestants(folder: str) -> Iterator[tuple[str, set[tuple[str, str]]]]:
    files = sorted(Path(folder).iterdir())
    pairs = near_pairs(np.stack([thumbnail(decode(path.read_bytes())) for path in files]))
    yield "mapsto", {(files[i].stem, files[j].stem) for i, j in zip(pairs.first, pairs.second, strict=True)}
    if python := os.environ.get("PEERS"):
        for name, method in CONTESTANTS.items():
            done = subprocess.run([python, "-c", FOUND, folder, method], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
            line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))
            found = {(Path(a).stem, Path(b).stem) for a, others in json.loads(line[6:]).items() for b in others}
            yield name, {(min(pair), max(pair)) for pair in found if pair[0] != pair[1]}


def _growth() -> Iterator[Figure]:
    """Seconds for 10⁴, 10⁵, ... synthetic pictures, a hundredth of them copies; memory of the largest."""
    results: dict[int, dict[str, float]] = {}
    count = 10_000
    while count <= LARGEST:
        with tempfile.TemporaryDirectory(prefix="mb-", dir=os.environ.get("TMPDIR", "/tmp")) as folder:
            command = [sys.executable, "-m", "benchmarks.duplicates", str(count), folder]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        result = results[count] = json.loads(done.stdout.splitlines()[-1])
        print(f"  {count:,} pictures: {result['seconds']:.1f} s, {result['found']:,.0f} of {count // 100:,} copies, {result['others']:.0f} others, {result['megabytes']:.0f} MB beside the pictures")  # fmt: skip
        count *= 10
    sizes = list(results)
    if len(sizes) > 1:
        slope = np.polyfit(np.log(sizes), np.log([results[n]["seconds"] for n in sizes]), 1)[0]
        yield Figure(f"growth of the search from {sizes[0]:,} to {sizes[-1]:,} pictures, as a power of their number", float(slope), "", 1.15, "lower", "1 is linear; processor seconds")  # fmt: skip
    last = results[sizes[-1]]
    yield Figure(f"recall of noisy copies among {sizes[-1]:,}", last["found"] / (sizes[-1] // 100), "", 0.99, "higher", "for information")  # fmt: skip
    yield Figure(f"processor seconds to search {sizes[-1]:,} pictures", last["seconds"], "s", None, "lower", "one core")
    held = f"the pictures themselves: {THUMB_BYTES:,} MB in a mapped file"
    yield Figure("memory beside the pictures, per million", last["megabytes"] * 1e6 / sizes[-1], "MB", None, "lower", held)  # fmt: skip


def search(count: int, folder: str) -> dict[str, float]:
    """Search `count` smooth random pictures, in a file as `clean` has them; the last hundredth are noisy copies of the first."""
    rng = np.random.default_rng(count)
    thumbs = np.memmap(Path(folder) / "thumbs", np.uint8, "w+", shape=(count, THUMB_BYTES))
    copied = count // 100
    for start in range(0, count - copied, 10_000):
        rows = min(10_000, count - copied - start)
        coarse = rng.integers(0, 256, (rows, 8, 8), np.uint8)
        grey = np.stack([cv2.resize(c, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR) for c in coarse])
        hues = rng.integers(100, 156, (rows, COLOURS * COLOURS * 2), np.uint8)
        thumbs[start : start + rows] = np.concatenate([grey.reshape(rows, -1), hues], axis=1)
    noise = rng.integers(-8, 9, (copied, THUMB_BYTES), np.int16)
    thumbs[count - copied :] = np.clip(thumbs[:copied] + noise, 0, 255)
    thumbs.flush()
    held, done = [_held()], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            held.append(_held())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start_time = time.process_time()
    pairs = near_pairs(thumbs)
    seconds = time.process_time() - start_time
    done.set()
    watcher.join()
    truth = (pairs.second - pairs.first == count - copied) & (pairs.first < copied)
    found, others = float(truth.sum()), float((~truth).sum())
    return {"seconds": seconds, "found": found, "others": others, "megabytes": max(held) - held[0]}


def _held() -> float:
    """MB of memory that is this process's own: without mapped files."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(search(int(sys.argv[1]), sys.argv[2])))
    else:
        main()
