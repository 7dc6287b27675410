"""Calibration: real inputs, what they show of every channel, and the orders and splits it implies.

`data` opens calibration inputs of every kind; `sample` checks one feed against the model's
declaration; `arrays` and `text` read the files; `padding` cuts padding tokens off.
"""
