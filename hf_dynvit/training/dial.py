"""What calibrate.py does to a model: fresh gates, what they learn without training, and the budget or the time they meet.

`args` are those of the recipe (`CalibrateArguments`); what was tried is printed.
"""

from dataclasses import replace
from functools import partial

from ..measure.trained_models import dense_vit
from ..model import can_prepack
from ..model.budgets import shift_gates
from ..model.layer_reading import reads_alone
from ..model.modeling_dynvit import DynViTForImageClassification
from ..objectives.gate_kinds import token_gates, unit_gates
from .calibration import WORTH_A_WARNING, calibrate, mean_cost, steady_range
from .closed_form import fit_gates
from .importance import fit_importance
from .looks import choose_looks, chosen, read_looks
from .resolution import choose_resolution, nearest_of, nearest_size, sizes_for
from .sharing import OPEN
from .starting_model import read_gates
from .timed_resolution import Place, choose_in_time


def meet(model, batches, args, look=False):
    """Fit importance where it is asked for, and bring the thresholds to what is wanted; returns shift, cost and more.

    Fresh gates of heads and sub-layers are fitted for one budget alone, not for a `look` of a cascade: elsewhere they are opened
    beyond any shift.
    """
    if args.gates and args.importance is not False and unit_gates(model):
        if fits_units(model, args) and not look:
            return together(model, batches, args.budget)
        shift_gates(list(unit_gates(model).values()), OPEN)
        print("heads and sub-layers stay open: they are fitted for one --budget, without a cascade")
    if args.importance or (args.importance is None and args.gates and token_gates(model)):
        shares = fit_importance(model, batches)
        print(f"scores explain {min(shares.values()):.0%} to {max(shares.values()):.0%} of the importance of tokens")
    if args.milliseconds is not None:
        return to_milliseconds(model, batches, args)
    if args.budgets:
        return calibrate(model, batches, budgets=args.budgets)
    learned = model.learned_gates()
    calibrates = learned or model.config.cascade is not None
    if calibrates:
        found = calibrate(model, batches, args.budget)
        if model.config.cascade is None:  # which has the nearest budget in its reach
            model.set_budget(args.budget)
        return found
    cost = mean_cost(model, batches)
    model.set_budget(min(1.0, cost))
    if abs(cost - args.budget) > WORTH_A_WARNING:
        print(f"note: no threshold is there to bring the cost to {args.budget}: it is {cost:.3f}")
    return 0.0, cost


def fits_units(model, args):
    """Whether gates of heads and sub-layers are fitted in closed form."""
    asked = args.gates and args.importance is not False and args.budget and not args.cascade
    return bool(asked and unit_gates(model))


def together(model, batches, budget):
    """Heads and sub-layers beside tokens, all fitted in closed form; returns no common shift, and the cost."""
    tried = fit_gates(model, batches, budget)
    for one in sorted(tried):
        print(
            f"{one.share:.0%} by heads and sub-layers: {one.distance:.3f} nats from the dense model at {one.cost:.3f}"
        )
    model.set_budget(budget)
    return None, tried[0].cost


def at_best_size(vit, batches, args):
    """The model at the size of images that leaves its predictions nearest to the dense model's; with what `meet` returns."""
    found = {}

    def build(size):
        model = with_gates(vit, args, size)
        found[size] = meet(model, batches, args)
        return model

    dense = DynViTForImageClassification.from_vit(dense_vit(vit)).to(vit.dtype)
    if args.milliseconds is not None:
        plain = partial(without_gates, vit, args)
        best, trials = choose_in_time(dense, build, plain, batches, args.milliseconds, args.batch_size)
        _print(trials)
        met = found[best.resolution.resolution] if best.resolution.gates else (0.0, best.cost)
        return best.model.set_budget(min(1.0, best.cost)), met
    sizes = [size for size in sizes_for(vit.config, args.budget) if reaches(with_gates(vit, args, size), args.budget)]
    if not with_gates(vit, args, None).config.gates:
        sizes = [nearest_size(vit.config, args.budget, args.last_layer or vit.config.last_layer)]
    if not sizes:
        raise ValueError(f"a budget of {args.budget} is out of reach of these gates at every size of images")
    best, trials = choose_resolution(dense, build, sizes, batches)
    _print([trial._replace(resolution=Place(trial.resolution, True)) for trial in trials])
    met = [trial for trial in trials if abs(trial.cost - args.budget) <= WORTH_A_WARNING]
    best = nearest_of(met) if met else best
    return best.model, found[best.resolution]


def _print(trials):
    for trial in trials:
        print(f"{trial.resolution}: {trial.distance:.3f} nats from the dense model at cost {trial.cost:.3f}")


def without_gates(vit, args, size):
    """The plain ViT at a size of images, as it will be served."""
    model = with_gates(vit, replace(args, gates="[]"), size)
    if can_prepack():
        model.prepack(args.kernels)
    return model


def best_looks(vit, batches, args):
    """The looks of a cascade, at the sizes of images that leave each nearest to the dense model's predictions."""

    def build(size, cost):
        one = replace(args, budget=cost, cascade=[])
        model = with_gates(vit, one, size)
        meet(model, batches, one, look=True)
        return model

    dense = DynViTForImageClassification.from_vit(dense_vit(vit)).to(vit.dtype)
    looks = choose_looks(dense, build, vit.config, args.budget, batches, chosen(args.cascade))
    print("looks: " + ", ".join(f"{look['resolution']} px at a mean cost of {look['budget']}" for look in looks))
    return looks


def reaches(model, budget):
    """Whether thresholds can bring the model to a budget."""
    least, most = steady_range(model)
    return least <= budget <= most


def to_milliseconds(model, batches, args):
    """Calibrate to a mean time of the prepacked model; returns a `TimedCalibration`."""
    if can_prepack():
        model.prepack(args.kernels)
    found = calibrate(model, batches, milliseconds=args.milliseconds, batch_size=args.batch_size)
    model.set_budget(min(1.0, found.cost))
    print(
        f"{found.milliseconds:.2f} ms per image in batches of {args.batch_size} by the table of latencies; on the first images "
        f"{found.clock_predicted:.2f}, where the clock says {found.clock:.2f} ({found.error:+.1%})"
    )
    return found


def with_gates(model, args, resolution):
    """The model itself, or one with the weights of a plain ViT and fresh gates; with a cascade, if one is asked for."""
    if args.gates is None:
        looks = read_looks(args.cascade, model.config, args.budget, bool(model.config.gates))
        if args.last_layer is not None:
            model.config.last_layer = args.last_layer
            reads_alone(model)  # refuses what cannot be left out
        return model.set_cascade(looks) if looks else model
    if model.config.gates:
        raise ValueError(f"{args.model} has gates already: --gates is for a plain ViT, got {args.gates!r}")
    lost = [name for name in ("layer_mask", "resolution", "cascade") if getattr(model.config, name, None) is not None]
    if lost:
        raise ValueError(
            f"{args.model} has {' and '.join(lost)}, which fresh gates would lose: --gates is for a plain ViT"
        )
    gates = [] if args.gates == "none" else read_gates(args.gates)
    looks = read_looks(args.cascade, model.config, args.budget, bool(gates))
    own = {"resolution": resolution, "cascade": looks, "last_layer": args.last_layer or model.config.last_layer}
    made = DynViTForImageClassification.from_vit(dense_vit(model), gates=gates, **own)
    return made.to(model.dtype).eval()
