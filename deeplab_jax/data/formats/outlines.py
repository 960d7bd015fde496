"""The outlines of regions in a label, as polygons that people can correct in an annotation tool.

An outline follows the edges between pixels and is then simplified. A hole is joined to the outline around it by a cut
of no width, because polygons of annotation tools cannot have holes.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float, Integer

Ring = Float[np.ndarray, "_ 2"]

# Directions of edges: right, down, left, up. The region is to the right of an edge.
_INWARD = np.array([(0, 1), (-1, 0), (0, -1), (1, 0)])


def find_polygons(
    mask: Bool[np.ndarray, "height width"], *, tolerance: int | float = 1.0, inset: int | float = 0.0
) -> list[Ring]:
    """Finds the polygon of each region of a mask. Pixels that touch at a corner only are different regions.

    Args:
      mask: the pixels of a class.
      tolerance: largest distance in pixels between the outline and the simplified polygon (Douglas-Peucker); 0 keeps
        every corner.
      inset: distance in pixels by which to move the outline into the region: 0.5 for tools that paint the pixels that
        an outline is in. Regions that are so thin that nothing would be left move by half of it.

    Returns:
      For each region, the (x, y) of the vertices; pixel (0, 0) covers 0 to 1.
    """
    outer, holes = {}, {}
    for vertices, inward, region in _trace(mask):
        ring = _simplify(vertices + inset * inward, tolerance)
        if len(ring) < 3 or area(ring) * area(vertices) <= 0:  # a small region can lose its area, or turn inside out
            ring = vertices + inset / 2 * inward
        if area(vertices) < 0:
            holes.setdefault(region, []).append(ring)
        else:
            outer[region] = ring
    return [_join(ring, holes.get(region, [])) for region, ring in outer.items()]


def _trace(mask: Bool[np.ndarray, "height width"]) -> list[tuple[Ring, Ring, int]]:
    """The closed outlines of all regions and holes: vertices, directions into the region, and the region's number."""
    starts, ends, directions, pixels = _edges(mask)
    if not len(starts):
        return []
    stride = mask.shape[1] + 1
    keys = (starts[:, 1] * stride + starts[:, 0]) * 4 + directions
    order = np.argsort(keys)
    corner = (ends[:, 1] * stride + ends[:, 0]) * 4
    # Where two regions touch at a corner, turning right stays with the region.
    following = _find(keys, order, corner + (directions + 1) % 4)
    following = np.where(following < 0, _find(keys, order, corner + (directions + 3) % 4), following)
    previous = np.empty_like(following)
    previous[following] = np.arange(len(following))
    inward = (_INWARD[directions] + _INWARD[directions[previous]]).astype(np.float64)
    vertices = starts.astype(np.float64)
    _, regions = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    region_of = regions[pixels[:, 1], pixels[:, 0]]
    following, seen, rings = following.tolist(), bytearray(len(following)), []
    for first in range(len(following)):
        ring, edge = [], first
        while not seen[edge]:
            seen[edge] = 1
            ring.append(edge)
            edge = following[edge]
        if ring:
            rings.append((vertices[ring], inward[ring], int(region_of[first])))
    return rings


