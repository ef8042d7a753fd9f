"""Search over masks for the best trade-offs: exhaustive, or NSGA-II by pymoo.

Plain: error against cost, or milliseconds by a table of latencies, of the model under the mask, after training (the thesis of Mersha, 2023, as its abstract tells
it). Joint: the mean reward of the policy that acts inside the mask, against the layers left in the network. The
thesis's own definition of the joint search is not public; this is our reading of it.
"""

import numpy as np
from tqdm.auto import tqdm

from .masks import bit_string


# name -> the two scores to be small, and the sign that makes them so.
OBJECTIVES = {
    "error+cost": (("error", 1), ("cost", 1)),
    "error+milliseconds": (("error", 1), ("milliseconds", 1)),
    "reward+layers": (("reward", -1), ("layers", 1)),
    "reward+milliseconds": (("reward", -1), ("milliseconds", 1)),
}
METHODS = ("auto", "nsga2", "exhaustive")
FEW_BITS = 6  # up to which "auto" scores all masks


def search(scores, objectives="error+cost", method="auto", population=24, generations=20, seed=0, start=()):
    """The front of the masks that `scores` tells apart; small spaces are searched exhaustively, others by NSGA-II.

    Args:
        scores: a `MaskScores`. objectives: one of `OBJECTIVES`. method: one of `METHODS`.
        population, generations, seed, start: as in `nsga2`.

    Returns:
        list of dicts, as `front` gives it; `pick` chooses one of them.
    """
    if chosen_method(method, scores.space) == "exhaustive":
        return exhaustive(scores, objectives)
    return nsga2(scores, objectives, population, generations, seed, start)


