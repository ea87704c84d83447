"""The checks, one module a group: each declares its checks and problems, and decides.

Decisions are functions of recorded facts alone, so what only a GPU can show is tested without
one, on the facts that such a machine gave.
"""
