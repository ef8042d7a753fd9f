"""A cascade: only images that a cheap look leaves unsure get another, and each class has the mean probability of its looks, by their weights."""

import copy
import types

import pytest
import torch
from models import gated, images
from torch.testing import assert_close
from transformers import AutoModelForImageClassification

from hf_dynvit import DynViTConfig, DynViTForImageClassification
from hf_dynvit.model.gate import Exploration


MERGE = [{"gate": "merge", "distance": 4.0, "layers": [1]}]
LOOKS = [{"budget": 0.5, "resolution": 24, "shift": -1.0}, {"budget": 0.9, "shift": 0.5}]


def cascade(vit, looks=LOOKS):
    """A cascade without a table yet, of a tiny ViT that is surer of some images than of others."""
    vit = copy.deepcopy(vit)
    with torch.no_grad():
        vit.classifier.weight.mul_(20)
    return gated(vit, MERGE, cascade=looks, budget=0.9).eval()


@pytest.fixture
def mixed(tiny_vit):
    """A cascade and images of which half need the second look."""
    model, x = cascade(tiny_vit()), images(8)
    with torch.no_grad():
        sure = model(x, look=0).logits.softmax(-1).amax(-1).sort().values
    confidence = (sure[3] + sure[4]).item() / 2
    model.config.budget_confidences = [[0.6, confidence / 2], [0.9, confidence]]
    return model, x


@pytest.mark.parametrize("layout", ["packed", "masked"])
def test_unsure_images_alone_are_looked_at_again(mixed, layout):
    model, x = mixed
    model.layout = layout
    with torch.no_grad():
        out, looks = model(x), [model(x, look=index) for index in (0, 1)]
    first, second = (look.logits.softmax(-1) for look in looks)
    again = first.amax(-1) < model.config.budget_confidences[-1][1]
    assert 0 < again.sum() < len(x)
    assert out.looks.tolist() == (1 + again.long()).tolist()
    expected = torch.where(again.unsqueeze(1), (first + second) / 2, first)
    assert_close(out.logits.softmax(-1), expected, atol=1e-5, rtol=1e-5)
    assert_close(out.cost, looks[0].cost + again * looks[1].cost)
    assert out.decisions is None and looks[0].decisions is not None


@pytest.mark.parametrize("layout", ["packed", "masked"])
def test_looks_count_by_their_weights(tiny_vit, layout):
    weights, looks = (0.5, 2.0, 7.0), [LOOKS[0], {"budget": 0.7, "resolution": 24}, LOOKS[1]]
    looks = [{**look, "weight": weight} for look, weight in zip(looks, weights, strict=True)]
    model, x = cascade(tiny_vit(), looks), images(8)
    model.layout = layout
    with torch.no_grad():
        first, second, third = (model(x, look=look).logits.softmax(-1) for look in range(3))
        both = (0.5 * first + 2 * second) / 2.5
        sure = torch.maximum(first.amax(-1), both.amax(-1)).sort().values
        confidence = (sure[3] + sure[4]).item() / 2
        model.config.budget_confidences = [[0.6, confidence / 2], [0.9, confidence]]
        out = model(x)
    after_one, after_two = (one.amax(-1) >= confidence for one in (first, both))
    assert out.looks.tolist() == (1 + (~after_one).long() * (1 + (~after_two).long())).tolist()
    assert {2, 3} & set(out.looks.tolist()) and 3 in out.looks
    taken = [first, both, (0.5 * first + 2 * second + 7 * third) / 9.5]
    expected = torch.stack(taken)[out.looks - 1, torch.arange(8)]
    assert_close(out.logits.softmax(-1), expected, atol=1e-5, rtol=1e-5)


def test_a_wrapper_of_its_forward_is_entered_once(mixed):
    model, x = mixed
    autocast = torch.autocast("cpu", dtype=torch.bfloat16)  # one for all calls, as accelerate has it
    model.forward = types.MethodType(autocast(model.forward.__func__), model)
    with torch.no_grad():
        assert 2 in model(x).looks
    assert not torch.is_autocast_enabled("cpu")


def test_packed_runs_the_second_look_on_unsure_images_alone(mixed):
    model, x = mixed
    seen = []
    model.vit.embeddings.register_forward_hook(lambda module, given, out: seen.append(len(out)))
    with torch.no_grad():
        again = (model(x).looks == 2).sum().item()
        assert seen == [len(x), again]
        seen.clear()
        model.layout = "masked"
        model(x)
    assert seen == [len(x), len(x)]


def test_both_layouts_agree(mixed):
    model, x = mixed
    with torch.no_grad():
        packed = model(x)
        model.layout = "masked"
        masked = model(x)
    assert_close(packed.logits, masked.logits, atol=1e-4, rtol=1e-4)
    assert_close(packed.cost, masked.cost)


def test_the_budget_says_from_which_confidence_an_image_is_done(mixed):
    model, x = mixed
    with torch.no_grad():
        costs = [model(x, budget=budget).cost.mean().item() for budget in (0.6, 0.9)]
        assert costs[0] < costs[1]
        each = model(x, budget=torch.tensor([0.6, 0.9] * 4)).cost
        assert_close(each[1::2], model(x).cost[1::2])
        assert model.set_budget(0.6)(x).cost.mean().item() == pytest.approx(costs[0])
        with pytest.raises(ValueError, match="out of reach"):
            model(x, budget=0.3)
        with pytest.raises(ValueError, match="out of reach"):
            model.set_budget(1.0)


def test_without_a_table_all_images_take_all_looks(tiny_vit):
    model, x = cascade(tiny_vit()), images(3)
    with torch.no_grad():
        assert model(x).looks.tolist() == [2, 2, 2]
        with pytest.raises(ValueError, match="none"):
            model(x, budget=0.7)


