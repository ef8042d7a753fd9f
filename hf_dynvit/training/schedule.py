"""What changes for the gates in the course of a training: how they decide, what they may cost, how much is chance."""

from ..model.gate import Exploration


class GateSchedule:
    """Reads where a `DynViTTrainer` stands; its arguments say what follows from it.

    Attributes:
        full_cost: mean cost from which the budget falls, that of everything that may run; less than 1 under a mask.
    """

    def __init__(self, trainer):
        self.trainer, self.args = trainer, trainer.args
        self.full_cost = 1.0

    def progress(self):
        """Share of the training steps that are done."""
        state = self.trainer.state
        return state.global_step / max(1, state.max_steps)

    def gating(self):
        """How gates decide in the next forward, one of `gate.GATINGS`."""
        if self.progress() < self.args.gate_warmup:
            return "open"
        if self.frozen():
            return "threshold"
        return "act" if self.args.objective == "reinforce" else "sample"

    def exploration(self):
        """How stochastic decisions are drawn in the next forward."""
        if self.args.objective == "reinforce":
            return self.trainer.policy.exploration(self.progress())
        return Exploration(noise=self.noise())

    def noise(self):
        """Of sampled decisions; it falls, for what is sampled turns into what the threshold decides."""
        done = min(1.0, self.progress() / max(self.args.freeze_gates_at, 1e-9))
        return 1.0 - (1.0 - self.args.gate_noise_end) * done

    def budget(self):
        """The mean cost to aim at now."""
        budget, ramp = self.trainer.model.config.budget, 0.0 if self.args.calibrate_first else self.args.budget_ramp
        done = 1.0 if ramp == 0 else min(1.0, (self.progress() - self.args.gate_warmup) / ramp)
        return self.full_cost - (self.full_cost - budget) * done

    def frozen(self):
        """Whether the packed tuning has begun."""
        return self.args.freeze_gates_at < 1.0 and self.progress() >= self.args.freeze_gates_at
