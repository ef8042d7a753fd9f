"""Working memory of a call: what it allocates at its peak, beyond what was there before."""

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


def _allocations(profile):
    events = profile.profiler.kineto_results.events()
    return [event for event in events if event.name() == "[memory]"]
