"""Parts of util.app: what its page does, its layout, and its examples."""
