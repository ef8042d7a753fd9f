"""A Trainer whose checkpoints are whole, signed and bit-exact to resume from, the agent's state among them."""

import torch
from transformers import Trainer

from ..measure.weight_digest import sign_weights
from .checkpoints import check_checkpoint, newest_complete


class CheckpointTrainer(Trainer):
    """The part of `DynViTTrainer` that saves and loads.

    Attributes:
        agent: a `PatchAgent` whose state travels in the checkpoints, or None.
    """

    agent = None

    def checkpoint_to_resume(self, resume):
        """The folder that `train` is asked to resume from, checked; None to start."""
        if resume is None or resume is False:
            return None
        if resume is not True:
            check_checkpoint(resume, self.args)
            return resume
        folder, passed_over = newest_complete(self.args)
        if folder is None:
            raise ValueError(
                f"there is no complete checkpoint in {self.args.output_dir!r} to resume from; {passed_over or 'none at all'}"
            )
        return str(folder)

    def _run_epoch(self, *args, **kwargs):
        """A run that is resumed where it ended trains no step more."""
        if self.state.global_step >= self.state.max_steps:
            self._load_rng_state(kwargs.get("resume_from_checkpoint"))
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            sign_weights(self.args.output_dir if output_dir is None else output_dir)

    def _save_optimizer_and_scheduler(self, output_dir):
        """And the agent's state: before older checkpoints are deleted."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.agent is not None and self.args.should_save:
            self.agent.save(output_dir)

    def _load_callback_state(self):
        """Ours take their state back when training begins: they cannot be built anew, as the `Trainer` would."""
        saved, names = self.state.stateful_callbacks, ("PackedTuning", "PolicyObjective")
        own = {name: saved.pop(name) for name in names if name in saved}
        super()._load_callback_state()
        self.state.stateful_callbacks |= own

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if self.agent is not None:
            self.agent.load(resume_from_checkpoint)
        self._reload(resume_from_checkpoint, model)

    def _load_best_model(self):
        self._reload(self.state.best_model_checkpoint)

    def _reload(self, folder, model=None):
        # Checkpoints hold the published key names; only from_pretrained renames them.
        model = self.accelerator.unwrap_model(self.model if model is None else model)
        source = type(model).from_pretrained(folder, dtype=torch.float32)
        model.load_state_dict(source.state_dict(), strict=True)
