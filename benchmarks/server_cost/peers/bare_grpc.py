"""The least that a batching gRPC server can be: one process on grpc.aio; whatever waits, first come first, is a batch.

python -m benchmarks.server_cost.peers.bare_grpc RUN PORT MAX_BATCH_SIZE
"""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np

from benchmarks.server_cost.workload import Workload
from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic._pb.elastic.v1.embedding_pb2_grpc import EmbeddingServiceServicer, add_EmbeddingServiceServicer_to_server

DECODE_THREADS = 2
"""As many as `elastic serve` has."""


class Embedder(EmbeddingServiceServicer):
    """Decodes in two threads, computes in one."""

    def __init__(self, workload: Workload, max_batch_size: int) -> None:
        self.workload, self.max_batch_size = workload, max_batch_size
        self.decoders, self.model = ThreadPoolExecutor(DECODE_THREADS), ThreadPoolExecutor(1)
        self.waiting: asyncio.Queue[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = asyncio.Queue()

    async def Embed(self, request: pb.EmbedRequest, context: grpc.aio.ServicerContext) -> pb.EmbedReply:
        """The embedding of every input."""
        found = await asyncio.gather(*(self.embed(item.image) for item in request.inputs))
        return pb.EmbedReply(embeddings=[pb.Embedding(values_f32=embedding.tobytes()) for embedding in found])

    async def embed(self, encoded: bytes) -> np.ndarray:
        """One embedding."""
        loop = asyncio.get_running_loop()
        image = await loop.run_in_executor(self.decoders, self.workload.prepare, encoded)
        done: asyncio.Future[np.ndarray] = loop.create_future()
        self.waiting.put_nowait((image, done))
        return await done

    async def work(self) -> None:
        """Compute whatever waits, again and again."""
        while True:
            batch = [await self.waiting.get()]
            while len(batch) < self.max_batch_size and not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            call = asyncio.get_running_loop().run_in_executor(
                self.model, self.workload.embed, [image for image, _ in batch]
            )
            for (_, done), embedding in zip(batch, await call, strict=True):
                done.set_result(embedding)


async def main(run: Path, port: int, max_batch_size: int) -> None:
    """Serve until killed."""
    server = grpc.aio.server()
    embedder = Embedder(Workload(run), max_batch_size)
    add_EmbeddingServiceServicer_to_server(embedder, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print("ready", flush=True)
    await embedder.work()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
