"""Schedule of a training: budget and sampling noise of each step, and the packed tuning at its end."""

import torch

from ..model.budgets import shift_gates
from ..model.cascade import look_shifts, set_look_shifts
from ..objectives.base import Step
from .calibration import TOLERANCE, steady_range
from .checkpoints import ResumedCallback
from .preparation import for_now, shifts_to
from .shifts import WIDEST


class GateSchedule:
    """Reads where a `DynViTTrainer` stands; its arguments say what follows from it.

    Attributes:
        full_cost: mean cost from which the budget falls, that of everything that may run; less than 1 under a mask. Of a
            cascade a list, one for each look.
    """

    def __init__(self, trainer):
        self.trainer, self.args = trainer, trainer.args
        self.full_cost = 1.0

    def step(self, look=None):
        """The `Step` of the next forward, of a look where there are several, as objectives are given it."""
        return Step(self.progress(), self.budget(look), self.noise())

    def progress(self):
        """Share of the training steps that are done."""
        state = self.trainer.state
        return state.global_step / max(1, state.max_steps)

    def noise(self):
        """Gumbel noise scale, annealed linearly from `gate_noise_start` to `gate_noise_end`."""
        done = min(1.0, self.progress() / max(self.args.freeze_gates_at, 1e-9))
        start, end = self.args.gate_noise_start, self.args.gate_noise_end
        return start - (start - end) * done

    def budget(self, look=None):
        """The mean cost to aim at now, in a look of a cascade at its own."""
        config = self.trainer.model.config
        look = self.looks()[0] if look is None else look
        budget = config.budget if look is None else config.cascade[look]["budget"]
        ramp = 0.0 if self.args.calibrate_first else self.args.budget_ramp
        done = 1.0 if ramp == 0 else min(1.0, self.progress() / ramp)
        full = self.full_cost if look is None else self.full_cost[look]
        return full - (full - budget) * done

    def looks(self, step=None):
        """The looks of a cascade that a step trains, the next one unless it is given; [None]: there is no cascade."""
        looks = self.trainer.model.config.cascade
        if looks is None:
            return [None]
        every = list(range(len(looks)))
        step = self.trainer.state.global_step if step is None else step
        return every if self.args.looks_together else [every[step % len(looks)]]

    def frozen(self):
        """Whether the packed tuning has begun."""
        return self.args.freeze_gates_at < 1.0 and self.progress() >= self.args.freeze_gates_at


class PackedTuning(ResumedCallback):
    """From `freeze_gates_at` on: gates learn no more, the layout is packed, and thresholds follow the budgets.

    As the body changes, fixed gates drift to another cost than the one the model is to be used at. After each step
    the gates' common shift moves by `tuning_gain * (budget - mean cost)`; no forward is added. With several
    `tuning_budgets` the steps take them in turn, each with a shift of its own, which begins where that budget is met: one
    training then serves them all, more of it for those that are named more often. The looks
    of a cascade have a shift each, too, for their own budgets.

    A shift does not move where that changes no cost: towards closing gates that are all closed, or opening ones that are
    all open, nor further than the calibration goes; it would only have to come back later (anti-windup). Under an
    objective that follows no budget, thresholds stay where training has left them.

    Attributes:
        shifts: one for each budget, the model's own first, which it has between steps. Of a cascade those of its looks, which the
            configuration holds.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.shifts, self.reach, self.away = [], None, 0.0

    def state_dict(self):
        config = self.trainer.model.config
        return {
            "shifts": list(self.shifts),
            "budgets": self._budgets(),
            "looks": None if config.cascade is None else look_shifts(config),
        }

    def load_state_dict(self, saved):
        self.shifts, self.reach = list(saved.get("shifts", [])), None
        turns = self.trainer.args.tuning_budgets
        if len(self.shifts) == len(turns) > len(set(turns)):  # saved when each turn had a shift of its own
            self.shifts = [self.shifts[turns.index(budget)] for budget in dict.fromkeys(turns)]
        if (
            self.shifts and turns and "budgets" not in saved
        ):  # saved when the first turn stood for the model's own budget
            known = dict(zip(dict.fromkeys(turns), self.shifts, strict=True))
            self.shifts = [known[budget] for budget in self._budgets()]
        if saved.get("looks") is not None:
            set_look_shifts(self.trainer.model.config, saved["looks"])

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer.step_costs.clear()
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        gates, cascade = model.learned_gates(), model.config.cascade is not None
        if not gates and model.config.gates:  # rules: nothing is left to learn
            model.layout = "packed"
        if not gates or not self.trainer.schedule.frozen():
            return
        if not self.shifts:  # not when a later step is resumed
            for_now(self.trainer)
            self.shifts = look_shifts(model.config) if cascade else shifts_to(self.trainer, self._budgets())
        if self.reach is None:
            looks = range(len(model.config.cascade)) if cascade else [None]
            self.reach = [steady_range(model, look) for look in looks]
        for gate in gates:
            for parameter in gate.deciding_parameters():
                parameter.requires_grad_(False)
        model.layout = "packed"
        if not cascade:
            self.away = self.shifts[self._turn(state.global_step)] - self.shifts[0]
            shift_gates(gates, self.away)

    def on_step_end(self, args, state, control, **kwargs):
        if not self.shifts or not args.follows_budget():
            return
        accelerator = self.trainer.accelerator
        model = accelerator.unwrap_model(self.trainer.model)
        last, cascade = state.global_step - 1, model.config.cascade is not None
        turns = self.trainer.schedule.looks(last) if cascade else [self._turn(last)]
        costs = accelerator.reduce(torch.stack(self.trainer.step_costs).mean(0), "mean").tolist()
        before, first = self.shifts[turns[0]], self.shifts[0]
        for turn, cost in zip(turns, costs, strict=True):
            self.shifts[turn] = self._moved(turn, self._budgets()[turn] - cost, cost)
        if cascade:
            set_look_shifts(model.config, self.shifts)
        else:
            shift_gates(model.learned_gates(), (self.shifts[0] - first) - (before - first))
            self.away = 0.0

    def come_back(self):
        """Give the model its own budget's thresholds again, where a step was broken off in the turn of another budget."""
        if self.away:
            with torch.no_grad():
                shift_gates(self.trainer.accelerator.unwrap_model(self.trainer.model).learned_gates(), -self.away)
            self.away = 0.0

    def _moved(self, turn, distance, cost):
        """The shift of a turn after a step of that mean cost, which is `distance` below its budget."""
        shift = self.shifts[turn]
        least, most = self.reach[turn % len(self.reach)]
        if (distance < 0 and cost <= least + TOLERANCE) or (distance > 0 and cost >= most - TOLERANCE):
            return shift
        return min(WIDEST, max(-WIDEST, shift + self.trainer.args.tuning_gain * distance))

    def _budgets(self):
        config = self.trainer.model.config
        if config.cascade is not None:
            return [look["budget"] for look in config.cascade]
        return list(dict.fromkeys([config.budget, *self.trainer.args.tuning_budgets]))

    def _turn(self, step):
        """Which of the budgets a step takes."""
        turns = self.trainer.args.tuning_budgets or self._budgets()
        return self._budgets().index(turns[step % len(turns)])
