"""`mmcompile analyze`: how a model's accuracy depends on what its engineer may choose.

`run` has the order of the sections; each section is a module of its own and gives a part of
`report.analysis.Analysis`. `ground` is what all share: the model, the data, the chosen plan and
the bench that trial models run on. `figures` computes, and reads or writes nothing.
"""