def test_looks_have_sizes_and_thresholds_of_their_own(tiny_vit):
    model, x = cascade(tiny_vit()), images(3)
    fields = {**model.config.to_dict(), "cascade": None, "resolution": 24}
    plain = DynViTForImageClassification(DynViTConfig(**fields)).eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        for gate in plain.learned_gates():
            gate.score.bias -= 1.0
        assert_close(model(x, look=0).logits, plain(x).logits)
        assert_close(model(x, look=0).cost, plain(x).cost)


def test_a_saved_cascade_gives_what_it_gave(mixed, tmp_path):
    model, x = mixed
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, trust_remote_code=True)
    with torch.no_grad():
        assert_close(loaded(x).logits, model(x).logits)
        assert loaded(x).looks.tolist() == model(x).looks.tolist()
        logits, cost, *_ = loaded(x, return_dict=False)
        loss = loaded(x, labels=torch.zeros(8, dtype=torch.long)).loss
    assert_close(loss, -model(x).logits.log_softmax(-1)[:, 0].mean(), atol=1e-4, rtol=1e-4)
    assert logits.shape == (8, model.num_labels) and cost.shape == (8,)


def test_in_training_a_forward_is_one_look(tiny_vit):
    model, x = cascade(tiny_vit()).train(), images(2)
    out = model(x, gating="threshold")
    assert out.looks is None and len(out.decisions) == 2
    model.eval()
    with torch.no_grad():
        assert_close(out.logits.detach(), model(x, look=1).logits, atol=1e-4, rtol=1e-4)


def test_what_is_not_a_number_is_looked_at_and_shows(mixed):
    model, x = mixed
    x = x.clone()
    x[0] = torch.nan
    with torch.no_grad():
        out = model(x)
    assert out.looks[0] == 2 and out.logits[0].isnan().all() and out.logits[1:].isfinite().all()


@pytest.mark.parametrize("size", [0, 1])
def test_small_batches(mixed, size):
    model, x = mixed
    with torch.no_grad():
        assert model(x[:size]).logits.shape == (size, model.num_labels)


def test_what_is_of_one_look_is_refused_of_several(mixed):
    model, x = mixed
    with pytest.raises(ValueError, match="look=0 to 1"):
        model(x, output_hidden_states=True)
    with pytest.raises(ValueError, match="exploration with a shift"):
        model(x, exploration=Exploration(shift=1.0))
    with torch.no_grad():
        model(x, output_hidden_states=False)
        model.config.return_dict = False
        assert model(x)[0].shape == (8, model.num_labels)
        model.config.return_dict = True
    with pytest.raises(ValueError, match=r"one class for each image, int64 \(B,\), as labels"):
        model(x, labels=torch.zeros(8, model.num_labels))
    with pytest.raises(ValueError, match=r"look must be in 0\.\.1, got 2"):
        model(x, look=2)
    with pytest.raises(ValueError, match="for all looks"):
        model(x, look=0, budget=0.7)


def test_a_look_needs_a_cascade(tiny_vit):
    with pytest.raises(ValueError, match="this one has none"):
        gated(tiny_vit(), MERGE)(images(1), look=0)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"cascade": LOOKS[:1]}, "2 to 8 looks"),
        ({"cascade": [LOOKS[1], LOOKS[0]]}, "begin with the cheapest"),
        ({"cascade": [{"resolution": 24}, LOOKS[1]]}, 'dicts of "budget"'),
        ({"cascade": [{"budget": 0.2, "shift": float("nan")}, LOOKS[1]]}, "shifts of a cascade"),
        ({"cascade": [{"budget": 0.2, "weight": 0.0}, LOOKS[1]]}, "weights of a cascade must be in"),
        ({"cascade": [{"budget": 0.2, "weight": True}, LOOKS[1]]}, "weights of a cascade must be in"),
        ({"cascade": [{"budget": 0.2, "weight": float("nan")}, LOOKS[1]]}, "weights of a cascade must be in"),
        ({"cascade": [{"budget": 0.2, "resolution": 25}, LOOKS[1]]}, "multiples of patch_size"),
        ({"cascade": LOOKS, "resolution": 24}, "cannot be given beside"),
        ({"cascade": LOOKS, "budget_shifts": [[0.5, 0.0], [1.0, 1.0]]}, "cannot be given beside"),
        ({"cascade": LOOKS, "problem_type": "multi_label_classification"}, "one label of several"),
        ({"cascade": LOOKS, "budget_confidences": [[0.5, 0.9], [1.0, 0.2]]}, "must both rise"),
        ({"cascade": LOOKS, "budget_confidences": [[0.5, 0.2], [1.0, 7.0]]}, "confidences of budget_confidences"),
        ({"budget_confidences": [[0.5, 0.2], [1.0, 0.9]]}, "2 to 8 looks"),
    ],
)
def test_a_cascade_that_is_none_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        DynViTConfig(image_size=32, patch_size=8, num_hidden_layers=2, hidden_size=16, num_attention_heads=2, **wrong)


def test_images_of_a_looks_own_size_cost_what_they_would_have_if_resized_inside(tiny_vit):
    looks = [{"budget": 0.2, "resolution": 16}, {"budget": 0.4, "resolution": 24}]
    model = gated(tiny_vit(), None, cascade=looks, budget=0.6).eval()  # without a table: every image takes both
    given = images(3)
    cost = model(given).cost
    for size in (16, 24):
        smaller = torch.nn.functional.interpolate(given, size=size)
        assert_close(model(smaller).cost, cost)
    larger = torch.nn.functional.interpolate(given, size=64)
    assert (model(larger).cost < cost / 2).all()  # of what the dense model would take for them
