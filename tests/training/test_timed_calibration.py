"""Calibration in milliseconds: by a table of latencies, refused out of its reach, and checked against the clock."""

import pytest
import torch
from models import images

from hf_dynvit import DynViTForImageClassification, calibrate
from hf_dynvit.measure import LatencyTable
from hf_dynvit.training import timed_calibration


GATES = [{"gate": "patch", "drop": True, "novelty": 8.0}]
TABLE = LatencyTable(
    device="a CPU",
    threads=1,
    dtype="float32",
    prepacked=False,
    batch_size=1,
    tokens=[1, 17],
    attention=[0.1, 1.7],
    mlp=[0.2, 3.4],
    gates=[{"layers": [0, 1], "open": [0.5, 0.5], "closed": [1.0, 1.0]}],
    rest=2.0,
)


def clock(milliseconds):
    """A clock by which each call takes so long."""
    return lambda calls, rounds: dict.fromkeys(calls, milliseconds / 1e3)


def clock_of(model, factor):
    """A clock by which a forward takes `factor` times what `TABLE` says."""

    def medians(calls, rounds):
        predicted = {name: TABLE.milliseconds(model, call(0)).sum().item() for name, call in calls.items()}
        return {name: factor * ms / 1e3 for name, ms in predicted.items()}

    return medians


@pytest.fixture
def model(tiny_vit):
    return DynViTForImageClassification.from_vit(tiny_vit(), gates=GATES, budget=0.6)


def test_the_mean_predicted_time_is_what_is_wanted_and_the_clock_is_asked(model):
    batches = [images(64), images(16)]
    found = calibrate(model, batches, milliseconds=8.0, latencies=TABLE, medians=clock_of(model, 1.03))
    assert found.milliseconds == pytest.approx(8.0, abs=0.05) and found.latencies is TABLE
    with torch.no_grad():
        outputs = [model(batch) for batch in batches]
    predicted = torch.cat([TABLE.milliseconds(model, out) for out in outputs])
    assert predicted.mean().item() == pytest.approx(found.milliseconds, abs=1e-4) and predicted.std() > 0
    assert found.cost == pytest.approx(torch.cat([out.cost for out in outputs]).mean().item(), abs=1e-6)
    assert found.error == pytest.approx(1 / 1.03 - 1, abs=1e-4) and found.correction == 1.0
    shift, cost, *_ = found
    assert (shift, cost) == (found.shift, found.cost) and found.cost < 1.0


def test_the_clock_corrects_the_table(model, monkeypatch):
    said = []
    monkeypatch.setattr(timed_calibration.logger, "warning", said.append)
    found = calibrate(model, [images(64)], milliseconds=8.0, latencies=TABLE, medians=clock_of(model, 1.3))
    assert found.correction == pytest.approx(1.3, abs=1e-4) and found.latencies.rest == pytest.approx(2.6, abs=1e-3)
    assert found.milliseconds == pytest.approx(8.0, abs=0.05) and abs(found.error) < 1e-3 and not said
    with torch.no_grad():
        uncorrected = TABLE.milliseconds(model, model(images(64, generator=torch.Generator().manual_seed(1))))
    assert uncorrected.mean().item() == pytest.approx(8.0 / 1.3, abs=0.3)


def test_a_clock_that_goes_on_to_say_something_else_is_said(model, monkeypatch):
    said = []
    monkeypatch.setattr(timed_calibration.logger, "warning", said.append)
    found = calibrate(model, [images(64)], milliseconds=8.0, latencies=TABLE, medians=clock(12.0))
    assert len(said) == 1 and "the clock says 12.000 (-3" in said[0] and found.error < -0.3
    with pytest.raises(ValueError, match=r"8.0 ms are out of reach: .* to between 8.229 and 2\d\.\d+ ms"):
        calibrate(model, [images(64)], milliseconds=8.0, latencies=TABLE, medians=clock(16.0))


def test_a_time_out_of_reach_is_refused_with_the_reach_and_changes_nothing(model):
    model.config.budget_shifts = [[0.5, -1.0], [0.7, 1.0]]
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    for milliseconds in (4.0, 20.0):
        with pytest.raises(
            ValueError, match=rf"{milliseconds} ms are out of reach: .* to between 4.700 and 13.200 ms"
        ):
            calibrate(model, [images(16)], milliseconds=milliseconds, latencies=TABLE, medians=clock(1.0))
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert model.config.budget_shifts and model._layout is None


def test_what_cannot_be_timed_is_refused(model):
    with pytest.raises(ValueError, match="milliseconds must be positive and finite, got 0"):
        calibrate(model, [images(2)], milliseconds=0)
    with pytest.raises(ValueError, match=r"batch_size must be in 1\.\.2, the images that there are, got 4"):
        calibrate(model, [images(2)], milliseconds=8.0, batch_size=4)
    with pytest.raises(ValueError, match="the latency table is of batches of 1, it says nothing of batches of 2"):
        calibrate(model, [images(2)], milliseconds=8.0, batch_size=2, latencies=TABLE)


def test_without_a_table_the_device_is_measured(model):
    # By this clock a whole forward takes as long as a chain of layers, and nothing depends on tokens.
    found = calibrate(model, [images(8)], milliseconds=10.0, batch_size=2, medians=clock(20.0))
    assert found.latencies.batch_size == 2 and found.latencies.gates[0]["layers"] == [0, 1]
    assert found.clock == pytest.approx(10.0) and found.error == pytest.approx(0.0, abs=1e-4)
