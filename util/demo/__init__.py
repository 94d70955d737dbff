"""The pictures of the demo dataset."""
