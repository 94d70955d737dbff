"""The weights that experiments start from: the parts of the command util.weights."""
