"""Policies: from what is known of a model to a `QuantPlan`."""
