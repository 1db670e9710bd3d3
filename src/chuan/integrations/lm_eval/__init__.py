"""Chuan's models inside lm-evaluation-harness, as `--model chuan`."""
