"""Fewer triangles for the fast renderer: LIBERO's scenes have 300,000, most below one pixel.

Vertex clustering (Rossignac and Borrel, 1993): the vertices of a cell of space become one of them.
Those that face different ways stay apart, or thin walls would lose a side. In place, on a compiled
model: only faces change, which the physics of a mesh that touches nothing never reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

CELL_M = 0.010


def simplify_meshes(mujoco: Any, model: Any) -> None:
    """Simplifies every mesh of `model` (mujoco.MjModel) that no colliding shape uses."""
    is_mesh = model.geom_type == mujoco.mjtGeom.mjGEOM_MESH
    collides = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
    colliding = set(model.geom_dataid[is_mesh & collides].tolist())
    for mesh in range(model.nmesh):
        if mesh not in colliding:
            _simplify(model, mesh)


def _simplify(model: Any, mesh: int) -> None:
    at, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    rows = slice(at, at + count)
    faces_F3, normals_F3 = model.mesh_face[rows], model.mesh_facenormal[rows]
    vertices_V3 = _part(model.mesh_vert, model.mesh_vertadr[mesh], model.mesh_vertnum[mesh])
    facing_V3 = np.zeros_like(vertices_V3)
    all_normals = _part(model.mesh_normal, model.mesh_normaladr[mesh], model.mesh_normalnum[mesh])
    facing_V3[faces_F3.ravel()] = all_normals[normals_F3.ravel()]
    cells = np.concatenate([np.floor(vertices_V3 / CELL_M), facing_V3 > 0], axis=1)
    _, chosen, cell_of_V = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    merged_F3 = chosen[cell_of_V.ravel()][faces_F3]
    kept = _distinct(merged_F3)
    merged = slice(at, at + len(kept))
    model.mesh_face[merged] = merged_F3[kept]
    model.mesh_facenormal[merged] = normals_F3[kept]
    model.mesh_facetexcoord[merged] = model.mesh_facetexcoord[rows][kept]
    model.mesh_facenum[mesh] = len(kept)


def _part(rows: np.ndarray, at: int, count: int) -> np.ndarray:
    return rows[at : at + count]


def _distinct(faces_F3: np.ndarray) -> np.ndarray:
    """Indices of the faces that still have three corners, one of each; a back is not its front."""
    a, b, c = faces_F3.T
    corners = np.flatnonzero((a != b) & (b != c) & (a != c))
    faces = faces_F3[corners]
    first = faces.argmin(axis=1)
    turned = np.stack([faces[np.arange(len(faces)), (first + k) % 3] for k in range(3)], axis=1)
    return corners[np.sort(np.unique(turned, axis=0, return_index=True)[1])]
