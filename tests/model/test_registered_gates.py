"""A gate from outside the package is as good as any: registered, it is open, packed, counted, saved and loaded."""

import pytest
import torch
from models import images, run
from torch.testing import assert_close

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.model.gate import Gate, LearnedGate
from hf_dynvit.model.gates import GATES, register_gate
from hf_dynvit.model.host_vit import ViTHost


class Contrast(LearnedGate):
    """Reads how far a token is from the mean of all, and decides whether the MLP transforms it."""

    slots = ("mlp_tokens",)
    reads_all = True

    def __init__(self, config, sign=1, **options):
        super().__init__(1, 1, **options)
        self.sign = sign

    def logits(self, tokens, state=None):
        return self.score(self.sign * (tokens - tokens.mean(1, keepdim=True)).norm(dim=-1, keepdim=True)).squeeze(-1)

    def macs(self, num_tokens, alive=None):
        return num_tokens


class EverySecond(Gate):
    """A rule: every second image runs the MLP."""

    slots = ("sublayers",)

    def __init__(self, config):
        super().__init__()

    def forward(self, tokens, gating, replay=None, exploration=None, state=None):
        if replay is not None:
            return replay
        runs = torch.arange(len(tokens)) % 2 == 0
        return torch.stack((torch.ones_like(runs), runs), 1)


@pytest.fixture(autouse=True)
def shelf(monkeypatch):
    monkeypatch.setattr("hf_dynvit.model.gates.GATES", dict(GATES))
    register_gate("contrast", Contrast)
    register_gate("every-second", EverySecond)


def contrasting(vit):
    model = DynViTForImageClassification.from_vit(vit, [{"gate": "contrast", "sign": -1}])
    for gate in model.learned_gates():
        torch.nn.init.constant_(gate.score.weight, 1.0)
    return model


def test_fresh_it_keeps_everything_and_learns(tiny_vit):
    vit, pixel_values = tiny_vit(), images(3)
    model = DynViTForImageClassification.from_vit(vit, [{"gate": "contrast"}])
    assert [type(gate) for gate in model.learned_gates()] == [Contrast] * 2
    assert_close(run(model, "packed", pixel_values).logits, vit(pixel_values).logits, rtol=0, atol=1e-5)
    model.layout = "masked"
    model.train()(pixel_values).cost.mean().backward()
    assert all(gate.score.bias.grad != 0 for gate in model.learned_gates())


@pytest.mark.parametrize("gating", ["threshold", "act"])
@pytest.mark.parametrize("name", ["contrast", "every-second"])
def test_both_layouts_agree(tiny_vit, name, gating):
    vit, pixel_values = tiny_vit(), images(4)
    rule = DynViTForImageClassification.from_vit(vit, [{"gate": "every-second"}])
    model = contrasting(vit) if name == "contrast" else rule
    masked, packed = (run(model, layout, pixel_values, gating=gating) for layout in ("masked", "packed"))
    assert_close(packed.logits, masked.logits, rtol=0, atol=1e-4)
    assert torch.equal(packed.cost, masked.cost) and 0.3 < packed.cost.mean() < 1
    again = run(model, "packed", pixel_values, decisions=packed.decisions)
    assert_close(again.logits, packed.logits, rtol=0, atol=1e-5)


def test_it_is_saved_and_loaded_where_it_is_registered_and_refused_by_name_elsewhere(tiny_vit, tmp_path, monkeypatch):
    model, pixel_values = contrasting(tiny_vit()), images(3)
    model.save_pretrained(tmp_path)
    loaded = DynViTForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.gates == model.config.gates
    assert torch.equal(run(loaded, "packed", pixel_values).logits, run(model, "packed", pixel_values).logits)
    monkeypatch.setattr("hf_dynvit.model.gates.GATES", GATES)
    monkeypatch.setattr(ViTHost, "build", None)  # the body, which may be large, comes later
    with pytest.raises(ValueError, match="unknown gate 'contrast'; there are .*'patch'.*register"):
        DynViTForImageClassification.from_pretrained(tmp_path)


def test_a_rule_has_nothing_to_learn(tiny_vit):
    model = DynViTForImageClassification.from_vit(tiny_vit(), [{"gate": "every-second"}])
    assert model.learned_gates() == [] and not list(model.gates.parameters())


def test_what_cannot_be_a_gate_is_refused_by_name(tiny_vit):
    with pytest.raises(ValueError, match="gate 'linear' must be a subclass of Gate"):
        register_gate("linear", torch.nn.Linear)
    with pytest.raises(ValueError, match="there is a gate 'patch' already: PatchGate"):
        register_gate("patch", Contrast)
    register_gate("contrast", Contrast)  # the same once more says nothing new
    register_gate("nothing", type("Nothing", (EverySecond,), {"slots": ("tokens",)}))
    with pytest.raises(ValueError, match=r"slots of gate 'nothing' must be some of .*'heads'.*, got \('tokens',\)"):
        DynViTForImageClassification.from_vit(tiny_vit(), [{"gate": "nothing"}])


def test_a_gate_written_for_alive_is_told_what_gates_are_asked_with(tiny_vit):
    class Former(Contrast):
        def logits(self, tokens, alive=None):
            return super().logits(tokens)

    with pytest.raises(ValueError, match=r"\['logits'\] of gate 'former' must take `state` .* in place of `alive`"):
        register_gate("former", Former)


@pytest.mark.parametrize("budget", [0.6, 1])
def test_a_budget_is_set_and_saved(tiny_vit, tmp_path, budget):
    model = DynViTForImageClassification.from_vit(tiny_vit(), [{"gate": "patch"}])
    assert model.set_budget(budget) is model
    model.save_pretrained(tmp_path)
    assert DynViTForImageClassification.from_pretrained(tmp_path).config.budget == budget


@pytest.mark.parametrize("budget", [0, 1.5, -0.1, float("nan"), "0.5", None, True])
def test_what_is_no_budget_is_refused(tiny_vit, budget):
    model = DynViTForImageClassification.from_vit(tiny_vit(), budget=0.5)
    with pytest.raises(ValueError, match=r"budget must be in \(0, 1\], got"):
        model.set_budget(budget)
    assert model.config.budget == 0.5
