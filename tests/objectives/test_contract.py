"""An objective of one's own, registered from outside the package, is taught, logged, saved and resumed as the others are."""

import json
from dataclasses import dataclass, fields

import pytest
import torch
from trainers import assert_same, build_trainer, weights

from hf_dynvit import DynViTTrainingArguments
from hf_dynvit.objectives import OBJECTIVES, Objective, choice, option, register_objective
from hf_dynvit.settings import parse_settings


class Thrift(Objective):
    """Each forward costs more than the one before it."""

    @dataclass
    class Options:
        growth: float = option(0.5, help="what the weight of the cost grows by with each forward")
        shape: str = choice("linear", "square")

    follows_budget = False

    def __init__(self, options):
        super().__init__(options)
        self.weight = 1.0

    def loss(self, model, inputs, outputs, step):
        self.weight += self.options.growth
        cost = outputs.cost.mean()
        self.log(thrift=torch.tensor(self.weight))
        return self.weight * (cost if self.options.shape == "linear" else cost**2)

    def state_dict(self):
        return {"weight": self.weight}

    def load_state_dict(self, saved):
        self.weight = saved.get("weight", 1.0)


@pytest.fixture
def thrift():
    register_objective("thrift", Thrift)
    yield
    del OBJECTIVES["thrift"]


def test_an_objective_of_ones_own_teaches_with_its_options(thrift, tiny_vit, tmp_path):
    trainer = build_trainer(tiny_vit, tmp_path, objective="thrift", growth=2.0, max_steps=2)
    before = weights(trainer.model.gates)
    trainer.train()
    after = weights(trainer.model.gates)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert [entry["thrift"] for entry in trainer.state.log_history if "thrift" in entry] == [3.0, 5.0]
    assert not [entry for entry in trainer.state.log_history if "calibration_cost" in entry]  # it follows no budget


def test_its_state_is_in_the_checkpoints_and_a_resumed_run_ends_with_the_same_weights(thrift, tiny_vit, tmp_path):
    options = {"objective": "thrift", "max_steps": 2, "save_strategy": "steps", "save_steps": 1, "dropout": 0.1}
    straight = build_trainer(tiny_vit, tmp_path, **options, objective_options={"shape": "square"})
    straight.train()
    state = json.loads((tmp_path / "checkpoint-1" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["PolicyObjective"]["attributes"] == {"weight": 1.5}
    resumed = build_trainer(tiny_vit, tmp_path, **options, objective_options={"shape": "square"})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert resumed.objective.weight == straight.objective.weight == 2.0
    assert_same(weights(straight.model), weights(resumed.model))


def test_its_options_are_keys_of_files_and_command_lines(thrift, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("objective: thrift\ngrowth: 3\nshape: square\n")
    (args,) = parse_settings([str(file), "--output_dir", str(tmp_path), "--growth", "1e-1"], DynViTTrainingArguments)
    assert args.objective_options == {"growth": 0.1, "shape": "square"}


def test_options_are_written_with_either_dash_as_other_keys_are(tmp_path):
    words = ["--output-dir", str(tmp_path), "--objective", "reinforce", "--price-gain", "3", "--value_weight=2"]
    (args,) = parse_settings(words, DynViTTrainingArguments)
    assert args.objective_options == {"price_gain": 3.0, "value_weight": 2.0}
    with pytest.raises(ValueError, match="invalid float value: 'much'"):
        parse_settings(["--price", "much"], DynViTTrainingArguments)
    with pytest.raises(ValueError, match="unknown key 'price_gian' in the command line; did you mean price_gain"):
        parse_settings(["--price_gian", "3"], DynViTTrainingArguments)


def test_what_is_registered_must_be_new_and_an_objective(thrift):
    with pytest.raises(ValueError, match="there is an objective 'thrift' already"):
        register_objective("thrift", Thrift)
    with pytest.raises(TypeError, match="must be a subclass of hf_dynvit.objectives.Objective, got <class 'int'>"):
        register_objective("whole", int)


# ---------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("given", [{"cost_weight": 40.0}, {"objective_options": {"cost_weight": 40.0}}], ids=str)
def test_options_are_given_by_name_or_together(tmp_path, given):
    args = DynViTTrainingArguments(str(tmp_path), **given)
    assert args.objective_options == {"cost_weight": 40.0}
    assert args.make_objective().options.cost_weight == args.to_sanitized_dict()["cost_weight"] == 40.0


def test_one_training_is_written_alike_however_its_options_were_given(tmp_path):
    given = [{}, {"cost_weight": 20.0}, {"objective_options": {"cost_weight": 20.0}}, {"objective_options": "{}"}]
    written = [
        DynViTTrainingArguments(str(tmp_path), run_name="one", **options).to_sanitized_dict() for options in given
    ]
    assert all(one == written[0] for one in written) and written[0]["cost_weight"] == 20.0


def test_options_together_are_json_or_yaml_and_count_more_than_by_name(tmp_path):
    given = {"objective": "reinforce", "price": 1.0, "objective_options": "{price: 2.0, baseline: none}"}
    options = DynViTTrainingArguments(str(tmp_path), **given).make_objective().options
    assert (options.price, options.baseline, options.price_gain) == (2.0, "none", 20.0)
    with pytest.raises(ValueError, match="objective_options must be a dict, got 3"):
        DynViTTrainingArguments(str(tmp_path), objective_options="3")


def test_an_unknown_option_is_refused_by_name_with_the_list(tmp_path):
    with pytest.raises(ValueError, match=r"objective 'cost' has no option 'prize'; its options are \['cost_weight'\]"):
        DynViTTrainingArguments(str(tmp_path), objective_options={"prize": 1.0})
    with pytest.raises(TypeError, match="prize"):
        DynViTTrainingArguments(str(tmp_path), prize=1.0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_options_by_name_of_other_objectives_do_not_count(tmp_path, name):
    every = {option.name: option.default for kind in OBJECTIVES.values() for option in fields(kind.Options)}
    args = DynViTTrainingArguments(str(tmp_path), objective=name, **every)
    assert args.objective_options.keys() == {option.name for option in fields(OBJECTIVES[name].Options)}
    if name != "reinforce":
        with pytest.raises(ValueError, match="price of objective 'reinforce' must be a number of at least 0, got nan"):
            DynViTTrainingArguments(str(tmp_path), objective=name, price=float("nan"))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_option_of_an_objective_says_what_it_is(name):
    assert all(option.metadata["help"] for option in fields(OBJECTIVES[name].Options))
    assert OBJECTIVES[name]({}).trains_packed is (name in ("reinforce", "auxiliary"))
