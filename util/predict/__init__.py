"""Parts of predict.py: its pictures and supports, the formats it writes, and the review."""
