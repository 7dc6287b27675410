"""Back ends: what a compiled model is turned into."""
