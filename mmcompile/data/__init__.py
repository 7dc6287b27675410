"""Samples: inputs of a model from arrays, folders, scripts and text, cut into single feeds."""
