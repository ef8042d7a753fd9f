"""The auxiliary objective: heads beside the model teach the scores of tokens, not the backbone, and never leave with it."""

import pytest
import torch
from safetensors.torch import load_file
from trainers import Images, assert_same, build_trainer, weights

from hf_dynvit import DynViTForImageClassification, DynViTTrainer, DynViTTrainingArguments
from hf_dynvit.model.decisions import TokenState
from hf_dynvit.objectives.auxiliary import pooled
from hf_dynvit.objectives.gate_kinds import token_gates
from hf_dynvit.training.checkpoints import HEADS_FILE, unusable


CROPPING = [{"gate": "token", "score": "linear", "top": 8, "layers": [1]}]
COST = 0.811  # of the first
MERGING = [{"gate": "merge", "distance": 4.0, "layers": [0, 1]}]


def trainer_of(tiny_vit, folder, gates=CROPPING, **options):
    fixed = {"budget": COST, "calibration_images": 0}
    options = {**(fixed if gates is CROPPING else {"calibrate_first": True}), **options}
    return build_trainer(tiny_vit, folder, gates, objective="auxiliary", **options)


def test_the_head_reads_the_tokens_that_are_there_weighed_by_the_softmax_of_their_scores(tiny_vit):
    model = DynViTForImageClassification.from_vit(tiny_vit(), gates=CROPPING)
    gate, tokens = model.gates[1]["attention_tokens"], torch.randn(2, 17, model.config.hidden_size)
    torch.nn.init.normal_(gate.score.weight)
    alive = torch.ones(2, 17, dtype=torch.bool)
    alive[1, 5:] = False
    found = pooled(gate, tokens, TokenState(alive=alive))
    for image, last in enumerate((17, 5)):
        there = tokens[image, 1:last]  # [CLS] does not vote
        weight = (there @ gate.score.weight[0] / tokens.shape[-1] ** 0.5).softmax(0)
        torch.testing.assert_close(found[image], weight @ there)


@pytest.mark.parametrize("target", ("labels", "prediction"))
@pytest.mark.parametrize("gates", (CROPPING, MERGING), ids=("token", "merge"))
def test_it_teaches_scores_and_heads_and_no_gradient_of_it_reaches_the_backbone(tiny_vit, tmp_path, gates, target):
    trainer = trainer_of(tiny_vit, tmp_path, gates, auxiliary_target=target, max_steps=1)
    model, objective = trainer.model.train(), trainer.objective
    model.layout = "packed"
    batch = {
        name: torch.stack([torch.as_tensor(trainer.train_dataset[i][name]) for i in range(8)])
        for name in ("pixel_values", "labels")
    }
    objective.load_state_dict({})
    outputs = model(batch["pixel_values"], gating=objective.gating, exploration=objective.exploration(None))
    loss = objective.loss(model, batch, outputs, None)
    loss.backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {f"gates.{layer}.attention_tokens.score.weight" for layer in token_gates(model)} | {
        f"gates.{layer}.attention_tokens.score.bias" for layer in token_gates(model)
    }
    assert all(parameter.grad.abs().sum() > 0 for parameter in objective.heads.parameters())
    assert not objective._hooks and not objective._seen  # nothing is held after the step


def test_a_training_learns_an_order_and_saves_no_head_with_the_model(tiny_vit, tmp_path):
    trainer = trainer_of(tiny_vit, tmp_path, max_steps=20, logging_steps=5)
    before, heads = weights(trainer.model), weights(trainer.objective.heads)
    trainer.train()
    logged = [entry["auxiliary_loss"] for entry in trainer.state.log_history if "auxiliary_loss" in entry]
    assert len(logged) == 4 and logged[-1] < logged[0]
    score = "gates.1.attention_tokens.score.weight"
    assert not torch.equal(weights(trainer.model)[score], before[score])
    assert all(not torch.equal(heads[name], weight) for name, weight in weights(trainer.objective.heads).items())
    trainer.save_model()
    saved = load_file(tmp_path / "model.safetensors")
    assert not [name for name in saved if "heads" in name or "auxiliary" in name]
    _, said = DynViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(said.values())
    with torch.no_grad():
        decided = trainer.model.eval()(trainer.train_dataset.pixels[:4]).decisions[1].attention_tokens
    assert decided[:, 1:].sum(1).tolist() == [8] * 4


def test_where_the_best_stay_scores_begin_at_random_and_elsewhere_where_they_are(tiny_vit, tmp_path):
    for gates, random in ((CROPPING, True), (MERGING, False)):
        trainer = trainer_of(tiny_vit, tmp_path, gates)
        trainer.objective.load_state_dict({})
        for gate in token_gates(trainer.model).values():
            assert gate.score.weight.any().item() == random
    given = trainer_of(tiny_vit, tmp_path)
    gate = given.model.gates[1]["attention_tokens"]
    torch.nn.init.ones_(gate.score.weight)
    given.objective.load_state_dict({})
    assert (gate.score.weight == 1).all()


