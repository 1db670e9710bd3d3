"""From raw bilingual text to token shards: readers, rules, de-duplication, decontamination, mixture, shards."""
