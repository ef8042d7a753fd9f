"""Importance in closed form: it is the saliency of the prediction that scores learn, and it decides which tokens stay."""

import pytest
import torch
from trainers import build_trainer

from hf_dynvit import DynViTForImageClassification, fit_importance
from hf_dynvit.training.importance import _saliency
from hf_dynvit.training.least_squares import Moments
from hf_dynvit.training.preparation import prepare


PATCH = [{"gate": "patch", "drop": True, "novelty": 4.0, "layers": [1]}]
MERGE = [{"gate": "merge", "layers": [0, 1]}]


def gated(vit, gates=PATCH):
    torch.manual_seed(0)
    return DynViTForImageClassification.from_vit(
        vit if isinstance(vit, torch.nn.Module) else vit(), gates=gates
    ).eval()


def batches(count=4, size=16):
    return list(torch.randn(count, size, 3, 32, 32, generator=torch.Generator().manual_seed(3)))


def test_the_target_is_the_gradient_of_the_prediction_at_each_token(tiny_vit):
    vit, pixels = tiny_vit(), batches()[0]
    entering = []

    def watch(module, args):
        args[0].retain_grad()
        entering.append(args[0])

    hook = vit.vit.layers[1].register_forward_pre_hook(watch)
    vit(pixels).logits.log_softmax(-1).amax(-1).sum().backward()
    hook.remove()
    log = entering[0].grad[:, 1:].norm(dim=-1).log()
    (tokens, target) = _saliency(gated(vit), pixels, [1])[1]
    torch.testing.assert_close(target, (log - log.mean(1, keepdim=True)).reshape(-1, 1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(tokens, vit.vit.layers[1].layernorm_before(entering[0])[:, 1:].flatten(0, 1))


@pytest.mark.parametrize("labels", [1, 3])
def test_of_several_labels_the_predictions_of_all_of_them_count(tiny_vit, labels):
    model = gated(tiny_vit(num_labels=labels, problem_type="multi_label_classification"))
    pixels, entering = batches()[0], []
    hook = model.vit.layers[1].register_forward_pre_hook(lambda module, args: entering.append(args[0]))
    said = model(pixels, gating="open").logits.sigmoid()
    hook.remove()
    (gradient,) = torch.autograd.grad(torch.maximum(said, 1 - said).log().sum(), entering)
    log = gradient[:, 1:].norm(dim=-1).log()
    (_, target) = _saliency(model, pixels, [1])[1]
    torch.testing.assert_close(target, (log - log.mean(1, keepdim=True)).reshape(-1, 1), rtol=1e-3, atol=1e-3)
    assert target.std() > 0.01


def test_moments_find_a_linear_map_and_say_what_they_explain():
    moments, weight, features, noise = Moments(), torch.randn(6, 1), torch.randn(4000, 6), torch.randn(4000, 1)
    for part, more in zip(features.chunk(4), noise.chunk(4), strict=True):
        moments.add(part, part @ weight + 2.0 + 0.1 * more)
    found = moments.solve(ridge=0.0)
    torch.testing.assert_close(found, weight.double(), rtol=0, atol=0.02)
    assert moments.constant(found).item() == pytest.approx(2.0, abs=0.02)
    assert moments.explained(found) == pytest.approx(1 - 0.01 / (weight.square().sum().item() + 0.01), abs=0.002)
    assert moments.solve(ridge=100.0).norm() < 0.1 * found.norm()


@pytest.mark.parametrize("gates", (PATCH, MERGE), ids=("patch", "merge"))
def test_scores_follow_saliency_and_open_gates_give_the_same_logits(tiny_vit, gates):
    model, images = gated(tiny_vit, gates), batches()
    before = model(images[0], gating="open").logits
    explained = fit_importance(model, images, strength=2.0)
    assert list(explained) == gates[0]["layers"] and all(0 < share <= 1 for share in explained.values())
    torch.testing.assert_close(model(images[0], gating="open").logits, before)
    gate = model.gates[1]["attention_tokens"]
    tokens, target = map(torch.cat, zip(*(_saliency(model, part, [1])[1] for part in images), strict=True))
    score = gate.score(tokens).squeeze(1).detach() - gate.score.init_bias
    assert torch.corrcoef(torch.stack((score, target.flatten())))[0, 1] ** 2 == pytest.approx(explained[1], rel=0.1)
    assert score.mean().abs() < 1e-4  # which tokens stay, not yet how many


def test_a_frozen_backbone_teaches_as_well_and_is_left_as_it_was(tiny_vit):
    models = [gated(tiny_vit), gated(tiny_vit)]
    for parameter in models[1].parameters():
        parameter.requires_grad_(False)
    for model in models:
        model.train()
        fit_importance(model, batches())
        assert model.training and all(parameter.grad is None for parameter in model.parameters())
    torch.testing.assert_close(models[0].state_dict(), models[1].state_dict())


def test_fitting_again_replaces_what_was_fitted_before(tiny_vit):
    once, twice = gated(tiny_vit), gated(tiny_vit)
    fit_importance(twice, batches(), strength=3.0)
    for model in (once, twice):
        fit_importance(model, batches())
    for gate, other in zip(once.learned_gates(), twice.learned_gates(), strict=True):
        torch.testing.assert_close(gate.state_dict(), other.state_dict(), rtol=1e-4, atol=1e-4)


def test_strength_0_is_the_unlearned_twin(tiny_vit):
    model, fresh = gated(tiny_vit), gated(tiny_vit)
    fit_importance(model, batches(), strength=0.0)
    torch.testing.assert_close(model.state_dict(), fresh.state_dict())


def test_what_cannot_learn_is_refused(tiny_vit):
    with pytest.raises(ValueError, match="needs learned gates of tokens"):
        fit_importance(gated(tiny_vit, [{"gate": "sublayer"}]), batches())
    with pytest.raises(ValueError, match="needs images, got none"):
        fit_importance(gated(tiny_vit), [])
    with pytest.raises(ValueError, match="strength must be finite and at least 0, got -1"):
        fit_importance(gated(tiny_vit), batches(), strength=-1)


def test_a_trainer_learns_importance_before_its_first_step(tiny_vit, tmp_path):
    options = {"gates": PATCH, "gate_learning_rate": 0.0, "learning_rate": 0.0, "max_steps": 1}
    trainer = build_trainer(
        tiny_vit, tmp_path / "a", importance_images=32, calibrate_first=True, budget=0.8, **options
    )
    trainer.train()
    learned = trainer.model.gates[1]["attention_tokens"].score.weight.clone()
    assert learned.abs().max() > 1e-3
    prepare(trainer)  # once more changes nothing: what is learned is the saliency with all gates open
    torch.testing.assert_close(trainer.model.gates[1]["attention_tokens"].score.weight, learned)
    (explained,) = [
        entry["importance_explained"] for entry in trainer.state.log_history if "importance_explained" in entry
    ]
    assert 0 < explained <= 1


@pytest.mark.parametrize("frozen_at", [0.0, 0.5])
def test_importance_is_fitted_to_the_tuned_body_unless_gates_were_taught(tiny_vit, tmp_path, frozen_at):
    trainer = build_trainer(
        tiny_vit, tmp_path, gates=PATCH, max_steps=2, importance_images=32, freeze_gates_at=frozen_at, budget=0.8
    )
    trainer.train()
    score = trainer.model.gates[1]["attention_tokens"].score.weight.clone()
    prepare(trainer)
    same = torch.allclose(trainer.model.gates[1]["attention_tokens"].score.weight, score, atol=1e-6)
    assert same == (frozen_at == 0.0)


def test_scores_stay_where_no_calibration_follows(tiny_vit, tmp_path):
    options = {"importance_images": 32, "calibration_images": 0, "freeze_gates_at": 0.0, "tuning_gain": 0.0}
    trainer = build_trainer(tiny_vit, tmp_path, gates=MERGE, budget=0.8, max_steps=2, **options)
    prepare(trainer)
    before = [gate.score.weight.clone() for gate in trainer.model.learned_gates()]
    trainer.train()
    for gate, weight in zip(trainer.model.learned_gates(), before, strict=True):
        torch.testing.assert_close(gate.score.weight, weight)


def test_a_trainer_refuses_images_of_importance_without_gates_of_tokens(tiny_vit, tmp_path):
    with pytest.raises(ValueError, match="importance_images 8 are for learned gates of tokens"):
        build_trainer(tiny_vit, tmp_path, gates=[{"gate": "head"}], importance_images=8)
    with pytest.raises(ValueError, match="importance_images 8 are for learned gates of tokens"):
        build_trainer(tiny_vit, tmp_path, gates=None, budget=1.0, importance_images=8)
    with pytest.raises(ValueError, match="importance_images must be at least 0, got -1"):
        build_trainer(tiny_vit, tmp_path, importance_images=-1)
