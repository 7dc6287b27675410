"""GPUs: their figures, and what a format costs on them."""