def chosen_method(method, space):
    """What `method` means for a `MaskSpace`: "exhaustive" or "nsga2"."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    return method if method != "auto" else "exhaustive" if len(space) <= FEW_BITS else "nsga2"


def exhaustive(scores, objectives="error+cost"):
    """Score every mask of a small space; returns its front, as `front` does."""
    masks = scores.space.every()
    for count, bits in enumerate(tqdm(masks, desc="masks")):
        scores(bits)
        if count % 16 == 15:
            scores.save()
    scores.save()
    return front(scores, masks, objectives)


def nsga2(scores, objectives="error+cost", population=24, generations=20, seed=0, start=()):
    """Search by NSGA-II (Deb et al., 2002); the same seed finds the same masks.

    A search that was interrupted goes on by being run again: what `scores` has cached costs nothing, and the rest of
    the search does not depend on anything else.

    Args:
        scores: a `MaskScores`. population: masks per generation. generations: how many.
        start: masks (tuples of bits) to begin with, besides everything on and random ones.

    Returns:
        The front of all masks that were scored, as `front` does.

    Raises:
        ImportError: pymoo is not installed.
    """
    try:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.population import Population
        from pymoo.core.problem import Problem
        from pymoo.operators.crossover.ux import UniformCrossover
        from pymoo.operators.mutation.bitflip import BitflipMutation
    except ImportError as error:
        raise ImportError("NSGA-II needs pymoo: pip install 'hf_dynvit[search]'") from error
    keys = _keys(objectives)
    if population < 2 or generations < 1:
        raise ValueError(f"population must be at least 2 and generations 1, got {population} and {generations}")
    size = len(scores.space)

    def sampling(problem, count, random_state=None, **kwargs):
        """Everything on, the given masks, and random ones of all densities: half the bits on is a narrow start."""
        given = np.array([np.ones(size), *start], dtype=bool)[:count]
        rates = random_state.random((count - len(given), 1))
        return Population.new(X=np.concatenate([given, random_state.random((len(rates), size)) < rates]))

    def repair(problem, masks, **kwargs):
        """A mask that switches off everything gets its first bit back, unless layers are always kept."""
        bits = masks.get("X").astype(bool)
        if not scores.space.always_keep:
            bits[~bits.any(1), 0] = True
        masks.set("X", bits)
        return masks

    operators = {"crossover": UniformCrossover(), "mutation": BitflipMutation()}
    algorithm = NSGA2(population, sampling, repair=repair, eliminate_duplicates=True, **operators)
    problem = Problem(n_var=size, n_obj=2, xl=0, xu=1, vtype=bool)
    algorithm.setup(problem, termination=("n_gen", generations), seed=seed)
    seen = {}
    with tqdm(total=population * generations, desc="masks") as progress:  # at most: masks come again
        while algorithm.has_next():
            drawn = algorithm.ask()
            if drawn is None:  # no mask is left that was not seen
                break
            values = []
            for bits in map(tuple, drawn.get("X").tolist()):
                seen[bits], before = True, scores.evaluated
                values.append([sign * scores(bits)[name] for name, sign in keys])
                if scores.evaluated > before and scores.evaluated % 8 == 0:
                    scores.save()  # a generation may take long
                progress.update()
            drawn.set("F", np.array(values))
            algorithm.tell(infills=drawn)
            progress.set_postfix(generation=algorithm.n_gen, scored=len(scores.cache))
            scores.save()
    return front(scores, seen, objectives)


def front(scores, masks, objectives="error+cost"):
    """The masks that no other of `masks` beats in both objectives, by rising second objective.

    Returns:
        list of dicts: `bits` (string), `layer_mask`, and the scores.
    """
    keys = _keys(objectives)
    points = {tuple(map(bool, bits)): tuple(sign * scores(bits)[name] for name, sign in keys) for bits in masks}
    kept, best = [], float("inf")
    for bits, (first, _) in sorted(points.items(), key=lambda item: (item[1][::-1], item[0])):
        if first < best:
            best = first
            kept.append(bits)
    return [_point(scores, bits) for bits in kept]


def all_scored(scores):
    """As `front`, all masks that were scored: a bound is on accuracy or cost, whichever two objectives the front has."""
    return [_point(scores, [bit == "1" for bit in bits]) for bits in scores.cache]


def _point(scores, bits):
    return {"bits": bit_string(bits), "layer_mask": scores.space.layer_mask(bits), **scores(bits)}


def pick(points, objectives="error+cost", min_accuracy=None, max_cost=None):
    """One point of a front: by a bound that is given, or the knee, farthest from the line between the ends.

    Args:
        points: as `front` gives them; with a bound all that were scored (`all_scored`) may hold a better one.
        min_accuracy: take the cheapest point (least second objective) of at least this accuracy.
        max_cost: take the most accurate point whose cost is at most this, of several the cheapest.

    Raises:
        ValueError: both bounds, or no point within the one given.
    """
    if min_accuracy is not None and max_cost is not None:
        raise ValueError(f"give min_accuracy or max_cost, not both: got {min_accuracy} and {max_cost}")
    (name_x, sign_x), (name_y, sign_y) = _keys(objectives)
    if max_cost is not None:
        cheap = [point for point in points if point["cost"] <= max_cost]
        if not cheap:
            least = min(point["cost"] for point in points)
            raise ValueError(f"no mask has a cost of at most {max_cost}; the cheapest has {least:.4f}")
        return max(cheap, key=lambda point: (point["accuracy"], -point["cost"]))
    if min_accuracy is not None:
        good = [point for point in points if point["accuracy"] >= min_accuracy]
        if not good:
            best = max(point["accuracy"] for point in points)
            raise ValueError(f"no mask has an accuracy of {min_accuracy}; the best has {best:.4f}")
        return min(good, key=lambda point: (point[name_y], -point["accuracy"]))
    xs, ys = _unit([sign_x * point[name_x] for point in points]), _unit([sign_y * point[name_y] for point in points])
    return min(zip(xs, ys, points, strict=True), key=lambda entry: entry[0] + entry[1])[2]


def _unit(values):
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]


def _keys(objectives):
    if objectives not in OBJECTIVES:
        raise ValueError(f"objectives must be one of {sorted(OBJECTIVES)}, got {objectives!r}")
    return OBJECTIVES[objectives]
