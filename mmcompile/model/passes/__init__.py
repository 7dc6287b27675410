"""Graph passes, one per file. A pass reads or changes a model's skeleton, never its weights."""
