"""Configuration of a Vision Transformer whose computation is decided per image: a `ViTConfig`, its gates, its budget."""

from huggingface_hub.dataclasses import strict
from transformers import ViTConfig

from .budgets import check_budget, check_reach, check_table
from .cascade import check_each_look, check_looks


# Where the Auto classes find the code that travels with a saved model, whichever class was saved.
AUTO_MAP = {
    "AutoConfig": "configuration_dynvit.DynViTConfig",
    "AutoModel": "modeling_dynvit.DynViTModel",
    "AutoModelForImageClassification": "modeling_dynvit.DynViTForImageClassification",
}

# Beyond what any ViT has: a configuration from elsewhere must not exhaust the machine before it is refused.
MOST = {
    "num_hidden_layers": 1000,
    "hidden_size": 32_768,
    "num_attention_heads": 32_768,
    "intermediate_size": 262_144,
    "num_channels": 4096,
    "num_labels": 10_000_000,
}
MOST_WEIGHTS = 10**12  # of all layers
MOST_PIXELS, MOST_PATCHES = 65_536, 1_048_576
LAST_LAYERS = (None, "read")
MOST_GATES = 4  # on a layer: one for each of its decisions


def pair(size):
    """(height, width) of a size that a configuration gives as one number or as two."""
    return tuple(size) if isinstance(size, (list, tuple)) else (size, size)


def check_last_layer(word):
    """Raise ValueError for what the last layer cannot be told."""
    if word not in LAST_LAYERS:
        raise ValueError(f"last_layer must be one of {LAST_LAYERS}, got {word!r}")


