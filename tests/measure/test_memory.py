"""The measured working memory is what a call holds at once."""

import pytest
import torch

from hf_dynvit.measure.memory import kept_mib, peak_mib


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (lambda x: x * 2, 1),
        (lambda x: torch.cat([x * 2, x * 3]), 4),
        (lambda x: (x * 2, (x * 3).sum())[1], 2),
    ],
)
def test_peak_memory_is_what_is_held_at_once(call, wanted):
    x = torch.randn(256, 1024)  # 1 MiB
    assert peak_mib(lambda: call(x), "cpu") == pytest.approx(wanted, abs=0.01)


def test_what_a_call_leaves_behind_is_counted_once_and_what_it_frees_is_not():
    held, x = [], torch.randn(256, 1024)  # 1 MiB

    def call():
        made = x * 2
        held.extend([made, made[:2], x[1:], torch.ops.mkldnn._reorder_linear_weight(x)])
        return (x * 3).sum()

    assert kept_mib(call, "cpu") == pytest.approx(2, abs=0.01)
