"""The clock of long runs: the CPU time of the process on one CPU thread, else wall time."""

import time

import pytest
import torch

from hf_dynvit.measure.timing import seconds_of_work


@pytest.mark.parametrize(
    ("device", "threads", "clock"), [("cpu", 1, "process"), ("cpu", 2, "wall"), ("cuda", 1, "wall")]
)
def test_on_one_cpu_thread_the_work_of_others_is_not_counted(monkeypatch, device, threads, clock):
    monkeypatch.setattr(time, "process_time", lambda: "process")
    monkeypatch.setattr(time, "perf_counter", lambda: "wall")
    torch.set_num_threads(threads)
    assert seconds_of_work(torch.device(device)) == clock
