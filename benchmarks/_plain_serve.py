"""The peer of `benchmarks/serving.py`: one ONNX model on Ray Serve as Serve's documentation has it: a FastAPI ingress,
`@serve.batch`, PIL and NumPy for the pixels, ONNX Runtime for the model. Run in a process of its own."""

# No `from __future__ import annotations` here: FastAPI would not find `Request` in a class that Ray has pickled.
import io
import sys
import time
from pathlib import Path

import numpy as np
import ray
from fastapi import FastAPI, Request
from PIL import Image
from ray import serve

api = FastAPI()


@serve.deployment(ray_actor_options={"num_cpus": 1}, max_ongoing_requests=128)
@serve.ingress(api)
class Plain:
    def __init__(self, model: bytes, classes: list[str], size: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.input, self.classes, self.size = self.session.get_inputs()[0].name, classes, size

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.002)
    async def infer(self, images: list[np.ndarray]) -> list[np.ndarray]:
        return list(self.session.run(None, {self.input: np.stack(images)})[0])

    @api.post("/predict")
    async def predict(self, request: Request) -> dict:
        body = await request.body()
        picture = Image.open(io.BytesIO(body)).convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
        logits = await self.infer(np.asarray(picture))
        odds = np.exp(logits - logits.max())
        odds /= odds.sum()
        best = np.argsort(-odds)[:5]
        return {"predictions": [{"label": self.classes[i], "probability": float(odds[i])} for i in best]}


def main(model: str, classes: str, size: int, port: int) -> None:
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Plain.bind(Path(model).read_bytes(), classes.split(","), size))
    print("ready", flush=True)
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
