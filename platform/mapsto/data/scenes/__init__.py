"""Drawn photographs with exact ground truth: what the demo, the tests and the benchmarks run on."""

from mapsto.data.scenes.scene import Scene, draw
from mapsto.data.scenes.shapes import CLASSES
from mapsto.data.scenes.writing import numbered, write

__all__ = ["CLASSES", "Scene", "draw", "numbered", "write"]
