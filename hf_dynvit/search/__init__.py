"""Search for static masks, and what becomes of them."""
