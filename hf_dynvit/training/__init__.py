"""The ordinary Trainer, taught to train gates."""
