"""Sub-layers are skipped: of one image by a branch of the graph, of several by leaving out the images that skip.

A branch (`torch.cond`, ONNX If) is one for all images of a graph. So with several the images that run a sub-layer are taken
out of the batch, run by themselves, and are put back.

Letters: B images, N tokens, D channels.
"""

import torch

from ..model.cls_attention import NOTES


CHANGED = ("x", *NOTES)  # fields of `Tokens` that a sub-layer may change
PER_TOKEN = (*CHANGED, "size", "side", "halting")


def run(steps, bypasses, whole, tokens, sublayers, allowed, many):
    """`Tokens` after attention and MLP, or after what is added in their place.

    Args:
        steps: of attention and MLP, functions Tokens -> Tokens. bypasses: none, one for both, or one for each.
        whole: whether the two are decided alike. sublayers: bool (B, 2), or None for both. allowed: which may run at all.
        many: whether there are several images.
    """
    instead = [lambda tokens, bypass=bypass: _bypassed(tokens, bypass) for bypass in bypasses]
    switch = _images if many else _branch
    if whole or len(bypasses) == 1 or sublayers is None and not bypasses:
        steps = [step for step, may in zip(steps, allowed, strict=True) if may]
        return _either(sublayers, 0, lambda tokens: _all(steps, tokens), instead, tokens, steps, switch)
    for index, step in enumerate(steps):
        tokens = _either(sublayers, index, step, instead[index : index + 1], tokens, allowed[index], switch)
    return tokens


def _either(sublayers, index, step, instead, tokens, allowed, switch):
    """`Tokens` after `step` where it runs, else after what is there instead; no switch where it is known."""
    if not allowed:
        return _all(instead, tokens)
    return step(tokens) if sublayers is None else switch(sublayers[:, index], step, instead, tokens)


def _branch(on, step, instead, tokens):
    """Of one image: on (1,). One matrix enters the branches and leaves them: of two they would not know that both are as long."""
    known = {name: getattr(tokens, name) for name in PER_TOKEN if getattr(tokens, name) is not None}
    widths = {name: value.shape[2] if value.ndim == 3 else 0 for name, value in known.items()}  # 0: a number
    others = tokens._replace(**dict.fromkeys(widths))

    def branch(steps):
        def rows(given):
            if torch.compiler.is_exporting():  # what a branch does not know
                torch._check(given.shape[0] > 2)
            after = _joined(_all(steps, _parted(given, others, widths)), widths)
            return after if steps else after.clone()  # a branch returns no tensor that it was given

        return rows

    found = torch.cond(on[0], branch([step]), branch(instead), (_joined(tokens, widths),))
    return _parted(found, others, widths)


def _joined(tokens, widths):
    """What is known of the tokens of one image, side by side, by name and width: (N, D + ...)."""
    fields = [getattr(tokens, name) if width else getattr(tokens, name).unsqueeze(2) for name, width in widths.items()]
    return (torch.cat(fields, 2) if len(fields) > 1 else fields[0])[0]


def _parted(rows, others, widths):
    """`Tokens` with `_joined` rows in them, and the others as they were."""
    parts = rows.unsqueeze(0).split([width or 1 for width in widths.values()], 2)
    fields = zip(widths.items(), parts, strict=True)
    return others._replace(**{name: part if width else part.squeeze(2) for (name, width), part in fields})


def _images(on, step, instead, tokens):
    """Of several images: on (B,)."""
    tokens = _where(on, [step], tokens)
    return _where(~on, instead, tokens) if instead else tokens


def _where(on, steps, tokens):
    """`Tokens` of which the images that are `on` (B,) have passed the steps. One stands in where none is, and is not changed."""
    first = torch.arange(on.shape[0], device=on.device) < 1
    runs = on | (first & ~on.any())
    images = runs.nonzero().squeeze(1)
    if torch.compiler.is_exporting():  # which sizes to trace for
        torch._check(images.shape[0] > 2)
    after = _all(steps, tokens.of(images))
    place = (runs.to(torch.int64).cumsum(0) - 1).clamp_min(0)  # of each image among those that ran

    def back(new, old):
        return torch.where(on.view(-1, *(1,) * (old.ndim - 1)), new.index_select(0, place), old)

    changed = {name: (getattr(after, name), getattr(tokens, name)) for name in CHANGED}
    return tokens._replace(**{name: back(*pair) for name, pair in changed.items() if pair[1] is not None})


def _bypassed(tokens, bypass):
    x = tokens.x
    return tokens._replace(x=x + bypass(x.flatten(0, 1)).view(x.shape))


def _all(steps, tokens):
    for step in steps:
        tokens = step(tokens)
    return tokens
