"""NSGA-II over masks, by pymoo: the problem, its first population, and the loop with a progress bar."""

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.callback import Callback
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.core.sampling import Sampling
from pymoo.operators.crossover.ux import UniformCrossover
from pymoo.operators.mutation.bitflip import BitflipMutation
from pymoo.optimize import minimize
from tqdm.auto import tqdm


def run_nsga2(scores, keys, population, generations, seed, start):
    """All distinct masks that were scored, in order; arguments as in `search.nsga2`, keys as in `OBJECTIVES`."""
    problem = _MaskProblem(scores, keys)
    with tqdm(total=population * generations, desc="masks") as progress:  # at most: masks come again
        problem.progress = progress
        algorithm = NSGA2(
            pop_size=population,
            sampling=_Start(start),
            crossover=UniformCrossover(),
            mutation=BitflipMutation(),
            repair=_KeepSomething(),
            eliminate_duplicates=True,
            callback=_Advance(progress, scores),
        )
        # Not a copy: the algorithm holds the problem, and that the model.
        minimize(problem, algorithm, ("n_gen", generations), seed=seed, copy_algorithm=False)
    return list(problem.seen)


class _MaskProblem(Problem):
    def __init__(self, scores, keys):
        super().__init__(n_var=len(scores.space), n_obj=2, xl=0, xu=1, vtype=bool)
        self.scores, self.keys, self.seen, self.progress = scores, keys, {}, None

    def _evaluate(self, X, out, *args, **kwargs):
        found = []
        for bits in X:
            bits = tuple(bool(on) for on in bits)
            self.seen[bits] = True
            before = self.scores.evaluated
            found.append([sign * self.scores(bits)[name] for name, sign in self.keys])
            if self.scores.evaluated > before and self.scores.evaluated % 8 == 0:
                self.scores.save()  # a generation may take long
            self.progress.update()
        out["F"] = np.array(found)


class _Start(Sampling):
    """Everything on, the given masks, and random ones of all densities: half the bits on is a narrow start."""

    def __init__(self, start):
        super().__init__()
        self.start = [np.array(bits, dtype=bool) for bits in start]

    def _do(self, problem, n_samples, *args, random_state=None, **kwargs):
        given = [np.ones(problem.n_var, dtype=bool), *self.start][:n_samples]
        rates = random_state.random((n_samples - len(given), 1))
        drawn = random_state.random((len(rates), problem.n_var)) < rates
        return np.concatenate([np.array(given), drawn])


class _KeepSomething(Repair):
    """A mask that switches off everything gets its first bit back, unless layers are always kept."""

    def _do(self, problem, X, **kwargs):
        X = X.astype(bool)
        if not problem.scores.space.always_keep:
            X[~X.any(1), 0] = True
        return X


class _Advance(Callback):
    """Shows the generation and saves what has been scored, after each."""

    def __init__(self, progress, scores):
        super().__init__()
        self.progress, self.scores = progress, scores

    def notify(self, algorithm):
        self.progress.set_postfix(generation=algorithm.n_gen, scored=len(self.scores.cache))
        self.scores.save()
