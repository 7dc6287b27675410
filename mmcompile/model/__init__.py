"""Models: reading without weights, writing, linears and graph passes.

`source.load_model` reads one, `writer.ModelWriter` writes one.
"""
