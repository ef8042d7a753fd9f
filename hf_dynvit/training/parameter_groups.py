"""Parameter groups: body and gates, each with its own learning rate and weight decay, and which of them learn."""

from contextlib import contextmanager


def parameter_groups(model, args, decaying):
    """Body with weight decay, body without, gates alike; groups that would be empty are left out.

    Args:
        model: only its parameters that require a gradient are in a group.
        args: `DynViTTrainingArguments`; gates learn at `gate_learning_rate` with `gate_weight_decay`, each of which is
            the body's where it is None; where both are, gates are in the body's groups, as the `Trainer` has them.
        decaying: names of the parameters that weight decay is for.
    """
    gates = {id(parameter) for gate in model.learned_gates() for parameter in gate.deciding_parameters()}
    if args.gate_learning_rate is None and args.gate_weight_decay is None:
        gates = set()
    rate = {} if args.gate_learning_rate is None else {"lr": args.gate_learning_rate}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    body, own = ([(name, p) for name, p in named if (id(p) in gates) is of_gates] for of_gates in (False, True))
    groups = []
    for part, decay, options in (
        (body, args.weight_decay, {}),
        (own, args.weight_decay if args.gate_weight_decay is None else args.gate_weight_decay, rate),
    ):
        decays = set(decaying) if decay or part is body else set()
        groups += [
            {"params": [p for name, p in part if name in decays], "weight_decay": decay, **options},
            {"params": [p for name, p in part if name not in decays], "weight_decay": 0.0, **options},
        ]
    return [group for group in groups if group["params"]]


def heads_group(objective, args):
    """The group of the heads of an objective, at their own learning rate if they have one."""
    rate = {} if objective.heads_learning_rate is None else {"lr": objective.heads_learning_rate}
    return {"params": list(objective.heads.parameters()), "weight_decay": args.weight_decay, **rate}


@contextmanager
def learning(model, body):
    """Inside, the gates learn, and the body if `body`; afterwards all learns that did before, whatever froze since."""
    learned = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    if not body:
        model.requires_grad_(False)
        for gate in model.learned_gates():
            for parameter in gate.deciding_parameters():
                parameter.requires_grad_(True)
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(learned[name])
