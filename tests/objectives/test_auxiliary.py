"""The auxiliary objective: heads beside the model teach the scores of tokens, not the backbone, and never leave with it."""

import pytest
import torch
from safetensors.torch import load_file
from trainers import assert_same, build_trainer, weights

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.model.decisions import TokenState
from hf_dynvit.model.gate_kinds import token_gates
from hf_dynvit.objectives.auxiliary import pooled
from hf_dynvit.training.checkpoints import HEADS_FILE


CROPPING = [{"gate": "token", "score": "linear", "top": 8, "layers": [1]}]
COST = 0.811  # of the first
MERGING = [{"gate": "merge", "distance": 4.0, "layers": [0, 1]}]


def trainer_of(tiny_vit, folder, gates=CROPPING, **options):
    options = {"budget": COST if gates is CROPPING else 0.5, "calibration_images": 0, **options}
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
    with pytest.raises(ValueError, match="auxiliary_target .* must be one of"):
        trainer_of(tiny_vit, tmp_path, auxiliary_target="noise")
