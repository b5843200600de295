"""How well a model does on a split of the data."""
