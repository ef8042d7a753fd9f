"""Memory of a call: what it holds at its peak, and what its first run leaves behind, such as weights in another order."""

import gc
import os

import torch


os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would announce each start and stop
MIB = 2**20


def peak_mib(call, device):
    """MiB that `call()` holds at once at most, on `device`; weights and inputs that exist already are not counted.

    On CUDA the allocator is asked; on CPU the profiler's record of allocations is added up in their order.
    """
    call()  # what is allocated once, by the first call
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    held = peak = 0
    for event in sorted(_allocations(profile), key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / MIB


def kept_mib(call, device):
    """MiB that `call()` leaves behind, which `peak_mib` takes as given, such as prepacked weights; not the constants of a program.

    On CUDA the allocator is asked; on CPU the tensors that Python holds afterwards and did not before are added up,
    those that share their memory with others once.
    """
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return max(0, torch.cuda.memory_allocated() - before) / MIB
    before = {key for key, _ in map(_storage, _tensors())}
    call()

    def new():
        return {key: size for key, size in map(_storage, _tensors()) if key not in before}

    if not new():
        return 0.0
    gc.collect()  # what only circles of references hold
    return sum(new().values()) / MIB


def _allocations(profile):
    events = profile.profiler.kineto_results.events()
    return [event for event in events if event.name() == "[memory]"]


def _tensors():
    """All tensors with memory that Python holds; what a compiler pretends with is of other types."""
    plain = (torch.Tensor, torch.nn.Parameter)
    return [thing for thing in gc.get_objects() if type(thing) in plain and thing.device.type == "cpu"]


def _storage(tensor):
    """What tells the tensor's memory from others', and its size in bytes."""
    if tensor.layout != torch.strided:  # reordered weights are opaque: no address, as many numbers as the weights
        return id(tensor), tensor.numel() * tensor.element_size()
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()
