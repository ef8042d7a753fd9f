"""The dial: a table of budgets, each with the shift of the gates' logits at which the mean cost is that budget.

Calibration measures the table (training/calibration.py), the configuration holds it as [[budget, shift], ...]. A forward
adds the shift of its budget to the logits of every learned gate, and changes no weight for it: images and threads can
have budgets of their own. A cascade (cascade.py) has a table of confidences in place of shifts.

Letters: B images, K entries of the table.
"""

import copy

import torch


MOST_BUDGETS = 64
ROUNDING = 1e-6  # of a budget: 0.8 in 32 bit is more than 0.8
WIDEST_SHIFT = (
    100.0  # beyond any calibration's, and far from what keeps tokens whatever the thresholds (gate_merge.py)
)


def check_budget(budget):
    """Raise ValueError for what is no budget."""
    if type(budget) is bool or not isinstance(budget, (int, float)) or not 0.0 < budget <= 1.0:
        raise ValueError(f"budget must be in (0, 1], got {budget!r}")


def check_table(table, name="budget_shifts", value="shift", least=-WIDEST_SHIFT, most=WIDEST_SHIFT):
    """Raise ValueError for what is no table: at least one pair, budgets and values both strictly rising.

    Args:
        name, value: how the configuration calls it, and what it has for each budget, in [least, most].
    """
    if not isinstance(table, (list, tuple)) or not 1 <= len(table) <= MOST_BUDGETS:
        given = f"{len(table)} of them" if isinstance(table, (list, tuple)) else repr(table)
        raise ValueError(f"{name} must be a list of 1 to {MOST_BUDGETS} pairs (budget, {value}), got {given}")
    for entry in table:
        if not isinstance(entry, (list, tuple)) or len(entry) != 2:
            raise ValueError(f"{name} must hold pairs (budget, {value}), got {entry!r}")
        check_budget(entry[0])
        found = entry[1]
        if type(found) is bool or not isinstance(found, (int, float)) or not least <= found <= most:
            raise ValueError(f"{value}s of {name} must be in [{least}, {most}], got {found!r}")
    for before, after in zip(table, table[1:], strict=False):
        if not (before[0] + ROUNDING < after[0] and before[1] < after[1]):  # in 32 bit, too
            raise ValueError(f"budgets and {value}s of {name} must both rise, got {after!r} after {before!r}")


def check_reach(table, budget):
    """Raise ValueError for a budget, a number, that lies outside what the table was measured for."""
    check_budget(budget)
    (least, _), (most, _) = table[0], table[-1]
    if not least - ROUNDING <= budget <= most + ROUNDING:
        raise ValueError(
            f"a budget of {budget} is out of reach: this model has thresholds for budgets from {least} to {most} "
            "(calibrate(model, batches, budgets=[...]) measures others)"
        )


def shift_of(config, batch, budget=None):
    """What a forward of `batch` images adds to the logits of all learned gates: a number, (B,), or None.

    Args:
        budget: a number, or a float tensor (B,) with one for each image; None: `config.budget`.

    Raises:
        ValueError: a budget out of the table's reach, of another shape, or for a model without a table.
    """
    return looked_up(config.budget_shifts, config.budget, batch, budget)


def looked_up(table, own, batch, budget=None):
    """What a table has for a budget, the model's own where None is given; arguments and result as in `shift_of`."""
    if table is None and budget is not None:
        raise ValueError(
            f"budget={budget!r} needs a model that has thresholds for several budgets, and this one has none: "
            "calibrate(model, batches, budgets=[...]) measures them"
        )
    if table is None:
        return None
    if torch.is_tensor(budget):
        return _each_looked_up(table, batch, budget)
    budget = own if budget is None else budget
    check_reach(table, budget)
    budget = min(max(budget, table[0][0]), table[-1][0])
    low, shift = table[0]
    for high, last in table:
        if budget <= high:
            break
        low, shift = high, last
    return float(last if budget == high else shift + (last - shift) * (budget - low) / (high - low))