def test_a_resumed_run_ends_with_the_same_weights_and_heads(tiny_vit, tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "dropout": 0.1}
    straight = trainer_of(tiny_vit, tmp_path, **options)
    straight.train()
    resumed = trainer_of(tiny_vit, tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same(weights(straight.model), weights(resumed.model))
    assert_same(weights(straight.objective.heads), weights(resumed.objective.heads))
    (tmp_path / "checkpoint-2" / HEADS_FILE).unlink()
    with pytest.raises(ValueError, match=f"{HEADS_FILE} is missing"):
        trainer_of(tiny_vit, tmp_path, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_what_it_cannot_teach_is_refused(tiny_vit, tmp_path):
    with pytest.raises(ValueError, match="learned gates of tokens with a linear score"):
        trainer_of(tiny_vit, tmp_path, [{"gate": "sublayer"}])
    with pytest.raises(ValueError, match="it teaches at the one they are at: give calibrate_first"):
        trainer_of(tiny_vit, tmp_path, MERGING, calibrate_first=False)
    with pytest.raises(ValueError, match="freeze_gates_at 0.0 leaves no step"):
        trainer_of(tiny_vit, tmp_path, freeze_gates_at=0.0)
    with pytest.raises(ValueError, match="auxiliary_target .* must be one of"):
        trainer_of(tiny_vit, tmp_path, auxiliary_target="noise")


def test_who_only_evaluates_needs_no_gates(tiny_vit, tmp_path):
    model = DynViTForImageClassification.from_vit(tiny_vit())
    args = DynViTTrainingArguments(str(tmp_path), objective="auxiliary", report_to="none", use_cpu=True)
    trainer = DynViTTrainer(model=model, args=args, eval_dataset=Images(8))
    assert trainer.objective.heads is None and "eval_cost" in trainer.evaluate()


def test_a_failed_step_leaves_no_hook_and_no_gradient(tiny_vit, tmp_path):
    trainer = trainer_of(tiny_vit, tmp_path, bad=3, save_strategy="no")
    with pytest.raises(FloatingPointError):
        trainer.train()
    assert not trainer.objective._hooks and not trainer.objective._seen
    for parameter in trainer.objective.heads.parameters():
        parameter.grad = torch.ones_like(parameter)
    state = next(call for call in trainer.callback_handler.callbacks if type(call).__name__ == "PolicyObjective")
    state.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert all(parameter.grad is None for parameter in trainer.objective.heads.parameters())


def test_gradients_of_heads_are_clipped_as_those_of_the_model(tiny_vit, tmp_path):
    options = {"optim": "sgd", "learning_rate": 1.0, "auxiliary_weight": 100.0, "max_steps": 1, "weight_decay": 0.0}
    options["auxiliary_learning_rate"] = 1.0
    moved = []
    for most in (1e-3, 0.0):
        trainer = trainer_of(tiny_vit, tmp_path, max_grad_norm=most, lr_scheduler_type="constant", **options)
        before = weights(trainer.objective.heads)
        trainer.train()
        after = weights(trainer.objective.heads)
        moved.append(sum((after[name] - before[name]).square().sum() for name in before).sqrt().item())
    assert moved[0] == pytest.approx(1e-3, rel=0.1) and moved[1] > 0.1


def test_heads_learn_at_a_rate_of_their_own(tiny_vit, tmp_path):
    options = {
        "optim": "sgd",
        "max_steps": 1,
        "max_grad_norm": 0.0,
        "weight_decay": 0.0,
        "lr_scheduler_type": "constant",
    }
    moved = []
    for rate, body in ((0.1, 0.0), (0.1, 1.0), (0.2, 0.0)):
        trainer = trainer_of(tiny_vit, tmp_path, auxiliary_learning_rate=rate, learning_rate=body, **options)
        before = weights(trainer.objective.heads)
        trainer.train()
        after = weights(trainer.objective.heads)
        moved.append(sum((after[name] - before[name]).square().sum() for name in before).sqrt().item())
    assert moved[0] > 0 and moved[1:] == pytest.approx([moved[0], 2 * moved[0]], rel=1e-3)


def test_a_checkpoint_without_the_models_weights_is_not_complete(tiny_vit, tmp_path):
    trainer_of(tiny_vit, tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
    (tmp_path / "checkpoint-2" / "model.safetensors").unlink()
    assert "model.safetensors is missing" in unusable(tmp_path / "checkpoint-2")
