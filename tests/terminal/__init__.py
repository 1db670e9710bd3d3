"""Tests of chuan.terminal."""
