"""An NCCL group that ends when a deadline passes: NCCL itself has none.

A collective whose other side is gone runs on the device for ever, and whatever waits for the whole device waits with
it. Only an abort ends it. So collectives are issued by the thread that calls, on a stream of their own; a helper thread
does nothing but end the group when it is late; and a group that was ended is never used again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.distributed import ReduceOp
from typing_extensions import override
from vllm.distributed.device_communicators import pynccl
from vllm.utils.nccl import unpinned_nccl_env

from actors.runtime.time_limit import TimeLimited

POLL_SECONDS = 0.0005


def new_id() -> bytes:
    """Make the id by which the members of a group find each other. NCCL listens for them in this process."""
    return bytes(pynccl.NCCLLibrary().ncclGetUniqueId())


class NcclGroup:
    """A process's membership of a group: vLLM's communicator, which any thread can end at any time."""

    def __init__(self, unique_id: bytes, rank: int, size: int, device: torch.device, seconds: float) -> None:
        """Join; blocks until all ``size`` members have. Raises TimeoutError, and leaves nothing on the device then."""
        self._device, self._lock, self.ended = device, threading.Lock(), False
        self._made: pynccl.PyNcclCommunicator | None = None
        joining = TimeLimited(lambda: self._join(unique_id, rank, size), f"join a group of {size}", device)
        try:
            self.communicator = joining.result(seconds)
        except BaseException:
            self.end()
            raise
        self._stream = torch.cuda.Stream(device)

    def _join(self, unique_id: bytes, rank: int, size: int) -> pynccl.PyNcclCommunicator:
        group = self

        class Known(pynccl.PyNcclCommunicator):
            """Communicator that its group knows before the first collective, which it makes while it joins."""

            @override
            def _init_comm(self, device: int | str | torch.device) -> None:
                group._made = self
                super()._init_comm(device)

            @override
            def all_reduce(
                self,
                in_tensor: Tensor,
                out_tensor: Tensor | None = None,
                op: ReduceOp = ReduceOp.SUM,  # pyright: ignore[reportArgumentType] - as vLLM has it
                stream: torch.cuda.Stream | None = None,
            ) -> Tensor:
                if group.ended:
                    raise TimeoutError("the others have joined too late")
                return super().all_reduce(in_tensor, out_tensor, op, stream)  # type: ignore[arg-type]

        try:
            with unpinned_nccl_env(), torch.cuda.stream(torch.cuda.Stream(self._device)):
                return Known.from_unique_id_bytes(unique_id, rank, size, self._device)
        finally:
            if self.ended:  # given up meanwhile: nobody takes the communicator
                self.end()

    def end(self) -> None:
        """Abort what the group does, and free what it holds on the device. May be called again."""
        with self._lock:
            self.ended = True
            if self._made is not None and hasattr(self._made, "comm"):  # else it has not met the others
                self._made.destroy()

    @contextlib.contextmanager
    def deadline(self, seconds: float, what: str) -> Iterator[None]:
        """End the group unless the work inside is done in time, and raise TimeoutError then. Any error ends it, too."""
        if self.ended:
            raise RuntimeError(f"cannot {what}: the group was ended; expected a new one to be joined")
        timer = threading.Timer(seconds, self.end)
        timer.daemon = True
        timer.start()
        try:
            yield
        except BaseException:
            self.end()
            raise
        finally:
            timer.cancel()
        if self.ended:
            raise TimeoutError(f"{what} did not end within {seconds:.3g} s; expected its other side to answer")

    def broadcast(self, data: Tensor, seconds: float, what: str) -> Callable[[], None]:
        """Begin to send ``data`` to the other members, after what the current stream does. Returns what waits for the
        end; until then ``data`` must not change.
        """
        with contextlib.ExitStack() as starting:
            starting.enter_context(self.deadline(seconds, what))
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            self.communicator.broadcast(data, src=0, stream=self._stream)
            done = self._stream.record_event()
            limited = starting.pop_all()

        def wait() -> None:
            with limited:
                while not (self.ended or done.query()):
                    time.sleep(POLL_SECONDS)

        return wait