def _edges(mask: Bool[np.ndarray, "height width"]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The straight edges between pixels inside and outside: their two ends, their direction, and a pixel inside."""
    padded = np.pad(mask, 1)
    starts, ends, directions, pixels = [], [], [], []
    for direction in range(4):
        dx, dy = -_INWARD[direction]
        outside = padded[1 + dy : padded.shape[0] - 1 + dy, 1 + dx : padded.shape[1] - 1 + dx]
        is_edge = mask & ~outside
        across = direction % 2  # of columns
        rows = np.pad(is_edge.T if across else is_edge, ((0, 0), (1, 1)))
        line, first = np.nonzero(rows[:, 1:-1] & ~rows[:, :-2])
        _, last = np.nonzero(rows[:, 1:-1] & ~rows[:, 2:])
        level = line + (direction in (1, 2))
        begin, end = np.stack([first, level], 1), np.stack([last + 1, level], 1)
        inside = np.stack([first, line], 1)
        if direction in (2, 3):
            begin, end = end, begin
        if across:
            begin, end, inside = begin[:, ::-1], end[:, ::-1], inside[:, ::-1]
        starts.append(begin)
        ends.append(end)
        pixels.append(inside)
        directions.append(np.full(len(line), direction))
    return np.concatenate(starts), np.concatenate(ends), np.concatenate(directions), np.concatenate(pixels)


def _find(keys: Integer[np.ndarray, " n"], order: Integer[np.ndarray, " n"], wanted: Integer[np.ndarray, " m"]):
    """The position of each wanted key, -1 if there is none."""
    place = np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)
    return np.where(keys[order[place]] == wanted, order[place], -1)


def area(ring: Ring) -> float:
    """The area inside a ring; negative if it runs counterclockwise, as the outlines of holes do."""
    x, y = (ring - ring[0]).T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(np.roll(x, -1), y)) / 2


def _simplify(ring: Ring, tolerance: int | float) -> Ring:
    """Drops corners by the algorithm of Douglas and Peucker: every corner stays within `tolerance` of the polygon.

    `cv2.approxPolyDP` drops further corners in a second pass, after which the distance can be larger.
    """
    if not tolerance or len(ring) <= 3:
        return ring
    first = int(((ring - ring.mean(0)) ** 2).sum(1).argmax())
    ring = np.roll(ring, -first, axis=0)
    second = int(((ring - ring[0]) ** 2).sum(1).argmax())
    closed = np.concatenate([ring, ring[:1]])
    kept, chains = {0, second}, [(0, second), (second, len(ring))]
    while chains:
        begin, end = chains.pop()
        if end - begin < 2:
            continue
        chord = closed[end] - closed[begin]
        between = closed[begin + 1 : end] - closed[begin]
        along = np.clip(between @ chord / max(chord @ chord, 1e-9), 0, 1)
        distance = ((between - along[:, None] * chord) ** 2).sum(1)
        farthest = int(distance.argmax())
        if distance[farthest] > tolerance**2:
            middle = begin + 1 + farthest
            kept.add(middle)
            chains += [(begin, middle), (middle, end)]
    return ring[sorted(kept)]


def _join(outline: Ring, holes: list[Ring]) -> Ring:
    """Cuts the polygon from each hole to the outline, or to a hole that is joined already."""
    for hole in sorted(holes, key=lambda ring: ring[:, 0].min()):
        hole = np.roll(hole, -np.lexsort((hole[:, 1], hole[:, 0]))[0], axis=0)
        edge, meeting = _find_cut(outline, hole[0])
        outline = np.concatenate([outline[: edge + 1], meeting, hole, hole[:1], meeting, outline[edge + 1 :]])
    return outline


def _find_cut(outline: Ring, corner: Float[np.ndarray, "2"]) -> tuple[int, Float[np.ndarray, "1 2"]]:
    """Finds where a cut from the leftmost corner of a hole meets the outline: the number of the edge, and the point.

    The cut goes to the left, where no other hole is in between. If simplifying moved the corner across the outline, it
    goes to the nearest point of the outline.
    """
    left, level = corner
    following = np.roll(outline, -1, axis=0)
    crosses = np.flatnonzero((outline[:, 1] <= level) != (following[:, 1] <= level))
    begin, end = outline[crosses], following[crosses]
    x = begin[:, 0] + (level - begin[:, 1]) * (end[:, 0] - begin[:, 0]) / (end[:, 1] - begin[:, 1])
    if np.count_nonzero(x <= left) % 2:  # the corner is inside
        nearest = np.where(x <= left, left - x, np.inf).argmin()
        return int(crosses[nearest]), np.array([[x[nearest], level]])
    edges = following - outline
    squares = np.maximum((edges**2).sum(1), 1e-9)
    points = outline + np.clip(((corner - outline) * edges).sum(1) / squares, 0, 1)[:, None] * edges
    edge = int(((points - corner) ** 2).sum(1).argmin())
    return edge, points[edge : edge + 1]
