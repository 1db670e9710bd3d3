"""Messages to token ids: the Baichuan format, and the Jinja templates of other models."""
