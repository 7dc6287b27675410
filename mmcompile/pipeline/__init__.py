"""The pipeline: stages of `compile_model`, one file each, joined in `compile`."""
