"""LitServe with its batching on, making the same call; runs in the peers' environment.

python -m benchmarks.server_cost.peers.lit RUN PORT MAX_BATCH_SIZE
"""

import base64
import sys
from collections.abc import Sequence
from pathlib import Path

import litserve
import numpy as np

from benchmarks.server_cost.workload import Workload


class Embedder(litserve.LitAPI):
    """Images as base64 in JSON, embeddings as base64 of their float32 values."""

    def __init__(self, run: Path, max_batch_size: int) -> None:
        # No waiting for more: a batch is what has arrived while the last one ran, as in the other servers.
        super().__init__(max_batch_size=max_batch_size, batch_timeout=0.0)
        self.run = run

    def setup(self, device: str) -> None:
        """Load the model in the worker."""
        self.workload = Workload(self.run)

    def decode_request(self, request: dict[str, str]) -> np.ndarray:
        """The prepared image."""
        return self.workload.prepare(base64.b64decode(request["image"]))

    def batch(self, inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """As it is: the workload stacks them."""
        return inputs

    def predict(self, x: Sequence[np.ndarray]) -> list[np.ndarray]:
        """One embedding per image."""
        return list(self.workload.embed(x))

    def unbatch(self, output: list[np.ndarray]) -> list[np.ndarray]:
        """As it is."""
        return output

    def encode_response(self, output: np.ndarray) -> dict[str, str]:
        """The JSON answer."""
        return {"embedding": base64.b64encode(output.tobytes()).decode()}


if __name__ == "__main__":
    server = litserve.LitServer(Embedder(Path(sys.argv[1]), int(sys.argv[3])), accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
