"""Policies: from what is known of a model to a `QuantPlan`.

`protocol` says what a policy is, `registry` which there are. One file has one policy: `cost`,
`micromix`, `uniform`; a package adds others by entry points of the group `mmcompile.policies`.
"""
