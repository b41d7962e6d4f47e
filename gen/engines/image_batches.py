"""Fills an image engine's batches with requests of all shards in work, so that no shard ends in a part of a batch.

Where the engine can start a batch without waiting for it (`launch`), the next batch is started before the last one is
taken off the device. A request that the engine raises on is rejected alone (`gen.engines.isolation`). What comes out
is stored as JPEG (`encode_jpeg`).
"""

import io
from collections.abc import Sequence

from gen.engines.feeder import Feeder, Ticket
from gen.engines.interface import ImageEngine, Outcomes, Pixels, Rejected, Request
from gen.engines.isolation import Isolation, reject_reason

DEFAULT_BATCH = 16


class Closed(RuntimeError):
    """The work was given up while a shard waited for its images."""


class ImageBatches(Feeder):
    """Feeds one engine from several shards; outcomes are images, or why there is none.

    Args:
      engine: what draws.
      batch_size: for engines that have none of their own.
    """

    def __init__(self, engine: ImageEngine, batch_size: int = 0):
        super().__init__("images")
        self._engine, self._batch_size = engine, batch_size or DEFAULT_BATCH
        self._isolation = Isolation()

    def close(self) -> None:
        """Gives up what is waiting, and ends the thread once its batch is done."""
        self.stop(Closed("the images stage was stopped"))

    def _work(self) -> None:
        # Only the engine may fail here; the waiting shards are told.
        running: tuple[list[Ticket], Outcomes] | None = None
        while not self._failure:
            size = self._engine.batch_size or self._batch_size
            batch = self._take(size, wait=running is None, whole=running is not None)
            started = (batch, self._launch([ticket.item for ticket in batch])) if batch else None
            if running:
                for ticket, outcome in zip(running[0], self._finish(*running), strict=True):
                    ticket.answer(outcome)
            running = started

    def _launch(self, requests: Sequence[Request]) -> Outcomes:
        """Starts a batch; what goes wrong shows when its outcomes are asked for."""
        try:
            return self._engine.launch(requests)
        except Exception as raised:
            error = raised

        def fail() -> Sequence[Pixels | Rejected]:
            raise error

        return fail

    def _finish(self, batch: Sequence[Ticket], outcomes: Outcomes) -> list[Pixels | Rejected]:
        """The outcomes of a batch, each request's own, whatever the engine raises on others."""
        first: list[Outcomes] = [outcomes]

        def run(requests: Sequence[Request]) -> Sequence[Pixels | Rejected]:
            return (first.pop() if first else self._launch(requests))()

        made = self._isolation.batch(run, [ticket.item for ticket in batch])
        return [
            Rejected(reject_reason(one), retry=False, detail=str(one)) if isinstance(one, Exception) else one
            for one in made
        ]


def encode_jpeg(pixels: Pixels, size: int, quality: int) -> bytes | None:
    """Resizes (bicubic, PIL's default, as in the paper) if needed and encodes; None if the result does not decode."""
    from PIL import Image

    from synthclip_jax.images.decoding import ImageError, check_image

    image = Image.fromarray(pixels)
    if image.size != (size, size):
        image = image.resize((size, size))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    try:
        check_image(buffer.getvalue())
    except ImageError:
        return None
    return buffer.getvalue()
