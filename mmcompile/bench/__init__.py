"""Speed: modelled limits of a model's linears, engines timed side by side and kernels."""
