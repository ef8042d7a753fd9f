"""What learns, and at which rate: the parameters of a model with gates, in groups for an optimiser."""

from contextlib import contextmanager

from .gate import Gate


def parameter_groups(model, args, decaying):
    """Body with weight decay, body without, gates; groups that would be empty are left out.

    Args:
        model: only its parameters that require a gradient are in a group.
        args: `DynViTTrainingArguments`; gates learn at `gate_learning_rate`, without weight decay.
        decaying: names of the parameters that weight decay is for, where they are of the body.
    """
    gates = {id(p) for module in model.modules() if isinstance(module, Gate) for p in module.parameters()}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    body, decaying = [(name, p) for name, p in named if id(p) not in gates], set(decaying)
    groups = [
        {"params": [p for name, p in body if name in decaying], "weight_decay": args.weight_decay},
        {"params": [p for name, p in body if name not in decaying], "weight_decay": 0.0},
        {"params": [p for _, p in named if id(p) in gates], "weight_decay": 0.0, "lr": args.gate_learning_rate},
    ]
    return [group for group in groups if group["params"]]


@contextmanager
def learning(model, body):
    """Inside, the gates learn, and the body if `body`; afterwards all learns that did before, whatever froze since."""
    learned = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    if not body:
        model.requires_grad_(False)
        for module in model.modules():
            if isinstance(module, Gate):
                module.requires_grad_(True)
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(learned[name])
