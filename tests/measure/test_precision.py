"""What is measured in float32 is not measured in 16 bits because a training was."""

from types import MethodType

import pytest
import torch
from models import gated, images
from trainers import build_trainer

from hf_dynvit import fit_harm
from hf_dynvit.measure import clocked, measure_latencies
from hf_dynvit.measure.precision import in_own_precision


def trained_in_bf16(vit, gates):
    """A model as accelerate leaves it: its forward goes on under autocast."""
    model = gated(vit, gates).eval()
    model._original_forward = model.forward
    model.forward = MethodType(torch.autocast("cpu", torch.bfloat16)(type(model).forward), model)
    return model


def widths(model, call):
    """The dtypes that MLPs give meanwhile."""
    seen = set()
    hooks = [layer.mlp.fc1.register_forward_hook(lambda *args: seen.add(args[-1].dtype)) for layer in model.vit.layers]
    call()
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("name", ["latencies", "clock", "harm"])
def test_forwards_are_in_the_precision_of_the_weights(tiny_vit, name):
    gates = [{"gate": "sublayer", "layers": [1]}]
    model, pixels = trained_in_bf16(tiny_vit(), gates), images(4)
    calls = {
        "latencies": lambda: measure_latencies(model, pixels, rounds=1),
        "clock": lambda: clocked(model, [pixels], rounds=1),
        "harm": lambda: fit_harm(model, [pixels]),
    }
    assert widths(model, lambda: model(pixels)) == {torch.bfloat16}
    assert widths(model, calls[name]) == {torch.float32}
    assert widths(model, lambda: model(pixels)) == {torch.bfloat16}  # left as it was


def test_so_it_is_after_a_training_in_bf16(tiny_vit, tmp_path):
    trainer = build_trainer(tiny_vit, tmp_path, bf16=True, max_steps=1)
    trainer.train()
    model, pixels = trainer.model.eval(), images(4)
    assert widths(model, lambda: model(pixels)) == {torch.bfloat16}
    assert widths(model, lambda: clocked(model, [pixels], rounds=1)) == {torch.float32}


def test_a_forward_of_ones_own_is_what_is_timed(tiny_vit):
    model, asked = gated(tiny_vit(), None).eval(), []
    inner = model.forward
    model.forward = lambda *args, **options: asked.append(len(args[0])) or inner(*args, **options)
    clocked(model, [images(4)], rounds=1)
    assert asked and set(asked) == {4}


def test_an_error_leaves_the_forward_as_it_was(tiny_vit):
    model = trained_in_bf16(tiny_vit(), None)
    wrapped = model.forward
    with pytest.raises(RuntimeError), in_own_precision(model):
        assert model.forward is not wrapped
        raise RuntimeError
    assert model.forward is wrapped
