"""Larger crops and turned images, which the hash does not find, are found by features and verified by small pictures. No Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mapsto.config.curation import CleanConfig, EmbeddingsConfig, VerifyConfig
from mapsto.core.codecs import decode, encode
from mapsto.curate.agreement import SURE, agreement, turned_agreement
from mapsto.curate.duplicates import SAME
from mapsto.curate.fingerprints import thumbnail
from mapsto.data.scenes import numbered
from mapsto.stages import clean_embeddings, clean_verify
from mapsto.stages.clean import Clean
from mapsto.stages.ingest import Ingest

from .test_clean import here, made, no_cluster, recipe  # noqa: F401  the fixture


def crop(image: np.ndarray, share: float) -> np.ndarray:
    height, width = image.shape[:2]
    tall, wide = round(height * share), round(width * share)
    top, left = (height - tall) // 3, (width - wide) // 4
    return np.ascontiguousarray(image[top : top + tall, left : left + wide])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Drawn photographs; copies of three of them, and one whose pixels are another's in another order: of its colours exactly."""
    drawn = [numbered(31, k, (128, 160)).image for k in range(14)]
    mixed = np.random.default_rng(0).permutation(drawn[8].reshape(-1, 3)).reshape(drawn[8].shape)
    planted = {
        "turned": np.rot90(drawn[2]), "upside-down": drawn[5][::-1, ::-1], "cropped": crop(drawn[7], 0.7), "near": drawn[10][:, ::-1],
        "mixed": mixed,
    }  # fmt: skip
    folder = tmp_path / "images" / "train" / "a"
    folder.mkdir(parents=True)
    for name, image in {**{str(k): image for k, image in enumerate(drawn)}, **planted}.items():
        (folder / f"{name}.png").write_bytes(encode(np.ascontiguousarray(image), "png"))
    return tmp_path / "images"


def test_what_the_hash_misses_is_found_by_features_and_verified(source, tmp_path, monkeypatch):
    monkeypatch.setattr(clean_embeddings, "each", here)
    given = recipe(source, near_duplicate={"policy": "quarantine", "threshold": 0.7})
    given.data["train"] = given.data["train"].model_copy(update={"splits": {}})
    before = made(tmp_path / "ingest" / "0", Ingest(), given, {})[0]

    def told(number: int) -> tuple[dict[str, str], str]:
        """name → how it was found, of what went."""
        dataset, _, said = made(tmp_path / "clean" / str(number), Clean(), given, {"data": before.artifact})
        names = {row["row_id"]: Path(row["source"]).stem for row in before.read("train", ["source"])}
        table = pq.read_table(dataset.artifact.path("findings.parquet")).to_pylist()
        rows = [row for row in table if row["rule"] == "near_duplicate"]
        pairs = {frozenset((names[row["row_id"]], names[row["other_row_id"]])): row["found_by"] for row in rows}
        return {next(name for name in pair if not name.isdigit()): by for pair, by in pairs.items()}, said

    assert told(0)[0] == {"near": "hash"}
    given.clean = CleanConfig(rules=given.clean.rules, embeddings=EmbeddingsConfig(features="colour", least=0.6))
    found, said = told(1)
    assert found == {"near": "hash", "turned": "embedding", "upside-down": "embedding", "cropped": "embedding"}
    assert "clean: 3 of" in said and "further pairs that are alike in their colour features show the same" in said
    given.clean = given.clean.model_copy(update={"verify": VerifyConfig(features="hog", least=1.0)})
    monkeypatch.setattr(clean_verify, "each", here)
    found, said = told(2)
    assert "clean: 0 of 1 pairs of near duplicates are alike in their hog features" in said
    assert set(found) == {"turned", "upside-down", "cropped"}


def test_turned_agreement_is_that_of_the_turn_and_of_the_part():
    images = [numbered(3, k, (160, 200)).image for k in range(10)]
    small = [thumbnail(image) for image in images]
    for k, image in enumerate(images):
        for turns in range(4):
            copy = thumbnail(np.ascontiguousarray(np.rot90(decode(encode(image, "jpeg", 60)), turns)[:, ::-1]))
            assert turned_agreement(small[k], copy) >= SURE
        assert (
            turned_agreement(small[k], thumbnail(crop(image, 0.6)))
            > 0.7
            > agreement(small[k], thumbnail(crop(image, 0.6)))
        )
        assert turned_agreement(small[k], small[k - 1]) < 0.6 < SAME
