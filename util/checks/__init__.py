"""The checks of the command util.verify."""
