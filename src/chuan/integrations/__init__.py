"""Chuan under other libraries' names."""
