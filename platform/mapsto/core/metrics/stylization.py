"""How a stylised picture keeps its content and takes on its style, as a feature network sees both."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any, Literal

import cv2
import numpy as np

from ..codecs import encode
from ..page import Page
from ..sample import Arrays

Measure = Callable[[np.ndarray, np.ndarray, np.ndarray], Mapping[str, np.ndarray]]
"""(content, style, result: N×H×W×3 uint8 each) → `content_loss`, `style_loss`, and, where known, `lpips` and `seconds` per row: N each."""
SHOWN, PER_BATCH, SIDE = 12, 4, 192
"""Pictures on a page, of a batch, and their side in pixels."""


class StyleMetrics:
    """`content_loss` and `style_loss` (Gram matrices), relative: 0 is the target itself (models/perceptual.py); `loss`, their
    weighted sum; `lpips` of photograph and result where the task measures it (models/lpips.py); `s_per_megapixel` where the
    model was timed."""

    primary = "loss"
    mode: Literal["max", "min"] = "min"

    def __init__(self, measure: Measure, content_weight: float, style_weight: float) -> None:
        self._measure, self._weights = measure, (content_weight, style_weight)

    def state(self, output: Arrays, batch: Arrays) -> dict[str, np.ndarray]:
        content, style, result = batch["content.image"], batch["style.image"], np.asarray(output["result"])
        found = {name: np.asarray(value, np.float64) for name, value in self._measure(content, style, result).items()}
        seconds = found.pop("seconds", np.full(len(result), np.nan))
        pictures = np.full(len(result), b"", object)
        for row in range(min(PER_BATCH, len(result))):
            pictures[row] = encode(triple(content[row], style[row], result[row]), "jpeg", 85)
        return {**found, "s_per_megapixel": seconds / np.prod(result.shape[1:3]) * 1e6, "picture": pictures}

    def compute(self, states: Mapping[str, np.ndarray]) -> dict[str, float]:
        content, style = float(states["content_loss"].mean()), float(states["style_loss"].mean())
        found = {"loss": self._weights[0] * content + self._weights[1] * style}
        found |= {"content_loss": content, "style_loss": style}
        if "lpips" in states:
            found["lpips"] = float(states["lpips"].mean())
        seconds = states["s_per_megapixel"]
        timed = seconds[np.isfinite(seconds)]
        return found | ({"s_per_megapixel": float(np.median(timed))} if len(timed) else {})

    def tables(self, states: Mapping[str, np.ndarray]) -> dict[str, Any]:
        pictures = [picture for picture in states["picture"] if picture][:SHOWN]
        return {"pictures": [base64.b64encode(picture).decode() for picture in pictures]}

    def draw(self, page: Page, tables: Mapping[str, Any]) -> None:
        page.heading("Content, style, result")
        page.text(
            "Losses are relative: 0 is the target itself, about 1 is as far from it as an empty picture's features."
        )
        for picture in tables["pictures"]:
            page.picture(base64.b64decode(picture))

    def badness(self, states: Mapping[str, np.ndarray]) -> np.ndarray:
        """No picture is a mistake: the page has them side by side instead."""
        return np.zeros(len(states["content_loss"]))


def triple(content: np.ndarray, style: np.ndarray, result: np.ndarray) -> np.ndarray:
    """Three H×W×3 uint8 pictures side by side, each SIDE pixels wide and high."""
    gap = np.full((SIDE, 4, 3), 255, np.uint8)
    small = [cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for image in (content, style, result)]
    return np.concatenate([small[0], gap, small[1], gap, small[2]], axis=1)
