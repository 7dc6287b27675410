"""`mmcompile doctor`: what of the environment is here, and whether the kernels are right."""
