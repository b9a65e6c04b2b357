"""From linear light to a photograph: focus, vignette, exposure, tone, sensor noise."""

import cv2
import numpy as np
import numpy.typing as npt

from mapsto.data.scenes.shapes import Floats


def focus(rng: np.random.Generator, light: Floats, blur: Floats) -> Floats:
    """Blur `light` (H, W, 3) where `blur` (H, W) says so: 0 in focus, 1 fully out; some lenses blur more."""
    height, width = blur.shape
    sigma = min(height, width) * rng.uniform(0.004, 0.02)
    if sigma < 0.4:
        return light
    weight = np.clip(blur, 0, 1)[..., None].astype(np.float32)
    share = cv2.GaussianBlur(weight, (0, 0), sigma)[..., None]  # what is in focus does not glow beyond its edge
    soft = cv2.GaussianBlur(light * weight, (0, 0), sigma) / np.maximum(share, np.float32(1e-4))
    weight = np.minimum(cv2.GaussianBlur(weight, (0, 0), 0.7), weight[..., 0])[..., None]
    return light + (soft - light) * weight


def expose(rng: np.random.Generator, light: Floats) -> npt.NDArray[np.uint8]:
    """Linear RGB (H, W, 3) -> a photograph, uint8 (H, W, 3), exposed for its brightness, with noise and vignette."""
    height, width, _ = light.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    light = light * (1 - np.float32(rng.uniform(0, 0.3)) * (x * x + y * y) / 2)[..., None]
    grey = light.mean(-1)
    level = 0.6 * float(np.exp(np.log(grey + 1e-3).mean())) + 0.4 * float(grey.mean())
    light = light * np.float32(0.24 / max(level, 1e-3) * np.exp(rng.normal(0, 0.22)))
    light = light * np.exp(rng.normal(0, 0.04, 3)).astype(np.float32)  # white balance, a little off
    light = light * (1 + light / np.float32(6.0)) / (1 + light)  # Reinhard et al. 2002, white at 2.4
    light = light * np.float32(1.5)
    light = light * light * np.float32(rng.uniform(0.2, 0.7)) / (light + np.float32(0.35)) + light * np.float32(0.7)
    shot, read = rng.uniform(0.0, 0.035), rng.uniform(0.001, 0.008)
    grain = rng.standard_normal(light.shape, np.float32)
    light = light + grain * np.sqrt(np.float32(shot**2) * np.maximum(light, 0) + np.float32(read**2))
    return (np.clip(light, 0, 1) ** np.float32(1 / 2.2) * 255 + 0.5).astype(np.uint8)
