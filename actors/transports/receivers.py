"""The names under which vLLM finds the receivers (``Transport.receiver``). Importing this module registers them."""

from __future__ import annotations

from vllm.distributed.weight_transfer import WeightTransferEngineFactory

from actors.transports.gpu_receivers import CudaIpcReceiver, NcclReceiver
from actors.transports.host_receiver import SOURCES, HostReceiver

for name in SOURCES:
    WeightTransferEngineFactory.register_engine(name, HostReceiver)
WeightTransferEngineFactory.register_engine("lpo_ray_nccl", NcclReceiver)
WeightTransferEngineFactory.register_engine("lpo_ray_cuda_ipc", CudaIpcReceiver)
