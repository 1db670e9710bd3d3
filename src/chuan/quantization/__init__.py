"""Functions that turn the linears of a finished model into small ones."""
