"""The parts of the commands util.prepare_*."""
