"""Ways for weights to travel from the learner to the engines.

A transport has two sides: a Sender in each learner rank that sends, and a Receiver in each engine, which is a
weight-transfer engine of vLLM. ``actors/delivery.py`` drives both, bucket by bucket.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Transport:
    """One way to move weights."""

    sender: str
    """"module:Class" of the Sender; loaded in the ranks only, since some import vLLM"""
    receiver: str
    """name under which the receiver is registered with vLLM; see receivers"""
    rendezvous: bool
    """both sides meet in a collective: one engine that fails breaks it for all, and the group is formed again"""
    every_rank_sends: bool
    """False: rank 0 sends everything"""
    on_device: bool
    """buckets are gathered in the memory of the rank's device; False: on the host"""
    whole_buckets: bool = False
    """every rank gathers all of a bucket, not only the share that it sends"""


TRANSPORTS = {
    "shared_memory": Transport(
        sender="actors.transports.shared_memory:SharedMemorySender",
        receiver="shared_memory",
        rendezvous=False,
        every_rank_sends=True,
        on_device=False,
    ),
    "object_store": Transport(
        sender="actors.transports.object_store:ObjectStoreSender",
        receiver="object_store",
        rendezvous=False,
        every_rank_sends=True,
        on_device=False,
    ),
    "gloo": Transport(
        sender="actors.transports.gloo:GlooSender",
        receiver="gloo",
        rendezvous=True,
        every_rank_sends=True,
        on_device=False,
    ),
    "nccl": Transport(
        sender="actors.transports.nccl:NcclSender",
        receiver="lpo_ray_nccl",
        rendezvous=True,
        every_rank_sends=False,
        on_device=True,
    ),
    "cuda_ipc": Transport(
        sender="actors.transports.cuda_ipc:CudaIpcSender",
        receiver="lpo_ray_cuda_ipc",
        rendezvous=False,
        every_rank_sends=True,
        on_device=True,
        whole_buckets=True,
    ),
}
"""transport.kind -> transport"""
