"""Integer matrix products and decoder layers in C: how they are packed, loaded and called."""
