"""The space of static masks: which blocks or sub-layers of a model may run at all, as strings of bits."""

import itertools


GRANULARITIES = ("block", "sublayer")
EXHAUSTIVE_BITS = 12


class MaskSpace:
    """Masks over the blocks or sub-layers that are not always kept.

    Args:
        num_layers: L. granularity: one of `GRANULARITIES`. always_keep: layers that no mask switches off.

    Attributes:
        units: for each bit the (layer, sub-layer) pairs it switches; sub-layer 0 is attention, 1 the MLP.

    Raises:
        ValueError: nothing to search, or layers that do not exist.
    """

    def __init__(self, num_layers, granularity="block", always_keep=(0,)):
        if granularity not in GRANULARITIES:
            raise ValueError(f"granularity must be one of {GRANULARITIES}, got {granularity!r}")
        wrong = sorted(layer for layer in always_keep if not 0 <= layer < num_layers)
        if wrong:
            raise ValueError(f"always_keep must be in 0..{num_layers - 1}, got {wrong}")
        self.num_layers, self.granularity, self.always_keep = num_layers, granularity, sorted(set(always_keep))
        free = [layer for layer in range(num_layers) if layer not in self.always_keep]
        parts = [(0, 1)] if granularity == "block" else [(0,), (1,)]
        self.units = [[(layer, sub) for sub in subs] for layer in free for subs in parts]
        if not self.units:
            raise ValueError(
                f"there is nothing to search: always_keep {self.always_keep} holds all of {num_layers} layers"
            )

    def __len__(self):
        return len(self.units)

    def layer_mask(self, bits):
        """Bits -> `layer_mask` of a configuration.

        Raises:
            ValueError: a mask that switches off everything.
        """
        mask = [[True, True] for _ in range(self.num_layers)]
        for on, unit in zip(bits, self.units, strict=True):
            for layer, sub in unit:
                mask[layer][sub] = bool(on)
        if not any(map(any, mask)):
            raise ValueError("the mask switches off everything: at least one attention or MLP must stay on")
        return mask

    def smallest(self):
        """The masks that leave the least on, as tuples of bits: what is always kept, or else one unit each."""
        if self.always_keep:
            return [(False,) * len(self)]
        return [tuple(bit == on for bit in range(len(self))) for on in range(len(self))]

    def every(self):
        """All masks that leave something on, as tuples of bits.

        Raises:
            ValueError: too many of them.
        """
        if len(self) > EXHAUSTIVE_BITS:
            raise ValueError(
                f"an exhaustive search is for at most {EXHAUSTIVE_BITS} bits, this space has {len(self)}: take nsga2"
            )
        masks = itertools.product((True, False), repeat=len(self))
        return [bits for bits in masks if any(bits) or self.always_keep]
