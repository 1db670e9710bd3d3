"""Asking models the questions of the benchmarks: prompts, scores, runs, their reports, and the published tables."""
