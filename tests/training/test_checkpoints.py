"""Checkpoints: whole before older ones go, the newest complete one is resumed, damage is found, and no token is in any."""

import json
import logging
import shutil

import pytest
import torch
import transformers
from agent_models import agent_trainer
from safetensors.torch import load_file, save_file
from trainers import assert_same, build_trainer, weights

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.agents.callback import FILE
from hf_dynvit.measure.files import check_weights, read_json, sign_weights, write_json
from hf_dynvit.training.checkpoints import newest_complete


STEPS = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}


class Killed(BaseException):
    """What ends a process at a point of the test's choice."""


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-5] ^= 4
    file.write_bytes(content)


def test_the_agent_is_in_the_new_checkpoint_before_the_old_one_goes(tiny_vit, tmp_path, monkeypatch):
    trainer = agent_trainer(tiny_vit, tmp_path, "random", save_total_limit=1, **STEPS)
    rotate = transformers.trainer.rotate_checkpoints

    def rotate_and_die(*args, **kwargs):
        rotate(*args, **kwargs)
        if trainer.state.global_step == 4:
            raise Killed

    monkeypatch.setattr(transformers.trainer, "rotate_checkpoints", rotate_and_die)
    with pytest.raises(Killed):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    assert (tmp_path / "checkpoint-4" / FILE).is_file()
    monkeypatch.setattr(transformers.trainer, "rotate_checkpoints", rotate)
    resumed = agent_trainer(tiny_vit, tmp_path, "random", save_total_limit=1, **STEPS)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.agent.batches == 6


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "trainer_state.json").unlink(), "trainer_state.json is missing"),
        (lambda folder: cut(folder / "trainer_state.json"), "trainer_state.json is damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: cut(folder / "model.safetensors"), "model.safetensors is damaged or half written"),
        (lambda folder: flip_a_bit(folder / "model.safetensors"), "model.safetensors is damaged: its weights"),
        (lambda folder: cut(folder / "optimizer.pt"), "optimizer.pt is half written"),
        (lambda folder: (folder / "scheduler.pt").unlink(), "scheduler.pt is missing"),
        (lambda folder: (folder / "rng_state.pth").unlink(), "rng_state.pth is missing"),
        (lambda folder: (folder / FILE).unlink(), "agent.pt is missing"),
    ],
)
def test_an_incomplete_checkpoint_is_passed_over_with_the_reason(tiny_vit, tmp_path, saved, caplog, damage, reason):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    args = agent_trainer(tiny_vit, tmp_path, "random", **STEPS).args
    assert newest_complete(args) == (tmp_path / "checkpoint-6", {})
    damage(tmp_path / "checkpoint-6")
    logging.getLogger("hf_dynvit").addHandler(caplog.handler)
    folder, passed_over = newest_complete(args)
    logging.getLogger("hf_dynvit").removeHandler(caplog.handler)
    assert folder.name == "checkpoint-4" and reason in passed_over["checkpoint-6"]
    assert reason in caplog.text and "checkpoint-6" in caplog.text


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with checkpoints after 2, 4 and 6 steps of a training with an agent."""
    from conftest import build_tiny_vit

    folder = tmp_path_factory.mktemp("saved")
    agent_trainer(build_tiny_vit, folder, "random", **STEPS).train()
    return folder


def test_a_run_goes_on_from_the_newest_complete_checkpoint(tiny_vit, tmp_path):
    straight = build_trainer(tiny_vit, tmp_path, dropout=0.1, **STEPS)
    straight.train()
    cut(tmp_path / "checkpoint-6" / "optimizer.pt")
    resumed = build_trainer(tiny_vit, tmp_path, dropout=0.1, **STEPS)
    steps = []
    compute_loss = resumed.compute_loss
    resumed.compute_loss = lambda *args, **kwargs: steps.append(1) or compute_loss(*args, **kwargs)
    resumed.train(resume_from_checkpoint=True)
    assert len(steps) == 2
    assert_same(weights(straight.model), weights(resumed.model))


@pytest.mark.parametrize("steps", [6, 8])  # inside the second epoch of four steps, and at its end
def test_a_run_that_is_resumed_at_its_end_trains_no_step_more(tiny_vit, tmp_path, steps):
    options = {"count": 32, **STEPS, "max_steps": steps, "freeze_gates_at": 0.5}
    straight = build_trainer(tiny_vit, tmp_path, **options)
    straight.train()
    resumed = build_trainer(tiny_vit, tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{steps}"))
    assert resumed.state.global_step == steps
    assert_same(weights(straight.model), weights(resumed.model))


def test_damaged_weights_and_states_are_refused_by_name(tiny_vit, tmp_path):
    build_trainer(tiny_vit, tmp_path, **STEPS).train()
    flip_a_bit(tmp_path / "checkpoint-4" / "model.safetensors")
    cut(tmp_path / "checkpoint-6" / "trainer_state.json")
    for step, message in ((4, "model.safetensors is damaged: its weights"), (6, "trainer_state.json is damaged")):
        with pytest.raises(ValueError, match=message):
            build_trainer(tiny_vit, tmp_path, **STEPS).train(str(tmp_path / f"checkpoint-{step}"))
    shutil.rmtree(tmp_path / "checkpoint-2")
    with pytest.raises(ValueError, match="no complete checkpoint in .*checkpoint-6.*damaged"):
        build_trainer(tiny_vit, tmp_path, **STEPS).train(resume_from_checkpoint=True)


def test_the_digest_leaves_the_weights_as_they_are_and_goes_with_them(tiny_vit, tmp_path):
    model = DynViTForImageClassification.from_vit(tiny_vit(), gates="adavit")
    model.save_pretrained(tmp_path)
    before = load_file(tmp_path / "model.safetensors")
    check_weights(tmp_path)  # nothing to compare with
    sign_weights(tmp_path)
    assert_same(before, load_file(tmp_path / "model.safetensors"))
    DynViTForImageClassification.from_pretrained(tmp_path)
    check_weights(tmp_path)
    save_file({name: value + 1 for name, value in before.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    check_weights(tmp_path)  # other weights, saved by another program: no damage
    sign_weights(tmp_path)
    sign_weights(tmp_path)
    flip_a_bit(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        check_weights(tmp_path)


def test_no_file_of_a_run_holds_the_token(tiny_vit, tmp_path):
    trainer = build_trainer(tiny_vit, tmp_path, hub_token="hf_SECRET", **STEPS)
    trainer.train()
    trainer.save_model()
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"training_args.bin", "checkpoint-6"} <= {file.name for file in tmp_path.iterdir()}
    assert not [file for file in files if b"hf_SECRET" in file.read_bytes()]
    assert trainer.args.hub_token == "hf_SECRET"  # pushes still have it
    args = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert args.hub_token is None and args.max_steps == 6
    assert "hf_SECRET" not in json.dumps(trainer.args.to_dict(), default=str)


def test_json_is_written_whole_or_not_at_all_and_damage_is_named(tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    write_json(file, {"cost": 0.5})
    with pytest.raises(TypeError):
        write_json(file, {"cost": object()})
    monkeypatch.setattr("os.replace", lambda *args: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        write_json(file, {"cost": 0.6})
    assert read_json(file) == {"cost": 0.5}
    file.write_text('{"cost": 0.')
    with pytest.raises(ValueError, match="results.json is damaged"):
        read_json(file)
