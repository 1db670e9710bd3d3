"""The decoder: configuration, network, attention, key/value cache. Knows no files, no tokenizer, no distribution."""