def _each_looked_up(table, batch, budget):
    """What a table has for budgets (B,): (B,)."""
    if budget.shape != (batch,) or not budget.is_floating_point():
        raise ValueError(
            f"budget of a batch of {batch} must be a number or {batch} floats, got {budget.dtype} {tuple(budget.shape)}"
        )
    if (
        batch and not torch.compiler.is_compiling()
    ):  # there it would break the graph; what is out of reach takes the nearest
        for one in (budget.min().item(), budget.max().item()):
            check_reach(table, one)
    places, values = (
        torch.tensor(column, dtype=torch.float32, device=budget.device) for column in zip(*table, strict=True)
    )
    return interpolated(places, values, budget.float())


def interpolated(places, values, at):
    """Linear between `values` (K,) at rising `places` (K,), constant beyond their ends; at: any shape, and so the result."""
    if len(places) == 1:
        return values.expand(at.shape)
    after = torch.searchsorted(places, at.contiguous()).clamp(1, len(places) - 1)
    low, high = places[after - 1], places[after]
    return torch.lerp(values[after - 1], values[after], ((at - low) / (high - low)).clamp(0, 1))


@torch.no_grad()
def shift_gates(gates, amount):
    """Add one number to the logits of all the gates."""
    for gate in gates:
        gate.score.bias.add_(amount)  # in place: a wrapper of the module need not let it be set


class Dial:
    """A mixin of models with gates: at which budget they decide."""

    def set_budget(self, budget):
        """Set the mean cost to aim at, in (0, 1]. Returns the model.

        A model with a table of budgets (`calibrate(model, batches, budgets=[...])`) decides at that budget from now on,
        between two of the table by interpolation. Without a table it is what training aims at and what is saved with
        the model, and gates decide as before until training or `calibrate(model, batches, model.config.budget)` has
        moved their thresholds to where the mean cost is the budget.

        Raises:
            ValueError: what is no budget, or one out of the table's reach.
        """
        check_budget(budget)
        table = self.config.budget_table()
        if table is not None:
            check_reach(table, budget)
        self.config.budget = budget
        return self

    def set_cascade(self, looks):
        """Have several looks at an image in place of one, as in `DynViTConfig`, or None for one. Returns the model.

        The table of budgets is dropped, and so are the shifts of looks before: `calibrate(model, batches, budget)` sets the thresholds of the looks, and from which
        confidence an image needs no further one.

        Raises:
            ValueError: what is no cascade, or does not go with the model; other looks than those that merges were fixed for.
        """
        gates, known = self.config.gates or [], ("resolution", "budget")
        fixed = any(entry["gate"] == "merge" and entry.get("merged") is not None for entry in gates)
        now, then = (
            [[look.get(name) for name in known] for look in given or []] for given in (self.config.cascade, looks)
        )
        if fixed and now != then:
            raise ValueError(
                f"merges were fixed for other looks, each as {known}: {now or 'one'}, not {then or 'one'}"
            )
        resolution, looks = None if looks else self.config.resolution, copy.deepcopy(looks)
        changed = {"cascade": looks, "resolution": resolution, "budget_shifts": None, "budget_confidences": None}
        type(self.config)(**{**self.config.to_dict(), **changed})  # refuses what is wrong
        self.drop_budgets()
        self.config.cascade, self.config.resolution = looks, resolution
        return self

    def drop_budgets(self):
        """Forget the table of budgets; the gates keep deciding as they do at `config.budget`. Returns the model.

        What changes gates, backbone or mask begins with it, for the table would no longer be true: `DynViTTrainer.train`,
        `calibrate`, `fit_importance`, `fit_bypass`, `fit_harm`, `share_budget`. A training loop of one's own has to call it.
        A cascade then takes all of its looks.
        """
        self.config.budget_confidences = None
        if self.config.budget_shifts is not None:
            shift_gates(self.learned_gates(), shift_of(self.config, None))
            self.config.budget_shifts = None
        return self
