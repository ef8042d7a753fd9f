"""`PatchAgent`, the callback between a trainer and its agent: when it acts and learns, reports, checkpoints, evaluation.

An agent takes patches away before the first layer, in training alone; evaluation runs on all patches, and with
`agent_evaluation="chosen"` also on those that the agent chooses.
Letters: B images, n patches (no [CLS]), K kept patches.
"""

from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate.utils import recursively_apply
from transformers import TrainerCallback

from ..measure.timing import seconds_of_work
from ..model.cost import dense_macs
from .base import Moment
from .shelf import build_agent


FILE = "agent.pt"  # in each checkpoint; tensors only
COUNTERS = ("images", "batches", "batch_in_epoch", "epoch")
AGENT_EVALUATIONS = ("all", "chosen")


class PatchAgent(TrainerCallback):
    """Stands between a `DynViTTrainer` and the agent that its arguments name; `build_agent` says what is refused.

    Attributes:
        agent: an `Agent`. evaluates: whether the trainer now evaluates on chosen patches.
        kept: (n,) float64, how many images kept each patch so far. images: how many there were.
        seconds: of choosing and learning in this process (`seconds_of_work`); on an accelerator what it queues comes on top.
    """

    def __init__(self, trainer):
        self.trainer, self.name, self.evaluates = trainer, trainer.args.agent, False
        self._begin()

    def _begin(self):
        trainer = self.trainer
        self.agent = build_agent(trainer.accelerator.unwrap_model(trainer.model), trainer.args)
        self.kept = torch.zeros(self.agent.patches, dtype=torch.float64, device=trainer.args.device)
        self.images = self.batches = self.batch_in_epoch = self.epoch = 0  # `COUNTERS`
        self.seconds, self._logged = 0.0, (self.kept.clone(), 0)

    def choose(self, pixel_values):
        """Patches of the next training forward, as `DynViTModel.forward` takes them; None for all."""
        with self._timed():
            self.batch_in_epoch += 1
            patches = self.agent.choose(pixel_values, self._moment())
            self._count(patches, len(pixel_values))
        return patches

    def observe(self, inputs, outputs):
        """What came of it; before the backward pass."""
        with self._timed():
            self.agent.observe(inputs["pixel_values"], inputs["labels"], outputs, self._moment())
            self.batches += 1

    def evaluation_patches(self, pixel_values):
        """The patches that the agent holds best for these images; (K,), (B, K) or None as in `choose`.

        They are `n_patch_desired`, wherever training stands. `agentvit` and `agentvit-dqn` decide per batch: what an
        image gets depends on the others of its batch.
        """
        with self.trainer.accelerator.autocast():
            return self.agent.choose(pixel_values, Moment(self.batches), explore=False)

    @property
    def choice_cost(self):
        """What `evaluation_patches` costs per image, relative to the dense model."""
        config = self.agent.model.config
        return self.agent.choice_macs() / dense_macs(config, self.agent.patches + 1, config.num_labels)

    def evaluate(self, dataset, ignore_keys, prefix):
        """Metrics of the trainer on the chosen patches of `dataset`, as `Trainer.evaluate` takes it; they are logged too.

        The patches that are not chosen are gone before the first layer. The cost contains the agent's, which comes on top
        of the model's.
        """
        trainer, self.evaluates = self.trainer, True
        try:
            found = trainer.evaluation_loop(
                trainer.get_eval_dataloader(dataset),
                description="Evaluation on chosen patches",
                prediction_loss_only=True if trainer.compute_metrics is None else None,
                ignore_keys=ignore_keys,
                metric_key_prefix=prefix,
            ).metrics
        finally:
            self.evaluates = False
        trainer.log(found)
        # Ends the progress bar; on_evaluate would tell others that these are the metrics on all patches.
        trainer.control = trainer.callback_handler.on_predict(trainer.args, trainer.state, trainer.control, found)
        return found

    def forward(self, model, inputs):
        """The outputs on the chosen patches, the agent's work in their cost."""
        patches = self.evaluation_patches(inputs["pixel_values"])
        outputs = model(**inputs, patches=patches, merge_patches=self.agent.merges)
        outputs.cost = outputs.cost + self.choice_cost
        return outputs

    def keep_map(self):
        """Share of the training images so far that kept each patch, (rows, columns), on CPU."""
        return (self.kept / max(1, self.images)).cpu().reshape(self.agent.sides)

    def report(self):
        """What a run's results say of its agent; JSON-ready."""
        return {
            "name": self.name,
            "n_patch_desired": self.agent.desired,
            "patches": len(self.kept),
            "kept": self.keep_map().sum().item(),
            "seconds": self.seconds,
            "options": asdict(self.agent.options),
            **self.agent.report(self.batches),
        }

    def _moment(self):
        progress = self.trainer.state.global_step / max(1, self.trainer.state.max_steps)
        return Moment(self.batches, self.batch_in_epoch, self.epoch, progress)

    def _count(self, patches, images):
        self.images += images
        if patches is None:
            self.kept += images
            return
        weight = images if patches.ndim == 1 else 1
        ones = torch.full((patches.numel(),), weight, dtype=torch.float64, device=self.kept.device)
        self.kept.index_add_(0, patches.flatten(), ones)

    @contextmanager
    def _timed(self):
        """Counts the time inside, which runs in the precision of the training."""
        started = seconds_of_work(self.trainer.args.device)
        with self.trainer.accelerator.autocast():
            yield
        self.seconds += seconds_of_work(self.trainer.args.device) - started

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        if self.batches and not state.global_step:  # trained before, and not gone on with
            self._begin()
        if hasattr(train_dataloader, "__len__"):
            self.agent.begin(state.max_steps * args.gradient_accumulation_steps, len(train_dataloader))

    def on_epoch_begin(self, args, state, control, **kwargs):
        # Not when an epoch is resumed half way.
        if int(state.epoch or 0) != self.epoch:
            self.epoch, self.batch_in_epoch = int(state.epoch), 0

    def on_step_end(self, args, state, control, **kwargs):
        with self._timed():
            self.agent.after_step()

    def logs(self):
        """Since the last call: mean kept patches, their diversity, and the means of what the agent noted.

        Diversity is the mean of 4 p (1 - p) over patches, p the share of images that kept one: 0 for one mask that
        never changes, 1 for every patch kept half of the time.
        """
        kept, images = self.kept - self._logged[0], self.images - self._logged[1]
        self._logged = (self.kept.clone(), self.images)
        share = kept / max(1, images)
        values = {"kept": share.sum(), "diversity": (4 * share * (1 - share)).mean()}
        values |= {name: torch.stack(noted).float().mean() for name, noted in self.agent.logged.items()}
        self.agent.logged = {}
        logs = {f"agent/{name}": round(value.item(), 4) for name, value in values.items()}
        return logs | {"agent/seconds": round(self.seconds, 3)}

    def state_dict(self):
        """{name of the agent: nested dict of tensors}."""
        counters = {name: torch.tensor(getattr(self, name)) for name in COUNTERS}
        own = {"kept": self.kept, "counters": counters, "agent": self.agent.state_dict()}
        return {self.name: recursively_apply(lambda tensor: tensor.detach().cpu().clone(), own)}

    def load(self, folder):
        """Go on from the checkpoint in `folder`.

        Raises:
            ValueError: a checkpoint of a training without this agent, or of another patch grid.
        """
        file = Path(folder) / FILE
        if not file.is_file():
            raise ValueError(f"{folder} holds no {FILE}: it is no checkpoint of a training with an agent")
        saved = torch.load(file, map_location="cpu", weights_only=True)
        if self.name not in saved:
            raise ValueError(f"{folder} was trained with agent {', '.join(saved)!r}, not {self.name!r}")
        saved = saved[self.name]
        if saved["kept"].shape != self.kept.shape:
            raise ValueError(
                f"{folder} was trained on {len(saved['kept'])} patches, this model has {len(self.kept)}: an agent "
                "belongs to one patch grid"
            )
        self.kept.copy_(saved["kept"])
        for name, value in saved["counters"].items():
            setattr(self, name, int(value))
        self.agent.load_state_dict(saved["agent"])
        self._logged = (self.kept.clone(), self.images)

    def save(self, folder):
        """Write the agent's state into a checkpoint."""
        torch.save(self.state_dict(), Path(folder) / FILE)
