"""Presets of published code stay what they were published as, in every recipe, unless the command line says otherwise."""

import dataclasses

import pytest
import torch
import yaml
from models import images
from places import RECIPES
from recipe_place import train
from trainers import build_trainer, weights

from hf_dynvit import DynViTForImageClassification, DynViTTrainingArguments
from hf_dynvit.data.rows import DataArguments
from hf_dynvit.model.gate import LearnedGate
from hf_dynvit.objectives.policy_gradient import layer_returns
from hf_dynvit.settings import parse_settings
from hf_dynvit.training import recipe_words
from hf_dynvit.training.presets import FAITHFUL, preset_arguments, preset_of
from hf_dynvit.training.starting_model import ModelArguments


FILES = [path for path in sorted(RECIPES.glob("*.yaml")) if "new_vit:" not in path.read_text()]  # may have gates


def parsed(path, *words):
    kinds = (ModelArguments, DataArguments, DynViTTrainingArguments)
    _, _, args = parse_settings(
        [str(path), "--use_cpu", "true", "--bf16", "false", *words],
        *kinds,
        defaults=recipe_words.preset_defaults,
        set_aside=recipe_words.faithful_set_aside,
    )
    return args


def test_what_is_kept_is_not_learned_anew_nor_a_mask_undone(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe_words, "named_preset", lambda words: "adavit-plus")
    path, fits = (
        RECIPES / "merge_photos_cpu.yaml",
        ("bypass_images", "importance_images", "harm_images", "budget_ramp"),
    )

    def counts(*words):
        args = parsed(path, "--output_dir", str(tmp_path), *words)
        return [getattr(args, name) for name in fits]

    assert counts("--gates", "adavit-plus") == [256, 256, 256, counts("--gates", "adavit-plus")[-1]]
    assert counts("--gates", "keep") == [0, 0, 0, 0.0]
    # Fresh gates of tokens and bypasses learn under a mask as well.
    assert counts("--gates", "adavit-plus", "--start_mask", "mask.json") == [256, 256, 0, 0.0]


def taught(args):
    named = {name: getattr(args, name) for name in recipe_words.teaching_keys() if hasattr(args, name)}
    return named | {"objective_options": args.make_objective().options}


@pytest.mark.parametrize("preset", FAITHFUL)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_in_every_recipe_gates_are_taught_as_published(tmp_path, path, preset):
    args = parsed(path, "--gates", preset, "--output_dir", str(tmp_path))
    assert taught(args) == taught(DynViTTrainingArguments(str(tmp_path), **preset_arguments(preset)))
    assert (args.freeze_gates_at, args.tuning_budgets, args.calibrate_first, args.calibration_images) == (
        1,
        [],
        False,
        0,
    )
    assert args.learning_rate == yaml.safe_load(path.read_text())["learning_rate"]


@pytest.mark.parametrize("preset", FAITHFUL)
def test_the_command_line_and_a_file_for_the_preset_itself_count(tmp_path, preset):
    words = ["--gates", preset, "--output_dir", str(tmp_path), "--freeze_gates_at", "0.5", "--gate_learning_rate=0.3"]
    args = parsed(RECIPES / "adavit_tiny_imagenet_cpu.yaml", *words)
    assert (args.freeze_gates_at, args.gate_learning_rate) == (0.5, 0.3)
    own = tmp_path / "own.yaml"
    content = {"gates": preset, "freeze_gates_at": 0.25, "output_dir": str(tmp_path)}
    own.write_text(yaml.safe_dump({**content, "model_name_or_path": "vit", "data_files": ["train=a.parquet"]}))
    assert parsed(own).freeze_gates_at == 0.25
    assert parsed(own, "--gates", preset).freeze_gates_at == 0.25
    assert parsed(own, "--gates", preset).objective == preset_arguments(preset)["objective"]


