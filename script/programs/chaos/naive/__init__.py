"""A consumer that relies on the inbox alone. The shop's own consumers would notice a repetition themselves."""
