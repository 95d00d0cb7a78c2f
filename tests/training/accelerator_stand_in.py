"""A CPU that answers DeepSpeed like a GPU, for tests of where the host waits and what streams wait for."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from unittest import mock

import torch


def frames_in_training() -> list[traceback.FrameSummary]:
    """The callers that are flava_ds's training or DeepSpeed; the innermost is the last."""
    return [
        f
        for f in traceback.extract_stack()
        if "flava_ds/training/" in f.filename or "/deepspeed/" in f.filename
    ]


@dataclass
class Seen:
    """What the host asked of the device."""

    waiting: list[str] = field(default_factory=list)
    """The functions in which the host waited for the device, a stream or an event."""
    ordered: list[tuple[str, object, object]] = field(default_factory=list)
    """A function in which one stream was told to wait for another, and the two."""
    kept: list[tuple[torch.Tensor, object]] = field(default_factory=list)
    """A tensor whose memory is not given away before a stream has read it, and the stream."""

    def keeps(self, tensor: torch.Tensor, stream: object) -> bool:
        """Whether a tensor's memory waits for a stream."""
        place = tensor.untyped_storage().data_ptr()
        return any(own is stream and kept.untyped_storage().data_ptr() == place for kept, own in self.kept)


@contextlib.contextmanager
def accelerator_like_a_gpu() -> Iterator[Seen]:
    """Lets DeepSpeed take the CPU for a device that works on its own and has finished nothing yet."""
    from deepspeed.accelerator import get_accelerator

    seen = Seen()

    def synchronize(*_args: object) -> None:
        seen.waiting.append(frames_in_training()[-1].name)

    class Stream:
        """A stream or an event."""

        def wait_stream(self, other: Stream) -> None:
            seen.ordered.append((frames_in_training()[-1].name, self, other))

        def nothing(self, *_args: object) -> None:
            pass

        def query(self) -> bool:
            return False

        wait_event = record = wait = nothing

    Stream.synchronize = synchronize
    current = [Stream()]

    @contextlib.contextmanager
    def within(_accelerator: object, stream: Stream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    like_a_gpu = {
        "is_synchronized_device": lambda self: False,
        "synchronize": synchronize,
        "Stream": property(lambda self: Stream),
        "Event": property(lambda self: Stream),
        "current_stream": lambda self, *_: current[-1],
        "default_stream": lambda self, *_: current[0],
        "stream": within,
    }
    with (
        mock.patch.multiple(type(get_accelerator()), **like_a_gpu),
        mock.patch.object(torch.Tensor, "record_stream", lambda *kept: seen.kept.append(kept)),
    ):
        yield seen