def test_what_is_left_aside_of_a_file_is_said_and_other_presets_take_all_of_it(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(recipe_words.logger, "warning", said.append)
    path = RECIPES / "layerskip_cifar10_cpu.yaml"
    args = parsed(path, "--gates", "adavit", "--output_dir", str(tmp_path))
    assert (args.freeze_gates_at, args.gate_learning_rate, args.objective) == (0.7, 3e-3, "cost") and not said
    parsed(path, "--gates", "adavit-official", "--output_dir", str(tmp_path))
    assert len(said) == 1
    for name in ("freeze_gates_at", "tuning_gain", "reward", "gate_learning_rate", "distillation_weight"):
        assert name in said[0]


def test_keys_about_teaching_are_all_of_ours_but_those_of_agents():
    ours = recipe_words.teaching_keys()
    assert {"objective", "gate_weight_decay", "tuning_budgets", "distillation_weight", "curriculum"} <= ours
    assert not {"agent", "agent_options", "n_patch_desired", "learning_rate", "seed"} & ours
    known = {field.name for field in dataclasses.fields(DynViTTrainingArguments)}
    known |= DynViTTrainingArguments.flat_options().keys()
    assert all(set(preset_arguments(preset)) <= known for preset in FAITHFUL)


@pytest.mark.parametrize(
    ("preset", "layers", "options"),
    [("adavit-official", 2, {}), ("layerskip-dynavit", 3, {"gate_learning_rate": 1e-4})],
)
def test_the_frozen_phase_and_the_end_leave_thresholds_alone_without_a_budget(
    tiny_vit, tmp_path, preset, layers, options
):
    taught = (
        preset_arguments(preset) | {"freeze_gates_at": 0.25, "tuning_gain": 3.0, "calibration_images": 32} | options
    )
    trainer = build_trainer(
        lambda **fields: tiny_vit(layers, **fields), tmp_path, gates=preset, budget=1.0, max_steps=12, **taught
    )
    seen = []
    trainer.model.register_forward_hook(
        lambda model, *_: seen.append((trainer.state.global_step, weights(model.gates))) if model.training else None
    )
    trainer.train()
    frozen = next(gates for step, gates in seen if step == 3)
    assert all(torch.equal(frozen[name], value) for name, value in weights(trainer.model.gates).items())
    assert trainer.model.layout == "masked" and trainer.state.global_step == 12
    assert not [entry for entry in trainer.state.log_history if "calibration_cost" in entry]


@pytest.mark.parametrize("objective", [{"objective": "usage"}, {"objective": "reinforce", "price_gain": 0.0}])
@pytest.mark.parametrize("given", [{"tuning_budgets": [0.5]}, {"calibrate_first": True}])
def test_budgets_are_refused_where_nothing_follows_them(tmp_path, objective, given):
    with pytest.raises(
        ValueError, match=f"{next(iter(given))} cannot be given with an objective that follows no budget"
    ):
        DynViTTrainingArguments(str(tmp_path), **objective, **given)


def test_a_reward_of_zero_counts_as_a_small_positive_one_as_published():
    returns = layer_returns(torch.tensor([0.0, 1.0, -1.0]), torch.zeros(12, 3), 3.0, "dynavit", discount=0.9)
    assert (returns[0, 0].item(), returns[-1, 0].item()) == pytest.approx((-1.27, 1.79), abs=0.01)
    torch.testing.assert_close(returns[:, 0], returns[:, 1], rtol=0, atol=1e-2)
    with pytest.raises(ValueError, match="need two that decide"):
        layer_returns(torch.ones(3), torch.zeros(1, 3), 0.0, "dynavit")


def test_official_gates_are_drawn_at_first_about_as_rarely_as_published(tiny_vit):
    model = DynViTForImageClassification.from_vit(tiny_vit(4), gates="adavit-official").train()
    with torch.no_grad():
        decisions = model(images(256)).decisions
    tokens = torch.stack([d.attention_tokens[:, 1:] for d in decisions]).mean()
    heads = torch.stack([d.heads for d in decisions[1:]]).mean()
    sublayers = torch.stack([d.sublayers for d in decisions[1:]]).mean()
    assert tokens.item() == pytest.approx(0.166, abs=0.02)  # published 0.116
    assert (heads.item(), sublayers.item()) == pytest.approx((0.5, 0.5), abs=0.06)


def test_official_gates_learn_at_the_rate_and_decay_of_the_body(tiny_vit, tmp_path):
    trainer = build_trainer(
        tiny_vit, tmp_path, gates="adavit-official", weight_decay=0.05, **preset_arguments("adavit-official")
    )
    groups = trainer.create_optimizer().param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-3, 0.05), (1e-3, 0.0)]
    decaying = {id(parameter) for parameter in groups[0]["params"]}
    gates = [module for module in trainer.model.modules() if isinstance(module, LearnedGate)]
    assert all(id(gate.score.weight) in decaying and id(gate.score.bias) not in decaying for gate in gates)


def test_models_of_a_preset_are_known_whatever_their_gates_began_with(tiny_vit):
    for preset in (*FAITHFUL, "adavit", "layerskip"):
        config = DynViTForImageClassification.from_vit(tiny_vit(12), gates=preset).config
        assert preset_of(config) == preset
        config.gates = [{key: value for key, value in gate.items() if key != "init_bias"} for gate in config.gates]
        assert preset_of(config) == preset


@pytest.mark.parametrize("preset", FAITHFUL)
def test_a_run_of_a_preset_is_not_brought_to_a_budget(place, preset):
    recipe = place.folder / f"{preset}.yaml"
    frozen = {"freeze_gates_at": 0.25, "tuning_budgets": [0.7, 0.9], "calibrate_first": True, "gates": "adavit"}
    recipe.write_text(yaml.safe_dump({**yaml.safe_load(place.recipe.read_text()), **frozen}))
    results = train.main([str(recipe), "--output_dir", str(place.folder / preset), "--gates", preset])
    settings = results["settings"]["training"]
    assert str(settings["gate_learning_rate"]) == str(preset_arguments(preset)["gate_learning_rate"])
    assert (settings["freeze_gates_at"], str(settings["tuning_budgets"])) == (1.0, "[]") and results["steps"] == 4
    assert results["cost"] == pytest.approx(1.0, abs=0.1)  # four steps do not skip; a budget of 0.7 would
    assert (place.folder / preset / "README.md").exists()
