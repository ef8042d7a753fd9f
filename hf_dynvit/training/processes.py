"""Training in several processes: refused arguments, and random draws that differ from process to process."""

import random
from contextlib import contextmanager

import torch
from transformers.training_args import ParallelMode


def prepare_processes(model, args):
    """Make the arguments fit what gates need of `DistributedDataParallel`.

    Which parameters a step uses changes from step to step: gates are open, frozen, or not asked, layers are skipped by
    all images of a process. transformers looks for unused ones unless activations are checkpointed, for the sake of
    reentrant checkpointing, which is not what this library does.

    Raises:
        ValueError: arguments that say that all parameters are used in all steps.
    """
    if args.parallel_mode != ParallelMode.DISTRIBUTED:
        return
    gates = getattr(model.config, "gates", None)
    for name, fixed in (("ddp_find_unused_parameters", False), ("ddp_static_graph", True)):
        if gates and getattr(args, name) is fixed:
            raise ValueError(
                f"{name} {getattr(args, name)} says that every step uses the same parameters, which gates do not: they "
                "may be open or frozen, and layers may be skipped. Leave it out"
            )
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = True
    if args.data_seed is None:  # what `draw_apart` changes would otherwise be the seed of the data's order
        args.data_seed = args.seed


def refuse_sharding(trainer):
    """Raise ValueError where the model would be sharded: then its modules must be called one by one, which they are not."""
    args = trainer.args
    kinds = {  # what is asked for counts as well: on a CPU accelerate does without it and says nothing
        "FSDP": args.fsdp or trainer.is_fsdp_enabled or getattr(trainer, "is_fsdp_xla_enabled", False),
        "DeepSpeed": args.deepspeed or trainer.is_deepspeed_enabled,
        "a model that is sharded when it is loaded": getattr(trainer, "is_distributed_loading_by_transformers", False),
    }
    for kind, enabled in kinds.items():
        if enabled:
            raise ValueError(
                f"{kind} is not supported: it gathers the weights of a module when that module is called, and gated "
                "layers run in parts, without their ViTLayer being called. Train on several devices with "
                "DistributedDataParallel (accelerate launch, torchrun), where each holds the whole model"
            )


def rank_seed(seed, rank):
    """A seed for one process of several, unlike that of any other process or run."""
    return random.Random(f"{seed}/{rank}").getrandbits(62)


def draw_apart(args):
    """From now on each process of several draws other numbers: gates' samples, random decisions and dropout.

    The `Trainer` seeds all alike. Checkpoints hold each process's state, so that a resumed run draws what it would have.
    """
    if args.world_size > 1:
        torch.manual_seed(rank_seed(args.seed, args.process_index))


@contextmanager
def draw_alike(args):
    """Inside, all processes draw the same, for what each must find out for itself and alike; afterwards as before."""
    if args.world_size == 1:
        yield
        return
    with torch.random.fork_rng(devices=[args.device] if args.device.type == "cuda" else []):
        torch.manual_seed(args.seed)
        yield
