"""Speed and memory of the model against the reference."""
