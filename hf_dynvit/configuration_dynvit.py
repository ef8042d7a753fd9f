"""Configuration of a Vision Transformer whose computation is decided per image: a `ViTConfig`, its gates, its budget."""

from huggingface_hub.dataclasses import strict
from transformers import ViTConfig


# Where the Auto classes find the code that travels with a saved model, whichever class was saved.
AUTO_MAP = {
    "AutoConfig": "configuration_dynvit.DynViTConfig",
    "AutoModel": "modeling_dynvit.DynViTModel",
    "AutoModelForImageClassification": "modeling_dynvit.DynViTForImageClassification",
}


@strict
class DynViTConfig(ViTConfig):
    r"""Everything of `ViTConfig`, plus which gates sit on which layers and the cost they aim at.

    Args:
        gates (`list[dict]`, *optional*):
            One dict per kind of gate: `{"gate": name, "layers": [0, 1, ...], **options}`. `layers` counts from 0 and
            defaults to all layers; the other keys are options of that gate. No gates: a plain ViT.
        budget (`float`, defaults to 1.0):
            The mean cost to aim at, in (0, 1]: multiply-accumulates spent / multiply-accumulates of the dense model.
        layer_mask (`list[list[bool]]`, *optional*):
            Per layer whether its attention and its MLP may run at all, whatever the gates say: what a search over
            masks has chosen. None: all may.

    Raises:
        ValueError: a budget outside (0, 1], or a gate entry without a name or with layers that do not exist, or a mask
            that does not fit the layers or switches off everything.
    """

    model_type = "dynvit"
    # A Trainer that knows nothing of gates sees the logits alone.
    keys_to_ignore_at_inference = ["cost", "decisions", "hidden_states", "attentions"]

    gates: list[dict] | None = None
    budget: float | int = 1.0
    layer_mask: list[list[bool]] | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.auto_map = {**AUTO_MAP, **(getattr(self, "auto_map", None) or {})}
        if not 0.0 < self.budget <= 1.0:
            raise ValueError(f"budget must be in (0, 1], got {self.budget}")
        for entry in self.gates or []:
            self._check_gate(entry)
        if self.layer_mask is not None:
            self._check_mask()

    def _check_mask(self):
        mask = self.layer_mask
        if len(mask) != self.num_hidden_layers or any(len(pair) != 2 for pair in mask):
            raise ValueError(
                f"layer_mask needs a pair (attention, MLP) for each of {self.num_hidden_layers} layers, got {mask}"
            )
        if not any(any(pair) for pair in mask):
            raise ValueError("layer_mask switches off everything: at least one attention or MLP must stay on")

    def _check_gate(self, entry):
        if not isinstance(entry, dict) or not isinstance(entry.get("gate"), str):
            raise ValueError(f'each gate must be a dict with the key "gate" (its name), got {entry!r}')
        layers = entry.get("layers", list(range(self.num_hidden_layers)))
        if not isinstance(layers, (list, tuple)) or not all(type(layer) is int for layer in layers):
            raise ValueError(f'"layers" of gate {entry["gate"]!r} must be a list of integers, got {layers!r}')
        wrong = [layer for layer in layers if not 0 <= layer < self.num_hidden_layers]
        if wrong or len(set(layers)) < len(layers):
            raise ValueError(
                f'"layers" of gate {entry["gate"]!r} must be distinct and in 0..{self.num_hidden_layers - 1}, '
                f"got {list(layers)}"
            )


DynViTConfig.register_for_auto_class("AutoConfig")

__all__ = ["DynViTConfig"]
