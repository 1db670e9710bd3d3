"""The published Baichuan snippet on today's transformers, running no code from a model's folder."""
