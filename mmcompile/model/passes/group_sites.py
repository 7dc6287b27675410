"""Pass: group the linears that read the same tensor.

1. Sites with the same input tensor, K and element type form one group, in graph order: q, k and
   v, or gate and up. Their weights are stacked along N.
2. A site with a transposed input is a group of its own.
3. The group is named after its nodes: `a.q/MatMul` and `a.k/MatMul` become `a.q+k/MatMul`.
"""

from __future__ import annotations

from collections.abc import Iterable

from mmcompile.model.sites import LinearSite, SiteGroup


def group_sites(sites: Iterable[LinearSite]) -> tuple[SiteGroup, ...]:
    """The groups of all sites, ordered by their first site."""
    groups: dict[object, list[LinearSite]] = {}
    for site in sites:
        key: object = (site.input, site.in_channels, site.elem_type)
        if site.transpose_input:
            key = site.node
        groups.setdefault(key, []).append(site)
    return tuple(SiteGroup(group_name([s.node for s in g]), tuple(g)) for g in groups.values())


def group_name(nodes: list[str]) -> str:
    """The nodes' names as one: what they share at both ends, up to a separator, is written once."""
    if len(nodes) == 1:
        return nodes[0]
    start = _shared_start(nodes)
    rests = [name[start:] for name in nodes]
    end = _shared_start([rest[::-1] for rest in rests])
    middles = [rest[: len(rest) - end] for rest in rests]
    return nodes[0][:start] + "+".join(middles) + rests[0][len(rests[0]) - end :]


def _shared_start(names: list[str]) -> int:
    """Length of the common prefix that ends with a separator."""
    pairs = enumerate(zip(min(names), max(names), strict=False))
    length = next((i for i, (a, b) in pairs if a != b), len(min(names)))
    return max(names[0].rfind(mark, 0, length) for mark in "/._") + 1