@strict
class DynViTConfig(ViTConfig):
    r"""Everything of `ViTConfig`, plus which gates sit on which layers and the cost they aim at.

    Args:
        gates (`list[dict]`, *optional*):
            One dict per kind of gate: `{"gate": name, "layers": [0, 1, ...], **options}`. `layers` counts from 0 and
            defaults to all layers; the other keys are options of that gate. No gates: a plain ViT.
        budget (`float`, defaults to 1.0):
            The mean cost to aim at, in (0, 1]: multiply-accumulates spent / multiply-accumulates of the dense model.
        budget_shifts (`list[list[float]]`, *optional*):
            Pairs (budget, shift), both rising: what is added to the logits of all learned gates at a mean cost of that
            budget, which a forward is asked for (budgets.py). None: gates decide by their biases alone.
        layer_mask (`list[list[bool]]`, *optional*):
            Per layer whether its attention and its MLP may run at all, whatever the gates say: what a search over
            masks has chosen. None: all may.
        resolution (`int` or pair, *optional*):
            Height and width that images are resized to inside the model, multiples of the patches' that do not exceed
            the images'. None: as they come. Positions are interpolated from a square of them: image_size must be square,
            patch_size one number.
        cascade (`list[dict]`, *optional*):
            Two or more looks at an image, the cheapest first (cascade.py): `{"budget": 0.2, "resolution": 160, "shift": 0.0,
            "weight": 1.0}`, each with its mean cost, the size of images, what is added to the gates' logits, and how much its
            probabilities count in the mean over the looks that an image takes. The last three may be missing; `resolution` and
            `budget_shifts` are not for a cascade. None: one look.
        budget_confidences (`list[list[float]]`, *optional*):
            Of a cascade, in place of `budget_shifts`: pairs (budget, confidence from which an image needs no further look).
            None: all images take all looks.
        last_layer (`str`, *optional*):
            `"read"`: of the last layer a classifier computes what it reads, the protected tokens ([CLS]), which attend to all
            others as ever; logits stay what they were. None: all tokens. The cost is another: whoever changes it later calls
            `model.drop_budgets()` and calibrates anew.

    Raises:
        ValueError: sizes that are not positive or beyond any ViT's, a budget outside (0, 1] or the reach of
            `budget_shifts`, pairs that do not rise or are no numbers, an unknown `last_layer`, a gate entry without a name or with layers that do
            not exist, or a mask that does not fit the layers or switches off everything.
    """

    model_type = "dynvit"
    host = "vit"  # which adapter knows the backbone; as `model_type`, no field
    # A Trainer that knows nothing of gates sees the logits alone.
    keys_to_ignore_at_inference = ["cost", "decisions", "hidden_states", "attentions", "looks"]

    gates: list[dict] | None = None
    budget: float | int = 1.0
    budget_shifts: list | None = None
    layer_mask: list[list[bool]] | None = None
    resolution: int | list[int] | tuple[int, ...] | None = None
    cascade: list[dict] | None = None
    budget_confidences: list | None = None
    last_layer: str | None = None

    def __post_init__(self, **kwargs):
        self._check_sizes(kwargs.get("num_labels"), kwargs.get("head_dim"))
        super().__post_init__(**kwargs)
        self.auto_map = {**AUTO_MAP, **(getattr(self, "auto_map", None) or {})}
        check_budget(self.budget)
        if self.budget_shifts is not None:
            check_table(self.budget_shifts)
            check_reach(self.budget_shifts, self.budget)
        if len(self.gates or []) > MOST_GATES * self.num_hidden_layers:
            raise ValueError(
                f"gates must have at most {MOST_GATES} entries for each of {self.num_hidden_layers} layers, "
                f"got {len(self.gates)}"
            )
        for entry in self.gates or []:
            self._check_gate(entry)
        check_last_layer(self.last_layer)
        check_each_look(self)
        if self.layer_mask is not None:
            self._check_mask()
        if self.resolution is not None:
            self._check_resolution(self.resolution)
        if self.cascade is not None or self.budget_confidences is not None:
            check_looks(self)
            for look in self.cascade:
                if look.get("resolution") is not None:
                    self._check_resolution(look["resolution"])

    def to_dict(self):
        """As in transformers; what earlier versions did not know is named where there is any: files stay what they were."""
        later = ("budget_shifts", "resolution", "cascade", "budget_confidences", "last_layer")
        fields = super().to_dict()
        return {name: value for name, value in fields.items() if name not in later or value is not None}

    def budget_table(self):
        """The table of budgets that the model has, of shifts or of confidences; None without one."""
        return self.budget_shifts if self.cascade is None else self.budget_confidences

    def _check_sizes(self, num_labels, head_dim):
        for name, most in MOST.items():
            size, least = (num_labels or 0, 0) if name == "num_labels" else (getattr(self, name), 1)
            if not least <= size <= most:
                raise ValueError(f"{name} must be in {least}..{most}, got {size}")
        if head_dim is not None and not (isinstance(head_dim, int) and 1 <= head_dim <= MOST["hidden_size"]):
            raise ValueError(f"head_dim must be in 1..{MOST['hidden_size']}, got {head_dim!r}")
        inside = self.hidden_size if head_dim is None else head_dim * self.num_attention_heads
        weights = self.num_hidden_layers * self.hidden_size * (4 * inside + 2 * self.intermediate_size)
        if weights > MOST_WEIGHTS:
            raise ValueError(f"layers must have at most {MOST_WEIGHTS:,} weights, these sizes give them {weights:,}")
        sides = []
        for name in ("image_size", "patch_size"):
            size = getattr(self, name)
            sides.append(pair(size))
            if len(sides[-1]) != 2 or not all(1 <= side <= MOST_PIXELS for side in sides[-1]):
                raise ValueError(f"{name} must be one number or two in 1..{MOST_PIXELS}, got {size}")
        (height, width), (patch_height, patch_width) = sides
        patches = (height // patch_height) * (width // patch_width)
        if not 1 <= patches <= MOST_PATCHES:
            raise ValueError(
                f"image_size {self.image_size} and patch_size {self.patch_size} must give 1 to {MOST_PATCHES} patches, "
                f"they give {patches}"
            )

    def _check_resolution(self, resolution):
        sides = [pair(size) for size in (resolution, self.patch_size, self.image_size)]
        fits = len(sides[0]) == 2 and all(type(side) is int for side in sides[0])
        each = zip(*sides, strict=True) if fits else ()
        if not fits or not all(patch <= side <= most and not side % patch for side, patch, most in each):
            raise ValueError(
                f"resolution must be one number or two, multiples of patch_size {self.patch_size} up to image_size "
                f"{self.image_size}, got {resolution!r}"
            )
        if len(set(sides[2])) > 1 or not isinstance(self.patch_size, int):  # transformers would mix up the positions
            raise ValueError(
                f"resolution {resolution} needs a square image_size and one number as patch_size, to interpolate positions, "
                f"got {self.image_size} and {self.patch_size}"
            )

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
        layers, depth = entry.get("layers", []), self.num_hidden_layers
        if not isinstance(layers, (list, tuple)) or not all(type(layer) is int for layer in layers):
            raise ValueError(f'"layers" of gate {entry["gate"]!r} must be a list of integers, got {layers!r}')
        if not all(0 <= layer < depth for layer in layers) or len(set(layers)) < len(layers):
            given = f"{len(layers)} of them" if len(layers) > depth else list(layers)
            raise ValueError(f'"layers" of gate {entry["gate"]!r} must be distinct and in 0..{depth - 1}, got {given}')


DynViTConfig.register_for_auto_class("AutoConfig")

__all__ = ["DynViTConfig"]
