"""Training in several processes: what gates need of it, draws that differ, one price; and sharding is refused."""

import pytest
import torch
from ranks import run_ranks
from trainers import build_trainer
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from hf_dynvit.training.processes import draw_alike, draw_apart, rank_seed, refuse_sharding


SUBLAYERS = [{"gate": "sublayer", "init_bias": 0.0}]
POLICY = [{"gate": "block", "value_width": 8, "init_bias": 0.5}]


@pytest.mark.slow
def test_gates_freeze_under_activation_checkpointing(tmp_path):
    options = {"gates": SUBLAYERS, "freeze_gates_at": 0.5, "max_steps": 4, "calibration_images": 16}
    one, other = run_ranks(tmp_path, activation_checkpointing=True, **options)
    assert one["weights"] == other["weights"]


@pytest.mark.slow
def test_processes_draw_different_decisions_at_one_price_and_go_on_as_they_would_have(tmp_path):
    options = {"gates": POLICY, "objective": "reinforce", "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    straight = run_ranks(tmp_path, **options)
    one, other = straight
    assert all(mine != theirs for mine, theirs in zip(one["decisions"], other["decisions"], strict=True))
    assert one["logged"] == other["logged"] and one["logged"][0]["usage/attention"] < 1  # of both
    assert one["prices"] == other["prices"] and one["weights"] == other["weights"] and one["cost"] == other["cost"]
    seen = [value for step in zip(one["batches"], other["batches"], strict=True) for rank in step for value in rank]
    assert len(set(seen)) == 64  # an epoch of 64 images: each in one process, once
    resumed = run_ranks(tmp_path, resume=str(tmp_path / "checkpoint-2"), **options)
    for before, after in zip(straight, resumed, strict=True):
        assert after["decisions"] == before["decisions"][2:] and after["weights"] == before["weights"]


@pytest.mark.slow
def test_random_gates_keep_other_units_in_each_process_and_calibrate_alike(tmp_path):
    gates = [{"gate": "random", "unit": "block", "layers": [0]}, {"gate": "sublayer", "init_bias": 0.5, "layers": [1]}]
    one, other = run_ranks(tmp_path, gates=gates, max_steps=2, calibration_images=48)
    assert [step[0] for step in one["decisions"]] != [step[0] for step in other["decisions"]]
    assert one["weights"] == other["weights"]


class Process:
    """As much of the arguments as draws depend on."""

    def __init__(self, world_size, process_index, seed=3):
        self.world_size, self.process_index, self.seed = world_size, process_index, seed
        self.device = torch.device("cpu")


def test_a_single_process_draws_as_it_always_did():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    draw_apart(Process(1, 0))
    with draw_alike(Process(1, 0)):
        assert torch.equal(torch.get_rng_state(), before)
    assert len({rank_seed(seed, rank) for seed in range(4) for rank in range(4)}) == 16


def test_what_is_found_out_alike_leaves_the_draws_apart():
    drawn = []
    for rank in range(2):
        draw_apart(Process(2, rank))
        before = torch.get_rng_state()
        with draw_alike(Process(2, rank)):
            drawn.append(torch.rand(4))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*drawn)


def test_sharding_is_refused_with_the_reason(tiny_vit, tmp_path, monkeypatch):
    reason = "not supported: it gathers .* DistributedDataParallel"
    with monkeypatch.context() as patch:
        patch.setattr(TrainingArguments, "parallel_mode", ParallelMode.DISTRIBUTED)
        with pytest.raises(ValueError, match=f"FSDP is {reason}"):
            build_trainer(tiny_vit, tmp_path, fsdp=True)
    trainer = build_trainer(tiny_vit, tmp_path)
    for kind in ("is_fsdp_enabled", "is_deepspeed_enabled", "is_distributed_loading_by_transformers"):
        with monkeypatch.context() as patch:
            patch.setattr(trainer, kind, True, raising=True)
            with pytest.raises(ValueError, match=reason):
                refuse_sharding(trainer)


@pytest.mark.parametrize("option", [{"ddp_find_unused_parameters": False}, {"ddp_static_graph": True}])
def test_arguments_that_gates_contradict_are_refused(tiny_vit, tmp_path, monkeypatch, option):
    monkeypatch.setattr(TrainingArguments, "parallel_mode", ParallelMode.DISTRIBUTED)
    with pytest.raises(ValueError, match=f"{next(iter(option))} .* says that every step uses the same parameters"):
        build_trainer(tiny_vit, tmp_path, **option)


def test_one_process_with_several_gpus_is_refused(tiny_vit, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(ValueError, match="one process sees 2 GPUs.*accelerate launch"):
        build_trainer(tiny_vit, tmp_path)
