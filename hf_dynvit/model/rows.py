"""The rows of a token stream that a sub-layer uses: which they are, taken out, and added or put back.

Letters: B images, N tokens, D channels, T packed rows.
"""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch.nn import functional as F


# oneDNN compiles one kernel per number of rows. Rounding it up, by at most 1.6 %, keeps the kernels few.
ROUND_TO, OF_ROWS = 4, 256


class UsedRows(NamedTuple):
    """Rows of x (B, N, D), as flattened to (B * N, D)."""

    index: torch.Tensor | None  # (T,) positions; None: all rows
    padding: int  # copies of row 0 to add at the end of what is taken
    lengths: list  # rows per image, images without any left out
    images: torch.Tensor | None  # indices of those images; None: all
    total: int  # T

    @classmethod
    def of(cls, index, padding, lengths, total, device):
        """lengths: rows per image, of all images."""
        images = None
        if 0 in lengths:
            images = torch.tensor([image for image, rows in enumerate(lengths) if rows], device=device)
            lengths = [rows for rows in lengths if rows]
        return cls(index, padding, lengths, images, total)

    def spread(self, per_image):
        """(images, ...) -> (T, ...): one row per packed row of the image; padding gets zeros."""
        if len(self.lengths) == 1:
            out = per_image.expand(self.total, *per_image.shape[1:])
        else:
            counts = torch.tensor(self.lengths, device=per_image.device)
            out = per_image.repeat_interleave(counts, 0, output_size=self.total)
        return self.pad(out)

    def pad(self, rows):
        """(T, D) -> (T + padding, D)."""
        return F.pad(rows, (0, 0, 0, self.padding)) if self.padding else rows


def used_rows(x, tokens, use, rounded=False, varies=False):
    """Which rows of x (B, N, D) a sub-layer uses.

    Args:
        tokens: (B, N), or None for all. use: which images, list of B bools, or None for all.
        rounded: pad to a rounded number of rows.
        varies: whether N is another one for other images, so that it is rounded, too, if all rows are in use.
    """
    batch, num_tokens = x.shape[:2]
    if use is not None and not any(use):
        return UsedRows(None, 0, [], None, 0)
    keep = tokens
    if keep is not None and keep.dtype != torch.bool:
        keep = keep > 0.5
    if use is not None and not all(use):
        on = torch.tensor(use, device=x.device).unsqueeze(1)
        keep = on.expand(batch, num_tokens) if keep is None else keep & on
    index = None if keep is None else keep.flatten().nonzero().squeeze(1)
    total = batch * num_tokens if index is None else len(index)
    if total == batch * num_tokens:
        return UsedRows(None, padding_of(total) if rounded and varies else 0, [num_tokens] * batch, None, total)
    lengths = [total] if batch == 1 else keep.sum(1).tolist()
    return UsedRows.of(index, padding_of(total) if rounded else 0, lengths, total, x.device)


def padding_of(total):
    """How many rows to add to `total` for a rounded number."""
    step = ROUND_TO
    while step * (OF_ROWS // ROUND_TO) * 2 <= total:
        step *= 2
    return -total % step


def take_rows(x, used):
    """The rows in use and the padding: x (B, N, D) -> (T + padding, D)."""
    rows = x.flatten(0, 1)
    if used.index is not None:
        return rows.index_select(0, F.pad(used.index, (0, used.padding)) if used.padding else used.index)
    return torch.cat((rows, rows[:1].expand(used.padding, -1))) if used.padding else rows


def take_values(values, used):
    """One number per packed row, without padding: values (B, N) -> (T,)."""
    values = values.flatten()
    return values if used.index is None else values.index_select(0, used.index)


def put_rows(x, used, rows):
    """A new (B, N, D): x with rows (T + padding, D) in the places of those in use.

    Hooks and gates may hold x, so it stays as it is; the copy costs less than a hundredth of a layer.
    """
    if used.index is None:
        return rows[: used.total].view_as(x)
    return x.flatten(0, 1).index_copy(0, used.index, rows[: used.total]).view_as(x)


def add_rows(x, used, out):
    """A new (B, N, D): x with out (T + padding, D) added to the rows in use."""
    out = out[: used.total].to(x.dtype)  # under autocast the stream stays wider than the products
    if used.index is None:
        return x + out.view_as(x)
    return x.flatten(0, 1).index_add(0, used.index, out).view_as(x)


def exact(rows):
    """Not in 16 bit on CPU, which compiles a product for each number of rows, and every image has its own; no gradient."""
    rows = rows.detach()
    return rows.float() if rows.device.type == "cpu" else rows


def directions(rows):
    """Rows (..., D) of length one, `exact`."""
    rows = exact(rows)
    return rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min(1e-12)


def no_autocast(rows):
    """A context in which products of rows are computed in their own type; where they are anyway, one that takes no time."""
    kind = rows.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def spread_nan(x):
    """x (B, N, D), all NaN for an image with a NaN or an infinity in any token.

    Attention would spread it over the image, as it does in the masked layout; a gate that drops the token would hide it.
    """
    total = x.detach().sum((1, 2), dtype=torch.float32)
    return x + (total * 0).to(x.dtype)[:, None, None]


def chunks(h, width):
    """Parts of h (T, D) whose `width` intermediate channels stay in a CPU's cache; all of h elsewhere."""
    if h.device.type != "cpu" or torch.is_grad_enabled():
        return (h,)
    rows = 512 if width >= 1024 else 1024
    return h.split(rows) if len(h) > rows else (h,)


def sixteen_bit_on_cpu(x):
    return x.device.type == "cpu" and (x.dtype.itemsize == 2 or torch.is_autocast_enabled("cpu"))
