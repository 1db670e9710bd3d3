"""The chat that people type into."""
